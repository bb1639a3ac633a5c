"""Images by index, from where they already lie: folders, tars, zips, CIFAR batches and arrays."""

from prunefast.data.dataset import ImageDataset, from_arrays
from prunefast.data.open import open_dataset, open_run_dataset

__all__ = ["ImageDataset", "from_arrays", "open_dataset", "open_run_dataset"]
