"""Scores from the kNN graph: `knn`, minus the distance to the k-th neighbour, and `density`, a kernel estimate.

    knn      score_i = -d_ik                                          instance selection's "nn_dist" (DeVries et al.
                                                                      2020, k = 5), the classic outlier score
    density  score_i = log (1/k sum_j exp(-d_ij^2 / 2 h^2))            h = `bandwidth` x the median k-th distance

d_ij: distance to the j-th nearest neighbour. Both keep what has near company; density looks at all k of them, and a
unit of the features plays no part in it. Time and memory: those of the graph (`prunefast.graph.build`), then O(N k).

Per class, neighbours are looked for within the class, as instance selection does, and a graph is built for each; with
`per_class=False` one graph serves these scores, D2, facility location and deduplication.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from prunefast.errors import InputError
from prunefast.graph import METHODS as GRAPH_METHODS
from prunefast.graph import KnnGraph, build_graph
from prunefast.graph.build import METRICS
from prunefast.graph.knn import as_graph
from prunefast.score.features import classes_of, rows_of


@dataclass(frozen=True)
class KnnOptions:
    """k             neighbours; a class with fewer images has as many as there are others
    metric        "l2" or "cosine"
    graph_method  "auto", "exact", "ivf", "faiss-ivf" or "faiss-hnsw": how the graph is built
    graph         a `prunefast.graph.KnnGraph` or a CSR matrix to use instead, with per_class=False
    """

    k: int = 5
    metric: str = "l2"
    graph_method: str = "auto"
    graph: Any = None

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int | np.integer) or not 1 <= self.k <= 1023:
            raise InputError(f"k: must be a whole number from 1 to 1023, not {self.k!r}")
        if self.metric not in METRICS:
            raise InputError(f"metric: must be one of {', '.join(METRICS)}, not {self.metric!r}")
        if self.graph_method not in GRAPH_METHODS:
            raise InputError(f"graph_method: must be one of {', '.join(GRAPH_METHODS)}, not {self.graph_method!r}")


@dataclass(frozen=True)
class DensityOptions(KnnOptions):
    """bandwidth  of the kernel, in units of the median distance to the k-th neighbour. The rest as in `KnnOptions`."""

    k: int = 10
    bandwidth: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.bandwidth, int | float) or not 0 < self.bandwidth < float("inf"):
            raise InputError(f"bandwidth: must be a finite number above 0, not {self.bandwidth!r}")


KNN_DIRECTION = "minus the distance to the k-th neighbour; images with near neighbours are kept"
DENSITY_DIRECTION = "log kernel density over the nearest neighbours; images in dense places are kept"


def knn_scores(features: np.ndarray, labels: np.ndarray | None, options: KnnOptions, seed: int) -> np.ndarray:
    """float64 [N], at most 0."""
    return _per_graph(features, labels, options, seed, lambda distance: -distance[:, -1].astype(np.float64))


def density_scores(features: np.ndarray, labels: np.ndarray | None, options: DensityOptions, seed: int) -> np.ndarray:
    """float64 [N], at most 0."""

    def density(distance: np.ndarray) -> np.ndarray:
        wide = distance.astype(np.float64)
        h = options.bandwidth * float(np.median(wide[:, -1]))
        if h == 0:  # at least half of the images have k duplicates
            h = options.bandwidth * (float(wide.mean()) or 1.0)
        exponent = -np.square(wide / h) / 2
        top = exponent[:, :1]  # the nearest: the largest term
        return top[:, 0] + np.log(np.exp(exponent - top).mean(axis=1))

    return _per_graph(features, labels, options, seed, density)


def _per_graph(
    features: np.ndarray, labels: np.ndarray | None, options: KnnOptions, seed: int, what: Any
) -> np.ndarray:
    if options.graph is not None:
        if labels is not None:
            raise InputError("graph: holds neighbours of all classes; leave it out, or pass per_class=False")
        return what(as_graph(options.graph, len(features)).first(options.k).distance)
    scores = np.empty(len(features))
    for name, positions in classes_of(labels, len(features)):
        if len(positions) < 2:
            where = "features" if labels is None else f"features of class {name}"
            raise InputError(f"{where}: 1 image has no neighbour; pass per_class=False, or another method")
        rows = rows_of(features, positions)
        scores[positions] = what(_graph(rows, options, seed).distance)
    return scores


def _graph(rows: np.ndarray, options: KnnOptions, seed: int) -> KnnGraph:
    k = min(options.k, len(rows) - 1)
    return build_graph(rows, k, metric=options.metric, method=options.graph_method, seed=seed)
