"""The order is a pure function of (seed, position)."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefast.errors import InputError
from prunefast.stream import epoch_order
from prunefast.stream.order import EpochOrder, Position


def philox4x64(key, counter):
    """Philox-4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") in plain integers."""
    mask = (1 << 64) - 1
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(10):
        p0, p1 = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (p1 >> 64) ^ c1 ^ k0, p1 & mask, (p0 >> 64) ^ c3 ^ k1, p0 & mask
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
    return [c0, c1, c2, c3]


@pytest.mark.parametrize(("n", "seed", "epoch"), [(11, 0, 0), (16, 3, 7), (1, 5, 0), (50, 2**64 - 1, 2**40)])
def test_against_philox_in_plain_integers(n, seed, epoch):
    words = []
    for block in range(1, -(-n // 4) + 1):  # NumPy counts before the first block
        words += philox4x64((seed, epoch), (block, 0, 0, 5))
    assert epoch_order(n, seed, epoch).tolist() == sorted(range(n), key=words[:n].__getitem__)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 300), st.integers(0, 2**64 - 1), st.integers(0, 2**63))
def test_a_permutation(n, seed, epoch):
    order = epoch_order(n, seed, epoch)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))


def test_seeds_and_epochs_differ_and_nothing_global_is_touched():
    np.random.seed(7)  # noqa: NPY002 (what is tested is that the global generator stays as it was)
    orders = {tuple(epoch_order(20, seed, epoch).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    drawn = np.random.random()  # noqa: NPY002
    assert drawn == np.random.RandomState(7).random()


def test_all_places_are_equally_likely():
    """5 items, 4,000 epochs: each comes first about 800 times (binomial, sd 25)."""
    first = np.bincount([epoch_order(5, 1, epoch)[0] for epoch in range(4000)], minlength=5)
    assert np.abs(first - 800).max() < 125


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 20), st.integers(0, 100), st.integers(0, 60), st.booleans())
def test_any_window_is_a_window_of_the_whole(n, begin, count, shuffle):
    whole = np.concatenate([epoch_order(n, 9, epoch) if shuffle else np.arange(n) for epoch in range(161 // n + 1)])
    order = EpochOrder(n, 9, shuffle)
    np.testing.assert_array_equal(order.at(np.arange(begin, begin + count)), whole[begin : begin + count])


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 30), st.integers(1, 4), st.integers(0, 100), st.integers(1, 8))
def test_ranks_share_a_global_batch(n, epochs, start, per_rank):
    """For 1, 2 and 4 ranks with the same global batch, the union of positions is the same, batch by batch."""
    seen = {}
    for world_size in (1, 2, 4):
        position = Position(n, epochs, start, 0, world_size)
        end = position.end()
        assert end % (n * epochs) == 0
        assert end > start
        batch_size = per_rank * 4 // world_size
        begin, batches = start, []
        while begin < end:
            parts = [Position(n, epochs, start, r, world_size).batch(begin, batch_size, end) for r in range(world_size)]
            batches.append(sorted(np.concatenate(parts).tolist()))
            begin += batch_size * world_size
        seen[world_size] = batches
    assert seen[1] == seen[2] == seen[4]
    assert list(itertools.chain(*seen[1])) == list(range(start, end))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"epochs": 0}, "epochs"),
        ({"start": -1}, "start"),
        ({"rank": 2}, "rank"),
        ({"world_size": 0}, "world_size"),
        ({"rank": True}, "rank"),
    ],
)
def test_bad_positions(changes, word):
    arguments = {"n": 5, "epochs": 1, "start": 0, "rank": 0, "world_size": 2} | changes
    with pytest.raises(InputError, match=word):
        Position(**arguments)
