"""Cuts, galleries and maps against plain statements of what they are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefast.report.projection import project, spread
from prunefast.report.selection import extremes, find_cut, gallery


def test_cut_of_the_highest():
    scores = np.array([3.0, 1.0, 4.0, 1.5, 9.0])
    cut = find_cut(scores, scores >= 3)
    assert (cut.low, cut.high, cut.exceptions) == (3.0, None, 0)


def test_cut_of_a_band():
    scores = np.arange(10.0)
    cut = find_cut(scores, (scores >= 3) & (scores <= 6))
    assert (cut.low, cut.high) == (3.0, 6.0)


def test_cut_allows_a_few_forced_images():
    scores = np.arange(1000.0)
    keep = scores >= 700
    keep[[5, 800]] = [True, False]
    assert find_cut(scores, keep).exceptions == 1
    keep[:20] = True
    assert find_cut(scores, keep) is None


@pytest.mark.parametrize("keep", [np.ones(5, bool), np.zeros(5, bool)])
def test_no_cut_where_nothing_was_cut(keep):
    assert find_cut(np.arange(5.0), keep) is None


def test_no_cut_through_equal_scores():
    assert find_cut(np.ones(6), np.arange(6) < 3) is None


@settings(deadline=None)
@given(st.lists(st.integers(0, 8), min_size=2, max_size=40), st.data())
def test_a_cut_explains_the_selection(values, data):
    scores = np.array(values, dtype=float)
    keep = np.zeros(len(scores), bool)
    keep[data.draw(st.lists(st.integers(0, len(scores) - 1), unique=True))] = True
    cut = find_cut(scores, keep)
    if cut is None:
        return
    low, high = (-np.inf if cut.low is None else cut.low), (np.inf if cut.high is None else cut.high)
    inside = (scores >= low) & (scores <= high)
    assert (keep & ~inside).sum() == cut.exceptions
    strictly = (scores > low) & (scores < high)
    assert (~keep & strictly).sum() <= cut.exceptions  # a dropped image lies at the cut at most


def test_gallery_shows_the_ends():
    scores = np.arange(100.0)
    keep = scores >= 60
    rows = gallery(np.arange(100), keep, scores, 5, cut=find_cut(scores, keep))
    assert [row.title for row in rows] == [
        "Kept, highest scores",
        "Kept, just above the cut",
        "Dropped, just below the cut",
        "Dropped, lowest scores",
    ]
    assert rows[0].indices == [99, 98, 97, 96, 95]
    assert rows[1].indices == [64, 63, 62, 61, 60]
    assert rows[2].indices == [59, 58, 57, 56, 55]
    assert rows[3].indices == [4, 3, 2, 1, 0]


@settings(deadline=None)
@given(st.integers(0, 30), st.integers(1, 8), st.booleans(), st.integers(0, 99))
def test_gallery_never_shows_an_image_twice_or_in_the_wrong_row(count, width, scored, seed):
    rng = np.random.default_rng(seed)
    members = rng.permutation(60)[:count].astype(np.int64)
    keep, scores = rng.random(60) < 0.4, rng.normal(size=60)
    rows = gallery(members, keep, scores if scored else None, width)
    shown = [index for row in rows for index in row.indices]
    assert len(shown) == len(set(shown))
    assert set(shown) <= set(members.tolist())
    assert all(keep[index] == row.kept for row in rows for index in row.indices)
    if count <= width:
        assert set(shown) == set(members.tolist())
    assert rows == gallery(members, keep, scores if scored else None, width)


def test_extremes():
    assert extremes(np.array([0.5, 0.1, 0.9]), 3) == [0, 1, 2]
    assert extremes(np.array([0.5, 0.1, 0.9, 0.4, 0.6]), 2) == [1, 2]


def test_projection_finds_the_widest_plane():
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(2000, 2)) * [10, 4]
    basis = np.linalg.qr(rng.normal(size=(6, 6)))[0][:2]
    found = project(plane @ basis + 0.1 * rng.normal(size=(2000, 6)))
    assert found.kind == "principal"
    assert found.variance == pytest.approx((100 / 116, 16 / 116), abs=0.02)
    for axis in range(2):
        assert abs(np.corrcoef(found.xy[:, axis], plane[:, axis])[0, 1]) > 0.99
    assert found.inside.mean() > 0.97


def test_projection_of_whitened_features_shows_the_classes():
    rng = np.random.default_rng(1)
    labels = np.arange(3000) % 3
    x = rng.normal(size=(3000, 20))
    x[:, 7] += 2.5 * (labels == 1)
    x[:, 11] += 2.5 * (labels == 2)
    x = (x - x.mean(0)) / x.std(0)
    found = project(x, labels)
    assert found.kind == "class means"
    means = np.stack([found.xy[labels == c].mean(0) for c in range(3)])
    within = found.xy[labels == 0].std(0).mean()
    assert min(np.linalg.norm(means[i] - means[j]) for i, j in ((0, 1), (0, 2), (1, 2))) > within
    assert project(rng.normal(size=(3000, 20))).kind == "features"


def test_projection_of_fewer_points_than_features_is_the_same():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(30, 10)) * np.geomspace(10, 0.1, 10)
    wide = np.concatenate([x, np.zeros((30, 90))], axis=1)
    np.testing.assert_allclose(project(x).xy, project(wide).xy, atol=1e-6)


@pytest.mark.parametrize("x", [np.ones((1, 3)), np.ones((5, 3)), np.arange(6.0)[:, None], np.full((4, 2), np.nan)])
def test_projection_of_almost_nothing(x):
    found = project(x)
    assert found.xy.shape == (len(x), 2)
    assert np.isfinite(found.xy).all()


def test_projection_leaves_out_rows_that_are_not_finite():
    x = np.random.default_rng(3).normal(size=(50, 4))
    x[7] = np.nan
    found = project(x)
    assert not found.inside[7]
    assert np.isfinite(found.xy).all()


def test_one_outlier_does_not_squash_the_map():
    x = np.random.default_rng(4).normal(size=(1000, 3)) * [3, 2, 1]
    x[0] = 1e6
    found = project(np.concatenate([x, x[1:]]))
    assert not found.inside[0]
    assert np.ptp(found.xy[1:1000][found.inside[1:1000]], axis=0).max() > 0.5


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(0, 99))
def test_spread_takes_the_middle_one_of_each_cell(count, seed):
    xy = np.random.default_rng(seed).random((count, 2))
    chosen = spread(xy, 5, 4)
    cell = np.minimum((xy * [5, 4]).astype(int), [4, 3])
    assert len(chosen) == len({tuple(c) for c in cell.tolist()})
    for i in chosen:
        same = (cell == cell[i]).all(axis=1)
        middle = (cell[i] + 0.5) / [5, 4]
        distance = (((xy - middle) * [5, 4]) ** 2).sum(1)
        assert distance[i] == distance[same].min()
