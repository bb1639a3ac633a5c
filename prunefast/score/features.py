"""What the scores share: walks over classes, orders, and distances."""

from collections.abc import Iterator

import numpy as np

from prunefast.checks import as_numpy, check_features, check_labels

__all__ = ["as_numpy", "check_features", "check_labels", "classes_of", "distances", "in_order", "rows_of"]

_BLOCK = 1 << 16  # values worked on together


def classes_of(labels: np.ndarray | None, rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """(class, positions of its images, ascending) for every class that has images; one class of everything without
    labels. int64 labels, none negative. Memory: 8 bytes an image, 18 while it sorts."""
    if labels is None or not rows:
        yield 0, np.arange(rows)
        return
    names, most = None, int(labels.max())
    if most > rows:
        names, labels = np.unique(labels, return_inverse=True)
        most = len(names) - 1
    counts = np.bincount(labels)
    if counts[-1] == rows:
        positions = np.arange(rows)
    else:  # NumPy's stable sort of 16 bits is a radix sort
        positions = np.argsort(labels.astype(np.uint16) if most < 1 << 16 else labels, kind="stable")
    stop = np.cumsum(counts)
    for number in np.flatnonzero(counts).tolist():
        name = number if names is None else int(names[number])
        yield name, positions[stop[number] - counts[number] : stop[number]]


def in_order(
    values: np.ndarray, positions: np.ndarray, *, highest_first: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(places 0, 1, ... in the order of values[positions], the positions that have them), some at a time.

    The lowest value comes first, or the highest; equal ones in the order of `positions`. Memory: 20 bytes a position.
    """
    keys = values[positions]
    if highest_first:
        np.negative(keys, out=keys)
    order = np.argsort(keys, kind="stable")
    del keys
    for start in range(0, len(order), _BLOCK):
        part = order[start : start + _BLOCK]
        yield np.arange(start, start + len(part)), positions[part]


def rows_of(features: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The rows at `positions` (ascending), contiguous; all of them are not copied: a memory map stays one."""
    if len(positions) == len(features) and features.flags.c_contiguous:
        return features
    return np.ascontiguousarray(features[positions])


def distances(
    features: np.ndarray, centre: np.ndarray, own: np.ndarray | None = None, length: np.ndarray | None = None
) -> np.ndarray:
    """Euclidean distance float64 of every row to `centre` [D]; with `own` int64 [N], to row own[i] of `centre` [K, D].

    length  float64 [N]: rows are divided by it first (the unit rows of spherical clusters)
    """
    result = np.empty(len(features))
    centre = centre.astype(np.float64)
    step = max(1, _BLOCK // features.shape[1])  # 512 KiB of differences: they stay in the cache
    for start in range(0, len(features), step):
        rows = slice(start, start + step)
        values = features[rows] if length is None else features[rows].astype(np.float64) / length[rows, None]
        difference = values - (centre if own is None else centre[own[rows]])
        result[rows] = np.sqrt(np.einsum("nd,nd->n", difference, difference))
    return result
