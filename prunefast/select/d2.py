"""D2: scores are spread over the kNN graph, then picked greedily while picks push their neighbours down.

    forward    u_i = s_i + sum_{j in kNN(i)} exp(-gamma_forward d_ij) s_j          dense, high regions gain
    greedy     pick i = argmax u; for j in kNN(i): u_j -= exp(-gamma d_ij) u_i     what a pick stands for loses

Source: D2 pruning (Maharana et al., ICLR 2024), k = 5 and gamma = 0.1 there for CIFAR. What it may do first are
options: `beta` leaves the hardest out (0.4 there), `strata` splits the budget over 25 strata of the score, both within
classes and as in `stratified`. s are the ranks of the scores in [0, 1], within classes where
there are any (D2 needs s >= 0); `scale="score"` takes the scores as they are. Distances are divided by their mean over
the graph, so that gamma means the same for any features: our choice; `distance="raw"` is the source's.

One graph of all images, also where the budget is split over classes: a full class is then no longer picked from.
Time: the graph, then O(N k + n k log N); memory O(N k). The source's code builds the dense N x N matrix.
"""

import dataclasses
import heapq
from dataclasses import dataclass

import numpy as np

from prunefast.errors import InputError
from prunefast.score.combine import ranks
from prunefast.score.features import classes_of
from prunefast.select.graph_options import GraphOptions
from prunefast.select.request import Choice, Request, check_choice, check_number, check_share, check_whole, ranked
from prunefast.select.stratified import strata_of, without_hardest

DIRECTION = "message-passed score at the moment of picking; high scores in regions not yet represented are kept"


@dataclass(frozen=True)
class D2Options(GraphOptions):
    """gamma          of the greedy part: small pushes neighbours down more
    gamma_forward  of the forward part; large keeps scores as they are
    scale          "rank" of the scores within classes, or "score" (not negative)
    distance       "mean": in units of the mean distance in the graph; "raw": as they are, the source's
    strata         of equal width in the score, for every group, that share its budget as in `stratified`; 1: none
    beta           share of each group, the hardest, that is left out first (its neighbours still hear of it)
    hard           which end is hard, for `beta` and `strata`: "low" scores (in prunefast, high = keep) or "high"
    The rest as in `prunefast.select.graph_options.GraphOptions`.
    """

    k: int = 5
    gamma: float = 0.1
    gamma_forward: float = 1.0
    scale: str = "rank"
    distance: str = "mean"
    strata: int = 1
    beta: float = 0.0
    hard: str = "low"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("gamma", self.gamma, 0)
        check_number("gamma_forward", self.gamma_forward, 0)
        check_choice("scale", self.scale, ("rank", "score"))
        check_choice("distance", self.distance, ("mean", "raw"))
        check_whole("strata", self.strata)
        check_share("beta", self.beta)
        check_choice("hard", self.hard, ("low", "high"))


def choose(request: Request) -> Choice:
    options: D2Options = request.options
    assert request.graph is not None
    if options.scale == "rank":
        scores = ranks(request.scores, request.labels)
    else:
        scores = request.scores
        if scores.min() < 0:
            raise InputError(f"scores: {scores.min():g} is negative; d2 needs scores of at least 0, or scale='rank'")
    index = request.graph.index
    unit = float(request.graph.distance.mean(dtype=np.float64)) if options.distance == "mean" else 1.0
    distance = request.graph.distance / np.float32(unit or 1.0)
    value = scores + (np.exp(-options.gamma_forward * distance) * scores[index]).sum(axis=1)
    share = np.exp(-options.gamma * distance)
    if options.strata == 1 and options.beta == 0:
        order, gains = _greedy(request, index, share, value)
    else:
        order, gains = _greedy(_in_strata(request), index, share, value)
    return ranked(request, order, gains, DIRECTION)


def _in_strata(request: Request) -> Request:
    """The request with the strata of every group for groups, and what the cut leaves out among what must be dropped.

    What must be kept is a stratum of its own.
    """
    options: D2Options = request.options
    groups = np.zeros(request.total, dtype=np.int64)
    quota: list[int] = []
    dropped = request.must_drop.copy()
    for group, positions in classes_of(request.groups, request.total):
        forced = positions[request.must_keep[positions]]
        free = positions[~request.must_keep[positions] & ~request.must_drop[positions]]
        left = int(request.quota[group]) - len(forced)
        rest = without_hardest(request.scores, free, options.beta, left, options.hard)
        dropped[np.setdiff1d(free, rest, assume_unique=True)] = True
        number, counts = strata_of(request.scores[rest], options.strata, left, options.hard)
        groups[rest] = len(quota) + number.astype(np.int64)
        groups[forced] = len(quota) + options.strata
        quota += [*counts.tolist(), len(forced)]
    return dataclasses.replace(request, groups=groups, quota=np.array(quota), must_drop=dropped)


def _greedy(request: Request, index: np.ndarray, share: np.ndarray, value: np.ndarray) -> tuple[list[int], list[float]]:
    """(picks in order, their values) by a heap whose entries may be out of date: a value only falls, so a stale top is
    put back lower."""
    left = request.quota.copy()
    order: list[int] = []
    gains: list[float] = []

    def pick(i: int) -> None:
        order.append(i)
        gains.append(float(value[i]))
        left[request.groups[i]] -= 1
        if value[i] > 0:
            value[index[i]] -= share[i] * value[i]

    for forced in np.flatnonzero(request.must_keep).tolist():
        pick(forced)
    free = np.flatnonzero(~request.must_keep & ~request.must_drop)
    heap = list(zip((-value[free]).tolist(), free.tolist(), strict=True))
    heapq.heapify(heap)
    wanted = int(request.quota.sum())
    while len(order) < wanted:
        known, i = heap[0]
        if left[request.groups[i]] == 0:
            heapq.heappop(heap)
        elif -value[i] > known:
            heapq.heapreplace(heap, (-float(value[i]), i))
        else:
            heapq.heappop(heap)
            pick(i)
    return order, gains
