"""Scores against independent implementations, and the direction of each."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture

from prunefast.errors import InputError, InputTypeError
from prunefast.score import METHODS, score
from prunefast.score.moderate import middle_scores, prototype_distances


@pytest.fixture
def mixture():
    """300 rows of 3 classes with different, correlated Gaussians: (features float32, labels)."""
    random = np.random.default_rng(0)
    labels = random.permutation(np.repeat([0, 1, 2], [150, 100, 50]))
    shapes = random.normal(size=(3, 6, 6))
    features = np.stack([shapes[c] @ random.normal(size=6) + 3 * c for c in labels])
    return features.astype(np.float32), labels


# --- direction: higher = keep, said for every method and true


def test_every_method_says_its_direction():
    assert list(METHODS)[:4] == ["random", "gaussian", "moderate", "clusters"]
    for method in METHODS.values():
        assert "kept" in method.direction or "dropped" in method.direction


@pytest.mark.parametrize("method", ["gaussian", "clusters"])
def test_the_centre_scores_highest_and_the_outlier_lowest(method):
    """FiftyOne's representativeness correlates +0.98 with the distance from the centre (defect 1)."""
    random = np.random.default_rng(1)
    features = random.normal(size=(200, 4))
    features[17], features[23] = 0, 30
    options = {"k": 1} if method == "clusters" else {}
    scores = score(features, method=method, per_class=False, **options)
    distance = np.linalg.norm(features - features.mean(axis=0), axis=1)
    assert np.corrcoef(scores, distance)[0, 1] < -0.9
    assert scores.argmin() == 23
    assert (scores > scores[17]).sum() < 5


def test_moderate_prefers_the_middle_to_both_ends():
    """Inverted copies of Moderate-DS keep the tails (defect 2)."""
    x = np.linspace(0, 10, 41)[:, None]  # prototype 5, distances 0 .. 5
    scores = score(x, method="moderate", per_class=False)
    distance = np.abs(x[:, 0] - 5)
    best = scores.argmax()
    assert distance[best] == np.median(distance)
    assert scores[distance == 0] < 0.1
    assert scores[distance == 5].max() < 0.1


# --- gaussian


@pytest.mark.parametrize("ridge", [1e-5, 0.3])
def test_gaussian_is_scipys_log_density(mixture, ridge):
    features, labels = mixture
    scores = score(features, labels, method="gaussian", ridge=ridge)
    for number in range(3):
        rows = features[labels == number].astype(np.float64)
        covariance = np.cov(rows.T, bias=True) + ridge * np.eye(6)
        expected = multivariate_normal(rows.mean(axis=0), covariance).logpdf(rows)
        np.testing.assert_allclose(scores[labels == number], expected, rtol=1e-6)


def test_gaussian_is_scikit_learns_mixture_of_one(mixture):
    """What instance selection computes: GaussianMixture(1, reg_covar=1e-5) for each class."""
    features, labels = mixture
    scores = score(features, labels, method="gaussian")
    for number in range(3):
        rows = features[labels == number].astype(np.float64)
        peer = GaussianMixture(1, reg_covar=1e-5).fit(rows)
        np.testing.assert_allclose(scores[labels == number], peer.score_samples(rows), rtol=1e-6)


def test_gaussian_of_everything(mixture):
    features, labels = mixture
    rows = features.astype(np.float64)
    peer = GaussianMixture(1, reg_covar=1e-5).fit(rows)
    np.testing.assert_allclose(score(features, per_class=False), peer.score_samples(rows), rtol=1e-6)
    np.testing.assert_array_equal(score(features, labels, per_class=False), score(features, per_class=False))


def test_fewer_images_than_dimensions():
    """The covariance is singular, the ridge decides; same numbers as scikit-learn's."""
    features = np.random.default_rng(2).normal(size=(20, 50))
    peer = GaussianMixture(1, reg_covar=1e-5).fit(features)
    np.testing.assert_allclose(score(features, per_class=False), peer.score_samples(features), rtol=1e-6)


def test_a_class_with_one_image():
    features = np.random.default_rng(3).normal(size=(11, 3))
    labels = np.array([0] * 10 + [1])
    scores = score(features, labels)
    # the image is its own mean, its covariance the ridge alone
    assert scores[10] == pytest.approx(multivariate_normal(np.zeros(3), 1e-5 * np.eye(3)).logpdf(np.zeros(3)))
    with pytest.raises(InputError, match=r"features of class 1 \(1 images, 3 dimensions\).*raise ridge"):
        score(features, labels, ridge=0.0)


def test_identical_images_have_equal_scores():
    features = np.tile(np.random.default_rng(4).normal(size=(1, 5)), (6, 1))
    assert len(set(score(features, per_class=False))) == 1


def test_class_numbers_with_gaps(mixture):
    features, labels = mixture
    np.testing.assert_array_equal(score(features, labels), score(features, labels * 7 + 2))


def test_far_from_the_origin():
    """Centred before squaring: an offset of a million changes little."""
    features = np.random.default_rng(5).normal(size=(100, 3))
    np.testing.assert_allclose(
        score(features + 1e6, per_class=False), score(features, per_class=False), rtol=1e-5, atol=1e-5
    )


# --- moderate


def test_prototype_is_the_median_of_the_class(mixture):
    features, labels = mixture
    found = prototype_distances(features, labels)
    for number in range(3):
        rows = features[labels == number].astype(np.float64)
        expected = np.linalg.norm(rows - np.median(rows, axis=0), axis=1)
        np.testing.assert_allclose(found[labels == number], expected, rtol=1e-12)


def test_middle_scores_by_hand():
    # ranks 0..4: kept in the order 2, 1, 3, 0, 4
    np.testing.assert_allclose(middle_scores(np.array([10.0, 20, 30, 40, 50])), [2 / 5, 4 / 5, 1, 3 / 5, 1 / 5])
    # ranks 0..3: 1, 2, 0, 3
    np.testing.assert_allclose(middle_scores(np.array([40.0, 10, 20, 30])), [1 / 4, 2 / 4, 1, 3 / 4])
    # equal distances rank by index
    np.testing.assert_allclose(middle_scores(np.zeros(3)), [2 / 3, 1, 1 / 3])


def test_ranks_within_classes(mixture):
    features, labels = mixture
    scores = score(features, labels, method="moderate", rank_within="class")
    for number in range(3):
        own = score(features[labels == number], method="moderate", per_class=False)
        np.testing.assert_array_equal(scores[labels == number], own)


# --- clusters


def test_cluster_score_is_minus_the_distance_to_the_own_centroid():
    random = np.random.default_rng(6)
    truth = np.repeat([0, 1, 2], 40)
    features = (random.normal(size=(120, 4)) + 40 * np.eye(3, 4)[truth]).astype(np.float32)
    peer = KMeans(3, n_init=3, random_state=0).fit(features)
    expected = -np.linalg.norm(features - peer.cluster_centers_[peer.labels_], axis=1)
    np.testing.assert_allclose(score(features, method="clusters", per_class=False, k=3), expected, rtol=1e-4)


def test_clusters_do_not_depend_on_torch_threads():
    features = np.random.default_rng(7).normal(size=(500, 8)).astype(np.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(score(features, method="clusters", per_class=False, k=7, seed=3))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(*results)


# --- random


def test_random_is_a_function_of_seed_and_index():
    np.testing.assert_array_equal(score(np.zeros((10, 1)), method="random"), score(range(20), method="random")[:10])
    assert (score(range(10), method="random", seed=1) != score(range(10), method="random", seed=2)).all()


# --- what goes in and what comes out


@pytest.mark.parametrize("method", list(METHODS))
def test_numpy_and_torch(mixture, method):
    features, labels = mixture
    state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    one = score(features, labels, method=method)
    two = score(torch.from_numpy(features), torch.from_numpy(labels), method=method)
    assert isinstance(one, np.ndarray)
    assert one.dtype == np.float64
    assert isinstance(two, torch.Tensor)
    assert two.dtype == torch.float64
    np.testing.assert_array_equal(one, two.numpy())
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)


@pytest.mark.parametrize("method", list(METHODS))
def test_inputs_are_unchanged(mixture, method):
    features, labels = mixture
    copies = features.copy(), labels.copy()
    score(features, labels, method=method)
    np.testing.assert_array_equal(features, copies[0])
    np.testing.assert_array_equal(labels, copies[1])


def test_memmap(mixture, tmp_path):
    features, labels = mixture
    np.save(tmp_path / "f.npy", features)
    mapped = np.load(tmp_path / "f.npy", mmap_mode="r")
    for method in METHODS:
        np.testing.assert_array_equal(score(mapped, labels, method=method), score(features, labels, method=method))


def test_half_precision_features(mixture):
    features, labels = mixture
    for half in (features.astype(np.float16), torch.from_numpy(features).to(torch.bfloat16)):
        assert np.isfinite(np.asarray(score(half, labels))).all()


@pytest.mark.parametrize("method", ["gaussian", "moderate", "clusters"])
def test_unlabelled_data_says_what_to_do(mixture, method):
    """IS-GAN's unlabelled path raises UnboundLocalError (defect 9)."""
    features, _ = mixture
    with pytest.raises(InputError, match=r"labels: .* pass labels, or per_class=False"):
        score(features, method=method)
    assert len(score(features, method=method, per_class=False)) == 300
    assert len(score(features, method="random")) == 300


@pytest.mark.parametrize(
    ("features", "labels", "options", "words"),
    [
        (np.ones((4, 2)), [0, 0, 1], {}, "labels: 3 of them for 4 images"),
        (np.ones((4, 2)), [0, 0, 1, -1], {}, "labels: -1 is negative"),
        (np.ones(4), [0] * 4, {}, "features: must be"),
        (np.ones((0, 2)), [], {}, "features: must be"),
        (np.ones((4, 0)), [0] * 4, {}, "features: must be"),
        (np.array([[0.0], [np.nan]]), [0, 0], {}, "features: NaN or infinity in row 1"),
        (np.array([[np.inf], [0.0]]), [0, 0], {}, "features: NaN or infinity in row 0"),
        (np.ones((4, 2)), [0] * 4, {"method": "best"}, "method: 'best' is not a score; there are random, gaussian"),
        (np.ones((4, 2)), [0] * 4, {"ridg": 1}, "ridg: method 'gaussian' has no such option; its options are ridge"),
        (np.ones((4, 2)), [0] * 4, {"ridge": -1.0}, "ridge: must be"),
        (np.ones((4, 2)), [0] * 4, {"ridge": float("nan")}, "ridge: must be"),
        (np.ones((4, 2)), [0] * 4, {"seed": 1.5}, "seed: must be a whole number"),
        (np.ones((4, 2)), [0] * 4, {"seed": "x"}, "seed: must be a whole number"),
    ],
)
def test_bad_arguments(features, labels, options, words):
    with pytest.raises((InputError, InputTypeError), match=words) as caught:
        score(features, labels, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("features", "labels"), [(np.array([["a"]]), [0]), (np.ones((2, 2)), [0.5, 1])])
def test_wrong_types(features, labels):
    with pytest.raises(InputTypeError):
        score(features, labels)
