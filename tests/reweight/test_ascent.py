"""The ascent against known answers and against its formula, written out in NumPy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefast import ops
from prunefast.reweight import Ascent

UNIFORM = torch.full((4,), 0.25)


def step(ascent: Ascent, excess, count=(1, 1, 1, 1)):
    """One update from mean excesses."""
    counts = torch.tensor(count)
    return ascent.update(torch.as_tensor(excess, dtype=torch.float64) * counts, counts).numpy()


def test_equal_losses_leave_the_weights_uniform():
    ascent = Ascent(UNIFORM, step_size=50.0, smoothing=1e-3)
    for value in (0.0, 0.3, 7.0):
        np.testing.assert_allclose(step(ascent, [value] * 4, (3, 1, 8, 2)), 0.25, rtol=1e-14)
    np.testing.assert_allclose(ascent.average.numpy(), 0.25, rtol=1e-14)


@pytest.mark.parametrize("start", [[0.25] * 4, [0.1, 0.2, 0.3, 0.4]])
def test_one_class_with_constant_excess_rises_by_step_size_times_excess_in_log_odds(start):
    ascent = Ascent(torch.tensor(start, dtype=torch.float64), step_size=2.0, smoothing=0.0)
    odds = start[1] / start[0]
    for k in range(1, 20):
        weights = step(ascent, [0, 0.05, 0, 0])
        assert math.log(weights[1] / weights[0]) == pytest.approx(math.log(odds) + k * 2.0 * 0.05, rel=1e-9)
        assert weights[2] / weights[0] == pytest.approx(start[2] / start[0], rel=1e-12)  # the others keep theirs


def test_log_odds_before_smoothing():
    """With smoothing, the rise is the one before the mix: undo the mix and measure it."""
    ascent = Ascent(UNIFORM, step_size=3.0, smoothing=0.2)
    for _ in range(5):
        before = ascent.weights.numpy()
        after = (step(ascent, [0.4, 0, 0, 0]) - 0.2 / 4) / 0.8
        assert math.log(after[0] / after[1]) - math.log(before[0] / before[1]) == pytest.approx(1.2, rel=1e-12)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.lists(st.floats(0, 1e4), min_size=4, max_size=4), min_size=1, max_size=30),
    st.floats(0, 1e3),
    st.floats(1e-6, 1),
)
def test_no_weight_is_under_smoothing_over_classes(excesses, step_size, smoothing):
    ascent = Ascent(UNIFORM, step_size, smoothing)
    for excess in excesses:
        weights = step(ascent, excess)
        assert weights.min() >= smoothing / 4 * (1 - 1e-12)
        assert weights.sum() == pytest.approx(1)
    assert ascent.average.numpy().sum() == pytest.approx(1)
    assert ascent.average.numpy().min() >= min(0.25, smoothing / 4) * (1 - 1e-9)


def test_the_average_includes_the_start():
    start = np.array([0.7, 0.1, 0.1, 0.1])
    ascent = Ascent(torch.from_numpy(start), step_size=5.0, smoothing=0.01)
    seen = [start]
    np.testing.assert_array_equal(ascent.average.numpy(), start)
    for k in range(10):
        seen.append(step(ascent, np.random.Generator(np.random.Philox(key=k)).random(4)).copy())
    np.testing.assert_allclose(ascent.average.numpy(), np.mean(seen, axis=0), rtol=1e-12)


def test_a_class_that_is_absent_keeps_its_last_excess():
    one, other = (Ascent(UNIFORM, step_size=1.0, smoothing=0.0) for _ in range(2))
    step(one, [0.1, 0.2, 0.3, 0.4])
    step(other, [0.1, 0.2, 0.3, 0.4])
    with_gap = step(one, [0.5, 0, 0.3, 0.4], (2, 0, 1, 1))  # no image of class 1
    np.testing.assert_allclose(with_gap, step(other, [0.5, 0.2, 0.3, 0.4]), rtol=1e-12)
    assert one.excess.tolist() == pytest.approx([0.5, 0.2, 0.3, 0.4])


def test_a_class_not_seen_yet_neither_gains_nor_loses():
    ascent = Ascent(UNIFORM, step_size=1.0, smoothing=0.0)
    weights = step(ascent, [0.0, 0.2, 0.4, 0.0], (1, 1, 1, 0))
    mean = np.exp([0.0, 0.2, 0.4, 0.2])
    np.testing.assert_allclose(weights, mean / mean.sum(), rtol=1e-12)
    assert math.isnan(ascent.excess[3])


def test_a_loss_that_is_not_finite_counts_as_absent():
    ascent = Ascent(UNIFORM, step_size=1.0, smoothing=0.0)
    step(ascent, [0.1, 0.2, 0.3, 0.4])
    weights = step(ascent, [math.nan, math.inf, 0.3, 0.4])
    assert np.isfinite(weights).all()
    assert ascent.excess.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_huge_steps_stay_on_the_simplex():
    ascent = Ascent(UNIFORM, step_size=1e6, smoothing=1e-3)
    for _ in range(3):
        weights = step(ascent, [1e3, 0, 0, 0])
    np.testing.assert_allclose(weights, [1 - 0.75e-3, 0.25e-3, 0.25e-3, 0.25e-3], rtol=1e-9)


def test_state_comes_back_bit_for_bit():
    ascent = Ascent(UNIFORM, 1.0, 1e-3)
    step(ascent, [0.1, 0.7, 0.0, 0.0], (1, 1, 1, 0))
    import json

    copy = Ascent(torch.tensor([1.0, 0, 0, 0]), 1.0, 1e-3)
    copy.load(json.loads(json.dumps(ascent.state())))
    np.testing.assert_array_equal(step(copy, [0.2] * 4, (1, 0, 1, 0)), step(ascent, [0.2] * 4, (1, 0, 1, 0)))
    assert torch.equal(copy.average, ascent.average)


def test_the_excess_is_clipped_per_sample():
    """From the kernel's class sums: a class whose images are half above and half below does not cancel out."""
    ps, reference = np.array([1.0, 0.0, 0.4, 0.4]), np.array([0.5, 0.5, 0.5, 0.1])
    pred = torch.sqrt(torch.tensor(ps))[:, None, None, None].expand(4, 1, 2, 2).float()
    zero, labels = torch.zeros(4, 1, 2, 2), torch.tensor([0, 0, 1, 1])
    _, _, excess, count = ops.denoising_loss(
        pred, zero, zero, 0.0, 1.0, labels=labels, num_classes=2, reference_per_sample=torch.tensor(reference).float()
    )
    ascent = Ascent(torch.tensor([0.5, 0.5]), 4.0, 0.0)
    weights = ascent.update(excess, count).numpy()
    expected = np.exp(4.0 * np.array([0.25, 0.15]))
    np.testing.assert_allclose(weights, expected / expected.sum(), rtol=1e-6)
