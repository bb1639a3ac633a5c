"""Fixtures that every test folder shares."""

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from prunefast.waiting import wait_asleep

wait_asleep()  # before the first test imports torch: the suite runs on shared machines too

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


@pytest.fixture(scope="session")
def diffusers() -> ModuleType:
    """The peer that is an oracle of networks and schedules.

    It looks for torchvision when it is first imported; one that does not match torch raises, so it is hidden then.
    """
    with pytest.MonkeyPatch.context() as patch:
        try:
            import torchvision  # noqa: F401
        except Exception:
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                patch.delitem(sys.modules, name)
            patch.setitem(sys.modules, "torchvision", None)
        module = pytest.importorskip("diffusers")
        try:
            _ = module.UNet2DModel, module.DiTTransformer2DModel, module.DDIMScheduler, module.DDPMScheduler
        except Exception as error:  # another test imported transformers before torchvision was hidden
            pytest.skip(f"diffusers does not import here: {str(error).splitlines()[0]}")
    return module
