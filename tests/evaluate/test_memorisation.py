"""Nearest-neighbour distances against scipy's, and the meaning of the two numbers."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from prunefast.errors import InputError
from prunefast.evaluate import memorisation


def draws(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def test_numbers_equal_the_definition():
    samples, training, held_out = draws(0, (60, 5), (80, 5), (80, 5))
    found = memorisation(samples, training, held_out, percentile=5)
    near, far = cdist(samples, training).min(1), cdist(samples, held_out).min(1)
    within = cdist(training, training)
    np.fill_diagonal(within, np.inf)
    limit = np.percentile(within.min(1), 5)
    assert found.nearest_train_median == pytest.approx(np.median(near), rel=1e-5)
    assert found.nearest_held_out_median == pytest.approx(np.median(far), rel=1e-5)
    assert found.ratio_median == pytest.approx(np.median(near / far), rel=1e-5)  # equal sizes: nothing is drawn
    assert found.copied_distance == pytest.approx(limit, rel=1e-5)
    assert found.copied_share == (near <= limit).mean()
    assert found.copied_share_expected == 0.05
    sample, row, distance = found.closest[0]
    assert (sample, row) == np.unravel_index(cdist(samples, training).argmin(), (60, 80))
    assert distance == pytest.approx(near.min(), rel=1e-5)
    assert [d for _, _, d in found.closest] == sorted(d for _, _, d in found.closest)


def test_fresh_samples_look_fresh():
    samples, training, held_out = draws(1, (2000, 4), (1000, 4), (3000, 4))
    found = memorisation(samples, training, held_out, percentile=5)
    assert 0.9 < found.ratio_median < 1.1  # although there are three times as many held-out images
    assert found.ratio_images == 1000
    assert 0.025 < found.copied_share < 0.09


def test_copies_show_in_both_numbers():
    training, held_out, noise = draws(2, (400, 8), (400, 8), (200, 8))
    found = memorisation(training[:200] + 1e-3 * noise, training, held_out)
    assert found.ratio_median < 0.01
    assert found.copied_share == 1.0
    assert found.copied_share_expected == 0.01


def test_exact_copies_of_duplicated_images():
    # the training set holds every image twice: its own nearest distances are 0, and a copy is still seen as one
    base, held_out, other = draws(3, (50, 4), (100, 4), (50, 4))
    training = np.concatenate([base, base])
    found = memorisation(np.concatenate([base[:25], other[:25]]), training, held_out)
    assert found.copied_distance == 0
    assert found.copied_share == 0.5


def test_sample_in_both_sets_counts_as_even():
    x = np.eye(6, dtype=np.float32)
    assert memorisation(x, x, x).ratio_median == 1.0


def test_without_held_out_images_there_is_no_ratio():
    samples, training = draws(4, (20, 3), (30, 3))
    for held_out in (None, np.zeros((0, 3), np.float32)):
        found = memorisation(samples, training, held_out)
        assert found.ratio_median is None
        assert found.ratio_images is None
        assert 0 <= found.copied_share <= 1


def test_infinite_ratio_is_no_number():
    # samples equal to held-out images: d / 0
    samples, training = draws(5, (20, 3), (30, 3))
    assert memorisation(samples, training, samples).ratio_median is None


def test_seed_decides_the_draw_and_nothing_else():
    samples, training, held_out = draws(6, (50, 3), (40, 3), (400, 3))
    first, again, other = (memorisation(samples, training, held_out, seed=s) for s in (0, 0, 1))
    assert first == again
    assert first.ratio_median != other.ratio_median
    assert first.copied_share == other.copied_share


@pytest.mark.parametrize("percentile", [0, 100, -1])
def test_bad_percentile(percentile):
    with pytest.raises(InputError, match="percentile"):
        memorisation(np.eye(3), np.eye(3), percentile=percentile)


def test_bad_shapes():
    with pytest.raises(InputError, match="held_out: 2 features"):
        memorisation(np.eye(3), np.eye(3), np.eye(2))
    with pytest.raises(InputError, match="training: 1 image"):
        memorisation(np.eye(3), np.eye(3)[:1])
