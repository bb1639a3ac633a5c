"""Precision and recall against all pairs of distances in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from prunefast.errors import InputError
from prunefast.evaluate import precision_recall


def brute_force(samples, reference, k):
    """Straight from the paper: a ball around each point to its k-th nearest other point of its set."""

    def covered(points, centres):
        within = cdist(centres, centres, "sqeuclidean")
        np.fill_diagonal(within, np.inf)
        radius = np.sort(within, axis=1)[:, k - 1]
        return (cdist(points, centres, "sqeuclidean") <= radius).any(axis=1).mean()

    samples, reference = np.asarray(samples, float), np.asarray(reference, float)
    return covered(samples, reference), covered(reference, samples)


def both(samples, reference, k=3):
    found = precision_recall(samples, reference, k=k)
    return found.precision, found.recall


def test_by_hand():
    reference = np.array([[0.0], [1.0], [2.0], [10.0]])  # k = 1: radii 1, 1, 1, 8
    samples = np.array([[-0.9], [3.5], [18.0], [19.0]])  # radii 4.4, 4.4, 1, 1
    # -0.9 near 0; 3.5 and 18 within 8 of 10 (though the nearest centre of 3.5 is 2, whose ball ends at 3); 19 is out
    # the samples' balls cover [-5.3, 7.9] and [17, 20]: all but 10
    assert both(samples, reference, k=1) == (0.75, 0.75)


@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("dim", [1, 3, 40])
def test_agrees_with_brute_force(k, dim):
    rng = np.random.default_rng(10 * dim + k)
    reference = rng.normal(size=(300, dim)).astype(np.float32)
    samples = (0.8 * rng.standard_t(3, size=(250, dim)) + 0.3).astype(np.float32)  # outliers: radii that differ a lot
    assert both(samples, reference, k) == brute_force(samples, reference, k)


@settings(deadline=None, max_examples=60)
@given(st.integers(4, 40), st.integers(4, 40), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_exact_on_small_integers(n, m, dim, k, seed):
    # ties, duplicates and points on the rim everywhere
    rng = np.random.default_rng(seed)
    samples = rng.integers(0, 4, size=(n, dim)).astype(np.float32)
    reference = rng.integers(0, 4, size=(m, dim)).astype(np.float32)
    assert both(samples, reference, k) == brute_force(samples, reference, k)


def test_equal_sets_are_covered_whole_and_far_ones_not_at_all():
    x = np.random.default_rng(0).normal(size=(100, 5)).astype(np.float32)
    assert both(x, x) == (1.0, 1.0)
    assert both(x + 1000, x) == (0.0, 0.0)


def test_duplicates_make_empty_balls():
    ones = np.ones((10, 3), dtype=np.float32)
    assert both(ones, ones) == (1.0, 1.0)  # every radius is 0, every distance too
    assert both(ones + 1e-3, ones) == (0.0, 0.0)


def test_a_mode_that_was_dropped_costs_recall_only():
    rng = np.random.default_rng(1)
    left, right = rng.normal(size=(400, 4)), rng.normal(size=(400, 4)) + 50
    precision, recall = both(left[:200], np.concatenate([left[200:], right[:200]]))
    assert precision > 0.8
    assert 0.3 < recall < 0.6


def test_far_from_the_origin_and_beside_an_outlier():
    # offsets cost float32 digits, and one huge ball (R = 1e4 of radii about 1) makes every answer a close call
    rng = np.random.default_rng(2)
    reference = 5000 + rng.normal(size=(200, 3))
    reference[0] = 15000
    samples = 5000 + 1.3 * rng.normal(size=(150, 3))
    samples[:40] += [30, 0, 0]
    # outlier's own ball covers all: leave the answer to brute force, and again without the outlier
    assert both(samples, reference) == brute_force(samples, reference, 3)
    samples[3] = -20000
    assert both(samples, reference[1:]) == brute_force(samples, reference[1:], 3)


def test_bad_input():
    x = np.zeros((4, 2), dtype=np.float32)
    with pytest.raises(InputError, match="k: 0"):
        precision_recall(x, x, k=0)
    with pytest.raises(InputError, match="samples: 4 image"):
        precision_recall(x, np.zeros((9, 2)), k=4)
    with pytest.raises(InputError, match="NaN"):
        precision_recall(np.full((9, 2), np.nan), np.zeros((9, 2)))
