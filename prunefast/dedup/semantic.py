"""Images that mean the same to an encoder: pairs of features by cosine distance, 1 - cos.

The distance is that of SemDeDup (Abbas et al., arXiv 2303.09540), searched over everything and not within k-means
clusters, so that no pair is missed where a cluster ends. Time N^2 D by the native core; memory N D, no N x N.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from prunefast.dedup.pairs import Pairs, number_contents
from prunefast.errors import InputError
from prunefast.ops import topk
from prunefast.ops.topk import MAX_K
from prunefast.score.features import check_features

MAX_PAIRS = 100_000_000  # 2.4 GB
_FIRST_K = 16  # neighbours asked for first; rows with more within the distance are asked again for four times as many
_CHUNK_VALUES = 1 << 24
_SLACK = 1e-4  # of a product in float32, before candidates are decided in float64


@dataclass(frozen=True)
class SemanticOptions:
    """No options."""


def find_semantic(features: Any, other: Any, max_threshold: float, *, within: bool, graph: Any = None) -> Pairs:
    x = unit_rows(features)
    content, first = number_contents(x)
    distinct = x if len(first) == len(x) else x[first]
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


def _of_graph(graph: Any, content: np.ndarray, max_threshold: float) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """(contents whose neighbours in a `KnnGraph` do not reach past the threshold, the pairs of all others)."""
    if graph.metric != "cosine":
        raise InputError(f"graph: its metric is {graph.metric!r}; deduplication needs 'cosine'")
    if len(graph) != len(content):
        raise InputError(f"graph: of {len(graph):,} images, the features are of {len(content):,}")
    at, column = np.nonzero(graph.distance <= max_threshold)
    full = graph.distance[:, -1] <= max_threshold
    pairs = _ordered(content[at], content[graph.index[at, column]], 2 * graph.distance[at, column])
    return np.unique(content[full]), pairs


def close_pairs(
    x: np.ndarray, max_threshold: float, given: tuple[np.ndarray, tuple[np.ndarray, ...]] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(first, second, distance) of all pairs of distinct unit rows with 1 - cos <= max_threshold, first < second.

    given: (the rows that are still to be searched, pairs that are known).
    """
    none = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    if len(x) < 2:
        return none
    limit = 2 * max_threshold  # the squared distance of unit rows is 2 - 2 cos
    parts: list[tuple[np.ndarray, ...]] = [none]
    found = 0
    rows, k = np.arange(len(x)), min(_FIRST_K, len(x) - 1)
    if given is not None:
        rows, known = given
        parts.append(known)
    while len(rows):
        if len(rows) == len(x):
            index, squared = topk(x, x, k, exclude_self=True)
        else:
            index, squared = topk(x[rows], x, k + 1)  # the row itself is among them, at distance 0
        full = squared[:, -1] <= limit
        if k >= len(x) - 1:
            full[:] = False
        parts += [part := _take(rows[~full], index[~full], squared[~full], limit)]
        found = _counted(found, part)
        rows = rows[full]
        if 4 * k + 1 > MAX_K:
            break
        k = min(4 * k, len(x) - 1)
    step = max(1, _CHUNK_VALUES // len(x))
    for start in range(0, len(rows), step):  # rows with about a thousand neighbours and more: all products
        block = rows[start : start + step]
        product = x[block] @ x.T
        at, other = np.nonzero(product >= 1 - max_threshold - _SLACK)
        value = np.empty(len(at))
        for from_ in range(0, len(at), step := max(1, _CHUNK_VALUES // x.shape[1])):
            to = slice(from_, from_ + step)
            difference = x[block[at[to]]].astype(np.float64) - x[other[to]]
            value[to] = np.einsum("nd,nd->n", difference, difference)
        near = value.astype(np.float32) <= limit
        parts += [part := _ordered(block[at[near]], other[near], value[near])]
        found = _counted(found, part)
    row, other, value = (np.concatenate(column) for column in zip(*parts, strict=True))
    pairs = row * len(x) + other  # a pair may come from both of its rows
    _, once = np.unique(pairs, return_index=True)
    return row[once], other[once], value[once]


def _take(rows: np.ndarray, index: np.ndarray, squared: np.ndarray, limit: float) -> tuple[np.ndarray, ...]:
    """The neighbours within the limit as pairs."""
    at, column = np.nonzero(squared <= limit)
    return _ordered(rows[at], index[at, column], squared[at, column])


def _ordered(row: np.ndarray, other: np.ndarray, squared: np.ndarray) -> tuple[np.ndarray, ...]:
    apart = row != other
    row, other, squared = row[apart], other[apart], squared[apart]
    return np.minimum(row, other), np.maximum(row, other), squared.astype(np.float32).astype(np.float64) / 2


def _counted(found: int, part: tuple[np.ndarray, ...]) -> int:
    found += len(part[0])
    if found > MAX_PAIRS:
        raise InputError(f"max_threshold: more than {MAX_PAIRS:,} pairs are that close; lower it")
    return found
