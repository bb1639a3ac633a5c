"""Facility location on the kNN graph: images such that every image has a similar one among the kept.

    f(S) = sum_i max_{j in S} s_ij,     s_ii = 1,   s_ij = similarity of neighbours, 0 for all other pairs
    s_ij = 1 - d_ij (cosine, at least 0), or exp(-(d_ij / h)^2 / 2) with h the median k-th distance (l2, given)

Greedy picks of the largest gain f(S + j) - f(S): at least 1 - 1/e of the best f possible, as f is monotone submodular
(1/2 where the budget is split over classes). Lazy (Minoux 1978): gains only fall, so a gain is computed anew only when
it comes to the top. An edge counts both ways: j covers i where either has the other among its neighbours.

Sources: apricot and submodlib have it on dense N x N similarities, in which far pairs count a little too. The k of the
graph bounds how far an image covers: about 4 N / n serves n picks of N best (measured: docs/selection.md), 40 for a
tenth. Where every image is covered, gains are 0 and the smallest indices follow. Time: the graph, then O(N k^2 + N k
log N); memory O(N k).
"""

import heapq
from dataclasses import dataclass

import numpy as np

from prunefast.graph import KnnGraph
from prunefast.select.graph_options import GraphOptions
from prunefast.select.request import Choice, Request, ranked

DIRECTION = "order of picking, each image the one that covers most of what is not covered yet; the first are kept"

_BLOCK = 4096  # rows whose neighbours' neighbours are looked at together


@dataclass(frozen=True)
class FacilityLocationOptions(GraphOptions):
    """k: neighbours an image can cover; about 4 N / n. The rest as in
    `prunefast.select.graph_options.GraphOptions`."""

    k: int = 40


@dataclass(frozen=True)
class Columns:
    """For every image j, what it covers: rows, similarity float32, at start[j] : start[j + 1]; itself
    included."""

    start: np.ndarray
    rows: np.ndarray
    similarity: np.ndarray


def similarities(graph: KnnGraph) -> np.ndarray:
    """float32 [N, k] in [0, 1] of the neighbours of every image."""
    if graph.metric == "cosine":
        return np.maximum(1 - graph.distance, 0)
    h = float(np.median(graph.distance[:, -1])) or 1.0
    return np.exp(-np.square(graph.distance / np.float32(h)) / 2)


def columns_of(graph: KnnGraph) -> Columns:
    """Both directions of every edge, each pair once, and every image itself with similarity 1."""
    total, index = len(graph), graph.index
    value = similarities(graph)
    covering, covered, similarity = (
        [index.reshape(-1)],
        [np.repeat(np.arange(total, dtype=index.dtype), graph.k)],
        [value.reshape(-1)],
    )
    for begin in range(0, total, _BLOCK):  # the other direction, where it is not an edge of its own
        part = slice(begin, begin + _BLOCK)
        own = np.arange(begin, min(begin + _BLOCK, total), dtype=index.dtype)
        row, place = np.nonzero(~(index[index[part]] == own[:, None, None]).any(axis=2))
        covering.append(own[row])
        covered.append(index[part][row, place])
        similarity.append(value[part][row, place])
    itself = np.arange(total, dtype=index.dtype)
    covering.append(itself)
    column = np.concatenate(covering)
    order = np.argsort(column, kind="stable")
    start = np.concatenate([[0], np.cumsum(np.bincount(column, minlength=total))])
    ones = np.ones(total, dtype=np.float32)
    return Columns(start, np.concatenate([*covered, itself])[order], np.concatenate([*similarity, ones])[order])


def choose(request: Request) -> Choice:
    assert request.graph is not None
    columns = columns_of(request.graph)
    start, rows, similarity = columns.start, columns.rows, columns.similarity
    covered = np.zeros(request.total, dtype=np.float32)
    left = request.quota.copy()
    order: list[int] = []
    gains: list[float] = []

    def gain(j: int) -> float:
        part = slice(start[j], start[j + 1])
        more = similarity[part] - covered[rows[part]]
        return float(more[more > 0].sum(dtype=np.float64))

    def pick(j: int, what: float) -> None:
        order.append(j)
        gains.append(what)
        left[request.groups[j]] -= 1
        part = slice(start[j], start[j + 1])
        covered[rows[part]] = np.maximum(covered[rows[part]], similarity[part])

    for forced in np.flatnonzero(request.must_keep).tolist():
        pick(forced, gain(forced))
    free = np.flatnonzero(~request.must_keep & ~request.must_drop)
    alone = np.add.reduceat(similarity, start[:-1], dtype=np.float64)  # gains while nothing is covered: upper bounds
    heap = list(zip((-alone[free]).tolist(), free.tolist(), strict=True))
    heapq.heapify(heap)
    wanted = int(request.quota.sum())
    while len(order) < wanted:
        j = heapq.heappop(heap)[1]
        if left[request.groups[j]] == 0:
            continue
        now = gain(j)
        if not heap or (-now, j) <= heap[0]:
            pick(j, now)
        else:
            heapq.heappush(heap, (-now, j))
    return ranked(request, order, gains, DIRECTION, objective=float(covered.sum(dtype=np.float64)))
