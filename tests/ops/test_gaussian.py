"""Gaussian fit and likelihood against the textbook formula and scikit-learn."""

import numpy as np
import pytest
import torch

from prunefast import ops
from prunefast.errors import InputError, InputTypeError
from prunefast.ops import gaussian as module
from prunefast.ops import native, reference


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


@pytest.mark.parametrize("rows", [None, torch.tensor([5, 3, 99, 7, 8, 20, 21, 22, 50, 3])])
def test_the_portable_code_agrees(rows, monkeypatch):
    """What GPUs run where nothing else serves them, in pieces of any size."""
    x = torch.from_numpy(features(n=101, seed=5))
    mean, covariance = module.fit_moments(x, rows)
    factor = torch.linalg.cholesky(covariance + torch.eye(7))
    expected = native.mahalanobis(x, rows, mean, factor)
    for values in (1 << 20, 50):
        monkeypatch.setattr(module, "_CHUNK_VALUES", values)
        pieces = module._portable_moments(x, rows)
        torch.testing.assert_close(pieces[0], mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(pieces[1], covariance, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(module._portable_mahalanobis(x, rows, mean, factor), expected, rtol=1e-12, atol=0)


def long_log_likelihood(x, ridge):
    """The formula in 80-bit arithmetic, element by element: six more bits than the condition number costs below."""
    x = x.astype(np.longdouble)
    centred = x - x.mean(0)
    covariance = centred.T @ centred / len(x) + np.longdouble(ridge) * np.eye(x.shape[1])
    factor = np.zeros_like(covariance)
    for j in range(len(factor)):
        factor[j, j] = np.sqrt(covariance[j, j] - factor[j, :j] @ factor[j, :j])
        factor[j + 1 :, j] = (covariance[j + 1 :, j] - factor[j + 1 :, :j] @ factor[j, :j]) / factor[j, j]
    white = np.zeros_like(centred)
    for j in range(len(factor)):
        white[:, j] = (centred[:, j] - white[:, :j] @ factor[j, :j]) / factor[j, j]
    return -(white**2).sum(1) / 2 - len(factor) * np.log(2 * np.longdouble(np.pi)) / 2 - np.log(np.diag(factor)).sum()


@pytest.mark.parametrize(("spread", "offset"), [(1, 0), (1e4, 0), (1e4, 1e3), (3e4, 1e5)])
def test_ill_conditioned_rows_agree_to_1e6(spread, offset):
    """Standard deviations from 1 to `spread`, so a condition number of its square; float32 rows."""
    rng = np.random.default_rng(9)
    turn = np.linalg.qr(rng.normal(size=(24, 24)))[0]
    x = ((rng.normal(size=(500, 24)) * np.geomspace(1, spread, 24)) @ turn + offset).astype("f")
    score = ops.gaussian_log_likelihood(x, ops.fit_gaussian(x))
    np.testing.assert_allclose(score, long_log_likelihood(x, 1e-5).astype(float), rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8, torch.int64])
def test_layouts_and_types(dtype):
    """Strided, transposed, misaligned and expanded rows, every kind of number: the bits of the dense float64 copy."""
    whole = torch.from_numpy(features(n=60, d=9) * 20 + 100).to(dtype)
    for x in (whole, whole[:, 1:8], whole[3:].T[:, :40], whole.flatten()[1:532].view(59, 9), whole[:1].expand(20, 9)):
        dense = x.contiguous().double()
        fit, same = ops.fit_gaussian(x), ops.fit_gaussian(dense)
        assert torch.equal(fit.covariance, same.covariance)
        assert torch.equal(ops.gaussian_log_likelihood(x, fit), ops.gaussian_log_likelihood(dense, same))


def test_threads_do_not_matter():
    x, rows = torch.from_numpy(features(n=900, d=70, seed=8)), torch.arange(0, 900, 2)
    mean, covariance = module.fit_moments(x, rows)
    factor = torch.linalg.cholesky(covariance + torch.eye(70))  # LAPACK's bits may depend on threads
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            results.append((*module.fit_moments(x, rows), native.mahalanobis(x, None, mean, factor)))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


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


def test_a_graph_ends_here():
    x = torch.from_numpy(features()).requires_grad_()
    fit = ops.fit_gaussian(x * 2)
    assert not fit.covariance.requires_grad
    assert not ops.gaussian_log_likelihood(x * 2, fit).requires_grad


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
    with pytest.raises(InputTypeError, match="gaussian: what fit_gaussian gives"):
        ops.gaussian_log_likelihood(GOOD, None)
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
