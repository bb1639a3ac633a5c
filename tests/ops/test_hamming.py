"""hamming_join against counting the bits of every pair with Python's own integers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefast.errors import InputError, InputTypeError
from prunefast.ops import hamming_join


def hashes(rows: int, words: int, seed: int) -> np.ndarray:
    """Random hashes, a third of them copies of others with a few bits turned."""
    rng = np.random.default_rng(seed)
    out = rng.integers(0, 2**64, (rows, words), dtype=np.uint64)
    for row in range(2, rows, 3):
        out[row] = out[rng.integers(row)]
        for bit in rng.integers(0, 64 * words, rng.integers(13)):
            out[row, bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    return out


def direct(x: np.ndarray, y: np.ndarray | None, threshold: int) -> list[tuple[int, int, int]]:
    def whole(rows: np.ndarray) -> list[int]:
        return [int.from_bytes(row.tobytes(), "little") for row in rows]

    mine, other = whole(x), whole(x if y is None else y)
    found = []
    for i, a in enumerate(mine):
        for j in range(i + 1 if y is None else 0, len(other)):
            bits = (a ^ other[j]).bit_count()
            if bits <= threshold:
                found.append((i, j, bits))
    return found


def listed(pairs) -> list[tuple[int, int, int]]:
    return list(zip(pairs.rows().tolist(), pairs.index.tolist(), pairs.distance.tolist(), strict=True))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 90), st.integers(0, 30), st.sampled_from([1, 2, 4]), st.integers(0, 64), st.integers(0, 2**31))
def test_all_pairs_and_no_other(rows, others, words, threshold, seed):
    x, y = hashes(rows, words, seed), hashes(others, words, seed)
    assert listed(hamming_join(x, threshold)) == direct(x, None, threshold)
    assert listed(hamming_join(x, threshold, y)) == direct(x, y, threshold)


@pytest.mark.parametrize("threshold", [0, 3, 7])
def test_multi_index_hashing_gives_the_same_pairs(threshold):
    """60,000 rows are probed by chunks; the pairs of a part of them are those of comparing every pair."""
    x = hashes(60_000, 1, 7)
    whole = hamming_join(x, threshold)
    part = hamming_join(x[:3000], threshold)  # too few to be worth probing
    rows = whole.rows()
    inside = (rows < 3000) & (whole.index < 3000)
    found = list(zip(rows[inside], whole.index[inside], whole.distance[inside], strict=True))
    assert found == listed(part)
    # and planted ones beyond: row r of every third is close to the row it was copied from
    bits = np.bitwise_count(x[rows, 0] ^ x[whole.index, 0])
    assert (bits == whole.distance).all()
    assert (rows < whole.index).all()
    assert len(rows) > 1500


def test_threads_and_types_do_not_matter():
    x = hashes(5000, 1, 3)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(listed(hamming_join(x, 6)))
    finally:
        torch.set_num_threads(before)
    assert results[0] == results[1]
    assert results[0] == listed(hamming_join(torch.from_numpy(x[:, 0].view(np.int64)), 6))
    assert results[0] == listed(hamming_join(np.asfortranarray(x), 6))


def test_copies_are_pairs_and_too_many_are_an_error():
    same = np.zeros(400, np.uint64)
    assert len(hamming_join(same, 0).index) == 400 * 399 // 2
    assert len(hamming_join(same, 0, max_pairs=79_800).index) == 79_800
    with pytest.raises(InputError, match="more than 79,799 pairs are within 0 bits"):
        hamming_join(same, 0, max_pairs=79_799)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((np.zeros(3, np.int32), 1), InputTypeError, "uint64"),
        ((np.zeros((2, 2, 2), np.uint64), 1), InputError, "shape"),
        ((np.zeros((2, 0), np.uint64), 1), InputError, "shape"),
        ((np.zeros(3, np.uint64), 65), InputError, "threshold"),
        ((np.zeros(3, np.uint64), -1), InputError, "threshold"),
        ((np.zeros(3, np.uint64), 1.5), InputTypeError, "threshold"),
        ((np.zeros(3, np.uint64), 1, np.zeros((3, 2), np.uint64)), InputError, "128 bits"),
    ],
)
def test_bad_arguments(arguments, error, text):
    with pytest.raises(error, match=text):
        hamming_join(*arguments)
