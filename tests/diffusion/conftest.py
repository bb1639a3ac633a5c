import sys
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def diffusers() -> ModuleType:
    """The peer that is the oracle here. It looks for torchvision when it is first imported; one that does not match
    torch raises later, so it is hidden when it does."""
    with pytest.MonkeyPatch.context() as patch:
        try:
            import torchvision  # noqa: F401
        except Exception:
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                patch.delitem(sys.modules, name)
            patch.setitem(sys.modules, "torchvision", None)
        module = pytest.importorskip("diffusers")
        try:
            _ = module.DDIMScheduler, module.DDPMScheduler
        except Exception as error:  # another test imported transformers before torchvision was hidden
            pytest.skip(f"diffusers does not import here: {str(error).splitlines()[0]}")
    return module
