"""Wheels that came along, the package without network and without isolation, import, doctor."""

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu.job import ROOT, Job, Skip, Unit

ORDER, LIMIT = 10, 150  # the aim is 90 s; what is over it is a finding, not a reason to stop

# What prunefast imports and the machine's own list does not promise: without them the import fails, or reads images
# slower. wheels.py downloads them.
NEEDED = ("tomli_w", "jinja2", "tqdm", "simplejpeg")
TOOLS = ("nvcc", "g++", "cmake", "ninja", "compute-sanitizer", "cuobjdump", "nvidia-smi")


def units(job: Job) -> list[Unit]:
    return [Unit("wheels", 5), Unit("package", 60), Unit("import", 5), Unit("doctor", 5), Unit("tools", 2)]


def run(job: Job, name: str) -> Iterator[dict[str, Any]]:
    yield from {"wheels": wheels, "package": package, "import": imports, "doctor": doctor, "tools": tools}[name](job)


def pip(job: Job, *arguments: str) -> float:
    """Into the job's own folder, nothing from anywhere else; seconds."""
    started = time.monotonic()
    flags = ["--no-index", "--no-deps", "--no-cache-dir", "--disable-pip-version-check", "--upgrade"]
    command = [sys.executable, "-m", "pip", "install", "-q", *flags, "--target", str(job.site), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stdout, done.stderr, flush=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or done.stderr.splitlines()
        raise RuntimeError(f"pip: {lines[-1] if lines else 'no text'}")
    return time.monotonic() - started


def wheels(job: Job) -> Iterator[dict[str, Any]]:
    if job.wheels is None:
        raise Skip("no --wheels were given")
    found = sorted(Path(job.wheels).glob("*.whl"))
    if not found:
        raise Skip(f"{job.wheels} has no whole wheel")
    seconds = pip(job, *map(str, found))
    yield {"seconds": seconds, "wheels": [path.name for path in found]}


def package(job: Job) -> Iterator[dict[str, Any]]:
    """CUDA C++ for the GPU that is here only: a third of the time of all architectures."""
    options = [f"-Cbuild-dir={job.folder('build')}", "-Ccmake.build-type=Release"]
    architectures = None
    if job.rehearse:
        options.append("-Ccmake.define.PRUNEFAST_CUDA=OFF")
    else:
        architectures = capability()
        options += ["-Ccmake.define.PRUNEFAST_CUDA=ON"]
        options += [f"-Ccmake.define.PRUNEFAST_CUDA_ARCHITECTURES={architectures}"]
    os.environ.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count()))
    source = copy_of_sources(job)
    seconds = pip(job, "--no-build-isolation", *options, str(source))
    size = sum(path.stat().st_size for path in (job.site / "prunefast").rglob("*.so"))
    yield {"seconds": seconds, "native_mb": size / 1e6, "architectures": architectures, "aim_seconds": 90}


def capability() -> str:
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0].strip().replace(".", "")


def copy_of_sources(job: Job) -> Path:
    """What the package is built from, elsewhere: nothing is written into the tree."""
    target = job.folder() / "source"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for name in ("csrc", "kernels", "prunefast"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, target / name, ignore=ignored)
    for name in ("CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, target / name)
    return target


def imports(job: Job) -> Iterator[dict[str, Any]]:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    started = time.monotonic()
    import prunefast
    from prunefast import ops, train  # noqa: F401

    where = Path(prunefast.__file__)
    inside = where.is_relative_to(job.site)
    yield {
        "status": "ok" if inside else "bad",
        "seconds": time.monotonic() - started,
        "version": prunefast.__version__,
        "from_this_build": inside,
        "missing": missing,
    }


def doctor(job: Job) -> Iterator[dict[str, Any]]:
    from prunefast import ops

    for name, backend in ops.backends().items():
        wanted = name == "cpu" or not job.rehearse
        yield {"status": "ok" if backend["live"] or not wanted else "bad", "backend": name, "detail": backend["detail"]}


def tools(job: Job) -> Iterator[dict[str, Any]]:
    yield {
        "found": [tool for tool in TOOLS if shutil.which(tool)],
        "missing": [t for t in TOOLS if not shutil.which(t)],
    }


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    lines = [["build", "", ""]]
    for row in rows:
        if row["unit"] == "package":
            lines.append(["package", f"{row['seconds']:.0f} s", f"sm {row['architectures'] or '-'}"])
        elif row["unit"] == "doctor":
            lines.append([row["backend"], "live" if row["status"] == "ok" else "OFF", row["detail"][:90]])
        elif row["unit"] in ("tools", "import"):
            lines.append([row["unit"], row["status"], f"missing: {', '.join(row['missing']) or 'nothing'}"])
    return lines
