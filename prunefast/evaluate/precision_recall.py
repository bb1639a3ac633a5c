"""Improved precision and recall (Kynkaanniemi et al. 2019, equations 1 and 2).

Around every image of a set lies a ball that reaches to its k-th nearest neighbour in the same set; the union of the
balls stands for the set. Precision is the share of samples inside the reference's balls (are they realistic?), recall
the share of reference images inside the samples' balls (is everything covered?).

Whether a point lies in *any* ball is not a question of its nearest centre, because the balls differ in size. It is one
after lifting: with R the largest radius, give centre y_j the extra coordinate sqrt(R^2 - r_j^2) and every point a zero;
then the squared distance in the lifted space is |x - y_j|^2 - r_j^2 + R^2, and x lies in a ball exactly when its
nearest lifted centre is within R. So `ops.nearest` answers it without an N x M matrix. Points whose answer hangs on
float32 rounding are decided again in float64.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from prunefast import ops
from prunefast.errors import InputError
from prunefast.evaluate.features import as_feature_pair

# Lifted squared distances within this share of R^2 are decided again: float32 rounding of coordinates (6e-8) and of a
# sum of D squares (D * 6e-8 at worst, so 1e-4 at D = 2,048) stays inside it.
BOUNDARY = 2e-4
BLOCK_BYTES = 64 << 20  # of float64 differences held at a time when a boundary case is decided


@dataclass(frozen=True)
class PrecisionRecall:
    precision: float
    recall: float


def precision_recall(
    samples: ArrayLike | torch.Tensor, reference: ArrayLike | torch.Tensor, *, k: int = 3
) -> PrecisionRecall:
    """Precision and recall of features [N, D] against [M, D], both in [0, 1]; k >= 1 smaller than N and M.

    A point on the rim of a ball is inside. Both numbers depend on N and M: use equal sizes, and compare like with like.
    """
    if k < 1:
        raise InputError(f"k: {k} is not at least 1")
    x, y = as_feature_pair(samples, reference, at_least=k + 1)
    return PrecisionRecall(
        precision=float(inside_any_ball(x, y, squared_radii(y, k)).mean()),
        recall=float(inside_any_ball(y, x, squared_radii(x, k)).mean()),
    )


def squared_radii(x: NDArray[np.floating], k: int) -> NDArray[np.float64]:
    """float64 [N]: squared distance of each row of `x` [N, D] to its k-th nearest other row."""
    centred = (x - _mean(x)).astype(np.float32)
    neighbours, _ = ops.topk(centred, centred, k, exclude_self=True)
    # float64 from the differences, so that a point on the rim compares equal to itself
    return np.max([_squared_distances(x, x[neighbours[:, i]]) for i in range(k)], axis=0)


def inside_any_ball(
    points: NDArray[np.floating], centres: NDArray[np.floating], squared_radius: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """bool [N]: does row i of `points` [N, D] lie within sqrt(squared_radius[j]) of any row j of `centres` [M, D]?"""
    largest = float(squared_radius.max())
    lift = np.sqrt(np.maximum(largest - squared_radius, 0.0))
    origin = _mean(centres)  # float32 keeps most digits near zero
    lifted_points = _append(points - origin, np.zeros(len(points)))
    lifted_centres = _append(centres - origin, lift)
    _, squared = ops.nearest(lifted_points, lifted_centres)
    squared = np.asarray(squared, np.float64)
    inside = squared <= largest
    # equality with `largest == 0` (every radius zero) is a boundary case as well
    unsure = np.flatnonzero(np.abs(squared - largest) <= BOUNDARY * largest)
    inside[unsure] = _inside_any_ball_float64(points[unsure], centres, squared_radius)
    return inside


def _inside_any_ball_float64(
    points: NDArray[np.floating], centres: NDArray[np.floating], squared_radius: NDArray[np.float64]
) -> NDArray[np.bool_]:
    inside = np.zeros(len(points), dtype=bool)
    rows = max(1, BLOCK_BYTES // (8 * centres.shape[1]))
    for start in range(0, len(centres), rows):
        block = np.asarray(centres[start : start + rows], np.float64)
        radii = squared_radius[start : start + rows]
        for i in np.flatnonzero(~inside):
            difference = block - points[i].astype(np.float64)
            inside[i] = bool((np.einsum("nd,nd->n", difference, difference) <= radii).any())
    return inside


def _mean(x: NDArray[np.floating]) -> NDArray[np.float64]:
    return x.mean(axis=0, dtype=np.float64)


def _append(x: NDArray[np.floating], column: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.concatenate([x, column[:, None]], axis=1, dtype=np.float32, casting="same_kind")


def _squared_distances(x: NDArray[np.floating], y: NDArray[np.floating]) -> NDArray[np.float64]:
    difference = x.astype(np.float64) - y.astype(np.float64)
    return np.einsum("nd,nd->n", difference, difference)
