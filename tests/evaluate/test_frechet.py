"""Frechet distance against closed forms and scipy's matrix square root."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefast.errors import InputError, InputTypeError
from prunefast.evaluate import FeatureStatistics, feature_statistics, frechet_distance


def statistics(mean, covariance):
    return FeatureStatistics(np.asarray(mean, float), np.asarray(covariance, float), 100)


def by_sqrtm(x, y):
    """The textbook formula on float64 arrays; only for covariances of full rank."""
    covariance_x, covariance_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(covariance_x @ covariance_y)
    mean = x.mean(0) - y.mean(0)
    return mean @ mean + np.trace(covariance_x + covariance_y) - 2 * np.trace(root).real


def test_diagonal_gaussians_closed_form():
    # independent axes: sum of (m1 - m2)^2 + (s1 - s2)^2 with standard deviations s
    a = statistics([0, 1, 2], np.diag([1.0, 4.0, 9.0]))
    b = statistics([1, 1, 0], np.diag([4.0, 4.0, 0.25]))
    assert frechet_distance(a, b) == pytest.approx(1 + 0 + 4 + 1 + 0 + 2.5**2, rel=1e-12)


def test_one_dimension_by_hand():
    # variances 2/1 (divisor n - 1) for {0, 2} and 8 for {0, 4}: means 1 and 2
    assert frechet_distance([[0.0], [2.0]], [[0.0], [4.0]]) == pytest.approx(
        1 + (np.sqrt(8) - np.sqrt(2)) ** 2, rel=1e-12
    )


@pytest.mark.parametrize("dim", [2, 17, 64])
def test_agrees_with_sqrtm_at_full_rank(dim):
    rng = np.random.default_rng(dim)
    x = rng.normal(size=(500, dim)) @ rng.normal(size=(dim, dim))
    y = rng.normal(size=(400, dim)) @ rng.normal(size=(dim, dim)) + 0.5
    assert frechet_distance(x, y) == pytest.approx(by_sqrtm(x, y), rel=1e-9)


def test_equal_sets_are_zero_even_when_singular():
    rng = np.random.default_rng(0)
    for shape in [(2, 1), (5, 100), (1000, 64), (3, 3)]:
        x = 50 + 10 * rng.normal(size=shape)
        assert 0 <= frechet_distance(x, x.copy()) <= 1e-9 * np.var(x) * shape[1]


def test_orthogonal_singular_covariances_have_no_overlap():
    # variance along different axes only: tr sqrt(S1 S2) = 0 exactly, where noise of 1e-8 an axis would show
    a, b = np.zeros((60, 60)), np.zeros((60, 60))
    a[:30, :30], b[30:, 30:] = 1e4 * np.eye(30), 1e4 * np.eye(30)
    assert frechet_distance(statistics(np.zeros(60), a), statistics(np.zeros(60), b)) == pytest.approx(6e5, rel=1e-13)


def test_fewer_images_than_features_embeds_the_small_problem():
    # zero columns and a rotation change nothing: the full-rank answer in 4 dimensions is the truth in 200
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(40, 4)), 2 * rng.normal(size=(50, 4)) + 1
    rotation = np.linalg.qr(rng.normal(size=(200, 200)))[0][:4]
    assert frechet_distance(x @ rotation, y @ rotation) == pytest.approx(by_sqrtm(x, y), rel=1e-9)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 30), st.integers(2, 30), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_is_a_finite_symmetric_squared_distance(n, m, dim, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, dim)), rng.normal(size=(m, dim)) * 3
    forth, back = frechet_distance(x, y), frechet_distance(y, x)
    assert np.isfinite(forth)
    assert forth >= 0
    assert forth == pytest.approx(back, rel=1e-9, abs=1e-9)
    assert frechet_distance(x + 100, y + 100) == pytest.approx(forth, rel=1e-8, abs=1e-8)


def test_statistics_match_numpy_and_do_not_lose_float32_digits():
    rng = np.random.default_rng(2)
    x = (1000 + rng.normal(size=(20_000, 5))).astype(np.float32)  # more than one block, far from zero
    found = feature_statistics(x)
    np.testing.assert_allclose(found.mean, x.astype(np.float64).mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.covariance, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-10, atol=1e-12)
    assert found.count == 20_000


def test_takes_tensors_and_statistics():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(50, 3)), rng.normal(size=(50, 3))
    expected = frechet_distance(x, y)
    assert frechet_distance(torch.from_numpy(x), feature_statistics(y)) == expected


@pytest.mark.parametrize(
    ("x", "y", "error", "word"),
    [
        (np.zeros((1, 3)), np.zeros((5, 3)), InputError, "samples: 1 image"),
        (np.zeros((5, 3)), np.zeros((0, 3)), InputError, "reference: 0 image"),
        (np.zeros((5, 3)), np.zeros((5, 4)), InputError, "same encoder"),
        (np.zeros(5), np.zeros((5, 4)), InputError, r"not \[N, D\]"),
        (np.full((5, 3), np.nan), np.zeros((5, 3)), InputError, "row 0 has NaN"),
        (np.zeros((5, 3)), np.array([[0.0], [np.inf]]), InputError, "reference: row 1"),
        (np.zeros((5, 3), dtype="U1"), np.zeros((5, 3)), InputTypeError, "samples"),
    ],
)
def test_bad_input(x, y, error, word):
    with pytest.raises(error, match=word):
        frechet_distance(x, y)
