"""The rule of the groups, against its three promises and against hand calculation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefast.dedup import Deduplication
from prunefast.dedup.pairs import Pairs, number_contents
from prunefast.errors import InputError, InputTypeError


def dedup(points, threshold=1.0, rank=None, most=10.0, against=None):
    """Points on a line: all pairs within `most`."""
    points = np.asarray(points, dtype=float)
    content, first = number_contents(points)
    i, j = np.triu_indices(len(first), 1)
    apart = np.abs(points[first][i] - points[first][j])
    near = apart <= most
    more = {}
    if against is not None:
        away = np.abs(points[:, None] - np.asarray(against, dtype=float)[None])
        nearest = away.argmin(1)
        value = away.min(1)
        more = {
            "against": np.where(value <= most, nearest, -1),
            "against_distance": np.where(value <= most, value, np.inf),
        }
    pairs = Pairs(content, i[near], j[near], apart[near], **more)
    rank = np.arange(len(points)) if rank is None else np.asarray(rank)
    return Deduplication(pairs, rank, level="semantic", threshold=threshold, max_threshold=most)


def promises(found, points, against=()):
    points, kept = np.asarray(points, dtype=float), found.kept
    assert sorted([*found.kept, *found.dropped]) == list(range(len(points)))
    for i in found.dropped:
        if found.against[i] >= 0:
            assert found.survivor[i] == -1
            assert abs(points[i] - against[found.against[i]]) == found.distance[i] <= found.threshold
        else:
            s = found.survivor[i]
            assert found.keep[s]
            assert abs(points[i] - points[s]) == found.distance[i] <= found.threshold
            assert found.distance[i] == np.abs(points[kept] - points[i]).min()  # the nearest of those kept
            assert found.groups[i] == found.groups[s] >= 0
    for a in kept:
        assert found.survivor[a] == a
        assert found.distance[a] == 0
        assert all(abs(points[a] - points[b]) > found.threshold for b in kept if a != b)


def test_a_chain_does_not_swallow_its_end():
    """SemDeDup drops b and c of a - b - c although c is near no kept image (facebookresearch/SemDeDup#8)."""
    found = dedup([0.0, 0.9, 1.8])
    assert found.kept.tolist() == [0, 2]
    assert found.survivor.tolist() == [0, 0, 2]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]])
def test_the_order_of_the_input_does_not_matter(order):
    """imagededup keeps the middle of a chain or its ends, by the order of a dict."""
    points, rank = np.array([0.0, 0.9, 1.8])[order], np.array([1, 0, 2])[order]
    found = dedup(points, rank=rank)
    assert sorted(points[found.kept]) == [0.9]


def test_copies_are_one_content():
    found = dedup([5.0] * 1000 + [9.0])
    assert len(found.pairs.first) == 1
    assert len(found) == 2
    (group,) = found
    assert (group.kept, len(group.dropped)) == (0, 999)
    assert not group.distance.any()


def test_the_best_of_a_content_survives():
    assert dedup([5.0, 5.0, 5.0], rank=[2, 0, 1]).kept.tolist() == [1]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 40), min_size=0, max_size=40),
    st.lists(st.integers(0, 40), max_size=6),
    st.integers(0, 10),
    st.randoms(use_true_random=False),
)
def test_promises(points, against, threshold, random):
    rank = list(range(len(points)))
    random.shuffle(rank)
    found = dedup(points, threshold, rank, against=against or None) if points else dedup([], threshold)
    promises(found, points, against)
    for other in (0, threshold // 2, 10):
        moved = found.rethreshold(other)
        promises(moved, points, against)
        again = dedup(points, other, rank, against=against or None) if points else dedup([], other)
        assert (moved.keep == again.keep).all()
        assert (moved.groups == again.groups).all()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_permuting_the_input_permutes_the_answer(points, random):
    rank, order = list(range(len(points))), list(range(len(points)))
    random.shuffle(rank)
    random.shuffle(order)
    found = dedup(points, 3, rank)
    moved = dedup(np.array(points)[order], 3, np.array(rank)[order])
    assert (moved.keep == found.keep[order]).all()


def test_groups_are_numbered_by_their_survivors_and_listed_nearest_first():
    found = dedup([20, 0, 1, 20.5, 0.5, 50], threshold=1)
    assert found.groups.tolist() == [0, 1, 1, 0, 1, -1]
    assert [(g.kept, g.dropped.tolist(), g.distance.tolist()) for g in found] == [
        (0, [3], [0.5]),
        (1, [4, 2], [0.5, 1]),
    ]
    first, *ties = found.least_similar(3)
    assert first == (2, 1, 1.0)
    assert sorted(ties) == [(3, 0, 0.5), (4, 1, 0.5)]
    assert "3 of 6 images kept: 3 duplicates in 2 groups" in found.summary()


def test_of_many_at_one_distance_the_least_similar_come_from_all_over():
    found = dedup(np.repeat(np.arange(0, 2000, 2), 2).tolist(), threshold=1)  # 1,000 pairs of equal points
    shown = sorted(dropped for dropped, _, _ in found.least_similar(20))
    assert len(np.unique(np.array(shown) // 500)) == 4  # of all four quarters
    assert found.least_similar(20)[:10] == found.least_similar(10)


def test_rethreshold_is_bounded():
    found = dedup([0, 1, 2], most=3)
    with pytest.raises(InputError, match=r"up to 3, 3\.5 is outside"):
        found.rethreshold(3.5)
    with pytest.raises(InputError, match="0 or more"):
        found.rethreshold(-1)
    with pytest.raises(InputTypeError, match="number"):
        found.rethreshold("1")
