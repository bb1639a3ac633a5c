"""What the scores share: walks over classes, and distances."""

from collections.abc import Iterator

import numpy as np

from prunefast.checks import as_numpy, check_features, check_labels

__all__ = ["as_numpy", "check_features", "check_labels", "classes_of", "distances", "rows_of"]


def classes_of(labels: np.ndarray | None, rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """(class, positions of its images) for every class that has images; one class of everything without labels."""
    if labels is None:
        yield 0, np.arange(rows)
        return
    order = np.argsort(labels, kind="stable")
    names, starts = np.unique(labels[order], return_index=True)
    for name, positions in zip(names, np.split(order, starts[1:]), strict=True):
        yield int(name), positions


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
    for start in range(0, len(features), 4096):
        rows = slice(start, start + 4096)
        values = features[rows].astype(np.float64)
        if length is not None:
            values /= length[rows, None]
        difference = values - (centre if own is None else centre[own[rows]])
        result[rows] = np.sqrt(np.einsum("nd,nd->n", difference, difference))
    return result
