"""Images by index, from where they already lie: folders, tars, zips, CIFAR batches and arrays.

Imported when they are used: the processes that decode (`prunefast.data.processes`) need little of it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunefast.data.dataset import ImageDataset, from_arrays
    from prunefast.data.open import open_dataset, open_run_dataset

__all__ = ["ImageDataset", "from_arrays", "open_dataset", "open_run_dataset"]


def __getattr__(name: str) -> Any:
    if name in ("ImageDataset", "from_arrays"):
        from prunefast.data import dataset

        return getattr(dataset, name)
    if name in ("open_dataset", "open_run_dataset"):
        from prunefast.data import open

        return getattr(open, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
