"""Exact budgets and quotas."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefast.errors import InputError, InputTypeError
from prunefast.select import budget

SETTINGS = settings(deadline=None, max_examples=150)


@pytest.mark.parametrize(
    ("keep", "total", "expected"),
    [
        (0.3, 10, 3),
        (0.3, 5, 2),  # 1.5
        (0.5, 3, 2),  # 1.5
        (0.5, 1, 1),  # 0.5
        (0.29, 50, 15),  # 14.5, although 0.29 * 50 is 14.499999999999998 in floating point
        (0.35, 10, 4),  # 3.5, and banker's rounding would agree
        (0.25, 10, 3),  # 2.5, where banker's rounding says 2
        (0.249, 10, 2),
        (1.0, 7, 7),
        (1, 7, 7),
        (0.3, 50_000, 15_000),
        (1e-4, 10_000, 1),
        (np.float64(0.29), 50, 15),
    ],
)
def test_round_half_up(keep, total, expected):
    assert budget.number_kept(total, keep, None) == expected


@pytest.mark.parametrize("keep", [0, -0.1, 1.01, float("nan"), float("inf"), 30])
def test_keep_outside(keep):
    with pytest.raises(InputError, match=r"keep: must be in \(0, 1\]"):
        budget.number_kept(100, keep, None)


@pytest.mark.parametrize("keep", ["0.3", True, None, [0.3]])
def test_keep_of_another_type(keep):
    with pytest.raises(InputTypeError, match="keep"):
        budget.number_kept(100, keep, None if keep is not None else 0.5)


@pytest.mark.parametrize("keep_n", [0, -3, 101])
def test_keep_n_outside(keep_n):
    with pytest.raises(InputError, match="keep_n: must be between 1 and the number of images, 100"):
        budget.number_kept(100, None, keep_n)


def test_keep_of_less_than_one_image():
    with pytest.raises(InputError, match="is no image"):
        budget.number_kept(4, 0.1, None)


@pytest.mark.parametrize(
    ("given_budget", "words"),
    [((None, None, None), "not none"), ((0.3, 5, None), "keep and keep_n"), ((0.3, 5, 1.0), "and threshold")],
)
def test_exactly_one_budget(given_budget, words):
    with pytest.raises(InputError, match=words):
        budget.check_one_budget(*given_budget)


def test_largest_remainder_by_hand():
    # shares 4.5, 4.5, 1: the tie of the two halves goes to the smaller class
    assert budget.largest_remainder([9, 9, 2], 10).tolist() == [5, 4, 1]
    # CCS's class_balanced gives [50, 50] here (defect 3)
    assert budget.largest_remainder([900, 100], 500).tolist() == [450, 50]
    assert budget.largest_remainder([0, 3, 0], 2).tolist() == [0, 2, 0]


def test_largest_remainder_past_64_bits():
    big = 3_000_000_000
    assert budget.largest_remainder([big, big, big], 3 * big - 1).tolist() == [big, big, big - 1]


@SETTINGS
@given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=12), data=st.data())
def test_largest_remainder_is_fair(counts, data):
    n = data.draw(st.integers(0, sum(counts)))
    quota = budget.largest_remainder(counts, n)
    assert quota.sum() == n
    for q, count in zip(quota.tolist(), counts, strict=True):
        share = Fraction(n * count, max(sum(counts), 1))
        assert abs(q - share) < 1
        assert 0 <= q <= count


@st.composite
def bounded(draw):
    counts = draw(st.lists(st.integers(0, 20), min_size=1, max_size=8))
    lower = [draw(st.integers(0, c)) for c in counts]
    upper = [draw(st.integers(low, c)) for low, c in zip(lower, counts, strict=True)]
    return np.array(counts), draw(st.integers(sum(lower), sum(upper))), np.array(lower), np.array(upper)


@SETTINGS
@given(bounded())
def test_proportional_keeps_sum_and_bounds(case):
    counts, n, lower, upper = case
    quota = budget.proportional(counts, n, lower, upper)
    assert quota.sum() == n
    assert (lower <= quota).all()
    assert (quota <= upper).all()


@SETTINGS
@given(bounded())
def test_equal_keeps_sum_and_bounds(case):
    _, n, lower, upper = case
    quota = budget.equal(n, lower, upper)
    assert quota.sum() == n
    assert (lower <= quota).all()
    assert (quota <= upper).all()


def test_proportional_with_forced_images_by_hand():
    counts = np.array([10, 10, 10])
    none = np.zeros(3, dtype=int)
    assert budget.proportional(counts, 9, none, counts).tolist() == [3, 3, 3]
    # six forced in class 0: the other two give up places in turn, the smaller class first
    assert budget.proportional(counts, 9, np.array([6, 0, 0]), counts).tolist() == [6, 1, 2]
    # only one image of class 2 may be kept: what it cannot use goes to the others in turn
    assert budget.proportional(counts, 9, none, np.array([10, 10, 1])).tolist() == [4, 4, 1]


def test_equal_by_hand():
    none = np.zeros(4, dtype=int)
    assert budget.equal(10, none, np.array([5, 5, 5, 5])).tolist() == [3, 3, 2, 2]
    # the deficit of the small cluster goes one by one to where most is left
    assert budget.equal(12, none, np.array([1, 4, 9, 5])).tolist() == [1, 3, 5, 3]
    # an empty cluster takes no part
    assert budget.equal(4, none, np.array([0, 5, 5, 0])).tolist() == [0, 2, 2, 0]


def test_top_of_groups_ties_to_the_smallest_index():
    scores = np.array([1.0, 2, 2, 2, 1, 1])
    groups = np.array([0, 0, 0, 0, 1, 1])
    nothing = np.zeros(6, dtype=bool)
    assert budget.top_of_groups(scores, groups, np.array([2, 1]), nothing, nothing).tolist() == [1, 2, 4]
    keep, drop = nothing.copy(), nothing.copy()
    keep[[0, 5]] = True
    drop[1] = True
    assert budget.top_of_groups(scores, groups, np.array([2, 1]), keep, drop).tolist() == [0, 2, 5]


def test_index_mask():
    assert budget.index_mask("must_keep", [3, 0, 3], 4).tolist() == [True, False, False, True]
    assert budget.index_mask("must_keep", [True, False, False], 3).tolist() == [True, False, False]
    assert not budget.index_mask("must_keep", None, 4).any()
    assert not budget.index_mask("must_keep", [], 4).any()
    for bad, words in (([4], "4 is out of range"), ([-1], "-1 is out of range"), ([True], "1 entries for 4")):
        with pytest.raises(InputError, match=words):
            budget.index_mask("must_keep", bad, 4)
    with pytest.raises(InputTypeError, match="integers or booleans"):
        budget.index_mask("must_keep", [0.5], 4)
