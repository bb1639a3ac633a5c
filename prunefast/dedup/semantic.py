"""Images that mean the same to an encoder: pairs of features by cosine distance, 1 - cos.

The distance is that of SemDeDup (Abbas et al., arXiv 2303.09540), searched over everything and not within k-means
clusters, so that no pair is missed where a cluster ends. Time N^2 D by the native core. Memory: a copy of the features
in float32 and about 60 bytes a pair (100 to make the groups), no N x N.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunefast.dedup.pairs import Pairs, number_contents
from prunefast.errors import InputError
from prunefast.ops import topk
from prunefast.ops.topk import MAX_K
from prunefast.score.features import check_features

MAX_PAIRS = 100_000_000  # 2.4 GB in the result
_FIRST_K = 16  # neighbours asked for first; rows with more within the distance are asked again for four times as many
_ROWS = 16_384  # searched together, since each may have a thousand neighbours
_CHUNK_VALUES = 1 << 24
_SLACK = 1e-4  # of a product in float32, before candidates are decided in float64


@dataclass(frozen=True)
class SemanticOptions:
    """No options."""


def find_semantic(features: Any, other: Any, max_threshold: float, *, within: bool, graph: Any = None) -> Pairs:
    x = unit_rows(features)
    content, first = number_contents(x)
    distinct = _moved_up(x, first)
    close = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    if within:
        given = None if graph is None else _of_graph(graph, content, max_threshold)
        close = close_pairs(distinct, max_threshold, given)
    near: dict[str, np.ndarray] = {}
    if other is not None:
        index, squared = topk(distinct, unit_rows(other), 1)
        value = squared[:, 0].astype(np.float64) / 2
        far = value > max_threshold
        near = {
            "against": np.where(far, -1, index[:, 0])[content],
            "against_distance": np.where(far, np.inf, value)[content],
        }
    return Pairs(content, *close, **near)


def unit_rows(features: Any) -> np.ndarray:
    """float32 [N, D], each row of length one; part by part, so that a memory map stays one."""
    array = check_features(features)
    out = np.empty(array.shape, dtype=np.float32)
    step = max(1, _CHUNK_VALUES // max(1, array.shape[1]))
    for start in range(0, len(array), step):
        part = np.asarray(array[start : start + step], dtype=np.float64)
        length = np.linalg.norm(part, axis=1, keepdims=True)
        if (zero := np.flatnonzero(length[:, 0] == 0)).size:
            raise InputError(f"features: row {start + zero[0]} is all zeros and has no direction; remove it")
        out[start : start + step] = part / length
    return out


def _moved_up(x: np.ndarray, first: np.ndarray) -> np.ndarray:
    """x[first], in the place of x itself: `first` ascends, so that no row is written over before it has moved."""
    if len(first) < len(x):
        step = max(1, _CHUNK_VALUES // x.shape[1])
        for start in range(0, len(first), step):
            part = first[start : start + step]
            x[start : start + len(part)] = x[part]
    return x[: len(first)]


def _of_graph(graph: Any, content: np.ndarray, max_threshold: float) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """(contents whose neighbours in a `KnnGraph` do not reach past the threshold, (row, other, squared) of its edges
    up to there)."""
    if graph.metric != "cosine":
        raise InputError(f"graph: its metric is {graph.metric!r}; deduplication needs 'cosine'")
    if len(graph) != len(content):
        raise InputError(f"graph: of {len(graph):,} images, the features are of {len(content):,}")
    at, column = np.nonzero(graph.distance <= max_threshold)
    full = graph.distance[:, -1] <= max_threshold
    edges = content[at], content[graph.index[at, column]], 2 * graph.distance[at, column]
    return np.unique(content[full]), edges


def close_pairs(
    x: np.ndarray, max_threshold: float, given: tuple[np.ndarray, tuple[np.ndarray, ...]] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(first, second, distance) of all pairs of distinct unit rows with 1 - cos <= max_threshold, first < second.

    given: (the rows that are still to be searched, edges that are known).
    """
    total, limit = len(x), 2 * max_threshold  # the squared distance of unit rows is 2 - 2 cos
    rows, known = (np.arange(total), None) if given is None else given
    none = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
    row, other, squared = none if known is None else known
    parts = [_keyed(row, other, squared, total)]
    found = len(parts[0][0])
    for start in range(0, len(rows) if total > 1 else 0, _ROWS):
        for row, other, squared in _neighbours(x, rows[start : start + _ROWS], limit):
            if given is None:  # the other row finds the pair as well
                once = row < other
                row, other, squared = row[once], other[once], squared[once]
            parts.append(_keyed(row, other, squared, total))
            found += len(parts[-1][0])
            if found > MAX_PAIRS:
                raise InputError(f"max_threshold: more than {MAX_PAIRS:,} pairs are that close; lower it")
    keys, values = (np.concatenate(column) for column in zip(*parts, strict=True))
    del parts
    order = np.argsort(keys, kind="stable")
    keys, values = keys[order], values[order]
    once = np.diff(keys, prepend=-1) != 0
    keys, values = keys[once], values[once]
    return keys // total, keys % total, values.astype(np.float64) / 2


def _neighbours(
    x: np.ndarray, waiting: np.ndarray, limit: float
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(row, other, squared distance float32) of all rows of `x` within the limit of the rows `waiting`."""
    k = min(_FIRST_K, len(x) - 1)
    while len(waiting) and k < MAX_K:
        index, squared = topk(x[waiting], x, k + 1)  # the row itself is among them, at distance 0
        full = squared[:, -1] <= limit if k < len(x) - 1 else np.zeros(len(waiting), dtype=bool)
        at, column = np.nonzero((squared <= limit) & ~full[:, None])
        yield waiting[at], index[at, column], squared[at, column]
        waiting = waiting[full]
        k = min(4 * k, len(x) - 1)
    rows = max(1, _CHUNK_VALUES // len(x))
    for start in range(0, len(waiting), rows):  # rows with about a thousand neighbours and more: all products
        block = waiting[start : start + rows]
        at, other = np.nonzero(x[block] @ x.T >= 1 - limit / 2 - _SLACK)
        squared = np.empty(len(at), dtype=np.float32)
        pairs = max(1, _CHUNK_VALUES // x.shape[1])
        for begin in range(0, len(at), pairs):
            to = slice(begin, begin + pairs)
            difference = x[block[at[to]]].astype(np.float64) - x[other[to]]
            squared[to] = np.einsum("nd,nd->n", difference, difference)
        near = squared <= limit
        yield block[at[near]], other[near], squared[near]


def _keyed(row: np.ndarray, other: np.ndarray, squared: np.ndarray, total: int) -> tuple[np.ndarray, np.ndarray]:
    """(the smaller x `total` + the larger, squared distance) of each pair: 12 bytes instead of 24."""
    apart = row != other
    row, other = row[apart].astype(np.int64), other[apart].astype(np.int64)
    return np.minimum(row, other) * total + np.maximum(row, other), squared[apart].astype(np.float32)
