"""Fixtures that every test folder shares."""

import os
from pathlib import Path

import pytest

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


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches of tests never touch the user's; one cache a session, so that the archive is expanded once."""
    cache = tmp_path_factory.getbasetemp() / "prunefast-cache"
    monkeypatch.setenv("PRUNEFAST_CACHE", str(cache))
