"""prunefast: data-efficient training of diffusion models.

Score a data set with a surrogate encoder, keep the coreset worth training on, and train a UNet or DiT on exactly those
images, streamed by index from where they lie.

    import prunefast as pf

    data = pf.open_dataset("cifar10/train")
    features = pf.embed(data, encoder="pixels")
    scores = pf.score(features, data.labels, method="gaussian", per_class=True)
    coreset = pf.select(data, scores=scores, keep=0.3, per_class=True)
    loader = pf.CoresetLoader(data, coreset, batch_size=128)

Names are imported when they are first used, so that ``import prunefast`` costs no more than its native module.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from prunefast.waiting import waiting_briefly

try:
    with waiting_briefly():
        try:
            from prunefast import _native  # type: ignore[attr-defined]  # compiled
        except ImportError as error:
            # Wheels share torch's OpenMP and bring none: where the system has no libgomp.so.1, torch comes first.
            if "libgomp" not in str(error):
                raise
            import torch  # noqa: F401

            from prunefast import _native  # type: ignore[attr-defined]
except ImportError as error:
    raise ImportError(
        "prunefast's native module is missing: this is a source tree that was not built. "
        "Install it (pip install -e .) or leave the source folder so that the installed package is imported. "
        f"[{error}]"
    ) from None

__version__ = "0.1.0"

_ABI = 3
if _native.abi_version() != _ABI:
    raise ImportError(
        f"prunefast's native module has interface {_native.abi_version()}, the Python code expects {_ABI}: "
        "an old build is in the way; run pip install again."
    )

# public name -> module that defines it
_EXPORTS = {
    "open_dataset": "prunefast.data",
    "embed": "prunefast.encode",
    "score": "prunefast.score",
    "select": "prunefast.select",
    "deduplicate": "prunefast.dedup",
    "Deduplication": "prunefast.dedup",
    "export": "prunefast.export",
    "Coreset": "prunefast.select",
    "reweight": "prunefast.reweight",
    "ClassWeights": "prunefast.reweight",
    "CoresetLoader": "prunefast.stream",
    "CoresetSampler": "prunefast.stream",
    "Batch": "prunefast.stream",
    "DenoisingLoss": "prunefast.diffusion",
    "TrainConfig": "prunefast.train",
    "train": "prunefast.train",
    "sample": "prunefast.train",
    "choose_ema": "prunefast.train",
    "export_model": "prunefast.train",
    "import_model": "prunefast.train",
    "tdc": "prunefast.tdc",
    "TDCOptions": "prunefast.tdc",
    "evaluate": "prunefast.evaluate",
    "report": "prunefast.report",
    "PrunefastError": "prunefast.errors",
    "InputError": "prunefast.errors",
}

_SUBMODULES = ("data", "diffusion", "models", "ops")

__all__ = [
    "Batch",
    "ClassWeights",
    "Coreset",
    "CoresetLoader",
    "CoresetSampler",
    "Deduplication",
    "DenoisingLoss",
    "InputError",
    "PrunefastError",
    "TDCOptions",
    "TrainConfig",
    "__version__",
    "choose_ema",
    "data",
    "deduplicate",
    "diffusion",
    "embed",
    "evaluate",
    "export",
    "export_model",
    "import_model",
    "models",
    "open_dataset",
    "ops",
    "report",
    "reweight",
    "sample",
    "score",
    "select",
    "tdc",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(importlib.import_module(_EXPORTS[name]), name)
        globals()[name] = value
        return value
    if name in _SUBMODULES:
        return importlib.import_module(f"prunefast.{name}")
    raise AttributeError(f"module 'prunefast' has no attribute {name!r}")


class _Package(ModuleType):
    """`prunefast.score` is the function, whoever imported the sub-package of that name before.

    The import system binds every sub-package to its parent's attribute of the same name; for `score`, `select`,
    `train`, `tdc`, `evaluate`, `report` and `reweight` that would hide the function.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _EXPORTS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from prunefast import data, diffusion, models, ops
    from prunefast.data import open_dataset
    from prunefast.dedup import Deduplication, deduplicate  # type: ignore[no-redef]
    from prunefast.diffusion import DenoisingLoss
    from prunefast.encode import embed  # type: ignore[no-redef]  # mypy takes the module of that name first
    from prunefast.errors import InputError, PrunefastError
    from prunefast.evaluate import evaluate  # type: ignore[no-redef]
    from prunefast.export import export  # type: ignore[no-redef]
    from prunefast.report import report
    from prunefast.reweight import ClassWeights, reweight  # type: ignore[no-redef]
    from prunefast.score import score
    from prunefast.select import Coreset, select
    from prunefast.stream import Batch, CoresetLoader, CoresetSampler
    from prunefast.tdc import TDCOptions, tdc  # type: ignore[no-redef]
    from prunefast.train import (  # type: ignore[no-redef]
        TrainConfig,
        choose_ema,
        export_model,
        import_model,
        sample,
        train,
    )
