"""Herding: picks whose running mean stays as near as possible to the mean of the group.

    t-th pick:  argmin || (t + 1) mu - (sum of the t picks so far) - z ||        so the first is the nearest to the mean

Source: Welling 2009, in the form of DeepCore, which D2C compares. Typical images in typical proportion; in D2C's
tables it is behind random for diffusion models at most budgets.

On features centred on mu that is argmax of -|z|^2 / 2 - <sum of the picks, z>, one inner product a row and pick.
Time O(n N D), bound by reading the features once a pick: for budgets of thousands, or per class. Memory: one float32
copy of the group.
"""

from dataclasses import dataclass

import numpy as np

from prunefast.ops.arrays import as_tensor
from prunefast.ops.topk import _topk
from prunefast.score.features import classes_of
from prunefast.select.request import Choice, Request, ranked

DIRECTION = (
    "order of picking, each image the one that keeps the mean of the picks nearest to the mean; the first are kept"
)


@dataclass(frozen=True)
class HerdingOptions:
    """normalise: scale the features to length 1 first (directions only)."""

    normalise: bool = False


def choose(request: Request) -> Choice:
    order: list[int] = []
    gains: list[float] = []
    for group, positions in classes_of(request.groups, request.total):
        picks, gain = herd(
            np.asarray(request.features[positions], dtype=np.float32),
            int(request.quota[group]),
            np.flatnonzero(request.must_keep[positions]),
            ~request.must_drop[positions],
            normalise=request.options.normalise,
        )
        order += positions[picks].tolist()
        gains += gain.tolist()
    return ranked(request, order, gains, DIRECTION)


def herd(
    rows: np.ndarray, n: int, first: np.ndarray, allowed: np.ndarray, *, normalise: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """(picks int64 [n], the value that was largest for each float64 [n]); `first` come before all others."""
    rows = np.array(rows, dtype=np.float32)
    if normalise:
        length = np.linalg.norm(rows, axis=1, keepdims=True)
        rows /= np.where(length > 0, length, 1)
    rows -= rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    x = as_tensor("features", rows)
    pulled = -np.einsum("nd,nd->n", rows, rows, dtype=np.float64) / 2
    open_ = allowed.copy()
    picks: list[int] = []
    gains: list[float] = []
    queue = [int(i) for i in first]
    while len(picks) < n:
        pick = queue.pop(0) if queue else int(np.where(open_, pulled, -np.inf).argmax())
        picks.append(pick)
        gains.append(float(pulled[pick]))
        open_[pick] = False
        # "ip" is minus the inner product
        pulled += _topk(x, x[pick : pick + 1], 1, True, True, False)[1][:, 0].numpy().astype(np.float64)
    return np.array(picks, dtype=np.int64), np.array(gains)
