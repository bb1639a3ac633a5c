"""embed, score, dedup and select under torchrun: one process leads and writes, the others help it, and every file is
that of a single one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from prunefast import Coreset, TrainConfig, train
from prunefast.data import open_dataset
from prunefast.encode.resnet20 import ResNet20

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def call(*command: object) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, *map(str, command)]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=300, env=ENVIRONMENT, check=False)


def torchrun(processes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "prunefast")
    return call(*launcher, *arguments)


def steps(folder: Path, images: Path) -> list[tuple[object, ...]]:
    """The features, a score and a coreset of `images`."""
    return [
        ("embed", images, "-o", folder, "--quiet"),
        ("select", folder, "--method", "d2", "--score", "knn", "--keep", 0.25),
    ]


# Both steps in one process, without a launcher: an import of torch takes longer than either.
ALONE = """
import json, sys
from prunefast.cli import main
for step in json.loads(sys.argv[1]):
    assert main(step) == 0
"""


@pytest.mark.slow
def test_two_processes_give_the_coreset_of_one(images: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    alone = call("-c", ALONE, json.dumps([[str(part) for part in step] for step in steps(one, images)]))
    assert alone.returncode == 0, alone.stderr
    for step in steps(two, images):
        done = torchrun(2, *step)
        assert done.returncode == 0, done.stderr
    assert done.stdout.count("24 of 96 images kept") == 1  # one of them speaks
    first, second = Coreset.load(one / "coreset.parquet"), Coreset.load(two / "coreset.parquet")
    assert first.fingerprint == second.fingerprint
    for name in ("coreset.parquet", "scores.parquet", "features.npy", "knn.npz"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


EVERYTHING = """
import json, sys
from prunefast.cli import main
print(json.dumps([main(arguments) for arguments in json.loads(sys.argv[1])]))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(70 images of 8 x 8, some of them alike; a run trained on them), both small."""
    folder = tmp_path_factory.mktemp("trained")
    pixels = np.random.Generator(np.random.Philox(key=1)).integers(0, 256, (70, 8, 8, 3), dtype=np.uint8)
    pixels[60:] = pixels[:10]
    pixels[65:, 0, 0] ^= 1
    np.savez(folder / "images.npz", images=pixels, labels=np.arange(70) % 3)
    network = {"width": 8, "channel_multipliers": [1, 2], "blocks": 1, "attention_levels": [1]}
    options = {"model": "unet-tiny", "model_options": network, "process": "flow", "device": "cpu", "precision": "fp32"}
    config = TrainConfig(out=str(folder / "full"), images=32, batch_size=16, **options)
    train(config, open_dataset(folder / "images.npz"))
    save_file(ResNet20().state_dict(), folder / "resnet.safetensors")
    return folder / "images.npz", folder / "full"


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_every_step_in_several_processes(trained, run_ranks, tmp_path: Path, size: int) -> None:
    """Features, graphs, surrogate scores and hashes are shared by the ranks, with a part of a batch and of a block
    each."""
    images, full = trained
    files: list[dict[str, bytes]] = []
    for processes in (1, size):
        run = tmp_path / str(processes)
        resnet = f"resnet20-cifar:{images.parent / 'resnet.safetensors'}"
        steps = [["embed", images, "-o", run], ["embed", images, "-o", run / "net"]]
        steps[1] += ["--encoder", resnet, "--batch-size", 16]
        steps.append(["score", run / "net", "--method", "density", "--option", "graph_method=ivf"])
        for method in ("loss", "forgetting", "grand", "moso"):
            given = ["--checkpoint", full] if method != "forgetting" else ["--checkpoint", full, "--checkpoint", full]
            steps.append(["score", run, "--method", method, *given, "--option", "times=2", "--device", "cpu"])
        steps += [
            ["score", run, "--method", "gaussian"],
            ["dedup", run, "--level", "perceptual", "--threshold", 2],
            ["select", run, "--method", "interval", "--score", "moso", "--keep", 0.25, "--dedup"],
            ["select", run, "--method", "clusters", "--keep", 0.25, "-o", run / "clusters.parquet"],
            ["select", run, "--method", "stratified", "--score", "loss", "--keep", 0.25, "-o", run / "strata.parquet"],
            ["dedup", run, "--level", "exact"],
            ["select", run, "--method", "d2", "--score", "knn", "--keep", 0.25, "-o", run / "d2.parquet"],
            ["export", run, "--to", "npy", "-o", run / "out"],
        ]
        words = json.dumps([[str(word) for word in step] for step in steps])
        assert run_ranks(EVERYTHING, processes, words) == [[0] * len(steps)] * processes
        names = [p.relative_to(run) for p in run.rglob("*") if p.suffix in (".parquet", ".npy", ".npz")]
        files.append({str(name): (run / name).read_bytes() for name in names})
    assert len(files[0]) > 8
    assert files[0].keys() == files[1].keys()
    for name, content in files[0].items():
        if name != "items.parquet":  # says when the file was looked at
            assert content == files[1][name], name


@pytest.mark.slow
def test_an_image_that_cannot_be_read_ends_every_process(run_ranks, tmp_path: Path) -> None:
    """Rank 1 meets it while rank 0 and 2 have theirs: one line, and nobody waits."""
    from PIL import Image

    for number in range(9):
        Image.new("RGB", (16, 16), (20 * number, 0, 0)).save(tmp_path / f"{number}.png")
    run = tmp_path / "run"
    main = "from prunefast.cli import main; "
    start = main + "import json; print(json.dumps(main(['embed', 'DATA', '-o', 'RUN', '--image-size', '16'])))"
    assert run_ranks(start.replace("DATA", str(tmp_path)).replace("RUN", str(run)), 1) == [0]
    (tmp_path / "4.png").write_bytes((tmp_path / "4.png").read_bytes()[:-30])
    dedup = main + "import json; print(json.dumps(main(['dedup', 'RUN', '--level', 'perceptual'])))"
    assert run_ranks(dedup.replace("RUN", str(run)), 3) == [2, 2, 2]
    assert not (run / "groups.parquet").exists()


@pytest.mark.slow
def test_an_error_ends_every_process(tmp_path: Path) -> None:
    done = torchrun(2, "select", tmp_path / "nothing", "--keep", 0.25)
    assert done.returncode != 0
    assert "nothing: holds no run" in done.stderr
