"""`build_graph`: exact while that takes minutes, inverted lists beyond, with the recall measured.

| method       | time                                   | memory beside the features                        |
|--------------|----------------------------------------|---------------------------------------------------|
| exact        | 2 N^2 D operations                     | one packed copy of the features, 12 N k bytes     |
| ivf          | 2 N (probes N / cells) D operations    | the rows of `probes` cells, 12 N k bytes          |
| faiss-ivf    | the same, per query                    | a copy of the features in faiss                   |
| faiss-hnsw   | O(N log N), large constant             | a copy of the features, and 32 links a row        |

"exact" and "ivf" run on the native core: certified distances, ties to the smallest index, the same graph for any
number of threads and of processes, which share the rows. "auto" takes "exact" up to `EXACT_OPERATIONS` and "ivf"
beyond; no extra is needed for either. The faiss methods are there for those who trust its indices more; distances are
direct differences all the same.
"""

import functools
import warnings
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch

from prunefast.checks import check_features, check_seed
from prunefast.distributed import is_main
from prunefast.errors import InputError
from prunefast.graph import faiss_, inverted
from prunefast.graph.knn import KnnGraph
from prunefast.ops.arrays import as_tensor
from prunefast.ops.topk import MAX_K, _topk
from prunefast.progress import progress as show
from prunefast.together import rows_of_everybody, sendable

METHODS = ("auto", "exact", "ivf", "faiss-ivf", "faiss-hnsw")
METRICS = ("l2", "cosine")

# 2 N^2 D: about five minutes on one core of 180 GFLOP/s (measured for the native search in bfloat16), 220,000 x 512
EXACT_OPERATIONS = 5e13
RECALL_ROWS = 1000  # rows searched exactly to measure the recall: its standard error is at most 0.5 % for k = 10
GOOD_RECALL = 0.9  # below that, a warning
_BLOCK = 16_384  # rows of one search: bounds the time between two signs of progress


def exact_operations(rows: int, columns: int) -> float:
    return 2.0 * rows * rows * columns


def build_graph(
    features: Any,
    k: int = 10,
    *,
    metric: str = "l2",
    method: str = "auto",
    probes: int = 16,
    seed: int = 0,
    device: str | None = None,
    progress: bool = False,
) -> KnnGraph:
    """The k nearest neighbours of every row of `features` [N, D], itself left out.

    k        1 .. min(N - 1, 1023)
    metric   "l2" or "cosine" (rows of zeros are at distance 1/2 from every other direction)
    method   "auto", "exact", "ivf", "faiss-ivf" or "faiss-hnsw"; see the head of this file
    probes   of the inverted lists: cells looked into for each row
    seed     of the cells
    device   where "exact" and "ivf" search, such as "cuda"; None: on the CPU

    The features may be a memory map. Approximate graphs are compared with `RECALL_ROWS` exact rows; the share of
    neighbours found goes into the manifest, and below 90 % a warning is given.

    Raises InputError/InputTypeError for bad arguments, MissingDependencyError where faiss is asked for and absent.
    """
    rows = check_features(features)
    if metric not in METRICS:
        raise InputError(f"metric: {metric!r} is not one of {', '.join(METRICS)}")
    if method not in METHODS:
        raise InputError(f"graph method: {method!r} is not one of {', '.join(METHODS)}")
    most = min(len(rows), MAX_K) - 1
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= most:
        raise InputError(f"k: must be a whole number from 1 to {most} for {len(rows)} images, not {k!r}")
    if isinstance(probes, bool) or not isinstance(probes, int) or probes < 1:
        raise InputError(f"probes: must be a whole number, at least 1, not {probes!r}")
    seed = check_seed(seed)
    if method == "auto":
        method = "exact" if exact_operations(*rows.shape) <= EXACT_OPERATIONS else "ivf"
    if method.startswith("faiss"):
        faiss_.require()
    points = _Points(functools.partial(np.asanyarray, rows), metric, device)
    manifest: dict[str, Any] = {"method": method, "seed": seed}
    order = None
    if method.startswith("faiss"):
        found = faiss_.search(points.x, k, method, probes, seed)
        packed = _packed(found, len(rows), _index_type(len(rows)), k, method, progress)
        manifest |= {"probes": probes} if method == "faiss-ivf" else {}
    else:
        cells = None
        if method == "ivf":
            cells = inverted.make_cells(points.x, seed)
            order = cells.order
            manifest |= {"cells": len(cells.centroids), "probes": probes}
        packed = rows_of_everybody(functools.partial(_search, points, cells, k, probes, progress), len(rows))
    index = np.empty((len(rows), k), dtype=packed.dtype)
    squared = np.empty((len(rows), k), dtype=np.float32)
    at = slice(None) if order is None else order
    index[at], squared[at] = packed[:, :k], packed[:, k:].astype(np.int32, copy=False).view(np.float32)
    del packed
    if method != "exact":
        manifest["recall"], manifest["recall_rows"] = _recall(points.x, squared, k, seed)
        if manifest["recall"] < GOOD_RECALL:
            warnings.warn(
                f"kNN graph: the recall is {manifest['recall']:.1%} (measured); raise probes, or take method='exact'",
                stacklevel=2,
            )
    else:
        manifest["recall"] = 1.0
    distance = squared / 2 if metric == "cosine" else np.sqrt(squared)
    return KnnGraph(index, distance, metric, manifest)


class _Points:
    """The rows that are searched: float32 [N, D], of length 1 for the cosine (|a - b|^2 = 2 - 2 cos).

    They are made when they are asked for: what travels to other processes of torchrun says where the features lie.
    """

    def __init__(self, features: Callable[[], np.ndarray], metric: str, device: str | None):
        self.features, self.metric, self.device = features, metric, device

    def __reduce__(self) -> tuple[Any, ...]:
        return _Points, (sendable(self.features()), self.metric, self.device)

    @cached_property
    def x(self) -> torch.Tensor:
        rows = self.features()
        if self.metric == "cosine":
            length = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
            unit = np.empty(rows.shape, dtype=np.float32)
            for start in range(0, len(rows), _BLOCK):
                part = slice(start, start + _BLOCK)
                unit[part] = rows[part] / np.where(length[part] > 0, length[part], 1.0)[:, None]
            rows = unit
        x = as_tensor("features", rows)
        if x.dtype != torch.float32:
            x = x.to(torch.float32)
            if not torch.isfinite(x).all():
                raise InputError("features: too large for float32; scale them down")
        return x if self.device is None else x.to(self.device)


Found = tuple[np.ndarray, np.ndarray, np.ndarray]  # row numbers, neighbours [B, k], squared distances [B, k]


def _search(
    points: _Points, cells: inverted.Cells | None, k: int, probes: int, progress: bool, start: int, stop: int
) -> np.ndarray:
    """`_packed` for rows start .. stop - 1, in the order of the cells where there are some."""
    x = points.x
    found = _exact(x, np.arange(start, stop), k) if cells is None else inverted.search(x, cells, k, probes, start, stop)
    return _packed(found, stop - start, _index_type(len(x)), k, "exact" if cells is None else "ivf", progress)


def _index_type(total: int) -> type[np.signedinteger]:
    return np.int32 if total < 2**31 else np.int64


def _packed(
    found: Iterator[Found], count: int, kind: type[np.signedinteger], k: int, method: str, progress: bool
) -> np.ndarray:
    """[count, 2 k]: the neighbours, and the bits of their squared distances, in the order they are found."""
    packed = np.empty((count, 2 * k), dtype=kind)
    done = 0
    with show(f"kNN graph ({method})", count, silent=not (progress and is_main())) as bar:
        for where, neighbours, squared in found:
            rows = packed[done : done + len(where)]
            rows[:, :k], rows[:, k:] = neighbours, np.ascontiguousarray(squared, dtype=np.float32).view(np.int32)
            done += len(where)
            bar.advance(len(where))
    return packed


def _exact(x: torch.Tensor, rows: np.ndarray, k: int) -> Iterator[Found]:
    """A block of the rows (ascending) at a time."""
    for start in range(0, len(rows), _BLOCK):
        where = rows[start : start + _BLOCK]
        together = where[-1] - where[0] + 1 == len(where)
        block = x[where[0] : where[-1] + 1] if together else x[torch.from_numpy(where).to(x.device)]
        # the row itself is one of its k + 1 nearest, unless k + 1 duplicates come before it
        index, squared = _topk(block, x, k + 1, False, True, False)
        yield where, *without_self(index.cpu().numpy(), squared.cpu().numpy(), where)


def without_self(index: np.ndarray, squared: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[B, k + 1] neighbours without the row itself; where it is not among them, without the last."""
    mine = index == own[:, None]
    mine[~mine.any(axis=1), -1] = True
    shape = (len(index), index.shape[1] - 1)
    return index[~mine].reshape(shape), squared[~mine].reshape(shape)


def _recall(x: torch.Tensor, squared: np.ndarray, k: int, seed: int) -> tuple[float, int]:
    """The share of the neighbours found that are as near as the true k-th, over rows drawn at random."""
    count = min(len(x), RECALL_ROWS)
    generator = np.random.Generator(np.random.Philox(key=seed))
    rows = np.sort(generator.choice(len(x), size=count, replace=False))
    exact = np.concatenate([distance for _, _, distance in _exact(x, rows, k)])
    return float((squared[rows] <= exact[:, -1:]).mean()), count
