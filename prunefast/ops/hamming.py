"""All pairs of binary hashes within a number of bits."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from prunefast import _native
from prunefast.errors import InputError, InputTypeError
from prunefast.ops.arrays import check_integer
from prunefast.ops.native import threads

MAX_PAIRS = 100_000_000  # 1.6 GB; a threshold that finds more finds pairs that mean nothing
_SLICE_PAIRS = 1 << 37  # compared in one call of the core: a few seconds, after which an interrupt is seen


@dataclass(frozen=True)
class HammingPairs:
    """Pairs in rows (CSR): row i of x has index[indptr[i] : indptr[i + 1]], ascending, at distance[...] bits.

    indptr int64 [N + 1], index int64 [pairs], distance int32 [pairs].
    """

    indptr: np.ndarray
    index: np.ndarray
    distance: np.ndarray

    def rows(self) -> np.ndarray:
        """int64 [pairs]: the row of each pair."""
        return np.repeat(np.arange(len(self.indptr) - 1), np.diff(self.indptr))


def hamming_join(hashes: Any, threshold: int, other: Any = None, max_pairs: int = MAX_PAIRS) -> HammingPairs:
    """Every pair of hashes that differ in at most `threshold` bits.

    hashes     uint64 or int64 `[N]` (64 bits each) or `[N, W]` (64 W bits), NumPy or torch on the CPU
    other      a second set of the same width: row i lists its rows. None: the pairs within `hashes`, each once, row i
               listing the rows j > i.
    max_pairs  more are an error

    Exact. Time N^2 / 2 comparisons of a fraction of a nanosecond, or by multi-index hashing where that is faster (small
    thresholds); memory N W and the pairs.

    Raises InputError or InputTypeError for wrong shapes or types, a threshold out of range, and too many pairs.
    """
    x = _words("hashes", hashes)
    y = None if other is None else _words("other", other)
    if y is not None and y.shape[1] != x.shape[1]:
        raise InputError(f"other: {64 * y.shape[1]} bits where hashes have {64 * x.shape[1]}")
    threshold = check_integer("threshold", threshold, 0, 64 * x.shape[1] + 1)
    max_pairs = check_integer("max_pairs", max_pairs, 0, 1 << 62)
    others = len(x) if y is None else len(y)
    step = max(1, min(len(x), _SLICE_PAIRS // max(1, others)))
    counts = np.zeros(len(x), dtype=np.int64)
    index: list[np.ndarray] = []
    distance: list[np.ndarray] = []
    found = 0
    for first in range(0, len(x), step):
        last = min(len(x), first + step)
        room = min(max_pairs - found, 4 * (last - first) + 1024)
        while True:
            columns, bits = np.empty(room, np.int64), np.empty(room, np.int32)
            sizes = (len(x), others, x.shape[1], first, last, threshold, threads(), room)
            outputs = (counts[first:last].ctypes.data, columns.ctypes.data, bits.ctypes.data)
            total = _native.hamming_join(x.ctypes.data, 0 if y is None else y.ctypes.data, *sizes, *outputs)
            if found + total > max_pairs:
                raise InputError(
                    f"threshold: more than {max_pairs:,} pairs are within {threshold} bits; lower the threshold"
                )
            if total <= room:
                break
            room = total
        index.append(columns[:total].copy())
        distance.append(bits[:total].copy())
        found += total
    indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    return HammingPairs(
        indptr,
        np.concatenate(index) if index else np.zeros(0, np.int64),
        np.concatenate(distance) if distance else np.zeros(0, np.int32),
    )


def _words(name: str, hashes: Any) -> np.ndarray:
    """uint64 [N, W], contiguous."""
    if isinstance(hashes, torch.Tensor):
        if hashes.device.type != "cpu":
            raise InputError(f"{name}: it is on {hashes.device}; move it to the CPU")
        hashes = hashes.numpy()
    array = np.asarray(hashes)
    if array.dtype not in (np.uint64, np.int64):
        raise InputTypeError(f"{name}: uint64 words are needed, not {array.dtype}; view the bytes as numpy.uint64")
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or array.shape[1] == 0:
        raise InputError(f"{name}: shape [N] or [N, words] is needed, not {list(np.shape(hashes))}")
    return np.ascontiguousarray(array).view(np.uint64)
