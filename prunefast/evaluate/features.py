"""What every metric asks of its features: finite float rows of one width."""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from prunefast.errors import InputError, InputTypeError


def as_features(name: str, features: ArrayLike | torch.Tensor, *, at_least: int = 2) -> NDArray[np.floating]:
    """`features` as a finite float array [N, D] with N >= `at_least`; a memmap stays one.

    Raises InputTypeError for what is no float array, InputError for a wrong shape, too few rows, NaN or infinity.
    """
    if isinstance(features, torch.Tensor):
        features = features.detach().cpu().numpy()
    array = np.asanyarray(features)
    if array.dtype.kind in "iu":
        array = array.astype(np.float64)
    if array.dtype.kind != "f":
        raise InputTypeError(f"{name}: dtype {array.dtype} is no number; give float features [N, D]")
    if array.ndim != 2 or array.shape[1] == 0:
        raise InputError(f"{name}: shape {array.shape} is not [N, D]; give one row of features per image")
    if len(array) < at_least:
        raise InputError(f"{name}: {len(array)} image(s); at least {at_least} are needed")
    for start in range(0, len(array), 65536):
        finite = np.isfinite(array[start : start + 65536]).all(axis=1)
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise InputError(f"{name}: row {row} has NaN or infinity; find out what the encoder made of that image")
    return array


def as_feature_pair(
    samples: ArrayLike | torch.Tensor, reference: ArrayLike | torch.Tensor, *, at_least: int = 2
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Both sets checked by `as_features`, with the same number of columns."""
    x = as_features("samples", samples, at_least=at_least)
    y = as_features("reference", reference, at_least=at_least)
    if x.shape[1] != y.shape[1]:
        raise InputError(
            f"samples: {x.shape[1]} features, but the reference has {y.shape[1]}; encode both with the same encoder"
        )
    return x, y


def seeded_subset(count: int, size: int, seed: int, purpose: int) -> NDArray[np.int64]:
    """`size` of the numbers 0..count-1, sorted: the same for the same (seed, purpose), all of them if size >= count.

    `purpose` separates draws that must not depend on each other.
    """
    if size >= count:
        return np.arange(count, dtype=np.int64)
    generator = np.random.Generator(np.random.Philox(key=[seed, purpose]))
    return np.sort(generator.choice(count, size=size, replace=False)).astype(np.int64)
