"""embed, score and select under torchrun: one process works and writes, and the coreset is that of a single one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prunefast import Coreset

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


@pytest.mark.slow
def test_an_error_ends_every_process(tmp_path: Path) -> None:
    done = torchrun(2, "select", tmp_path / "nothing", "--keep", 0.25)
    assert done.returncode != 0
    assert "nothing: holds no run" in done.stderr
