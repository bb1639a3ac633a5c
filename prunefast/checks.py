"""What every score, graph and selection asks of features, labels and seeds, checked before any work."""

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
    return array.astype(np.int64, copy=False)


def check_seed(seed: Any) -> int:
    """A seed is a whole number from 0 to 2^64-1, the range of a Philox key."""
    try:
        number = int(seed)
    except (TypeError, ValueError):
        raise InputError(f"seed: must be a whole number, not {seed!r}") from None
    if number != seed or isinstance(seed, bool) or not 0 <= number < 2**64:
        raise InputError(f"seed: must be a whole number from 0 to 2^64-1, not {seed!r}")
    return number
