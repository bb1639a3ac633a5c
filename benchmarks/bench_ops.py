"""Operators beside their peers: `pytest benchmarks/bench_ops.py --benchmark-group-by=group`.

OMP_NUM_THREADS sets the threads. Each group does one piece of work; the names say who does it. Peers that are not
installed are left out.
"""

import numpy as np
import pytest
import torch
from torch.nn import functional

from prunefast import ops

pytest.importorskip("pytest_benchmark")


def rows(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def torch_nearest(x, y):
    """Half-norm addmm and argmin by chunks: the fastest way in plain torch; not exact."""
    half = y.square().sum(1) / 2
    return torch.cat([torch.addmm(half, part, y.T, alpha=-1).argmin(1) for part in x.split(2048)])


def sklearn_nearest(x, y):
    return pytest.importorskip("sklearn.metrics").pairwise_distances_argmin(x.numpy(), y.numpy())


def faiss_nearest(x, y):
    return pytest.importorskip("faiss").knn(x.numpy(), y.numpy(), 1)


NEAREST = {"prunefast": ops.nearest, "torch": torch_nearest, "sklearn": sklearn_nearest, "faiss": faiss_nearest}


@pytest.mark.parametrize("who", NEAREST)
@pytest.mark.parametrize(
    ("n", "k", "d"), [(100_000, 1000, 128), (100_000, 1000, 512), (200_000, 10, 64), (200_000, 100, 64)]
)
def test_nearest(benchmark, who, n, k, d):
    benchmark.group = f"nearest {n} x {k} x {d}"
    benchmark.pedantic(NEAREST[who], (rows(n, d, 0), rows(k, d, 1)), rounds=5, warmup_rounds=1)


def torch_knn(x, k):
    """cdist and topk by chunks, the row itself left in."""
    return torch.cat([torch.cdist(part, x).topk(k + 1, largest=False).indices for part in x.split(1024)])


def faiss_knn(x, k):
    return pytest.importorskip("faiss").knn(x.numpy(), x.numpy(), k + 1)


KNN = {"prunefast": lambda x, k: ops.topk(x, x, k, exclude_self=True), "torch": torch_knn, "faiss": faiss_knn}


@pytest.mark.parametrize("who", KNN)
@pytest.mark.parametrize(("n", "d"), [(20_000, 256), (50_000, 512)])
def test_self_knn(benchmark, who, n, d):
    benchmark.group = f"self-kNN k=10, {n} x {d}"
    benchmark.pedantic(KNN[who], (rows(n, d, 0), 10), rounds=3)


def sklearn_kmeans(x, start):
    cluster = pytest.importorskip("sklearn.cluster")
    return cluster.KMeans(len(start), init=start.numpy(), n_init=1, max_iter=20, tol=0).fit(x.numpy())


def faiss_kmeans(x, start):
    faiss = pytest.importorskip("faiss")
    options = faiss.ClusteringParameters()
    options.niter, options.max_points_per_centroid = 20, len(x)
    clustering = faiss.Clustering(x.shape[1], len(start), options)
    faiss.copy_array_to_vector(start.numpy().ravel(), clustering.centroids)
    clustering.train(x.numpy(), faiss.IndexFlatL2(x.shape[1]))
    return clustering


KMEANS = {
    "prunefast": lambda x, start: ops.kmeans(x, len(start), init=start, iterations=20),
    "sklearn": sklearn_kmeans,
    "faiss": faiss_kmeans,
}


@pytest.mark.parametrize("who", KMEANS)
@pytest.mark.parametrize(("n", "d", "k"), [(20_000, 256, 200), (50_000, 512, 1000)])
def test_kmeans(benchmark, who, n, d, k):
    benchmark.group = f"k-means {n} x {d}, {k} clusters, 20 iterations"
    x = rows(n, d, 0)
    benchmark.pedantic(KMEANS[who], (x, x[:k].clone()), rounds=3)


def sklearn_gaussian(x):
    mixture = pytest.importorskip("sklearn.mixture").GaussianMixture(1, reg_covar=1e-5)
    wide = x.numpy().astype(np.float64)
    return mixture.fit(wide).score_samples(wide)


GAUSSIAN = {"prunefast": lambda x: ops.gaussian_log_likelihood(x, ops.fit_gaussian(x)), "sklearn": sklearn_gaussian}


@pytest.mark.parametrize("who", GAUSSIAN)
@pytest.mark.parametrize(("n", "d"), [(50_000, 512), (20_000, 2048)])
def test_gaussian(benchmark, who, n, d):
    benchmark.group = f"Gaussian fit and log-likelihood {n} x {d}"
    benchmark.pedantic(GAUSSIAN[who], (rows(n, d, 0),), rounds=3, warmup_rounds=1)


def sklearn_ppca(x):
    pca = pytest.importorskip("sklearn.decomposition").PCA(64, svd_solver="covariance_eigh")
    wide = x.numpy().astype(np.float64)
    return pca.fit(wide).score_samples(wide)


PPCA = {"prunefast": lambda x: ops.ppca_log_likelihood(x, ops.fit_ppca(x, components=64)), "sklearn": sklearn_ppca}


@pytest.mark.parametrize("who", PPCA)
def test_ppca(benchmark, who):
    benchmark.group = "PPCA of 64 components, fit and log-likelihood 20000 x 512"
    benchmark.pedantic(PPCA[who], (rows(20_000, 512, 0),), rounds=3, warmup_rounds=1)


def torch_norm(x, weight, bias):
    return functional.silu(functional.group_norm(x, 32, weight.to(x.dtype), bias.to(x.dtype)))


NORM = {
    "prunefast": lambda x, weight, bias: ops.group_norm_silu(x, 32, weight, bias),
    "torch eager": torch_norm,
    "torch.compile": torch.compile(torch_norm),
}


@pytest.mark.parametrize("who", NORM)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(32, 128, 32, 32), (64, 256, 8, 8), (4, 256, 8, 8)])
def test_group_norm_silu(benchmark, who, shape, dtype):
    benchmark.group = f"group norm and SiLU forward and backward {'x'.join(map(str, shape))} {dtype} channels_last"
    x, slope = (rows(shape[0], shape[1] * shape[2] * shape[3], seed).view(shape).to(dtype) for seed in (0, 1))
    x, slope = (t.contiguous(memory_format=torch.channels_last) for t in (x, slope))
    inputs = [t.requires_grad_() for t in (x, *rows(2, shape[1], 2))]
    benchmark.pedantic(lambda: torch.autograd.grad(NORM[who](*inputs), inputs, slope), rounds=10, warmup_rounds=2)


def torch_loss(pred, x0, noise, a, b, weight):
    spread = (slice(None), None, None, None)
    target = a[spread] * x0 + b[spread] * noise
    return ((pred.float() - target).square().mean((1, 2, 3)) * weight).mean()


LOSS = {
    "prunefast": lambda *arguments: ops.denoising_loss(*arguments)[0],
    "torch eager": torch_loss,
    "torch.compile": torch.compile(torch_loss),
}


@pytest.mark.parametrize("who", LOSS)
@pytest.mark.parametrize("shape", [(64, 3, 256, 256), (128, 3, 32, 32)])
def test_denoising_loss(benchmark, who, shape):
    benchmark.group = f"loss forward and backward {'x'.join(map(str, shape))}, bf16 pred, float32 x0 and noise"
    generator = torch.Generator().manual_seed(0)
    pred = torch.randn(shape, generator=generator).bfloat16().requires_grad_() * 1
    x0, noise = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    vectors = torch.rand(3, shape[0], generator=generator)

    def step():
        return torch.autograd.grad(LOSS[who](pred, x0, noise, *vectors), pred)

    benchmark.pedantic(step, rounds=7, warmup_rounds=2)


def test_copy(benchmark):
    """The bandwidth of this machine: what the memory-bound groups are measured against."""
    benchmark.group = "copy 50 MB"
    source, target = torch.randn(12_582_912), torch.empty(12_582_912)
    benchmark.pedantic(target.copy_, (source,), rounds=9, warmup_rounds=2)


def torch_noising(x0, alpha, sigma):
    spread = (slice(None), None, None, None)
    return alpha[spread] * (x0.float() / 127.5 - 1) + sigma[spread] * torch.randn(x0.shape)


NOISING = {
    "prunefast, Philox": lambda x0, alpha, sigma: ops.add_noise(x0, alpha, sigma, (0, torch.arange(len(x0)))),
    "torch eager, randn": torch_noising,
}


@pytest.mark.parametrize("who", NOISING)
def test_add_noise(benchmark, who):
    benchmark.group = "uint8 to noisy float32, 128x3x32x32, channels_last"
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randint(0, 256, (128, 3, 32, 32), generator=generator, dtype=torch.uint8)
    x0 = x0.contiguous(memory_format=torch.channels_last)
    benchmark.pedantic(NOISING[who], (x0, *torch.rand(2, 128, generator=generator)), rounds=30, warmup_rounds=3)


RANDOM = {
    "prunefast Philox": lambda shape: ops.randn_philox(shape, 0, torch.arange(shape[0])),
    "torch.randn": torch.randn,
}


@pytest.mark.parametrize("who", RANDOM)
def test_normals(benchmark, who):
    benchmark.group = "normals 128x3x64x64"
    benchmark.pedantic(RANDOM[who], ((128, 3, 64, 64),), rounds=20, warmup_rounds=3)
