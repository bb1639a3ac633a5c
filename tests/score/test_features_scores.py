"""ppca, knn, density, prototypes and coverage against formulas and peers; combined scores; columns of the user's."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal, rankdata
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from prunefast.errors import InputError
from prunefast.graph import build_graph
from prunefast.score import column_scores, combine, score
from prunefast.score.combine import ranks
from prunefast.score.coverage import CoverageOptions, coverage_scores


@pytest.fixture
def mixture():
    random = np.random.default_rng(0)
    labels = random.permutation(np.repeat([0, 1, 2], [150, 100, 50]))
    shapes = random.normal(size=(3, 6, 6))
    features = np.stack([shapes[c] @ random.normal(size=6) + 3 * c for c in labels])
    return features.astype(np.float32), labels


# --- ppca


def test_ppca_is_the_density_of_its_model(mixture):
    features, labels = mixture
    scores = score(features, labels, method="ppca", variance=0.9, ridge=1e-3)
    for number in range(3):
        rows = features[labels == number].astype(np.float64)
        values, vectors = np.linalg.eigh(np.cov(rows.T, bias=True))
        share = np.cumsum(values[::-1]) / values.sum()
        q = int(np.searchsorted(share, 0.9)) + 1
        noise = values[: 6 - q].mean()
        covariance = (vectors * np.r_[np.full(6 - q, noise), values[6 - q :]]) @ vectors.T + 1e-3 * np.eye(6)
        expected = multivariate_normal(rows.mean(axis=0), covariance).logpdf(rows)
        np.testing.assert_allclose(scores[labels == number], expected, rtol=1e-6)


def test_ppca_is_scikit_learns_but_for_the_divisor(mixture):
    """What instance selection computes: PCA(0.95).score_samples, with N - 1 where we have N."""
    rows = mixture[0].astype(np.float64)
    peer = PCA(0.95, svd_solver="full").fit(rows)
    ours = score(rows, method="ppca", per_class=False, ridge=0.0)
    np.testing.assert_allclose(ours, peer.score_samples(rows), rtol=0.01, atol=0.02)
    np.testing.assert_array_equal(np.argsort(ours)[:20], np.argsort(peer.score_samples(rows))[:20])


def test_ppca_with_fewer_images_than_features():
    rows = np.random.default_rng(0).normal(size=(12, 40))
    scores = score(rows, method="ppca", per_class=False, components=3)
    assert np.isfinite(scores).all()
    with pytest.raises(InputError, match=r"features of class 1: 1 image; ppca needs at least 2"):
        score(rows, np.array([0] * 11 + [1]), method="ppca")
    with pytest.raises(InputError, match=r"features \(12 images, 40 dimensions\): components: "):
        score(rows, method="ppca", per_class=False, components=40)


# --- knn and density


def test_knn_is_minus_the_kth_distance_within_the_class(mixture):
    """Instance selection's nn_dist, k = 5, without its dense matrix."""
    features, labels = mixture
    scores = score(features, labels, method="knn")
    for number in range(3):
        rows = features[labels == number].astype(np.float64)
        distance, _ = NearestNeighbors(n_neighbors=5).fit(rows).kneighbors()
        np.testing.assert_allclose(scores[labels == number], -distance[:, -1], rtol=1e-5)


def test_density_is_the_kernel_estimate(mixture):
    features, _ = mixture
    scores = score(features, method="density", per_class=False, k=8, bandwidth=0.5)
    distance, _ = NearestNeighbors(n_neighbors=8).fit(features.astype(np.float64)).kneighbors()
    h = 0.5 * np.median(distance[:, -1])
    np.testing.assert_allclose(scores, np.log(np.exp(-((distance / h) ** 2) / 2).mean(axis=1)), rtol=1e-3, atol=1e-4)
    # far outliers keep their order where the kernel itself is 0 in float64
    far = score(np.r_[features, np.full((1, 6), 1e4), np.full((1, 6), 2e4)], method="density", per_class=False)
    assert far[-1] < far[-2] < far[:-2].min()
    assert np.isfinite(far).all()


@pytest.mark.parametrize("method", ["knn", "density"])
def test_the_centre_is_kept_and_the_outlier_is_not(method):
    features = np.random.default_rng(1).normal(size=(200, 4))
    features[17], features[23] = 0, 30
    scores = score(features, method=method, per_class=False)
    assert scores.argmin() == 23
    assert (scores > scores[17]).sum() < 20
    assert (score(np.zeros((30, 2)), method=method, per_class=False) == 0).all()


def test_a_graph_is_used_where_it_is_given(mixture):
    features, labels = mixture
    graph = build_graph(features, 9)
    for method in ("knn", "density"):
        own = score(features, method=method, per_class=False, k=5)
        np.testing.assert_array_equal(score(features, method=method, per_class=False, k=5, graph=graph), own)
        with pytest.raises(InputError, match=r"graph: holds neighbours of all classes; .* per_class=False"):
            score(features, labels, method=method, graph=graph)
        with pytest.raises(InputError, match="k: 10 neighbours of a graph that has 9"):
            score(features, method=method, per_class=False, k=10, graph=graph)
    with pytest.raises(InputError, match="features of class 1: 1 image has no neighbour"):
        score(features[:3], np.array([0, 0, 1]), method="knn")


# --- prototypes


def test_prototypes_are_far_from_spherical_centroids():
    random = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], 40)
    rows = (10 * np.eye(3, 8)[truth] + random.normal(size=(120, 8))).astype(np.float32)
    scores = score(rows, method="prototypes", k=3)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    centres = np.stack([unit[truth == t].mean(axis=0) for t in range(3)])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    np.testing.assert_allclose(scores, 1 - (unit @ centres.T).max(axis=1), atol=1e-5)
    np.testing.assert_array_equal(score(rows, method="prototypes", k=3, keep_hard=False), -scores)
    assert len(KMeans(3, n_init=1).fit(unit).cluster_centers_) == 3


# --- coverage


def test_coverage_finds_the_lonely_and_thins_the_crowd():
    """A dense clump and a sparse ring of the same plane: images of the ring cover more."""
    random = np.random.default_rng(0)
    angle = np.linspace(0, 2 * np.pi, 30, endpoint=False)
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1) * 3
    clump = 0.2 * random.normal(size=(300, 2))
    scores = score(np.r_[ring, clump].astype(np.float32), method="coverage", planes=4, redundancy=20)
    assert scores[:30].mean() > 10 * abs(scores[30:].mean())


def test_coverage_conserves_what_it_counts():
    """Every draw adds 1 and takes 1; a plane without neighbours (one image) only adds."""
    features = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    scores = coverage_scores(features, CoverageOptions(draws=400, planes=5, redundancy=10), 0)
    assert scores.sum() == pytest.approx(0, abs=1e-9)
    doubled = coverage_scores(np.r_[features, features], CoverageOptions(draws=100, planes=3, redundancy=5), 0)
    assert np.isfinite(doubled).all()
    assert doubled.sum() == pytest.approx(0, abs=1e-9)
    assert coverage_scores(features[:1], CoverageOptions(draws=7), 0).tolist() == [7]


def test_coverage_is_seeded(mixture):
    features, _ = mixture
    one, two, other = (score(features, method="coverage", draws=500, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()


# --- combined


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-3, 3), min_size=2, max_size=20))
def test_ranks_are_scipys(values):
    expected = (rankdata(values) - 1) / (len(values) - 1)
    np.testing.assert_allclose(ranks(np.array(values, dtype=float)), expected, atol=1e-12)


def test_combination_by_hand():
    a, b = [10.0, 20, 30, 40], [5.0, 5, 1, 9]
    np.testing.assert_allclose(combine({"a": a}), [0, 1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(combine({"a": a, "b": b}, {"a": 3, "b": 1}), [0.125, 0.375, 0.5, 1.0])
    np.testing.assert_allclose(combine({"a": a, "b": b}, {"a": 0, "b": -2}), [-0.5, -0.5, 0, -1])
    # ranks within classes: the best of each class is equally good
    np.testing.assert_allclose(combine({"a": a}, labels=[0, 0, 1, 1]), [0, 1, 0, 1])
    np.testing.assert_allclose(combine({"a": a}, labels=[0, 0, 0, 1]), [0, 0.5, 1, 0.5])


@pytest.mark.parametrize(
    ("scores", "weights", "words"),
    [
        ({}, None, "scores: none to combine"),
        ({"a": [1.0, 2]}, {"b": 1}, "weights: 'b' is no score here; there are a"),
        ({"a": [1.0, 2]}, {"a": 0}, "weights: all are 0"),
        ({"a": [1.0, 2]}, {"a": "x"}, "weights: 'a' needs a finite number"),
        ({"a": [1.0, 2], "b": [1.0]}, None, "'b' has shape"),
        ({"a": [1.0, float("nan")]}, None, "'a' has NaN or infinity in row 1"),
    ],
)
def test_combinations_that_cannot_be(scores, weights, words):
    with pytest.raises(InputError, match=words):
        combine(scores, weights)


# --- columns of the user's


class Data:
    keys = ("a/0.png", "a/1.png", "b/2.png")

    def __len__(self):
        return 3


def test_columns_are_matched_by_key(tmp_path):
    (tmp_path / "s.csv").write_text("path,aesthetic,size\nb/2.png,3.5,1\na/0.png,1.5,1\na/1.png,2.5,1\nother.png,9,9\n")
    assert column_scores(tmp_path / "s.csv", Data(), column="aesthetic").tolist() == [1.5, 2.5, 3.5]
    low = column_scores(tmp_path / "s.csv", Data(), column="aesthetic", keep_low=True)
    assert low.tolist() == [-1.5, -2.5, -3.5]
    pq.write_table(pa.table({"id": list(Data.keys[::-1]), "value": [3, 2, 1]}), tmp_path / "s.parquet")
    assert column_scores(tmp_path / "s.parquet", Data()).tolist() == [1, 2, 3]
    (tmp_path / "own.tsv").write_text("image\tscore\nb/2.png\t1\na/0.png\t2\na/1.png\t3\n")
    assert column_scores(tmp_path / "own.tsv", Data(), key="image").tolist() == [2, 3, 1]


def test_columns_by_position_arrays_and_functions(tmp_path):
    (tmp_path / "s.csv").write_text("score\n1\n2\n3\n")
    assert column_scores(tmp_path / "s.csv", Data()).tolist() == [1, 2, 3]
    np.save(tmp_path / "s.npy", np.array([3, 2, 1]))
    assert column_scores(tmp_path / "s.npy", Data()).tolist() == [3, 2, 1]
    assert column_scores(lambda data: [len(key) for key in data.keys], Data()).tolist() == [7, 7, 7]


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("key,x\na/0.png,1\na/1.png,2\n", {}, r"has no row for 'b/2\.png'"),
        ("key,x\na/0.png,1\na/1.png,2\nb/2.png,3\na/0.png,4\n", {}, r"'a/0\.png' is there more than once"),
        ("key,x\na/0.png,1\na/1.png,\nb/2.png,3\n", {}, r"nan for 'a/1\.png' \(image 1\)"),
        ("x\n1\n2\n", {}, r"\[2\] numbers for 3 images"),
        ("x,y\n1,2\n1,2\n1,2\n", {}, "name the column of the score; columns of numbers: x, y"),
        ("x\none\ntwo\nthree\n", {"column": "x"}, "column 'x' is string, not numbers"),
        ("x\n1\n2\n3\n", {"column": "z"}, "has 0 columns 'z'; there are x"),
        ("x\n1\n2\n3\n", {"key": "z"}, "has 0 columns 'z'"),
        ("x\n1\ninf\n3\n", {}, "inf for"),
        ("", {}, "cannot be read"),
    ],
)
def test_files_that_do_not_fit(tmp_path, text, options, words):
    path = tmp_path / "s.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        column_scores(path, Data(), **options)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_sources_that_do_not_fit(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        column_scores(tmp_path / "none.csv", Data())
    (tmp_path / "s.txt").write_text("1")
    with pytest.raises(InputError, match=r"must be one of \.csv"):
        column_scores(tmp_path / "s.txt", Data())
    with pytest.raises(InputError, match="must return a number for every image"):
        column_scores(lambda data: data.keys, Data())
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read"):
        column_scores(tmp_path / "o.npy", Data())


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("ppca", {"variance": 1.0}, "variance: must be a number in"),
        ("ppca", {"components": 0}, "components: must be"),
        ("knn", {"k": 0}, "k: must be a whole number from 1"),
        ("knn", {"metric": "l1"}, "metric: must be one of"),
        ("density", {"bandwidth": 0}, "bandwidth: must be"),
        ("prototypes", {"keep_hard": "no"}, "keep_hard: must be true or false"),
        ("prototypes", {"k": 0}, "k: must be"),
        ("coverage", {"draws": 0}, "draws: must be"),
        ("coverage", {"redundancy": 2000}, "redundancy: must be at most 1023"),
    ],
)
def test_bad_options(method, options, words):
    with pytest.raises(InputError, match=words):
        score(np.ones((5, 3)), method=method, per_class=False, **options)
