"""embed, score and select under torchrun: one process works and writes, and the coreset is that of a single one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from prunefast import Coreset


def torchrun(processes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "prunefast", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)


def chain(folder: Path, images: Path, processes: int) -> Path:
    """The features, a score and a coreset of `images`, by that many processes."""
    steps = [
        ("embed", images, "-o", folder, "--quiet"),
        ("select", folder, "--method", "d2", "--score", "knn", "--keep", 0.25),
    ]
    for step in steps:
        done = torchrun(processes, *step)
        assert done.returncode == 0, done.stderr
    assert done.stdout.count("24 of 96 images kept") == 1  # one of them speaks
    return folder


@pytest.mark.slow
def test_two_processes_give_the_coreset_of_one(images: Path, tmp_path: Path) -> None:
    one, two = (chain(tmp_path / str(processes), images, processes) for processes in (1, 2))
    first, second = Coreset.load(one / "coreset.parquet"), Coreset.load(two / "coreset.parquet")
    assert first.fingerprint == second.fingerprint
    for name in ("coreset.parquet", "scores.parquet", "features.npy", "knn.npz"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


@pytest.mark.slow
def test_an_error_ends_every_process(tmp_path: Path) -> None:
    done = torchrun(2, "select", tmp_path / "nothing", "--keep", 0.25)
    assert done.returncode != 0
    assert "nothing: holds no run" in done.stderr
