"""Gaussian fit and likelihood against the textbook formula and scikit-learn."""

import numpy as np
import pytest
import torch

from prunefast import ops
from prunefast.errors import InputError, InputTypeError
from prunefast.ops import gaussian as module
from prunefast.ops import reference


def features(n=200, d=7, seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + offset).astype("f")


@pytest.mark.parametrize("columns", [1, 2, 15, 16, 17, 65])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_against_the_formula(columns, offset):
    x = features(n=3 * columns + 5, d=columns, offset=offset)
    fit = ops.fit_gaussian(x)
    mean, covariance = reference.gaussian(x)
    np.testing.assert_allclose(fit.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(fit.covariance, covariance, rtol=1e-9, atol=1e-12)
    score = ops.gaussian_log_likelihood(x, fit, ridge=1e-3)
    expected = reference.gaussian_log_likelihood(x, mean, covariance, 1e-3)
    assert score.dtype == np.float64
    np.testing.assert_allclose(score, expected, rtol=1e-8)


def test_against_scikit_learn():
    mixture = pytest.importorskip("sklearn.mixture")
    x = features(n=400, d=20, seed=1)
    peer = mixture.GaussianMixture(1, reg_covar=1e-5).fit(x.astype("d"))
    fit = ops.fit_gaussian(x)
    np.testing.assert_allclose(fit.covariance + 1e-5 * np.eye(20), peer.covariances_[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(ops.gaussian_log_likelihood(x, fit), peer.score_samples(x.astype("d")), rtol=1e-9)


def test_classes_are_each_on_their_own():
    x, labels = features(n=300, seed=2), np.random.default_rng(3).integers(0, 4, 300)
    fit = ops.fit_gaussian(x, labels)
    assert fit.mean.shape == (4, 7)
    assert fit.covariance.shape == (4, 7, 7)
    score = ops.gaussian_log_likelihood(x, fit, labels)
    for c in range(4):
        alone = ops.fit_gaussian(x[labels == c])
        np.testing.assert_array_equal(fit.mean[c], alone.mean)
        np.testing.assert_allclose(score[labels == c], ops.gaussian_log_likelihood(x[labels == c], alone), rtol=1e-12)
    some = labels < 2  # a class without rows may be scored
    np.testing.assert_array_equal(ops.gaussian_log_likelihood(x[some], fit, labels[some]), score[some])


def test_fewer_rows_than_columns_and_single_rows():
    x = features(n=6, d=30, seed=4)
    labels = np.array([0, 0, 0, 1, 2, 2])
    score = ops.gaussian_log_likelihood(x, ops.fit_gaussian(x, labels), labels)
    assert np.isfinite(score).all()
    lone = -15 * np.log(2 * np.pi) - 15 * np.log(1e-5)
    assert score[3] == pytest.approx(lone)


def test_chunks_do_not_matter(monkeypatch):
    x = torch.from_numpy(features(n=101, seed=5))
    fit = ops.fit_gaussian(x)
    score = ops.gaussian_log_likelihood(x, fit)
    monkeypatch.setattr(module, "_CHUNK_VALUES", 50)
    pieces = ops.fit_gaussian(x)
    torch.testing.assert_close(pieces.mean, fit.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pieces.covariance, fit.covariance, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ops.gaussian_log_likelihood(x, fit), score, rtol=1e-12, atol=0)


def test_translation():
    x = features(n=80, seed=6)
    moved = x.astype("d") + 2.0**20
    first = ops.gaussian_log_likelihood(x, ops.fit_gaussian(x))
    np.testing.assert_allclose(ops.gaussian_log_likelihood(moved, ops.fit_gaussian(moved)), first, rtol=1e-6)


def test_kinds_of_arrays():
    x = torch.from_numpy(features())
    fit = ops.fit_gaussian(x)
    assert isinstance(fit.mean, torch.Tensor)
    assert isinstance(ops.gaussian_log_likelihood(x, fit), torch.Tensor)
    assert isinstance(ops.gaussian_log_likelihood(x.numpy(), fit), np.ndarray)


GOOD = features(n=20)


@pytest.mark.parametrize(
    ("x", "labels", "error", "message"),
    [
        (GOOD[:0], None, InputError, "x: it has no rows"),
        (GOOD[0], None, InputError, "x: shape"),
        (
            np.where(np.isclose(GOOD, GOOD[3, 2], rtol=0, atol=0), np.nan, GOOD),
            None,
            InputError,
            r"x: the value at \[3, 2\]",
        ),
        (GOOD, np.zeros(19, int), InputError, "labels: shape"),
        (GOOD, np.zeros(20), InputTypeError, "labels"),
        (GOOD, np.full(20, -1), InputError, "labels: label -1"),
        (GOOD, np.arange(20) % 2 * 2, InputError, "labels: class 1 of 0 .. 2 has no rows"),
    ],
)
def test_bad_fits(x, labels, error, message):
    with pytest.raises(error, match=message):
        ops.fit_gaussian(x, labels)


def test_bad_scores():
    fit = ops.fit_gaussian(GOOD)
    with pytest.raises(InputError, match="gaussian: mean"):
        ops.gaussian_log_likelihood(GOOD[:, :3], fit)
    with pytest.raises(InputError, match="labels of a fit per class"):
        ops.gaussian_log_likelihood(GOOD, fit, np.zeros(20, int))
    with pytest.raises(InputError, match="label 1 is outside"):
        ops.gaussian_log_likelihood(GOOD, ops.fit_gaussian(GOOD, np.zeros(20, int)), np.ones(20, int))
    with pytest.raises(InputError, match="ridge"):
        ops.gaussian_log_likelihood(GOOD, fit, ridge=-1)
    with pytest.raises(InputError, match="larger ridge"):
        ops.gaussian_log_likelihood(GOOD[:3], ops.fit_gaussian(GOOD[:3]), ridge=0)
