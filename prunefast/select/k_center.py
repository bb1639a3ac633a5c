"""k-center: the image farthest from everything picked so far, again and again (farthest-point sampling).

It spreads over the whole range of the features, outliers first: the largest distance of any image to a kept one is at
most twice the smallest possible (Gonzalez 1985). Not a sample of the density; in "Diffusion Dataset Condensation"
(arXiv 2507.05914) it is the worst of the selections compared for diffusion models.

The picks are those of the plain greedy algorithm, ties to the smallest index, found lazily: distances to the picks only
fall, so while the farthest of the `_ACTIVE` images farthest so far is still farther than all the others were, only
those are looked at; then everybody's distance to the new picks is brought up to date, which is one matrix product.
Time O(n N D) operations in the worst case, mostly in matrix products; memory one subset of the rows, no N x n.
"""

from dataclasses import dataclass

import numpy as np
import torch

from prunefast.ops.arrays import as_tensor
from prunefast.ops.topk import _topk
from prunefast.score.features import classes_of, rows_of
from prunefast.select.request import Choice, Request, check_choice, ranked

DIRECTION = "order of picking, each image the farthest from all picked before; the first are kept"

_ACTIVE = 4096  # rows looked at between two refreshes: 8 MB of 512 features, which the caches hold
_BLOCK = 65_536


@dataclass(frozen=True)
class KCenterOptions:
    """start: the first pick where nothing must be kept: the image nearest to the "mean", or a "random" one."""

    start: str = "mean"

    def __post_init__(self) -> None:
        check_choice("start", self.start, ("mean", "random"))


def choose(request: Request) -> Choice:
    order: list[int] = []
    gains: list[float] = []
    for group, positions in classes_of(request.groups, request.total):
        rows = rows_of(request.features, positions)
        first = np.flatnonzero(request.must_keep[positions])
        allowed = ~request.must_drop[positions]
        want = int(request.quota[group])
        if not len(first) and want:
            first = np.array([_start(rows, allowed, request.options.start, request.seed)])
        picks, distance = farthest_points(rows, want, first, allowed)
        order += positions[picks].tolist()
        gains += distance.tolist()
    return ranked(request, order, gains, DIRECTION)


def _start(rows: np.ndarray, allowed: np.ndarray, start: str, seed: int) -> int:
    candidates = np.flatnonzero(allowed)
    if start == "random":
        return int(np.random.Generator(np.random.Philox(key=seed)).choice(candidates))
    mean = np.zeros(rows.shape[1])
    for begin in range(0, len(rows), _BLOCK):
        mean += rows[begin : begin + _BLOCK].sum(axis=0, dtype=np.float64)
    mean /= len(rows)
    squared = np.empty(len(rows))
    for begin in range(0, len(rows), 4096):
        difference = rows[begin : begin + 4096] - mean
        squared[begin : begin + 4096] = np.einsum("nd,nd->n", difference, difference)
    return int(candidates[squared[candidates].argmin()])


def farthest_points(
    features: np.ndarray, n: int, first: np.ndarray, allowed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(picks int64 [n], their distance float64 [n] to the picks before them; the first's is infinite).

    features [N, D]; `first`: picked already, at most n; `allowed` bool [N]: what may be picked.
    """
    x = as_tensor("features", features).to(torch.float32)
    picks = [int(i) for i in first]
    radius = [np.inf] * len(picks)
    squared = np.full(len(x), np.inf, dtype=np.float32)  # to the nearest pick, as of the last refresh
    fresh, active_rows = 0, _ACTIVE  # picks[fresh:] are not in `squared` yet
    while len(picks) < n:
        _refresh(x, squared, picks[fresh:])
        fresh = len(picks)
        squared[picks] = -1
        squared[~allowed] = -1
        active, rival = _farthest(squared, active_rows)
        points, far = x[torch.from_numpy(active)], squared[active]
        while len(picks) < n:
            best = int(far.argmax())  # the first of equal ones: `active` ascends
            # an image outside that ties may have a smaller index: refresh and see
            if len(picks) > fresh and (far[best] < rival or (far[best] == rival and len(active) < len(x))):
                break
            picks.append(int(active[best]))
            radius.append(float(np.sqrt(np.float64(far[best]))))
            distance = _topk(points, points[best : best + 1], 1, False, True, False)[1][:, 0].numpy()
            np.minimum(far, distance, out=far)
            far[best] = -1
        if len(picks) - fresh < 16:  # hardly worth a refresh: look at more next time
            active_rows = min(2 * active_rows, len(x))
    return np.array(picks, dtype=np.int64), np.array(radius)


def _refresh(x: torch.Tensor, squared: np.ndarray, picks: list[int]) -> None:
    centres = x[torch.tensor(picks)]
    for begin in range(0, len(x), _BLOCK):
        part = slice(begin, begin + _BLOCK)
        np.minimum(squared[part], _topk(x[part], centres, 1, False, True, False)[1][:, 0].numpy(), out=squared[part])


def _farthest(squared: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    """The indices (ascending) of the farthest `count` rows, all those equal to the last of them included, and the
    largest distance of the others (-1 without others)."""
    if count >= len(squared):
        return np.arange(len(squared)), -1.0
    limit = np.partition(squared, len(squared) - count)[len(squared) - count]
    inside = squared >= limit
    return np.flatnonzero(inside), float(squared[~inside].max(initial=-1.0))
