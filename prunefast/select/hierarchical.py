"""Hierarchical k-means balance: clusters of clusters share the budget evenly from the top down.

    level 1     k-means of the images;  level l + 1: k-means of the centroids of level l, refined by `resampling`
                rounds of k-means on the r points nearest to each centroid (r = half the mean size), which evens out
                density
    top down    a budget n over clusters of sizes n_j: min(x, n_j) each, x such that they sum to n; the rest at random
                over those with more; then the same within each, down to the images of a level-1 cluster

Source: automatic data curation (Vo et al. 2024, ssl-data-curation: 10M / 500k / 50k / 10k centroids, L2, 50 iterations,
10 rounds), which has no seed and chooses leaves at random or closest to the centroid. The numbers of clusters here
follow N (ours): `k` of level 1, and a tenth of the level below at each further one.

Unlike equal quotas of plain clusters, many small clusters of one kind count as one kind. Time O(iterations N k D);
memory one float32 copy of the group.
"""

from dataclasses import dataclass

import numpy as np

from prunefast import ops
from prunefast.errors import InputError
from prunefast.score.clusters import default_k
from prunefast.score.features import classes_of, distances, rows_of
from prunefast.score.random import random_scores
from prunefast.select.request import Choice, Request, check_choice, check_whole

_DIRECTIONS = {
    "nearest": "minus the distance to the own centroid; the nearest of every level-1 cluster are kept",
    "random": "uniform random numbers; the largest of every level-1 cluster are kept",
}


@dataclass(frozen=True)
class HierarchicalOptions:
    """k           clusters of level 1; None: one per 1,000 images, at least 10 and at most 1,000
    levels      of clusters, at least 1
    shrink      clusters of a level for one of the next
    resampling  rounds at every level but the first
    iterations  Lloyd steps of every k-means at most
    pick        which of a level-1 cluster: "nearest" to its centroid, or "random"
    """

    k: int | None = None
    levels: int = 2
    shrink: int = 10
    resampling: int = 10
    iterations: int = 50
    pick: str = "random"

    def __post_init__(self) -> None:
        if self.k is not None:
            check_whole("k", self.k)
        check_whole("levels", self.levels)
        check_whole("shrink", self.shrink, 2)
        check_whole("resampling", self.resampling, 0)
        check_whole("iterations", self.iterations)
        check_choice("pick", self.pick, tuple(_DIRECTIONS))


def choose(request: Request) -> Choice:
    options: HierarchicalOptions = request.options
    picked = np.zeros(request.total, dtype=bool)
    scores = random_scores(request.total, request.seed, stream=2)
    clusters = np.empty(request.total, dtype=np.int64)
    count = 0
    for group, positions in classes_of(request.groups, request.total):
        rows = np.ascontiguousarray(rows_of(request.features, positions), dtype=np.float32)
        if options.k is not None and options.k > request.total:
            raise InputError(f"k: {options.k} clusters for {request.total} images; lower k")
        levels, distance = _hierarchy(rows, options, request.seed)
        if options.pick == "nearest":
            scores[positions] = -distance
        clusters[positions] = levels[0] + count
        count += int(levels[0].max()) + 1
        kept, dropped = request.must_keep[positions], request.must_drop[positions]
        quota = _balance(levels, int(request.quota[group]), kept, dropped, request.seed)
        order = np.lexsort(
            (np.arange(len(rows)), -scores[positions], np.where(kept, 0, np.where(dropped, 2, 1)), levels[0])
        )
        sizes = np.bincount(levels[0], minlength=len(quota))
        rank = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        picked[positions[order[rank < np.repeat(quota, sizes)]]] = True
    return Choice(scores, _DIRECTIONS[options.pick], picked, clusters, count)


def _hierarchy(rows: np.ndarray, options: HierarchicalOptions, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """For every level the cluster of each point below (level 1: of each image), and distances to the level-1
    centroids."""
    k = min(options.k or default_k(len(rows)), len(rows))
    found = ops.kmeans(rows, k, iterations=options.iterations, seed=seed)
    used, own = np.unique(np.asarray(found.labels), return_inverse=True)  # not all, where images are alike
    points = np.asarray(found.centroids)[used]
    labels = [own]
    distance = distances(rows, points, own)
    for _ in range(options.levels - 1):
        k = -(-len(points) // options.shrink)
        if k >= len(points):
            break
        centroids = _resampled(points, k, options, seed)
        own, _ = ops.nearest(points, centroids)
        used, own = np.unique(own, return_inverse=True)
        labels.append(own)
        points = centroids[used]
    return labels, distance


def _resampled(points: np.ndarray, k: int, options: HierarchicalOptions, seed: int) -> np.ndarray:
    """Centroids [k, D] of `points`, refined on the r nearest points of each cluster, again and again."""
    found = ops.kmeans(points, k, iterations=options.iterations, seed=seed)
    centroids, own = np.asarray(found.centroids), np.asarray(found.labels)
    r = max(1, len(points) // k // 2)
    for _ in range(options.resampling):
        far = distances(points, centroids, own)
        order = np.lexsort((far, own))
        sizes = np.bincount(own, minlength=k)
        rank = np.arange(len(points)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        sample = points[np.sort(order[rank < r])]
        if len(sample) < k:
            break
        centroids = np.asarray(ops.kmeans(sample, k, iterations=options.iterations, seed=seed).centroids)
        own = np.asarray(ops.nearest(points, centroids)[0])
    return centroids


def _balance(levels: list[np.ndarray], n: int, kept: np.ndarray, dropped: np.ndarray, seed: int) -> np.ndarray:
    """The quota int64 of every level-1 cluster; they sum to n, at least the forced and at most the allowed of each."""
    count = int(levels[0].max()) + 1
    lower = [np.bincount(levels[0][kept], minlength=count)]
    upper = [np.bincount(levels[0][~dropped], minlength=count)]
    for own in levels[1:]:
        lower.append(np.bincount(own, weights=lower[-1]).astype(np.int64))
        upper.append(np.bincount(own, weights=upper[-1]).astype(np.int64))
    generator = np.random.Generator(np.random.Philox(key=seed))
    quota = fill_evenly(n, lower[-1], upper[-1], generator)
    for level in range(len(levels) - 1, 0, -1):
        finer = np.zeros(len(lower[level - 1]), dtype=np.int64)
        for cluster, share in enumerate(quota):
            children = np.flatnonzero(levels[level] == cluster)
            finer[children] = fill_evenly(int(share), lower[level - 1][children], upper[level - 1][children], generator)
        quota = finer
    return quota


def fill_evenly(n: int, lower: np.ndarray, upper: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """clip(x, lower, upper) for each, x such that they sum to n; what is left over one by one, at random."""
    low, high = 0, int(upper.max(initial=0))
    while low < high:  # the largest whole x that does not exceed n
        middle = (low + high + 1) // 2
        if int(np.clip(middle, lower, upper).sum()) <= n:
            low = middle
        else:
            high = middle - 1
    quota = np.clip(low, lower, upper)
    more = np.flatnonzero((quota < upper) & (quota <= low))
    extra = n - int(quota.sum())
    quota[np.sort(generator.permutation(more)[:extra])] += 1
    return quota
