"""Cluster score: how near an image lies to the centroid of its own k-means cluster.

Source: "Data Pruning in Generative Diffusion Models" (arXiv 2411.12523), k-means on CLIP or DINO features. The score is
minus the Euclidean distance to the own centroid (the cosine geometry where `spherical`). `select(method="clusters")`
adds what makes the method: a quota for every cluster. Time O(iterations N k D).
"""

from dataclasses import dataclass

import numpy as np

from prunefast import ops
from prunefast.errors import InputError
from prunefast.score.features import classes_of, distances, rows_of


@dataclass(frozen=True)
class ClustersOptions:
    """k           number of clusters, within each class where clustering is per class (a class with fewer images gets
                   as many clusters as images). None: one per 1,000 images, at least 10 and at most 1,000 - the source
                   has 24 for 28,000 images and 1,000 for ImageNet's 1.28 million
    iterations  Lloyd steps at most
    spherical   compare directions only: features are scaled to length 1 (the usual choice for CLIP features)
    """

    k: int | None = None
    iterations: int = 100
    spherical: bool = False

    def __post_init__(self) -> None:
        if self.k is not None and (isinstance(self.k, bool) or not isinstance(self.k, int | np.integer) or self.k < 1):
            raise InputError(f"k: must be a whole number, at least 1, not {self.k!r}")
        if isinstance(self.iterations, bool) or not isinstance(self.iterations, int) or self.iterations < 1:
            raise InputError(f"iterations: must be a whole number, at least 1, not {self.iterations!r}")


DIRECTION = "minus the distance to the own cluster's centroid; images near a centroid are kept"


def default_k(rows: int) -> int:
    return min(rows, 1000, max(10, rows // 1000))


@dataclass(frozen=True)
class Clustering:
    """cluster int64 [N] (numbered through all classes), distance float64 [N] to the own centroid, count of clusters."""

    cluster: np.ndarray
    distance: np.ndarray
    count: int


def cluster(features: np.ndarray, labels: np.ndarray | None, options: ClustersOptions, seed: int) -> Clustering:
    """k-means of all images, or of every class by itself where `labels` are given."""
    rows = len(features)
    if options.k is not None and options.k > rows:
        raise InputError(f"k: {options.k} clusters for {rows} images; lower k")
    number = np.empty(rows, dtype=np.int64)
    distance = np.empty(rows)
    count = 0
    for _, positions in classes_of(labels, rows):
        points = np.ascontiguousarray(rows_of(features, positions), dtype=np.float32)
        length = None
        if options.spherical:
            length = np.sqrt(np.einsum("nd,nd->n", points, points, dtype=np.float64))
            if not length.all():
                raise InputError(f"features: row {positions[int(length.argmin())]} is all zero; use spherical=False")
        k = min(options.k or default_k(len(points)), len(points))
        found = ops.kmeans(points, k, iterations=options.iterations, spherical=options.spherical, seed=seed)
        own = np.asarray(found.labels, dtype=np.int64)
        number[positions] = own + count
        distance[positions] = distances(points, np.asarray(found.centroids), own, length)
        count += k
    return Clustering(number, distance, count)


def cluster_scores(features: np.ndarray, labels: np.ndarray | None, options: ClustersOptions, seed: int) -> np.ndarray:
    """float64 [N], at most 0."""
    return -cluster(features, labels, options, seed).distance
