"""What every score asks of features and labels, checked before any work."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from prunefast.errors import InputError, InputTypeError

_ROWS = 65_536  # rows looked at together: bounds the memory of a pass over a memmap


def as_numpy(values: Any) -> np.ndarray:
    """A NumPy array over the same data; a torch tensor is detached and fetched from its device."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if values.dtype.is_floating_point and values.element_size() == 2:  # NumPy has no bfloat16
            values = values.float()
        return values.numpy()
    return np.asanyarray(values)


def check_features(features: Any) -> np.ndarray:
    """`features` as float32 or float64 [N, D], N and D at least 1, all finite; a memmap stays one."""
    array = as_numpy(features)
    if array.dtype.kind in "iub" or array.dtype == np.float16:
        array = array.astype(np.float32)
    if array.dtype not in (np.float32, np.float64):
        raise InputTypeError(f"features: must be floating point, not {array.dtype}")
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(f"features: must be [N, D] with at least one row and column, not {list(array.shape)}")
    for start in range(0, len(array), _ROWS):
        finite = np.isfinite(array[start : start + _ROWS]).all(axis=1)
        if not finite.all():
            row = start + int(finite.argmin())
            raise InputError(f"features: NaN or infinity in row {row}; embed again, or drop that image")
    return array


def check_labels(labels: Any, rows: int) -> np.ndarray | None:
    """`labels` as int64 [rows], none negative; None stays None."""
    if labels is None:
        return None
    array = as_numpy(labels)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputTypeError(f"labels: must be a list of integers, not {array.dtype} of shape {list(array.shape)}")
    if len(array) != rows:
        raise InputError(f"labels: {len(array)} of them for {rows} images")
    if len(array) and array.min() < 0:
        raise InputError(f"labels: {array.min()} is negative; classes are numbered from 0")
    return array.astype(np.int64)


def classes_of(labels: np.ndarray | None, rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """(class, positions of its images) for every class that has images; one class of everything without labels."""
    if labels is None:
        yield 0, np.arange(rows)
        return
    order = np.argsort(labels, kind="stable")
    names, starts = np.unique(labels[order], return_index=True)
    for name, positions in zip(names, np.split(order, starts[1:]), strict=True):
        yield int(name), positions


def distances(features: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Euclidean distance float64 of every row to `centre`: one point [D], or one for each row [N, D]."""
    result = np.empty(len(features))
    for start in range(0, len(features), 4096):
        rows = slice(start, start + 4096)
        point = centre if centre.ndim == 1 else centre[rows]
        difference = features[rows].astype(np.float64) - point
        result[rows] = np.sqrt(np.einsum("nd,nd->n", difference, difference))
    return result
