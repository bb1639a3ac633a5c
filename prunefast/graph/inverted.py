"""Approximate neighbours by inverted lists on the native core: k-means cells, and an exact search in the nearest ones.

All rows of a cell look into the same `probes` cells (those nearest to its centroid), so that the search is one matrix
product a cell. faiss instead scans lists query by query, which is many times slower for a graph of everything.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from prunefast.ops import kmeans
from prunefast.ops.topk import MAX_K, _topk

_TRAINING_ROWS = 64  # a cell: enough for cells of about the same size, a small part of the work
_ITERATIONS = 10


def cell_count(rows: int) -> int:
    """sqrt(N): finding cells and looking into them then cost about the same."""
    return max(1, round(rows**0.5))


@dataclass(frozen=True, eq=False)
class Cells:
    """centroids [C, D]; order int64 [N]: the rows sorted by cell, ascending within one; bounds int64 [C + 1]: where
    each cell begins in it."""

    centroids: torch.Tensor
    order: np.ndarray
    bounds: np.ndarray


def search(
    x: torch.Tensor, cells: Cells, k: int, probes: int, start: int, stop: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(row numbers, neighbours [B, k], squared distances [B, k]) of the rows order[start:stop], the part of a cell at a
    time; never the row itself."""
    from prunefast.graph.build import without_self

    order, bounds = cells.order, cells.bounds
    count = len(cells.centroids)
    near, _ = _topk(cells.centroids, cells.centroids, min(count, MAX_K), False, True, False)
    near_cells = near.cpu().numpy()
    for cell in range(count):
        own = order[max(bounds[cell], start) : min(bounds[cell + 1], stop)]
        if not len(own):
            continue
        take = _enough(near_cells[cell], bounds, probes, k + 1)
        rows = (
            np.arange(len(x))
            if take is None
            else np.sort(np.concatenate([order[bounds[c] : bounds[c + 1]] for c in take]))
        )
        points = x[torch.from_numpy(rows).to(x.device)]
        index, squared = _topk(x[torch.from_numpy(own).to(x.device)], points, k + 1, False, True, False)
        yield own, *without_self(rows[index.cpu().numpy()], squared.cpu().numpy(), own)


def _enough(near: np.ndarray, bounds: np.ndarray, probes: int, needed: int) -> np.ndarray | None:
    """The nearest cells, at least `probes` of them, that hold `needed` rows together; None: it takes all rows."""
    held = np.cumsum(bounds[near + 1] - bounds[near])
    count = max(probes, int(np.searchsorted(held, needed)) + 1)
    return near[:count] if held[-1] >= needed else None


def make_cells(x: torch.Tensor, seed: int) -> Cells:
    cells = cell_count(len(x))
    generator = np.random.Generator(np.random.Philox(key=seed))
    picks = np.sort(generator.choice(len(x), size=min(len(x), cells * _TRAINING_ROWS), replace=False))
    sample = x[torch.from_numpy(picks).to(x.device)]
    centroids = kmeans(sample, cells, iterations=_ITERATIONS, init="random", seed=seed).centroids
    cell = np.empty(len(x), dtype=np.int64)
    for start in range(0, len(x), 65_536):
        cell[start : start + 65_536] = _topk(x[start : start + 65_536], centroids, 1, False, True, False)[0][:, 0].cpu()
    order = np.argsort(cell, kind="stable")
    return Cells(centroids, order, np.concatenate([[0], np.cumsum(np.bincount(cell, minlength=cells))]))
