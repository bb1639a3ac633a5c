"""Features to two dimensions for the map: principal components of the points that are drawn."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TAIL = 0.2  # percent of the points at each end of an axis that may lie outside the map


@dataclass(frozen=True)
class Projection:
    """xy float64 [n, 2] in [0, 1]; `inside` bool [n]; `variance` share of each axis; `finite` bool [n] of the input."""

    xy: NDArray[np.float64]
    inside: NDArray[np.bool_]
    variance: tuple[float, float]
    finite: NDArray[np.bool_]


def project(features: NDArray[np.floating]) -> Projection:
    """First two principal components of features [n, D], n >= 1; rows that are not finite stay at the middle, outside.

    The sign of an axis is fixed (its largest loading is positive), so that equal features give the same map. Points
    beyond the TAIL percentiles may fall outside where they would squash the rest: `inside` tells.
    """
    finite = np.isfinite(features).all(axis=1)
    x = features[finite].astype(np.float64)
    n = len(features)
    if len(x) < 2 or np.ptp(x, axis=0).max() == 0:
        return Projection(np.full((n, 2), 0.5), finite.copy(), (0.0, 0.0), finite)
    x -= x.mean(axis=0)
    total = float(np.einsum("nd,nd->", x, x))
    if x.shape[1] <= len(x):
        values, vectors = np.linalg.eigh(x.T @ x)
        axes = vectors[:, ::-1][:, :2]
    else:  # fewer points than features: the same axes from the smaller matrix
        values, vectors = np.linalg.eigh(x @ x.T)
        axes = x.T @ vectors[:, ::-1][:, :2]
        axes /= np.maximum(np.linalg.norm(axes, axis=0), np.finfo(np.float64).tiny)
    if axes.shape[1] < 2:
        axes = np.concatenate([axes, np.zeros((len(axes), 1))], axis=1)
        values = np.concatenate([[0.0], values])
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), [0, 1]] < 0, -1.0, 1.0)
    variance = (max(0.0, float(values[-1] / total)), max(0.0, float(values[-2] / total)))

    position = x @ axes
    scaled = np.empty_like(position)
    for axis in range(2):
        low, high = _limits(position[:, axis])
        scaled[:, axis] = (position[:, axis] - low) / (high - low)
    xy = np.full((n, 2), 0.5)
    xy[finite] = scaled
    inside = np.zeros(n, dtype=bool)
    inside[finite] = ((scaled >= 0) & (scaled <= 1)).all(axis=1)
    return Projection(xy, inside, variance, finite)


def _limits(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    near_low, near_high = (float(p) for p in np.percentile(values, [TAIL, 100 - TAIL]))
    width = near_high - near_low
    if width > 0:
        low, high = max(low, near_low - 0.15 * width), min(high, near_high + 0.15 * width)
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def spread(xy: NDArray[np.float64], columns: int, rows: int) -> NDArray[np.int64]:
    """At most one point per cell of a columns x rows grid over [0, 1]^2, the one nearest to the cell's middle; sorted."""
    cell = np.minimum((xy * [columns, rows]).astype(np.int64), [columns - 1, rows - 1])
    middle = (cell + 0.5) / [columns, rows]
    distance = (((xy - middle) * [columns, rows]) ** 2).sum(axis=1)
    order = np.lexsort((np.arange(len(xy)), distance, cell[:, 0], cell[:, 1]))
    key = cell[order, 1] * columns + cell[order, 0]
    first = np.concatenate([[True], key[1:] != key[:-1]]) if len(order) else np.zeros(0, dtype=bool)
    return np.sort(order[first]).astype(np.int64)
