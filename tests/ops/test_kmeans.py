"""k-means: a plain float64 Lloyd from the same centroids, scikit-learn's inertia, and the awkward cases."""

import numpy as np
import pytest
import torch

from prunefast import ops
from prunefast.errors import InputError, InputTypeError
from prunefast.ops import native


def blobs(n=600, k=6, d=5, seed=0, spread=0.3):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(k, d)) * 3
    return (centres[rng.integers(k, size=n)] + spread * rng.normal(size=(n, d))).astype("f")


def lloyd(x, centroids, iterations):
    """Direct float64 distances, plain means."""
    x, centroids = x.astype("d"), centroids.astype("d")
    labels = None
    for _ in range(iterations + 1):
        distance = ((x[:, None] - centroids[None]) ** 2).sum(-1)
        labels, previous = distance.argmin(1), labels
        if previous is not None and (labels == previous).all():
            break
        if _ < iterations:
            centroids = np.stack([x[labels == c].mean(0) for c in range(len(centroids))])
    return centroids, labels, distance[np.arange(len(x)), labels].sum()


@pytest.mark.parametrize("iterations", [0, 1, 3, 50])
def test_against_plain_lloyd(iterations):
    x = blobs(seed=1)
    start = x[:6] + np.float32(0.1)
    result = ops.kmeans(x, 6, iterations=iterations, init=start)
    centroids, labels, inertia = lloyd(x, start, iterations)
    np.testing.assert_allclose(result.centroids, centroids, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(result.labels, labels)
    assert result.inertia == pytest.approx(inertia, rel=1e-6)
    assert result.iterations <= iterations


def test_inertia_against_scikit_learn():
    cluster = pytest.importorskip("sklearn.cluster")
    x = blobs(n=1500, k=12, seed=2, spread=1.0)
    start = ops.kmeans(x, 12, iterations=0, seed=3).centroids
    mine = ops.kmeans(x, 12, init=start, iterations=100)
    theirs = cluster.KMeans(12, init=start, n_init=1, max_iter=100, tol=0).fit(x)
    assert mine.inertia == pytest.approx(theirs.inertia_, rel=1e-5)


def test_plus_plus_finds_separated_blobs():
    x = blobs(n=400, k=8, seed=4, spread=0.01)
    result = ops.kmeans(x, 8, seed=0)
    assert result.inertia < 400 * 5 * 0.01**2 * 1.5
    assert len(np.unique(result.labels)) == 8


def test_seed_decides():
    x = blobs(spread=2.0)
    first, again, other = (ops.kmeans(x, 9, iterations=3, seed=seed) for seed in (5, 5, 6))
    assert np.array_equal(first.centroids, again.centroids)
    assert not np.array_equal(first.centroids, other.centroids)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_threads_do_not_matter(threads):
    x = torch.from_numpy(blobs(n=3000, d=130, seed=7))
    before = torch.get_num_threads()
    expected = ops.kmeans(x, 10, iterations=5, seed=1)
    try:
        torch.set_num_threads(threads)
        result = ops.kmeans(x, 10, iterations=5, seed=1)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(result.centroids, expected.centroids)
    assert torch.equal(result.labels, expected.labels)
    assert result.inertia == expected.inertia


def test_no_cluster_stays_empty():
    """Two of three given centroids lie where no row is."""
    x = blobs(n=50, k=2, seed=8)
    start = np.stack([x[0], x[0] + 1000, x[0] + 2000])
    result = ops.kmeans(x, 3, init=start)
    assert set(result.labels) == {0, 1, 2}
    assert np.isfinite(result.centroids).all()


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_duplicates_fewer_distinct_rows_than_clusters(init):
    x = np.repeat(np.arange(3, dtype="f")[:, None], 4, 0)
    result = ops.kmeans(x, 7, init=init)
    assert result.inertia == 0
    assert np.isfinite(result.centroids).all()


def test_as_many_clusters_as_rows():
    x = blobs(n=20)
    result = ops.kmeans(x, 20)
    assert result.inertia == 0
    assert sorted(result.labels) == list(range(20))


def test_one_cluster_is_the_mean():
    x = blobs() + np.float32(1e4)
    result = ops.kmeans(x, 1)
    np.testing.assert_allclose(result.centroids[0], x.astype("d").mean(0), rtol=1e-7)


def test_spherical():
    x = blobs(n=300, seed=9)
    result = ops.kmeans(x, 5, spherical=True)
    np.testing.assert_allclose(np.linalg.norm(result.centroids, axis=1), 1, rtol=1e-6)
    scaled = ops.kmeans(x * np.linspace(0.5, 2, 300, dtype="f")[:, None], 5, spherical=True)
    np.testing.assert_array_equal(result.labels, scaled.labels)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    assert result.inertia == pytest.approx(((unit - result.centroids[result.labels]) ** 2).sum(), rel=1e-5)


def test_kind_of_array_and_no_writing():
    x = torch.from_numpy(blobs())
    copy = x.clone()
    result = ops.kmeans(x, 3)
    assert isinstance(result.centroids, torch.Tensor)
    assert isinstance(result.labels, torch.Tensor)
    assert isinstance(result.inertia, float)
    assert torch.equal(x, copy)


def test_class_sums_match_a_loop():
    rng = np.random.default_rng(10)
    x = torch.from_numpy(rng.normal(size=(300, 67)).astype("f"))[:, 1:]
    labels = torch.from_numpy(rng.integers(0, 4, 300))
    sums, counts = native.class_sums(x, labels, 5)
    for c in range(5):
        np.testing.assert_allclose(sums[c], x[labels == c].double().sum(0), rtol=1e-12, atol=1e-12)
        assert counts[c] == (labels == c).sum()


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"k": 0}, InputError, "k:"),
        ({"k": 41}, InputError, "k: 41 clusters of 40 rows"),
        ({"k": 2.0}, InputTypeError, "k:"),
        ({"k": 2, "init": "kmeans||"}, InputError, "init"),
        ({"k": 2, "init": np.zeros((3, 5), "f")}, InputError, "init"),
        ({"k": 2, "init": np.full((2, 5), np.nan, "f")}, InputError, "init"),
        ({"k": 2, "iterations": -1}, InputError, "iterations"),
        ({"k": 2, "seed": -1}, InputError, "seed"),
    ],
)
def test_bad_arguments(kwargs, error, message):
    with pytest.raises(error, match=message):
        ops.kmeans(blobs(n=40), **kwargs)


def test_nan_is_refused():
    x = blobs()
    x[3, 2] = np.nan
    with pytest.raises(InputError, match=r"x: the value at \[3, 2\]"):
        ops.kmeans(x, 3)
