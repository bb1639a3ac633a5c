"""What may be evaluated and against what: arrays, data sets and folders, brought to the reference's image size."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prunefast.data import ImageDataset, from_arrays, open_dataset
from prunefast.errors import InputError, InputTypeError
from prunefast.evaluate.features import seeded_subset
from prunefast.files import folder_names, read_json

SAMPLING_FILE = "samples.json"  # written by prunefast.sample beside its images


class Subset:
    """Some images of a data set, as far as `embed` looks at one."""

    def __init__(self, data: ImageDataset, chosen: NDArray[np.int64]):
        self.data, self.chosen = data, chosen
        self.image_size = data.image_size
        self.keys = [data.keys[i] for i in chosen.tolist()]

    def __len__(self) -> int:
        return len(self.chosen)

    def images(self, indices: Any) -> NDArray[np.uint8]:
        return self.data.images(self.chosen[np.asarray(indices)])

    def batches(
        self, indices: Any = None, batch_size: int = 256, threads: int | None = None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        rows = np.arange(len(self)) if indices is None else np.asarray(indices)
        done = 0
        for _, images in self.data.batches(self.chosen[rows], batch_size, threads):
            yield rows[done : done + len(images)], images
            done += len(images)


def open_reference(reference: Any, image_size: int | None, name: str = "reference") -> ImageDataset:
    """An ImageDataset as it is, a path opened (its train split where it has splits); with one square image size."""
    data = _open(name, reference, split=None)
    if image_size is not None:
        data = data.with_image_size(image_size)
    if data.image_size is None:
        raise InputError(f"{name}: {data.path}: its images differ in size; give image_size=R to compare R x R squares")
    if len(data) < 2:
        raise InputError(f"{name}: {len(data)} image(s); at least 2 are needed")
    return data


def open_samples(samples: Any, image_size: int) -> tuple[ImageDataset, str | None]:
    """The samples as image_size squares, and a word on how they were resized (None: they were not)."""
    data = _open("samples", samples, split="all")
    if len(data) < 2:
        raise InputError(f"samples: {len(data)} image(s); at least 2 are needed, and thousands to mean something")
    sizes = np.unique(np.stack([data.widths, data.heights]), axis=1)
    if sizes.shape[1] == 1 and (sizes == image_size).all():
        return data.with_image_size(image_size), None
    first, last = sizes[:, 0], sizes[:, -1]
    stored = f"{first[0]} x {first[1]}" + ("" if sizes.shape[1] == 1 else f" to {last[0]} x {last[1]}")
    word = f"samples from {stored} to the reference's {image_size} x {image_size}"
    return data.with_image_size(image_size), word


def sampling_protocol(samples: Any, count: int) -> dict[str, Any] | None:
    """How the samples were made, when they are a folder of `prunefast.sample`; InputError while it is not finished."""
    if isinstance(samples, ImageDataset):
        samples = samples.path
    if not isinstance(samples, str | os.PathLike) or not os.fspath(samples):
        return None
    path = Path(samples) / SAMPLING_FILE
    if not path.is_file():
        return None
    record = read_json(path)
    protocol = record.get("protocol") if isinstance(record, dict) else None
    if not isinstance(protocol, dict):
        return None
    if record.get("finished") is False:
        raise InputError(
            f"{path.parent}: sampling was not finished ({count:,} of {protocol.get('n')} images); "
            "run the same prunefast sample again, which makes the missing ones"
        )
    return protocol


def choose(data: ImageDataset, n: int | None, seed: int) -> NDArray[np.int64]:
    """int64: which of the samples are evaluated; a seeded draw, because the first n of a folder are of one class."""
    if n is None:
        return np.arange(len(data), dtype=np.int64)
    if isinstance(n, bool) or not isinstance(n, int | np.integer):
        raise InputTypeError(f"n: {n!r} is no number of images")
    if not 2 <= n <= len(data):
        raise InputError(f"n: {n} is not between 2 and the {len(data):,} samples that are there")
    return seeded_subset(len(data), int(n), seed, purpose=0)


def class_counts(data: ImageDataset, chosen: NDArray[np.int64], reference: ImageDataset) -> dict[str, int] | None:
    """Class name -> number of the chosen samples; None for samples without classes.

    Classes of the reference that no sample has are there with 0.
    """
    if data.labels is None or not data.classes:
        return None
    counts = np.bincount(np.asarray(data.labels)[chosen], minlength=len(data.classes))
    # folders of samples are named after classes, as far as a folder may have that name
    class_of = dict(zip(folder_names(reference.classes, taken=[SAMPLING_FILE]), reference.classes, strict=True))
    found = {class_of.get(name, name): int(count) for name, count in zip(data.classes, counts, strict=True)}
    return found | {name: 0 for name in reference.classes if name not in found}


def _open(name: str, source: Any, split: str | None) -> ImageDataset:
    if isinstance(source, ImageDataset):
        return source
    if isinstance(source, torch.Tensor):
        source = source.detach().cpu().numpy()
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8:
            raise InputTypeError(f"{name}: images of {source.dtype}; give uint8 [N, H, W, 3] (0..255)")
        return from_arrays(source)
    if isinstance(source, str | os.PathLike):
        return open_dataset(source, split=split)
    raise InputTypeError(f"{name}: {type(source).__name__}; give a path, an ImageDataset or uint8 images [N, H, W, 3]")
