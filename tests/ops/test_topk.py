"""topk and nearest: judged by the float64 distance of what was picked, exact on integers, on every shape and layout."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from prunefast import ops
from prunefast.errors import InputError, InputTypeError
from prunefast.ops import reference
from prunefast.ops.topk import _topk_portable


def check(x, y, k, index, distance, exclude_self=False):
    """Every pick is as near as the true one, every distance is that of the pick."""
    truth = reference.squared_distances(x, y)
    if exclude_self:
        np.fill_diagonal(truth, np.inf)
    best = np.sort(truth, axis=1)[:, :k]
    picked = np.take_along_axis(truth, np.asarray(index), 1)
    np.testing.assert_allclose(picked, best, rtol=1e-13, atol=0)
    np.testing.assert_allclose(distance, picked, rtol=1e-7, atol=0)
    assert all(len(set(row)) == k for row in np.asarray(index).tolist())


@pytest.mark.parametrize("columns", [1, 2, 15, 16, 17, 63, 64, 65, 131])
@pytest.mark.parametrize("others", [1, 2, 15, 16, 17, 63, 64, 65, 257])
def test_shapes(columns, others):
    rng = np.random.default_rng(columns * 1000 + others)
    x, y = rng.normal(size=(53, columns)).astype("f"), rng.normal(size=(others, columns)).astype("f")
    k = min(3, others)
    check(x, y, k, *ops.topk(x, y, k))


@pytest.mark.parametrize("rows", [0, 1, 47, 48, 49, 97])
def test_rows(rows):
    rng = np.random.default_rng(rows)
    x, y = rng.normal(size=(rows, 5)).astype("f"), rng.normal(size=(9, 5)).astype("f")
    index, distance = ops.topk(x, y, 9)
    assert index.shape == distance.shape == (rows, 9)
    assert index.dtype == np.int64
    assert distance.dtype == np.float32
    if rows:
        check(x, y, 9, index, distance)


@pytest.mark.parametrize("k", [1, 2, 31, 32, 33, 200, 1024])
def test_many_neighbours_of_many_rows(k):
    """More columns than one chunk of scores, and every way of finding the first threshold."""
    rng = np.random.default_rng(k)
    x, y = rng.normal(size=(60, 20)).astype("f"), rng.normal(size=(2500, 20)).astype("f")
    check(x, y, k, *ops.topk(x, y, k))


@pytest.mark.parametrize("exclude_self", [False, True])
def test_integers_are_exact_and_ties_go_to_the_smallest_index(exclude_self):
    rng = np.random.default_rng(0)
    x = rng.integers(-2, 3, size=(300, 5)).astype("f")
    index, distance = ops.topk(x, x, 7, exclude_self=exclude_self)
    expected, truth = reference.topk(x, x, 7, exclude_self)
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_array_equal(distance, truth)


@pytest.mark.parametrize("offset", [0.0, 1.0, 100.0, 1e3, 1e5, 1e7])
@pytest.mark.parametrize("spread", [1.0, 1e-3])
def test_offsets_and_tiny_spreads(offset, spread):
    """The expansion |x|^2 - 2 x.y + |y|^2 in float32 picks wrong rows from an offset of 100 on."""
    rng = np.random.default_rng(1)
    x = (offset + spread * rng.normal(size=(200, 33))).astype("f")
    y = (offset + spread * rng.normal(size=(150, 33))).astype("f")
    check(x, y, 4, *ops.topk(x, y, 4))


def test_near_duplicates_closer_than_the_screening_can_tell():
    rng = np.random.default_rng(2)
    centre = rng.normal(size=(1, 64)).astype("f")
    y = np.repeat(centre, 500, 0) + (1e-7 * rng.normal(size=(500, 64))).astype("f")
    x = rng.normal(size=(100, 64)).astype("f")
    check(x, y, 3, *ops.topk(x, y, 3))


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-20, 1e15, 1e19, 1e30])
def test_values_whose_squares_leave_float32(scale):
    rng = np.random.default_rng(3)
    x, y = (scale * rng.normal(size=(70, 9))).astype("f"), (scale * rng.normal(size=(40, 9))).astype("f")
    index, _ = ops.topk(x, y, 2)
    truth = reference.squared_distances(x, y)
    np.testing.assert_allclose(np.take_along_axis(truth, index, 1), np.sort(truth, 1)[:, :2], rtol=1e-12)


def test_one_row_far_outside():
    rng = np.random.default_rng(4)
    y = rng.normal(size=(400, 16)).astype("f")
    y[7] = 1e6
    x = np.concatenate([rng.normal(size=(90, 16)).astype("f"), y[7:8] + 1])
    check(x, y, 2, *ops.topk(x, y, 2))


def test_layouts():
    rng = np.random.default_rng(5)
    x, y = (
        torch.from_numpy(rng.normal(size=(61, 23)).astype("f")),
        torch.from_numpy(rng.normal(size=(37, 23)).astype("f")),
    )
    expected = ops.topk(x, y, 4)
    room = torch.empty(61 * 29 + 1)[1:].view(61, 29)[:, 3:26]  # misaligned, with gaps
    room.copy_(x)
    for same in (room, x.T.contiguous().T, x.repeat_interleave(2, 0)[::2], x.double()):
        for a, b in zip(ops.topk(same, y, 4), expected, strict=True):
            assert torch.equal(a, b)
    for a, b in zip(ops.topk(x, y.T.contiguous().T, 4), expected, strict=True):
        assert torch.equal(a, b)
    expanded = x[:1].expand(50, 23)
    index, _ = ops.topk(expanded, y, 4)
    assert torch.equal(index, expected[0][:1].expand(50, 4))
    backwards = np.ascontiguousarray(x.numpy()[:, ::-1])[:, ::-1]
    assert np.array_equal(ops.topk(backwards, y.numpy(), 4)[0], expected[0].numpy())


def test_a_read_only_memory_map(tmp_path):
    rng = np.random.default_rng(6)
    np.save(tmp_path / "features.npy", rng.normal(size=(64, 8)).astype("f"))
    features = np.load(tmp_path / "features.npy", mmap_mode="r")
    index, distance = ops.nearest(features, features)
    assert (index == np.arange(64)).all()
    assert (distance == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int64])
def test_other_types(dtype):
    x = torch.randint(0, 100, (40, 7), generator=torch.Generator().manual_seed(0)).to(dtype)
    index, distance = ops.topk(x, x, 3)
    expected, truth = reference.topk(x.double().numpy(), x.double().numpy(), 3)
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_array_equal(distance, truth)


@pytest.mark.parametrize("metric", ["ip", "cosine"])
def test_other_metrics(metric):
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=(80, 19)).astype("f") + 3, rng.normal(size=(120, 19)).astype("f") + 3
    index, distance = ops.topk(x, y, 5, metric=metric)
    wide_x, wide_y = x.astype("d"), y.astype("d")
    if metric == "cosine":
        wide_x /= np.linalg.norm(wide_x, axis=1, keepdims=True)
        wide_y /= np.linalg.norm(wide_y, axis=1, keepdims=True)
        truth = 2 - 2 * wide_x @ wide_y.T
    else:
        truth = -wide_x @ wide_y.T
    picked = np.take_along_axis(truth, index, 1)
    np.testing.assert_allclose(picked, np.sort(truth, 1)[:, :5], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(distance, picked, rtol=1e-5, atol=1e-6)


def test_cosine_of_zeros():
    x = np.array([[0, 0], [3, 4]], "f")
    index, distance = ops.topk(x, x, 2, metric="cosine")
    assert index.tolist() == [[0, 1], [1, 0]]
    np.testing.assert_allclose(distance, [[0, 1], [0, 1]], rtol=1e-6)


def test_uncertified_is_as_good_on_ordinary_data():
    rng = np.random.default_rng(8)
    x, y = rng.normal(size=(200, 32)).astype("f"), rng.normal(size=(300, 32)).astype("f")
    check(x, y, 6, *ops.topk(x, y, 6, certify=False))


def test_nearest_is_topk_of_one():
    rng = np.random.default_rng(9)
    x, y = rng.normal(size=(30, 4)).astype("f"), rng.normal(size=(20, 4)).astype("f")
    index, distance = ops.nearest(x, y)
    expected = ops.topk(x, y, 1)
    assert index.shape == distance.shape == (30,)
    assert (index == expected[0][:, 0]).all()
    assert (distance == expected[1][:, 0]).all()


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_threads_do_not_matter(threads):
    x = torch.randn(500, 40, generator=torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        index, distance = ops.topk(x, x, 9)
    finally:
        torch.set_num_threads(before)
    pieces = [ops.topk(x[i : i + 1], x, 9) for i in range(500)]
    assert torch.equal(index, torch.cat([p[0] for p in pieces]))
    assert torch.equal(distance, torch.cat([p[1] for p in pieces]))


@pytest.mark.parametrize("certify", [False, True])
def test_portable_code_agrees(certify):
    x = torch.randn(150, 12, generator=torch.Generator().manual_seed(2)) + 50
    for exclude_self in (False, True):
        for inner in (False, True):
            mine = torch.ops.prunefast.topk(x, x, 5, inner, True, exclude_self)
            theirs = _topk_portable(x, x, 5, inner, certify, exclude_self)
            assert torch.equal(mine[0], theirs[0])
            torch.testing.assert_close(mine[1], theirs[1], rtol=1e-6, atol=0)


matrices = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 20), st.just(3)),
    elements=st.floats(-8, 8, width=16).map(lambda v: round(v * 4) / 4),
)


@settings(deadline=None, max_examples=60)
@given(x=matrices, y=matrices, shift=st.integers(-64, 64), far=st.integers(100, 1000))
def test_properties(x, y, shift, far):
    index, distance = ops.nearest(x, y)
    expected, truth = reference.topk(x, y, 1)
    assert (index == expected[:, 0]).all()
    assert (distance == truth[:, 0].astype("f")).all()
    moved = ops.nearest(x + np.float32(shift), y + np.float32(shift))  # quarters: exact
    assert (moved[0] == index).all()
    assert (moved[1] == distance).all()
    farther = ops.nearest(x, np.concatenate([y, np.full((1, 3), far, "f")]))
    assert (farther[0] == index).all()
    doubled = ops.nearest(x, np.concatenate([y, y]))
    assert (doubled[0] == index).all()
    own = ops.nearest(y, y)
    assert (own[1] == 0).all()
    assert (y[own[0]] == y).all()


X = np.zeros((4, 3), "f")


@pytest.mark.parametrize(
    ("x", "y", "kwargs", "error", "message"),
    [
        (X, X, {"k": 0}, InputError, "k:"),
        (X, X, {"k": 5}, InputError, "k:"),
        (X, X, {"k": 4, "exclude_self": True}, InputError, "k:"),
        (X, X, {"k": True}, InputTypeError, "k:"),
        (X, X[:2], {"k": 1, "exclude_self": True}, InputError, "exclude_self"),
        (X, X[:, :2], {"k": 1}, InputError, "y: 2 columns"),
        (X, X[:0], {"k": 1}, InputError, "y: it has no rows"),
        (X[:, :0], X[:, :0], {"k": 1}, InputError, "x: it has no columns"),
        (X[0], X, {"k": 1}, InputError, "x: shape"),
        (X.astype("c8"), X, {"k": 1}, InputTypeError, "x:"),
        (X > 0, X, {"k": 1}, InputTypeError, "x:"),
        (X.astype(str), X, {"k": 1}, InputTypeError, "x:"),
        (X, X, {"k": 1, "metric": "hamming"}, InputError, "metric"),
        (
            np.where(np.eye(4, 3) > 0, np.nan, X).astype("f"),
            X,
            {"k": 1},
            InputError,
            r"x: the value at \[0, 0\] is NaN",
        ),
        (X, np.where(np.eye(4, 3) > 0, -np.inf, X).astype("f"), {"k": 1}, InputError, "y: the value"),
        (X.astype("d") + 1e300, X, {"k": 1}, InputError, "does not fit float32"),
    ],
)
def test_bad_arguments(x, y, kwargs, error, message):
    with pytest.raises(error, match=message):
        ops.topk(x, y, **kwargs)


def test_large_sums_are_not_taken_for_infinity():
    x = np.full((100, 3), 3e38, "f")
    assert (ops.nearest(x, x)[0] == 0).all()


def test_operator_is_registered_well():
    x = torch.randn(20, 6)
    torch.library.opcheck(torch.ops.prunefast.topk.default, (x, x[:9], 3, False, True, False))


@pytest.mark.parametrize("offset", [0.0, 300.0, 1e5])
@pytest.mark.parametrize("spread", [1e-6, 1e-3, 1.0])
@pytest.mark.parametrize("k", [1, 4, 40])
def test_rows_closer_than_bfloat16_can_tell(offset, spread, k):
    """Rows of y within a screening's error of each other: the pick is still that of all float64 distances."""
    generator = torch.Generator().manual_seed(11)
    centres = torch.randn(20, 48, generator=generator)
    y = (offset + centres.repeat_interleave(10, 0) + spread * torch.randn(200, 48, generator=generator)).float()
    x = (offset + centres[torch.randint(20, (150,), generator=generator)] + spread).float()
    index, distance = ops.topk(x, y, k)
    every = (x.double()[:, None] - y.double()[None]).square().sum(2)
    picked = every.gather(1, index)
    torch.testing.assert_close(picked, every.sort(1).values[:, :k], rtol=1e-13, atol=0)
    torch.testing.assert_close(distance.double(), picked, rtol=1e-7, atol=0)


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-19, 1e15, 1e18, 1e25])
def test_any_magnitude(scale):
    generator = torch.Generator().manual_seed(12)
    x, y = (torch.randn(n, 33, generator=generator) * scale for n in (70, 90))
    index, _ = ops.nearest(x, y)
    every = (x.double()[:, None] - y.double()[None]).square().sum(2)
    torch.testing.assert_close(every.gather(1, index[:, None])[:, 0], every.min(1).values, rtol=1e-13, atol=0)


@pytest.mark.parametrize("others", [2, 16, 17, 33, 63, 65, 100, 129, 1025, 2100])
@pytest.mark.parametrize("columns", [1, 3, 31, 33, 64])
def test_panels_of_every_width(others, columns):
    generator = torch.Generator().manual_seed(others + columns)
    x = torch.randint(-3, 4, (53, columns), generator=generator).float()
    y = torch.randint(-3, 4, (others, columns), generator=generator).float()
    index, distance = ops.nearest(x, y)
    every = (x[:, None] - y[None]).square().sum(2)
    assert torch.equal(index, every.argmin(1))  # argmin gives the smallest index of a tie on a CPU
    assert torch.equal(distance, every.min(1).values)


@pytest.mark.parametrize("columns", [1, 16, 33, 64])
@pytest.mark.parametrize("others", [2, 10, 16, 17, 100, 300])
@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_nearest_by_the_block(others, columns, metric):
    """More rows than a thread takes at once; rows of y as far apart as usual, close, and equal more often than the
    finalists of a row have room."""
    rng = np.random.default_rng(others * 100 + columns)
    x = rng.normal(size=(48 * 16 * 3 + 5, columns)).astype("f")
    usual = rng.normal(size=(others, columns))
    close = usual[:1] + 1e-4 * rng.normal(size=(others, columns))
    equal = usual[rng.integers(0, max(1, others // 7), others)]
    for y in (part.astype("f") for part in (usual, close, equal)):
        truth = -(x.astype("d") @ y.T.astype("d")) if metric == "ip" else reference.squared_distances(x, y)
        index, distance = ops.nearest(x, y, metric=metric)
        picked = np.take_along_axis(truth, index[:, None], 1)[:, 0]
        np.testing.assert_allclose(picked, truth.min(1), rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(distance, picked, rtol=1e-7, atol=1e-13)
        same = (y[None] == y[index][:, None]).all(2)
        np.testing.assert_array_equal(index, same.argmax(1))  # of equal rows the first


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_nearest_of_a_value_that_cannot_be_screened(value):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(500, 20)).astype("f"), rng.normal(size=(12, 20)).astype("f")
    x[333, 7] = value
    if np.isfinite(value):
        index, _ = ops.nearest(x, y)
        np.testing.assert_array_equal(index, reference.squared_distances(x, y).argmin(1))
    else:
        with pytest.raises(InputError, match=r"x: the value at \[333, 7\]"):
            ops.nearest(x, y)
