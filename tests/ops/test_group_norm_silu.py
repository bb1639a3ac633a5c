"""Group norm, modulation and SiLU against the float64 formula; gradients by finite differences."""

import numpy as np
import pytest
import torch

from prunefast import ops
from prunefast.errors import InputError, InputTypeError
from prunefast.ops import reference


def case(shape=(3, 8, 5, 4), dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(shape, generator=generator) * 2 + 1).to(dtype)
    weight, bias = torch.randn(2, shape[1], generator=generator).to(dtype)
    scale, shift = torch.randn(2, shape[0], shape[1], generator=generator).to(dtype)
    return x, weight, bias, scale, shift


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_values(groups, modulated, form, dtype):
    x, weight, bias, scale, shift = case(dtype=dtype)
    x = x.contiguous(memory_format=form)
    extra = (scale, shift) if modulated else ()
    result = ops.group_norm_silu(x, groups, weight, bias, *extra)
    arrays = [t.double().numpy() for t in (weight, bias, *extra)]
    expected = reference.group_norm_silu(x.double().numpy(), groups, *arrays)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float64: 1e-12}[dtype]
    np.testing.assert_allclose(result.double(), expected, rtol=tolerance, atol=tolerance)
    assert result.dtype == dtype
    assert result.is_contiguous(memory_format=form)


@pytest.mark.parametrize("modulated", [False, True])
def test_gradcheck(modulated):
    arguments = [t.double().requires_grad_() for t in case((2, 4, 3, 2))]
    chosen = arguments if modulated else arguments[:3]
    assert torch.autograd.gradcheck(lambda x, *rest: ops.group_norm_silu(x, 2, *rest), chosen)


@pytest.mark.parametrize("shape", [(2, 6), (2, 6, 5), (2, 6, 1, 1), (0, 6, 3, 3), (1, 6, 2, 3, 2)])
def test_shapes(shape):
    x, weight, bias, scale, shift = case(shape)
    result = ops.group_norm_silu(x, 3, weight, bias, scale, shift, eps=1e-3)
    assert result.shape == shape
    if x.numel():
        arrays = [t.numpy() for t in (weight, bias, scale, shift)]
        expected = reference.group_norm_silu(x.numpy(), 3, *arrays, eps=1e-3)
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


def test_bad_arguments():
    x, weight, bias, scale, _ = case()
    with pytest.raises(InputError, match="groups: 3 does not divide"):
        ops.group_norm_silu(x, 3, weight, bias)
    with pytest.raises(InputError, match="weight"):
        ops.group_norm_silu(x, 2, weight[:4], bias)
    with pytest.raises(InputError, match="together"):
        ops.group_norm_silu(x, 2, weight, bias, scale)
    with pytest.raises(InputError, match="shift"):
        ops.group_norm_silu(x, 2, weight, bias, scale, scale[:, :3])
    with pytest.raises(InputTypeError, match="x:"):
        ops.group_norm_silu(x.int(), 2, weight, bias)
    with pytest.raises(InputError, match="x:"):
        ops.group_norm_silu(x[0, :, 0, 0], 2, weight, bias)
