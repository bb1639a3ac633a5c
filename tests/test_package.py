"""The package as a whole: what it exports, what its import costs, and how it fails where it was not built."""

import os
import subprocess
import sys
from pathlib import Path

import prunefast
from prunefast import waiting

HEAVY = ["sklearn", "transformers", "diffusers", "timm", "torchvision", "triton", "scipy", "pandas", "matplotlib"]


def python(code: str, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments, "-c", code], capture_output=True, text=True, timeout=120, **options
    )


def test_all_names_exist() -> None:
    for name in prunefast.__all__:
        assert getattr(prunefast, name) is not None
    assert set(prunefast._EXPORTS) | set(prunefast._SUBMODULES) | {"__version__"} == set(prunefast.__all__)
    assert set(dir(prunefast)) == set(prunefast.__all__)


def test_functions_are_not_hidden_by_their_sub_packages(tmp_path: Path) -> None:
    # the import system binds prunefast.score, the sub-package, over prunefast.score, the function
    code = (
        "import prunefast as pf\n"
        "import prunefast.score.table, prunefast.select.coreset, prunefast.train.config\n"
        "import prunefast.evaluate, prunefast.report\n"
        "pf.Coreset, pf.TrainConfig\n"
        "print([callable(getattr(pf, name)) for name in ('score', 'select', 'train', 'evaluate', 'report')])"
    )
    result = python(code, cwd=tmp_path)
    assert result.stdout.strip() == str([True] * 5), result.stderr


def test_import_pulls_in_no_optional_package(tmp_path: Path) -> None:
    code = (
        "import sys, torch; before = set(sys.modules)\n"
        "import prunefast as pf\n"
        "pf.open_dataset, pf.embed, pf.select, pf.CoresetLoader, pf.DenoisingLoss, pf.train, pf.evaluate, pf.report\n"
        f"print([name for name in {HEAVY} if name in set(sys.modules) - before])"
    )
    result = python(code, cwd=tmp_path)
    assert result.stdout.strip() == "[]", result.stderr


def test_import_alone_leaves_torch_out(tmp_path: Path) -> None:
    result = python("import sys, prunefast, prunefast.cli; print('torch' in sys.modules)", cwd=tmp_path)
    assert result.stdout.strip() == "False", result.stderr


def test_a_source_tree_without_its_native_module_says_so(tmp_path: Path) -> None:
    source = Path(prunefast.__file__).read_text()
    (tmp_path / "prunefast").mkdir()
    (tmp_path / "prunefast" / "__init__.py").write_text(source)
    (tmp_path / "prunefast" / "waiting.py").write_text(Path(waiting.__file__).read_text())
    # -S: no site-packages, so that nothing but the copy can be found
    result = python("import prunefast", "-S", cwd=tmp_path)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: prunefast's native module is missing")
    assert "pip install" in last


def test_where_the_system_has_no_openmp_torch_brings_it(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "class NoLibgomp:\n"
        "    def find_spec(name, *_):\n"
        "        if name == 'prunefast._native' and 'torch' not in sys.modules:\n"
        "            raise ImportError('libgomp.so.1: cannot open shared object file: No such file or directory')\n"
        "sys.meta_path.insert(0, NoLibgomp)\n"
        "import prunefast; print(prunefast._native.has_openmp())"
    )
    result = python(code, cwd=tmp_path)
    assert result.stdout.strip() == "True", result.stderr


def test_one_openmp_in_the_process(tmp_path: Path) -> None:
    """Two would each keep threads that spin while those of the other work."""
    for first, second in (("torch", "prunefast"), ("prunefast", "torch")):
        code = (
            f"import {first}, {second}\n"
            "paths = {line.split()[-1] for line in open('/proc/self/maps') if 'libgomp' in line}\n"
            "print(len(paths), *paths)"
        )
        result = python(code, cwd=tmp_path)
        assert result.stdout.split()[0] in ("0", "1"), result.stdout  # none: another compiler's


def test_import_leaves_the_environment_alone(tmp_path: Path) -> None:
    code = "import os; before = dict(os.environ); import prunefast; print(dict(os.environ) == before)"
    assert python(code, cwd=tmp_path).stdout.strip() == "True"


def test_commands_let_threads_wait_briefly_unless_told_otherwise(tmp_path: Path) -> None:
    code = (
        "import os, prunefast.cli; prunefast.cli.main(['report', '--quiet', 'nowhere'])\n"
        "print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'))"
    )
    plain = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    for told, expected in (
        ({}, "1000 None"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "None ACTIVE"),
        ({"GOMP_SPINCOUNT": "5"}, "5 None"),
    ):
        assert python(code, cwd=tmp_path, env=plain | told).stdout.strip() == expected
