"""Features to two dimensions for the map.

Principal components of the points that are drawn. Whitened features (those of the pixels encoder) have none: every
direction has the same variance, and the first two would be noise. There the map shows the two directions along which
the class means differ most or, without classes, the encoder's own first two features.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TAIL = 0.5  # percent of the points at each end of an axis that may lie outside the map
WHITENED = (
    2.0  # largest variance of a direction over the mean one; noise alone gives 1.4 at 2,400 points of 64 features
)


@dataclass(frozen=True)
class Projection:
    """xy float64 [n, 2] in [0, 1]; `inside` bool [n]; `variance`: share of each axis; `kind` of axes.

    kind is "principal", "class means" or "features".
    """

    xy: NDArray[np.float64]
    inside: NDArray[np.bool_]
    variance: tuple[float, float]
    kind: str


def project(features: NDArray[np.floating], labels: NDArray[np.int64] | None = None) -> Projection:
    """Features [n, D], n >= 1, and their classes [n] to the plane; rows that are not finite are put outside.

    The sign of an axis is fixed (its largest entry is positive), so that equal features give the same map. Points
    beyond the TAIL percentiles may fall outside where they would squash the rest: `inside` tells.
    """
    finite = np.isfinite(features).all(axis=1)
    x = features[finite].astype(np.float64)
    n = len(features)
    if len(x) < 2 or np.ptp(x, axis=0).max() == 0:
        return Projection(np.full((n, 2), 0.5), finite.copy(), (0.0, 0.0), "principal")
    x -= x.mean(axis=0)
    axes, kind = _axes(x, None if labels is None else labels[finite])
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), [0, 1]] < 0, -1.0, 1.0)
    position = x @ axes
    total = float(np.einsum("nd,nd->", x, x))
    along = np.einsum("nd,nd->d", position, position) / total

    scaled = np.empty_like(position)
    for axis in range(2):
        low, high = _limits(position[:, axis])
        scaled[:, axis] = (position[:, axis] - low) / (high - low)
    xy = np.full((n, 2), 0.5)
    xy[finite] = scaled
    inside = np.zeros(n, dtype=bool)
    inside[finite] = ((scaled >= 0) & (scaled <= 1)).all(axis=1)
    return Projection(xy, inside, (float(along[0]), float(along[1])), kind)


def _axes(x: NDArray[np.float64], labels: NDArray[np.int64] | None) -> tuple[NDArray[np.float64], str]:
    """Two directions [D, 2] (a zero one where there are not two) for centred rows [n, D], and their kind."""
    axes, largest = _leading(x)
    # fewer points than features cannot show a flat spectrum: n points span n - 1 directions
    if 8 <= x.shape[1] < len(x) / 4 and largest < WHITENED * float(np.einsum("nd,nd->", x, x)) / x.shape[1]:
        classes = np.unique(labels) if labels is not None else np.zeros(0)
        if labels is not None and len(classes) >= 3:
            means = np.stack([x[labels == c].mean(axis=0) for c in classes])
            return _leading(means - means.mean(axis=0))[0], "class means"
        return np.eye(x.shape[1])[:, :2], "features"
    return axes, "principal"


def _leading(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """The two leading right singular vectors [D, 2] of centred rows, and the largest squared singular value."""
    if x.shape[1] <= len(x):
        values, vectors = np.linalg.eigh(x.T @ x)
        axes = vectors[:, ::-1][:, :2]
    else:  # fewer points than features: the same axes from the smaller matrix
        values, vectors = np.linalg.eigh(x @ x.T)
        axes = x.T @ vectors[:, ::-1][:, :2]
        axes /= np.maximum(np.linalg.norm(axes, axis=0), np.finfo(np.float64).tiny)
    if axes.shape[1] < 2:
        axes = np.concatenate([axes, np.zeros((len(axes), 1))], axis=1)
    return axes, float(values[-1])


def _limits(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    near_low, near_high = (float(p) for p in np.percentile(values, [TAIL, 100 - TAIL]))
    width = near_high - near_low
    if width > 0:
        low, high = max(low, near_low - 0.1 * width), min(high, near_high + 0.1 * width)
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def spread(xy: NDArray[np.float64], columns: int, rows: int) -> NDArray[np.int64]:
    """Sorted positions: of each cell of a columns x rows grid over [0, 1]^2 the point nearest to its middle."""
    cell = np.minimum((xy * [columns, rows]).astype(np.int64), [columns - 1, rows - 1])
    middle = (cell + 0.5) / [columns, rows]
    distance = (((xy - middle) * [columns, rows]) ** 2).sum(axis=1)
    order = np.lexsort((np.arange(len(xy)), distance, cell[:, 0], cell[:, 1]))
    key = cell[order, 1] * columns + cell[order, 0]
    first = np.concatenate([[True], key[1:] != key[:-1]]) if len(order) else np.zeros(0, dtype=bool)
    return np.sort(order[first]).astype(np.int64)
