"""KID against sklearn's polynomial kernel and its own definition by loops."""

import itertools

import numpy as np
import pytest
from sklearn.metrics.pairwise import polynomial_kernel

from prunefast.errors import InputError
from prunefast.evaluate import kernel_distance
from prunefast.evaluate.kid import squared_mmd


def mmd_by_loops(x, y):
    def k(a, b):
        return (float(a @ b) / len(a) + 1) ** 3

    within_x = [k(x[i], x[j]) for i, j in itertools.permutations(range(len(x)), 2)]
    within_y = [k(y[i], y[j]) for i, j in itertools.permutations(range(len(y)), 2)]
    return np.mean(within_x) + np.mean(within_y) - 2 * np.mean([k(a, b) for a in x for b in y])


def test_estimate_equals_the_definition():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 4)), rng.normal(size=(5, 4)) + 1
    assert squared_mmd(x, y) == pytest.approx(mmd_by_loops(x, y), rel=1e-12)


def test_estimate_equals_sklearn_kernels():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(60, 9)), 2 * rng.normal(size=(40, 9))
    options = {"degree": 3, "gamma": 1 / 9, "coef0": 1}
    xx, yy, xy = (polynomial_kernel(a, b, **options) for a, b in ((x, x), (y, y), (x, y)))
    expected = (xx.sum() - np.trace(xx)) / (60 * 59) + (yy.sum() - np.trace(yy)) / (40 * 39) - 2 * xy.mean()
    assert squared_mmd(x, y) == pytest.approx(expected, rel=1e-11)


def test_by_hand():
    # x = {1, -1}, y = {0, 0} in one dimension: within x (1 - 1)^3 = 0, within y 1, across 1
    assert squared_mmd(np.array([[1.0], [-1.0]]), np.zeros((2, 1))) == pytest.approx(0 + 1 - 2)


def test_one_distribution_is_zero_within_its_spread_and_a_shift_is_not():
    rng = np.random.default_rng(2)
    same = kernel_distance(rng.normal(size=(800, 8)), rng.normal(size=(900, 8)), blocks=50)
    assert abs(same.mean) < 3 * same.standard_deviation
    shifted = kernel_distance(rng.normal(size=(800, 8)) + 1, rng.normal(size=(900, 8)), blocks=50)
    assert shifted.mean > 20 * shifted.standard_deviation


def test_unbiased_in_the_number_of_images():
    # E over many small draws meets the value on all pairs; the biased (diagonal) estimate would be off by far
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(300, 3)), 1.5 * rng.normal(size=(300, 3))
    small = kernel_distance(x, y, blocks=3000, block_size=5)
    assert small.mean == pytest.approx(squared_mmd(x, y), abs=4 * small.standard_deviation / np.sqrt(3000))


def test_seed_and_blocks():
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(50, 3)), rng.normal(size=(30, 3))
    first = kernel_distance(x, y, seed=1)
    assert first == kernel_distance(x, y, seed=1)
    assert first != kernel_distance(x, y, seed=2)
    assert (first.blocks, first.block_size) == (100, 15)  # half the smaller set, so that blocks differ
    assert first.standard_deviation > 0
    whole = kernel_distance(x, x, block_size=50, blocks=3)
    assert whole.standard_deviation == pytest.approx(0, abs=1e-12)  # every block is everything


def test_global_random_state_is_untouched():
    np.random.seed(5)  # noqa: NPY002 - the state under test
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    kernel_distance(np.eye(8), np.ones((8, 8)))
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


@pytest.mark.parametrize(
    ("options", "word"),
    [({"block_size": 1}, "block_size"), ({"block_size": 9}, "block_size"), ({"blocks": 0}, "blocks")],
)
def test_bad_options(options, word):
    with pytest.raises(InputError, match=word):
        kernel_distance(np.eye(8), np.eye(8), **options)


def test_too_few_images():
    with pytest.raises(InputError, match="at least 4"):
        kernel_distance(np.eye(3), np.eye(3))
