"""Random numbers: the published known answers, the float64 map, and independence of everything but the position."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefast import ops
from prunefast.errors import InputError, InputTypeError
from prunefast.ops import native, reference
from prunefast.ops.philox import Stream, _philox_portable, words

# Random123's known answers: counter, key, words.
KNOWN = [
    ((0, 0, 0, 0), 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((2**32 - 1,) * 4, 2**64 - 1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        0x299F31D0A4093822,
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]
POSITIONS = [0, 1, 12345, 2**32 - 1, 2**32, 2**62 + 3, -1]
SIZES = [0, 1, 3, 4, 5, 15, 16, 17, 63, 64, 65, 1021, 1024, 1027, 4099]
TOLERANCE = 1.5e-6  # absolute, docs/ops/philox.md


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter, key, expected):
    in_torch = words(counter, key, torch.device("cpu"))
    assert " ".join(f"{int(word):08x}" for word in in_torch) == expected
    assert (
        " ".join(f"{word:08x}" for word in reference.philox_words(counter, (key & 0xFFFFFFFF, key >> 32))) == expected
    )


def test_native_known_answer_through_a_position():
    """The third known answer needs quad 0x243f6a88; the native core reaches any counter whose quad is 0."""
    out = torch.empty((1, 4), dtype=torch.int32)
    position, stream = torch.tensor([0x13198A2E | 0x03707344 << 32]), 0x85A308D3
    native.philox(native.WORDS, out, 0x299F31D0A4093822, position, stream)
    key = (0xA4093822, 0x299F31D0)
    expected = reference.philox_words((0, stream, 0x13198A2E, 0x03707344), key)
    assert [int(word) & 0xFFFFFFFF for word in out[0]] == expected


@pytest.mark.parametrize("size", SIZES)
def test_words_uniforms_and_normals_against_the_reference(size):
    seed, stream = 0xFEDCBA9876543210, Stream.SAMPLER + 7
    position = torch.tensor(POSITIONS)
    shape = (len(POSITIONS), size)
    raw = torch.empty(shape, dtype=torch.int32)
    native.philox(native.WORDS, raw, seed, position, stream)
    uniform = ops.uniform_philox(shape, seed, position, stream)
    normal = ops.randn_philox(shape, seed, position, stream)
    assert uniform.dtype == normal.dtype == torch.float32
    for i, place in enumerate(POSITIONS):
        expected = reference.philox_uniform(size, seed, place, stream)
        assert (((raw[i].numpy().view(np.uint32) >> 9) + 0.5) / 2**23 == expected).all()
        np.testing.assert_array_equal(uniform[i].double(), expected)
        np.testing.assert_allclose(
            normal[i], reference.philox_normal(size, seed, place, stream), rtol=0, atol=TOLERANCE
        )


def test_portable_code_agrees():
    position = torch.tensor(POSITIONS)
    for normal in (False, True):
        mine = torch.ops.prunefast.philox([7, 3, 5, 11], -5, position, 3, normal, torch.float32)
        theirs = _philox_portable([7, 3, 5, 11], -5, position, 3, normal, torch.float32)
        torch.testing.assert_close(mine, theirs, rtol=0, atol=TOLERANCE if normal else 0.0)


@settings(deadline=None, max_examples=50)
@given(
    positions=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5),
    seed=st.integers(0, 2**64 - 1),
    stream=st.integers(0, 2**32 - 1),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
)
def test_a_sample_depends_on_its_position_only(positions, seed, stream, height, width):
    batch = ops.randn_philox((len(positions), 3, height, width), seed, torch.tensor(positions), stream)
    for i, position in enumerate(positions):
        alone = ops.randn_philox((1, 3, height, width), seed, torch.tensor([position]), stream)
        assert torch.equal(batch[i], alone[0])
        flat = ops.randn_philox((1, 3 * height * width), seed, torch.tensor([position]), stream)
        assert torch.equal(alone.flatten(), flat.flatten())
        longer = ops.randn_philox((1, 3 * height * width + 6), seed, torch.tensor([position]), stream)
        assert torch.equal(longer[:, : flat.shape[1]], flat)


def test_streams_seeds_and_positions_do_not_repeat():
    position = torch.arange(8)
    numbers = [ops.randn_philox((8, 64), seed, position, stream) for seed in (0, 1, 2**32) for stream in Stream]
    values = torch.cat(numbers).flatten()
    assert len(values.unique()) > 0.999 * len(values)


def test_distribution():
    """Mean, variance, tails and correlations of 2 million normals, within five standard errors."""
    z = ops.randn_philox((64, 32768), 11, torch.arange(64)).double().flatten()
    n = len(z)
    assert abs(z.mean()) < 5 / n**0.5
    assert abs(z.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs((z**4).mean() - 3) < 5 * (96 / n) ** 0.5
    for threshold, probability in ((1.0, 0.3173105), (3.0, 0.0026998), (4.0, 6.334e-5)):
        share = (z.abs() > threshold).double().mean()
        assert abs(share - probability) < 5 * (probability / n) ** 0.5
    for lag in (1, 2, 3, 4):
        assert abs((z[:-lag] * z[lag:]).mean()) < 5 / n**0.5
    u = ops.uniform_philox((64, 32768), 11, torch.arange(64)).double().flatten()
    assert 0 < u.min() < u.max() < 1
    counts = torch.histc(u, 64, 0, 1)
    assert ((counts - n / 64) ** 2 / (n / 64)).sum() < 63 + 6 * (2 * 63) ** 0.5


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_threads_do_not_matter(threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        several = ops.randn_philox((5, 70001), 3, torch.arange(5))
    finally:
        torch.set_num_threads(before)
    one = torch.stack([ops.randn_philox((1, 70001), 3, torch.tensor([i]))[0] for i in range(5)])
    assert torch.equal(several, one)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_are_the_rounded_float32(dtype):
    position = torch.arange(3)
    expected = ops.randn_philox((3, 999), 5, position).to(dtype)
    assert torch.equal(ops.randn_philox((3, 999), 5, position, dtype=dtype), expected)


def test_float64():
    position = torch.tensor([4])
    expected = reference.philox_normal(30, 9, 4, 0)
    np.testing.assert_allclose(ops.randn_philox((1, 30), 9, position, dtype=torch.float64)[0], expected, rtol=1e-13)
    uniform = ops.uniform_philox((1, 30), 9, position, dtype=torch.float64)
    assert torch.equal(uniform, ops.uniform_philox((1, 30), 9, position).double())


def test_kinds_of_arrays():
    assert isinstance(ops.randn_philox((2, 3), 0, np.array([1, 2])), np.ndarray)
    assert isinstance(ops.randn_philox((2, 3), 0, np.array([1, 2]), device="cpu"), torch.Tensor)
    from_list = ops.randn_philox((2, 3), 0, [1, 2])
    assert isinstance(from_list, torch.Tensor)
    strided = torch.tensor([1, 9, 2, 9])[::2]
    assert torch.equal(ops.randn_philox((2, 3), 0, strided), from_list)
    assert ops.randn_philox((0, 3), 0, []).shape == (0, 3)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"seed": -1}, InputError, "seed"),
        ({"seed": 2**64}, InputError, "seed"),
        ({"seed": 0.5}, InputTypeError, "seed"),
        ({"stream": 2**32}, InputError, "stream"),
        ({"position": torch.zeros(2)}, InputTypeError, "position"),
        ({"position": torch.zeros(3, dtype=torch.int64)}, InputError, "shape"),
        ({"position": torch.zeros(2, 1, dtype=torch.int64)}, InputError, "position"),
        ({"shape": ()}, InputError, "shape"),
        ({"shape": (2, -1)}, InputError, "shape"),
        ({"dtype": torch.int32}, InputTypeError, "dtype"),
    ],
)
def test_bad_arguments(kwargs, error, message):
    arguments = {"shape": (2, 3), "seed": 0, "position": torch.arange(2), **kwargs}
    with pytest.raises(error, match=message):
        ops.randn_philox(**arguments)


def test_uniform_refuses_narrow_types():
    with pytest.raises(InputTypeError, match="dtype"):
        ops.uniform_philox((1, 3), 0, [0], dtype=torch.bfloat16)


def test_global_state_is_left_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    ops.randn_philox((4, 100), 0, torch.arange(4))
    assert torch.equal(state, torch.get_rng_state())


def test_operator_is_registered_well():
    arguments = ([3, 5], -7, torch.arange(3), 2, True, torch.float32)
    torch.library.opcheck(torch.ops.prunefast.philox.default, arguments)
