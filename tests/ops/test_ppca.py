"""Probabilistic PCA against the textbook covariance, the optimum itself and scikit-learn."""

import numpy as np
import pytest
import torch

from prunefast import ops
from prunefast.errors import InputError, InputTypeError
from prunefast.ops import reference


def features(n=200, d=12, seed=0, offset=0.0, noise=0.1):
    """Four strong directions and noise."""
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=(n, 4)) @ rng.normal(size=(4, d)) * np.geomspace(3, 0.5, 4).sum()
    return (signal + noise * rng.normal(size=(n, d)) + offset).astype("f")


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize(("rows", "columns"), [(200, 12), (50, 3), (9, 30), (31, 30), (30, 30)])
@pytest.mark.parametrize("q", [1, 2])
def test_the_model_is_the_truncated_covariance(rows, columns, q, offset):
    x = features(rows, columns, offset=offset)
    fit = ops.fit_ppca(x, components=q)
    mean, covariance = reference.gaussian(x)
    values, vectors = np.linalg.eigh(covariance)
    np.testing.assert_allclose(fit.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(fit.explained_variance, values[::-1][:q], rtol=1e-8)
    assert float(fit.noise_variance) == pytest.approx(values[:-q].sum() / (columns - q), rel=1e-7)
    np.testing.assert_allclose(fit.components @ fit.components.T, np.eye(q), atol=1e-12)
    projector = vectors[:, -q:] @ vectors[:, -q:].T
    np.testing.assert_allclose(fit.components.T @ fit.components, projector, atol=1e-7)
    assert all(row[np.abs(row).argmax()] > 0 for row in fit.components)
    score = ops.ppca_log_likelihood(x, fit, ridge=1e-3)
    assert score.dtype == np.float64
    np.testing.assert_allclose(score, reference.ppca_log_likelihood(x, *fit, 1e-3), rtol=1e-7)


def test_no_other_model_is_more_likely():
    """The fit is a maximum: rotated components, other variances or another noise lower the mean log-likelihood."""
    x = features()
    fit = ops.fit_ppca(x, components=3)
    best = ops.ppca_log_likelihood(x, fit, ridge=0).mean()
    rng = np.random.default_rng(1)
    for _ in range(10):
        basis = np.linalg.qr((fit.components + 0.02 * rng.normal(size=fit.components.shape)).T)[0].T
        stretch = np.exp(0.05 * rng.normal(size=4))
        other = ops.Ppca(
            fit.mean + 0.01 * rng.normal(size=fit.mean.shape),
            basis,
            fit.explained_variance * stretch[:3],
            fit.noise_variance * stretch[3],
        )
        assert ops.ppca_log_likelihood(x, other, ridge=0).mean() < best


@pytest.mark.parametrize("q", [1, 4, 11])
def test_against_scikit_learn(q):
    """scikit-learn divides by N - 1; its own variances scaled to N give its scores of the same model."""
    decomposition = pytest.importorskip("sklearn.decomposition")
    x = features(n=300, seed=2)
    peer = decomposition.PCA(q, svd_solver="full").fit(x.astype("d"))
    peer.explained_variance_ *= 299 / 300
    peer.noise_variance_ *= 299 / 300
    fit = ops.fit_ppca(x, components=q)
    np.testing.assert_allclose(fit.explained_variance, peer.explained_variance_, rtol=1e-9)
    np.testing.assert_allclose(ops.ppca_log_likelihood(x, fit, ridge=0), peer.score_samples(x.astype("d")), rtol=1e-8)


def test_all_directions_but_one_are_the_whole_gaussian():
    x = features(n=300, d=6, seed=3)
    score = ops.ppca_log_likelihood(x, ops.fit_ppca(x, components=5))
    np.testing.assert_allclose(score, ops.gaussian_log_likelihood(x, ops.fit_gaussian(x)), rtol=1e-9)


def test_small_noise_keeps_its_digits():
    """|x - mean|^2 - |z|^2 would lose nine of them here."""
    rng = np.random.default_rng(4)
    x = np.concatenate([1e6 * rng.normal(size=(500, 2)), 1e-3 * rng.normal(size=(500, 5))], 1)
    fit = ops.fit_ppca(x, components=2)
    score = ops.ppca_log_likelihood(x, ops.Ppca(fit.mean, np.eye(2, 7), [1e12, 1e12], 1e-6), ridge=0)
    white = np.concatenate([(x - fit.mean)[:, :2] / 1e6, (x - fit.mean)[:, 2:] / 1e-3], 1)
    constant = 7 * np.log(2 * np.pi) + 2 * np.log(1e12) + 5 * np.log(1e-6)
    np.testing.assert_allclose(score, -((white**2).sum(1) + constant) / 2, rtol=1e-10)


def test_classes_are_each_on_their_own():
    x, labels = features(n=300, seed=5), np.random.default_rng(6).integers(0, 4, 300)
    fit = ops.fit_ppca(x, labels, components=2)
    assert [value.shape for value in fit] == [(4, 12), (4, 2, 12), (4, 2), (4,)]
    score = ops.ppca_log_likelihood(x, fit, labels)
    for c in range(4):
        alone = ops.fit_ppca(x[labels == c], components=2)
        for mine, other in zip(fit, alone, strict=True):
            np.testing.assert_allclose(mine[c], other, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(score[labels == c], ops.ppca_log_likelihood(x[labels == c], alone), rtol=1e-12)
    some = labels < 2  # a class without rows may be scored
    np.testing.assert_allclose(ops.ppca_log_likelihood(x[some], fit, labels[some]), score[some], rtol=1e-12)


def test_translation_and_rotation():
    x = features(n=150, seed=7).astype("d")
    score = ops.ppca_log_likelihood(x, ops.fit_ppca(x, components=3))
    turn = np.linalg.qr(np.random.default_rng(8).normal(size=(12, 12)))[0]
    moved = x @ turn + 2.0**10
    np.testing.assert_allclose(ops.ppca_log_likelihood(moved, ops.fit_ppca(moved, components=3)), score, rtol=1e-6)


def test_no_noise_needs_a_ridge():
    """q + 1 rows lie on the q components."""
    x = features(n=3, d=5)
    fit = ops.fit_ppca(x, components=2)
    assert float(fit.noise_variance) < 1e-10
    assert np.isfinite(ops.ppca_log_likelihood(x, fit)).all()
    flat = ops.fit_ppca(np.zeros((5, 3)), components=1)
    assert np.isfinite(ops.ppca_log_likelihood(np.zeros((5, 3)), flat)).all()
    with pytest.raises(InputError, match="a variance is 0; use a ridge"):
        ops.ppca_log_likelihood(np.zeros((5, 3)), flat, ridge=0)


def test_kinds_of_arrays():
    x = torch.from_numpy(features())
    fit = ops.fit_ppca(x, components=2)
    assert all(isinstance(value, torch.Tensor) for value in fit)
    assert isinstance(ops.ppca_log_likelihood(x, fit), torch.Tensor)
    assert isinstance(ops.ppca_log_likelihood(x.numpy(), fit), np.ndarray)
    assert ops.ppca_log_likelihood(x[:0], fit).shape == (0,)


GOOD = features(n=20)


@pytest.mark.parametrize(
    ("x", "labels", "components", "error", "message"),
    [
        (GOOD[:0], None, 2, InputError, "x: it has no rows"),
        (GOOD, None, 0, InputError, "components: 0 is outside"),
        (GOOD, None, 2.0, InputTypeError, "components"),
        (GOOD, None, 12, InputError, "components: 12 of 12 columns leave no noise"),
        (GOOD[:, :1], None, 1, InputError, "components: 1 of 1 columns"),
        (GOOD[:4], None, 4, InputError, "x: it has 4 rows; 4 components need at least 5"),
        (GOOD, np.arange(20) // 16, 4, InputError, "labels: class 1 has 4 rows; 4 components need at least 5"),
        (GOOD, np.arange(20) % 2 * 2, 2, InputError, "labels: class 1 of 0 .. 2 has no rows"),
        (GOOD, np.full(20, 10**12), 2, InputError, "labels: class 0 of 0 .. 1000000000000 has no rows"),
        (np.where(np.arange(12) == 3, np.inf, GOOD), None, 2, InputError, "x: the value at"),
    ],
)
def test_bad_fits(x, labels, components, error, message):
    with pytest.raises(error, match=message):
        ops.fit_ppca(x, labels, components=components)


def test_bad_scores():
    fit = ops.fit_ppca(GOOD, components=2)
    per_class = ops.fit_ppca(GOOD, np.arange(20) % 2, components=2)
    with pytest.raises(InputError, match="ppca: mean"):
        ops.ppca_log_likelihood(GOOD[:, :3], fit)
    with pytest.raises(InputError, match="a fit per class needs labels"):
        ops.ppca_log_likelihood(GOOD, per_class)
    with pytest.raises(InputError, match="a fit of all takes none"):
        ops.ppca_log_likelihood(GOOD, fit, np.zeros(20, int))
    with pytest.raises(InputError, match="label 2 is outside"):
        ops.ppca_log_likelihood(GOOD, per_class, np.full(20, 2))
    with pytest.raises(InputError, match="ridge"):
        ops.ppca_log_likelihood(GOOD, fit, ridge=-1)
    for wrong in (None, (1, 2), "pca"):
        with pytest.raises(InputTypeError, match="ppca: what fit_ppca gives is needed"):
            ops.ppca_log_likelihood(GOOD, wrong)
    with pytest.raises(InputError, match="ppca: the value"):
        ops.ppca_log_likelihood(GOOD, fit._replace(noise_variance=np.nan))
