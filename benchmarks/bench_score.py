"""Scores beside their peers: `pytest benchmarks/bench_score.py --benchmark-group-by=group`.

Ours and the peer take turns in one run. Where both give the same numbers that is asserted; cleanlab's outlier score is
a monotone function of the mean distance to the neighbours, so its order is compared with that of ours, which looks at
the k-th. Peers that are not installed are left out. `PRUNEFAST_BENCH_ROWS` makes the feature sets smaller or larger.
"""

import os

import numpy as np
import pytest
import torch

import prunefast as pf
from prunefast.data import from_arrays
from prunefast.score.surrogate import surrogate_score
from prunefast.train import TrainConfig, train
from prunefast.train.network import load_network

pytest.importorskip("pytest_benchmark")

ROWS = int(os.environ.get("PRUNEFAST_BENCH_ROWS", "20000"))
COLUMNS, CLASSES, IMAGES = 128, 10, 256


@pytest.fixture(scope="module")
def features():
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(200, COLUMNS))
    return (centres[generator.integers(200, size=ROWS)] + generator.normal(size=(ROWS, COLUMNS))).astype(np.float32)


@pytest.fixture(scope="module")
def labels():
    return np.arange(ROWS) % CLASSES


def per_class(score):
    def of_all(features, labels):
        result = np.empty(len(features))
        for number in range(CLASSES):
            result[labels == number] = score(features[labels == number].astype(np.float64))
        return result

    return of_all


def sklearn_gaussian(x):
    mixture = pytest.importorskip("sklearn.mixture")
    return mixture.GaussianMixture(1, reg_covar=1e-5).fit(x).score_samples(x)


def sklearn_ppca(x):
    decomposition = pytest.importorskip("sklearn.decomposition")
    return decomposition.PCA(n_components=0.95, svd_solver="full").fit(x).score_samples(x)


def sklearn_kth_distance(features, labels):
    neighbors = pytest.importorskip("sklearn.neighbors")
    return -neighbors.NearestNeighbors(n_neighbors=6, algorithm="brute").fit(features).kneighbors(features)[0][:, 5]


def cleanlab_outliers(features, labels):
    outlier = pytest.importorskip("cleanlab.outlier")
    return outlier.OutOfDistribution({"k": 5}).fit_score(features=features, verbose=False)


def numpy_moderate(features, labels):
    distance = np.empty(len(features))
    for number in range(CLASSES):
        own = features[labels == number]
        distance[labels == number] = np.linalg.norm(own - np.median(own, axis=0), axis=1)
    rank = distance.argsort(kind="stable").argsort()
    return -np.abs(2 * rank - (len(rank) - 1))


def sklearn_prototypes(features, labels):
    cluster = pytest.importorskip("sklearn.cluster")
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    return cluster.KMeans(20, n_init=1, max_iter=20, random_state=0).fit(unit).transform(unit).min(axis=1)


def ours(method, **options):
    def score(features, labels):
        return pf.score(features, labels, method=method, **options)

    return score


# (score, who) -> the scores; of those that must agree, the tolerance
FEATURES = {
    ("gaussian", "prunefast"): ours("gaussian"),
    ("gaussian", "scikit-learn"): per_class(sklearn_gaussian),
    ("ppca", "prunefast"): ours("ppca"),
    ("ppca", "scikit-learn"): per_class(sklearn_ppca),
    ("knn, k = 5", "prunefast"): ours("knn", per_class=False),
    ("knn, k = 5", "scikit-learn"): sklearn_kth_distance,
    ("knn, k = 5", "cleanlab"): cleanlab_outliers,
    ("moderate", "prunefast"): ours("moderate"),
    ("moderate", "NumPy"): numpy_moderate,
    ("prototypes, 20 iterations", "prunefast"): ours("prototypes", k=20, iterations=20),
    ("prototypes, 20 iterations", "scikit-learn"): sklearn_prototypes,
}
SAME = {("gaussian", "scikit-learn"): 1e-6, ("knn, k = 5", "scikit-learn"): 1e-3}


@pytest.mark.parametrize(("score", "who"), FEATURES)
def test_features(benchmark, score, who, features, labels):
    benchmark.group = f"{score}, {ROWS} x {COLUMNS}"
    found = benchmark.pedantic(FEATURES[score, who], (features, labels), rounds=3, warmup_rounds=0)
    if (score, who) in SAME:
        np.testing.assert_allclose(found, FEATURES[score, "prunefast"](features, labels), rtol=SAME[score, who])
    elif who == "cleanlab":
        kept = [set(np.argsort(-s)[: ROWS // 2]) for s in (found, FEATURES[score, "prunefast"](features, labels))]
        benchmark.extra_info["also in our half"] = len(kept[0] & kept[1]) / (ROWS // 2)


# --- from a diffusion surrogate: `unet-tiny` at 16 x 16


@pytest.fixture(scope="module")
def surrogate(tmp_path_factory):
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 16, 16, 3), dtype=np.uint8)
    data = from_arrays(pixels, np.arange(IMAGES) % CLASSES, classes=[str(c) for c in range(CLASSES)])
    folder = tmp_path_factory.mktemp("surrogate")
    train(TrainConfig(out=str(folder), images=64, batch_size=32, model="unet-tiny", process="flow", device="cpu"), data)
    return data, folder


def torch_losses(data, folder, gradients):
    """The plain loop: flow matching at two fixed times with fresh noise; one image at a time for its gradient."""
    network = load_network(folder, torch.device("cpu"))
    model, generator = network.model.requires_grad_(gradients), torch.Generator().manual_seed(0)
    x0 = torch.from_numpy(data.images(range(IMAGES))).permute(0, 3, 1, 2).float() / 127.5 - 1
    labels = torch.from_numpy(data.labels)
    result = torch.zeros(IMAGES)
    size = 1 if gradients else 64
    with torch.set_grad_enabled(gradients):
        for start in range(0, IMAGES, size):
            part = slice(start, start + size)
            for t in (0.25, 0.75):
                noise = torch.randn(x0[part].shape, generator=generator)
                time = torch.full((len(noise),), 1000 * t)
                predicted = model((1 - t) * x0[part] + t * noise, time, labels[part])
                loss = (predicted - (noise - x0[part])).square().mean((1, 2, 3))
                if gradients:
                    found = torch.autograd.grad(loss.sum(), [p for p in model.parameters() if p.requires_grad])
                    loss = torch.stack([g.square().sum() for g in found]).sum().sqrt()[None]
                result[part] += loss.detach()
    return result


SURROGATE = {
    ("loss", "prunefast"): lambda data, folder: surrogate_score(data, folder, method="loss", times=2, device="cpu"),
    ("loss", "plain torch"): lambda data, folder: torch_losses(data, folder, False),
    ("grand", "prunefast"): lambda data, folder: surrogate_score(data, folder, method="grand", times=2, device="cpu"),
    ("grand", "plain torch"): lambda data, folder: torch_losses(data, folder, True),
}


@pytest.mark.parametrize(("score", "who"), SURROGATE)
def test_surrogate(benchmark, score, who, surrogate):
    benchmark.group = f"{score}, {IMAGES} images of 16 x 16, unet-tiny, 2 draws"
    found = benchmark.pedantic(SURROGATE[score, who], surrogate, rounds=2)
    assert np.isfinite(np.asarray(found)).all()
