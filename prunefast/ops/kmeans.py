"""Lloyd's k-means over `nearest`: certified assignments, float64 sums in a fixed order, no empty cluster."""

from typing import Any, NamedTuple

import numpy as np
import torch

from prunefast.errors import InputError
from prunefast.ops import cuda, native
from prunefast.ops.arrays import SEED_LIMIT, as_tensor, check_integer, check_matrix, check_same_device, like
from prunefast.ops.topk import _topk, _unit_rows

INITS = ("k-means++", "random")


class KMeans(NamedTuple):
    """centroids float32 [k, D], labels int64 [N], inertia (float64 sum of squared distances), iterations run."""

    centroids: Any
    labels: Any
    inertia: float
    iterations: int


def kmeans(
    x: Any, k: int, *, iterations: int = 100, spherical: bool = False, init: Any = "k-means++", seed: int = 0
) -> KMeans:
    """Cluster the rows of `x`; the result depends on the arguments only, not on threads.

    Args:
        x: `[N, D]`, converted to float32.
        k: 1 .. N clusters.
        iterations: at most so many updates of the centroids; it stops when no label changes.
        spherical: rows and centroids are scaled to unit length (cosine similarity); a row of zeros stays zero.
        init: "k-means++" (Arthur & Vassilvitskii, SODA 2007), "random" (distinct rows) or centroids `[k, D]`.
        seed: of the initial centroids, 0 .. 2^64 - 1.

    An empty cluster takes the row that is farthest from its own centroid. Labels and inertia are those of the returned
    centroids, and ties go to the smallest label.

    Raises:
        InputError, InputTypeError: wrong shapes or types, NaN or infinity, k larger than N.
    """
    data = check_matrix("x", as_tensor("x", x))
    k = check_integer("k", k, 1, 1 << 31)
    if k > data.shape[0]:
        raise InputError(f"k: {k} clusters of {data.shape[0]} rows")
    iterations = check_integer("iterations", iterations, 0, 1 << 31)
    seed = check_integer("seed", seed, 0, SEED_LIMIT)
    data = (_unit_rows(data) if spherical else data).contiguous()
    centroids = _initial(data, k, init, seed)
    if spherical:
        centroids = _unit_rows(centroids)
    labels, distance, sums = _assign(data, centroids, iterations > 0)
    done = 0
    while done < iterations:
        centroids = _update(data, labels, distance, k, sums)
        if spherical:
            centroids = _unit_rows(centroids)
        previous = labels
        done += 1
        labels, distance, sums = _assign(data, centroids, done < iterations)
        if torch.equal(previous, labels):
            break
    return KMeans(like(x, centroids), like(x, labels), float(distance.double().sum()), done)


def _assign(
    data: torch.Tensor, centroids: torch.Tensor, summed: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Labels, squared distances and, on a CPU and where wanted, the sums of the clusters in the same read of `data`."""
    if data.device.type != "cpu" or not summed:
        index, distance = _topk(data, centroids, 1, False, True, False)
        return index[:, 0], distance[:, 0], None
    sums = torch.zeros(centroids.shape, dtype=torch.float64)
    labels, distance = native.nearest_sums(data, centroids, sums, torch.zeros(len(centroids), dtype=torch.int64))
    return labels, distance, sums


def _update(
    data: torch.Tensor, labels: torch.Tensor, distance: torch.Tensor, k: int, sums: torch.Tensor | None
) -> torch.Tensor:
    """Means of the clusters. Empty ones first take the farthest rows, each from a cluster that keeps at least one."""
    counts = torch.bincount(labels, minlength=k)
    empty = torch.nonzero(counts == 0).flatten().tolist()
    if empty:
        labels, sums = labels.clone(), None
        farthest = torch.sort(distance, descending=True, stable=True).indices.tolist()
        for row in farthest:
            if not empty:
                break
            if counts[labels[row]] > 1:
                cluster = empty.pop(0)
                counts[labels[row]] -= 1
                counts[cluster] += 1
                labels[row] = cluster
    if sums is None:
        sums = _sums(data, labels, k)
    return (sums / counts[:, None]).to(torch.float32)


def _sums(data: torch.Tensor, labels: torch.Tensor, k: int) -> torch.Tensor:
    """Float64 [k, D]: rows are added in their order, so the sum has one value."""
    if data.device.type == "cpu":
        return native.class_sums(data, labels, k)[0]
    if data.device.type == "cuda" and cuda.live(data):
        return cuda.class_sums(data, labels, k)[0]
    sums = torch.zeros((k, data.shape[1]), dtype=torch.float64, device=data.device)
    step = max(1, (1 << 24) // data.shape[1])
    for start in range(0, data.shape[0], step):
        sums.index_add_(0, labels[start : start + step], data[start : start + step].double())
    return sums


def _initial(data: torch.Tensor, k: int, init: Any, seed: int) -> torch.Tensor:
    if not isinstance(init, str):
        centroids = as_tensor("init", init)
        check_same_device("init", centroids, data.device)
        centroids = check_matrix("init", centroids)
        if centroids.shape != (k, data.shape[1]):
            raise InputError(f"init: shape [{k}, {data.shape[1]}] is needed, not {list(centroids.shape)}")
        return centroids
    if init not in INITS:
        raise InputError(f"init: {init!r} is not one of {', '.join(INITS)} or an array of centroids")
    generator = np.random.Generator(np.random.Philox(key=seed))
    if init == "random":
        picks = np.sort(generator.choice(data.shape[0], size=k, replace=False))
        return data[torch.from_numpy(picks).to(data.device)].clone()
    return _plus_plus(data, k, generator)


def _plus_plus(data: torch.Tensor, k: int, generator: np.random.Generator) -> torch.Tensor:
    """Each next centroid is a row drawn in proportion to its squared distance from the nearest one so far."""
    picks = [int(generator.integers(data.shape[0]))]
    nearest = torch.full((data.shape[0],), torch.inf, dtype=torch.float32, device=data.device)
    while len(picks) < k:
        nearest = torch.minimum(nearest, _topk(data, data[picks[-1] :][:1], 1, False, True, False)[1][:, 0])
        cumulative = torch.cumsum(nearest.double(), 0)
        target = generator.random() * float(cumulative[-1])
        if float(cumulative[-1]) > 0:
            pick = int(torch.searchsorted(cumulative, target, right=True))
        else:  # fewer distinct rows than clusters: any row not taken yet
            taken = torch.zeros(data.shape[0], dtype=torch.bool)
            taken[picks] = True
            pick = int(torch.nonzero(~taken)[0])
        picks.append(min(pick, data.shape[0] - 1))
    return data[torch.tensor(picks, device=data.device)].clone()
