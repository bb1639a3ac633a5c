"""Approximate neighbours by faiss (extra `faiss`): IVF with exact lists, or HNSW; distances are direct differences."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from prunefast.errors import MissingDependencyError

_BLOCK = 16_384
_LINKS = 32  # of a row in HNSW: faiss's own default
_EF = 64  # candidates kept while HNSW is built and searched


def require() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingDependencyError(
            f"graph method: faiss is not installed ({error}); pip install 'prunefast[faiss]', or take method='ivf'"
        ) from None
    return faiss


def search(
    x: torch.Tensor, k: int, method: str, probes: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(row numbers, neighbours [B, k], squared distances [B, k]), a block at a time; never the row itself."""
    from prunefast.graph.build import without_self
    from prunefast.graph.inverted import cell_count

    faiss = require()
    rows = x.cpu().numpy()
    if method == "faiss-ivf":
        index = faiss.index_factory(rows.shape[1], f"IVF{cell_count(len(rows))},Flat")
        index.cp.seed, index.nprobe = seed % 2**31, probes
        index.train(rows)
    else:
        index = faiss.IndexHNSWFlat(rows.shape[1], _LINKS)
        index.hnsw.efConstruction = index.hnsw.efSearch = max(_EF, k + 1)
    for start in range(0, len(rows), _BLOCK):
        index.add(rows[start : start + _BLOCK])
    for start in range(0, len(rows), _BLOCK):
        own = np.arange(start, min(start + _BLOCK, len(rows)))
        found = index.search(rows[own], k + 1)[1]
        found = _completed(found, own)
        yield own, *without_self(*_rescored(rows, own, found), own)


def _completed(found: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Rows for which faiss found too few (-1) get the smallest indices that are missing: far, but never invalid."""
    for row in np.flatnonzero((found < 0).any(axis=1)):
        there = set(found[row][found[row] >= 0].tolist()) | {int(own[row])}
        spare = (number for number in range(len(there) + found.shape[1]) if number not in there)
        found[row] = [number if number >= 0 else next(spare) for number in found[row]]
    return found


def _rescored(rows: np.ndarray, own: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted by direct squared distance in float64, ties to the smallest index."""
    squared = np.empty(found.shape)
    for column in range(found.shape[1]):
        difference = rows[own].astype(np.float64) - rows[found[:, column]]
        squared[:, column] = np.einsum("nd,nd->n", difference, difference)
    order = np.lexsort((found, squared), axis=1)
    return np.take_along_axis(found, order, axis=1), np.take_along_axis(squared, order, axis=1).astype(np.float32)
