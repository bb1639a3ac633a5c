"""Fixtures that every test folder shares."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from prunefast.waiting import wait_briefly

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # several test processes share the cores
wait_briefly()  # before the first test imports torch: the suite runs on shared machines too


def _hide_broken_torchvision() -> None:
    """transformers and diffusers look for torchvision when they are first imported; one that does not match torch makes
    their import fail, and none at all does not."""
    try:
        import torchvision  # noqa: F401
    except ModuleNotFoundError:
        pass
    except Exception:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.modules["torchvision"] = None  # type: ignore[assignment]


_hide_broken_torchvision()

# The real data lies beside the checkout (or where PRUNEFAST_TEST_DATA says); it is not part of the repository.
DATA_FOLDER = Path(os.environ.get("PRUNEFAST_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


def _shared_file(name: str) -> Path:
    path = DATA_FOLDER / name
    if not path.is_file():
        pytest.skip(f"{name} is not at {DATA_FOLDER} (set PRUNEFAST_TEST_DATA)")
    return path


@pytest.fixture(scope="session")
def cifar_archive() -> Path:
    """60,000 CIFAR-10 images as JPEG, train/CLASS/NNNN.jpg and test/CLASS/NNNN.jpg, in a tar.xz."""
    return _shared_file("cifar10-images.tar.xz")


@pytest.fixture(scope="session")
def resnet20_weights() -> Path:
    """A CIFAR-10 ResNet-20 (option-A shortcuts, BatchNorm), 64 features before its linear layer."""
    return _shared_file("cifar_resnet20.safetensors")


@pytest.fixture
def far(tmp_path: Path) -> Callable[[Any], Any]:
    """Lays a tensor [3, ...] out with its samples 2^30 elements apart, so that the last lies past 2^31: in a sparse
    file, where only the pages that an operator touches take memory."""
    import numpy as np
    import torch

    step = (1 << 30) + 8

    def lay(values: torch.Tensor) -> torch.Tensor:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.bin"
        size = (2 * step + values[0].numel()) * values.element_size()
        flat = torch.from_numpy(np.memmap(path, dtype=np.uint8, mode="w+", shape=size)).view(values.dtype)
        apart = flat.as_strided(values.shape, (step, *values.stride()[1:]))
        assert apart[2].storage_offset() > 1 << 31
        return apart.copy_(values)

    return lay


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches of tests never touch the user's; one cache a session, so that the archive is expanded once."""
    cache = tmp_path_factory.getbasetemp() / "prunefast-cache"
    monkeypatch.setenv("PRUNEFAST_CACHE", str(cache))


@pytest.fixture(scope="session")
def diffusers() -> ModuleType:
    """The peer that is an oracle of networks and schedules."""
    return pytest.importorskip("diffusers")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def run_ranks() -> Callable[..., list[Any]]:
    """run_ranks(script, size, *arguments, **environment): the Python text `script` in `size` processes, with the
    environment of torchrun; the JSON that each rank prints last, in the order of ranks."""

    def run(script: str, size: int, *arguments: object, timeout: float = 180, **environment: str) -> list[Any]:
        world = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        ranks = []
        for rank in range(size):
            settings = {**os.environ, **world, "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank)}
            command = [sys.executable, "-c", script, *map(str, arguments)]
            pipe = subprocess.PIPE
            settings.update(environment)
            ranks.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=settings))
        try:
            outputs = [rank.communicate(timeout=timeout) for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
        failed = [error[-2000:] for rank, (_, error) in zip(ranks, outputs, strict=True) if rank.returncode]
        assert not failed, failed[0]
        return [json.loads(output.splitlines()[-1]) for output, _ in outputs]

    return run
