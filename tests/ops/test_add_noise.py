"""Noising against a float64 loop over samples, rows and columns, in every dtype, layout, crop and mirror."""

import numpy as np
import pytest
import torch

from prunefast import ops
from prunefast.errors import InputError, InputTypeError
from prunefast.ops import reference
from prunefast.ops.add_noise import _add_noise_portable


def case(shape=(4, 3, 9, 7), dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.uint8:
        x0 = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    else:
        x0 = torch.randn(shape, generator=generator).to(dtype)
    alpha, sigma = torch.rand(shape[0], generator=generator), torch.rand(shape[0], generator=generator)
    return x0, alpha, sigma, torch.randn(shape, generator=generator)


@pytest.mark.parametrize("x0_dtype", [torch.uint8, torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_values(x0_dtype, dtype, layout):
    x0, alpha, sigma, noise = case(dtype=x0_dtype)
    if layout == "channels_last":
        x0 = x0.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        x0 = x0.repeat_interleave(3, 2)[:, :, ::3]
    result = ops.add_noise(x0, alpha, sigma, noise, dtype=dtype)
    plain = x0.numpy() if x0_dtype == torch.uint8 else x0.double().numpy()
    exact = torch.from_numpy(reference.add_noise(plain, alpha, sigma, noise))
    assert result.dtype == dtype
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(result, exact.to(dtype), rtol=max(tolerance, torch.finfo(dtype).eps), atol=tolerance)
    assert result.is_contiguous(
        memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format
    )


def test_uint8_levels_round_once():
    x0 = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    result = ops.add_noise(x0, 1.0, 0.0, torch.zeros(1, 1, 16, 16))
    exact = torch.from_numpy(reference.unit(x0.numpy())).float()
    assert torch.equal(result, exact)
    assert result.min() == -1
    assert result.max() == 1
    assert torch.equal(result.flatten(), -result.flatten().flip(0))


@pytest.mark.parametrize("philox", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_crop_flip_and_coordinates(philox, layout):
    x0, alpha, sigma, _ = case((5, 2, 12, 10), torch.uint8, seed=1)
    corner = torch.tensor([[0, 0], [7, 5], [3, 2], [1, 5], [7, 0]])
    flip = torch.tensor([False, True, True, False, True])
    position = torch.arange(5) + 100
    noise = ops.randn_philox((5, 2, 5, 5), 8, position)
    result = ops.add_noise(
        x0,
        alpha,
        sigma,
        (8, position) if philox else noise,
        boxes=ops.Boxes(corner, 5, 5),
        flip=flip,
        coordinates=True,
        memory_format=layout,
    )
    assert result.shape == (5, 4, 5, 5)
    assert result.is_contiguous(memory_format=layout)
    cut = reference.mirror_and_cut(x0.numpy(), corner.numpy(), (5, 5), flip.numpy())
    np.testing.assert_allclose(result[:, :2], reference.add_noise(cut, alpha, sigma, noise), atol=1e-6)
    for i, (top, left) in enumerate(corner.tolist()):
        columns, rows = np.linspace(-1, 1, 10)[left : left + 5], np.linspace(-1, 1, 12)[top : top + 5]
        np.testing.assert_allclose(result[i, 2], np.tile(columns, (5, 1)), atol=1e-6)
        np.testing.assert_allclose(result[i, 3], np.tile(rows[:, None], (1, 5)), atol=1e-6)


def test_flip_alone_and_coordinates_alone():
    x0, alpha, sigma, noise = case(seed=2)
    flip = torch.tensor([True, False, True, False])
    result = ops.add_noise(x0, alpha, sigma, noise, flip=flip)
    expected = reference.add_noise(reference.mirror_and_cut(x0.numpy(), flip=flip), alpha, sigma, noise)
    np.testing.assert_allclose(result, expected, atol=1e-6)
    single = ops.add_noise(x0[:, :, :1, :1], alpha, sigma, noise[:, :, :1, :1], coordinates=True)
    assert (single[:, 3:] == 0).all()


@pytest.mark.parametrize("shape", [(3, 17), (2, 5, 63), (1, 1, 1, 1), (2, 3, 64, 65), (2, 1, 1, 2049)])
def test_shapes(shape):
    x0, alpha, sigma, noise = case(shape, seed=3)
    np.testing.assert_allclose(
        ops.add_noise(x0, alpha, sigma, noise), reference.add_noise(x0, alpha, sigma, noise), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4), (0, 7)])
def test_empty(shape):
    x0, alpha, sigma, noise = case(shape)
    assert ops.add_noise(x0, alpha, sigma, noise).shape == shape


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_threads_do_not_matter(threads):
    x0, alpha, sigma, _ = case((3, 3, 150, 150), torch.uint8, seed=4)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        many = ops.add_noise(x0, alpha, sigma, (1, torch.arange(3)))
    finally:
        torch.set_num_threads(before)
    alone = [ops.add_noise(x0[i : i + 1], alpha[i : i + 1], sigma[i : i + 1], (1, torch.tensor([i]))) for i in range(3)]
    assert torch.equal(many, torch.cat(alone))


def test_portable_code_agrees():
    x0, alpha, sigma, _ = case((3, 3, 8, 8), torch.uint8, seed=5)
    crop = (torch.tensor([[0, 1], [2, 2], [3, 0]]), 5, 6, torch.tensor([True, False, True]))
    for last in (False, True):
        arguments = (x0, alpha, sigma, None, 3, torch.arange(3), *crop, True, torch.float32, last)
        mine = torch.ops.prunefast.add_noise(*arguments)
        theirs = _add_noise_portable(*arguments)
        assert mine.stride() == theirs.stride()
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=2e-6)


def test_numpy_and_inputs_left_alone():
    x0, alpha, sigma, noise = (t.numpy() for t in case(seed=6))
    copy = x0.copy()
    result = ops.add_noise(x0, alpha, sigma, noise)
    assert isinstance(result, np.ndarray)
    assert (x0 == copy).all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x0": torch.zeros(4)}, InputError, "x0"),
        ({"x0": torch.zeros(4, 3, 9, 7, dtype=torch.int64)}, InputTypeError, "x0"),
        ({"alpha": torch.zeros(3)}, InputError, "alpha"),
        ({"noise": torch.zeros(4, 3, 9, 8)}, InputError, "noise"),
        ({"noise": (0, torch.arange(3))}, InputError, "noise"),
        ({"dtype": torch.uint8}, InputTypeError, "dtype"),
        ({"memory_format": torch.channels_last_3d}, InputTypeError, "memory_format"),
        ({"boxes": (torch.full((4, 2), -1), 9, 7)}, InputError, "boxes: .*leaves"),
        ({"boxes": (torch.zeros(4, 2, dtype=torch.int64), 9, 0)}, InputError, "boxes"),
        ({"x0": torch.zeros(4, 63), "noise": torch.zeros(4, 63), "coordinates": True}, InputError, "coordinates"),
        ({"x0": torch.zeros(4, 3, 9, 7, requires_grad=True)}, InputError, "x0: add_noise is not differentiable"),
    ],
)
@pytest.mark.parametrize("wide", [False, True])
def test_bad_arguments(change, error, message, wide):
    x0, alpha, sigma, noise = case()
    arguments = {"x0": x0, "alpha": alpha, "sigma": sigma, "noise": noise}
    if wide:
        arguments["dtype"] = torch.float64
    with pytest.raises(error, match=message):
        ops.add_noise(**{**arguments, **change})


def test_operator_is_registered_well():
    x0, alpha, sigma, _ = case((2, 3, 4, 4))
    arguments = (x0, alpha, sigma, None, 3, torch.arange(2), None, 4, 4, None, True, torch.bfloat16, True)
    torch.library.opcheck(torch.ops.prunefast.add_noise.default, arguments)
