"""Group norm, modulation and SiLU against the float64 formula; gradients by finite differences."""

import sys

import numpy as np
import pytest
import torch

from prunefast import ops
from prunefast.errors import InputError, InputTypeError
from prunefast.ops import reference
from prunefast.ops.group_norm_silu import can_fuse

module = sys.modules["prunefast.ops.group_norm_silu"]  # the package exports the function of that name


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


SHAPES = [(3, 8, 5, 4), (2, 16, 1, 1), (1, 33, 9, 8), (2, 48, 8, 8), (5, 130, 3, 7), (1, 64, 70, 31), (2, 6)]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def innermost(x):
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def formula(x, groups, weight, bias, scale=None, shift=None, silu=True, eps=1e-5):
    """The composition of torch's operators in float64."""
    y = torch.nn.functional.group_norm(x, groups, weight, bias, eps)
    if scale is not None:
        spread = (...,) + (None,) * (x.ndim - 2)
        y = y * (1 + scale[spread]) + shift[spread]
    return torch.nn.functional.silu(y) if silu else y


def close(mine, truth, tolerance):
    """Within `tolerance` of the largest value: a sum of many terms has no better yardstick."""
    assert float((mine.detach().double() - truth.detach()).abs().max()) <= tolerance * max(
        1.0, float(truth.detach().abs().max())
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("narrow_weights", [False, True])
def test_fused_gradients(shape, modulated, dtype, narrow_weights):
    groups = next(g for g in (4, 3, 2, 1) if shape[1] % g == 0)
    tensors = case(shape, seed=1)
    values = [innermost(tensors[0].to(dtype)), *(t.to(dtype if narrow_weights else torch.float32) for t in tensors[1:])]
    arguments = [t.clone().requires_grad_() for t in values][: 5 if modulated else 3]
    assert can_fuse(*arguments)
    truth = [t.detach().double().requires_grad_() for t in arguments]
    y, expected = ops.group_norm_silu(arguments[0], groups, *arguments[1:]), formula(truth[0], groups, *truth[1:])
    close(y, expected, TOLERANCE[dtype])
    upstream = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    mine = torch.autograd.grad(y, arguments, upstream)
    for gradient, right, argument in zip(
        mine, torch.autograd.grad(expected, truth, upstream.double()), arguments, strict=True
    ):
        assert gradient.dtype == argument.dtype
        close(gradient, right, TOLERANCE[argument.dtype])


@pytest.mark.parametrize("silu", [True, False])
def test_portable_operators_are_the_native_ones(silu):
    x, *parameters = case((3, 12, 5, 4))
    x, gradient = innermost(x), torch.randn(3, 12, 5, 4)
    y, mean, rstd = module._forward(x, 3, *parameters, 1e-5, silu)
    for mine, theirs in zip((y, mean, rstd), module._portable(x, 3, *parameters, 1e-5, silu), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
        assert mine.stride() == theirs.stride()
    rest = (gradient, x, mean, rstd, 3, *parameters, silu)
    for mine, theirs in zip(module._backward(*rest), module._portable_backward(*rest), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 64, 80, 64), (5, 40, 9, 9), (2, 256, 33, 31)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_do_not_matter(shape, dtype):
    x, *parameters = case(shape)
    x, before, results = innermost(x.to(dtype)), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            arguments = [t.clone().requires_grad_() for t in (x, *parameters)]
            y = ops.group_norm_silu(arguments[0], 8, *arguments[1:])
            results.append((y, *torch.autograd.grad(y, arguments, torch.ones_like(y))))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_large_mean_costs_no_digits():
    x = innermost(torch.randn(2, 32, 16, 16, generator=torch.Generator().manual_seed(0)) + 4096)
    weight, bias = torch.ones(32), torch.zeros(32)
    close(ops.group_norm_silu(x, 4, weight, bias), formula(x.double(), 4, weight.double(), bias.double()), 1e-3)
    constant = torch.full_like(x, 7.0)
    assert torch.equal(ops.group_norm_silu(constant, 4, weight, bias), torch.zeros_like(x))


def test_extreme_values():
    x = innermost(torch.tensor([-1.0, 1.0]).repeat(8).reshape(1, 16, 1, 1))
    weight = torch.full((16,), 1e6)
    y = ops.group_norm_silu(x, 1, weight, torch.zeros(16))
    assert torch.equal(y[0, 0::2, 0, 0].abs() < 1e-20, torch.ones(8, dtype=torch.bool))
    torch.testing.assert_close(y[0, 1::2, 0, 0], torch.full((8,), 1e6), rtol=1e-5, atol=0)


def test_nan_stays_in_its_sample():
    x, weight, bias, *_ = case((3, 8, 5, 4))
    x = innermost(x)
    x[1, 3, 2, 2] = torch.nan
    y = ops.group_norm_silu(x, 2, weight, bias)
    assert y[1, :4].isnan().all()
    assert not y[0].isnan().any()
    assert not y[2].isnan().any()


def test_gradients_of_any_layout():
    """Upstream gradients that are expanded, sliced or NCHW, and twice through a kept graph."""
    x, weight, bias, *_ = case((2, 8, 6, 5))
    x = innermost(x).requires_grad_()
    y = ops.group_norm_silu(x, 2, weight, bias)
    (summed,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    (again,) = torch.autograd.grad(y, x, torch.ones(2, 8, 6, 5), retain_graph=True)
    assert torch.equal(summed, again)
    assert summed.is_contiguous(memory_format=torch.channels_last)
    wide = torch.randn(2, 16, 6, 5)
    (joined,) = torch.autograd.grad(torch.cat([y, x * 0], 1), x, wide, retain_graph=True)
    (right,) = torch.autograd.grad(y, x, wide[:, :8])
    torch.testing.assert_close(joined, right)


def test_no_graph_where_none_is_wanted():
    x, weight, bias, *_ = case()
    assert not ops.group_norm_silu(innermost(x), 2, weight, bias).requires_grad
    with torch.no_grad():
        assert not ops.group_norm_silu(innermost(x).requires_grad_(), 2, weight, bias).requires_grad


def test_in_torch_func():
    x, weight, bias, *_ = case()
    x = innermost(x)
    gradient = torch.func.grad(lambda w: ops.group_norm_silu(x, 2, w, bias).sum())(weight)
    expected = torch.autograd.grad(ops.group_norm_silu(x, 2, weight.requires_grad_(), bias).sum(), weight)[0]
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("modulated", [False, True])
def test_opcheck(dtype, modulated):
    x, weight, bias, scale, shift = case((2, 8, 4, 3))
    extra = (scale, shift) if modulated else (None, None)
    x = innermost(x.to(dtype))
    torch.library.opcheck(torch.ops.prunefast.group_norm_silu.default, (x, 2, weight, bias, *extra, 1e-5, True))
    _, mean, rstd = module._forward(x, 2, weight, bias, *extra, 1e-5, True)
    torch.library.opcheck(
        torch.ops.prunefast.group_norm_silu_backward.default, (x, x, mean, rstd, 2, weight, bias, *extra, True)
    )


def test_compiles_without_a_break():
    @torch.compile(fullgraph=True)
    def step(x, weight, bias, scale, shift):
        return ops.group_norm_silu(x * 2, 2, weight, bias, scale, shift) * 3

    arguments = [t.requires_grad_() for t in case((2, 8, 6, 5))]
    arguments[0] = innermost(arguments[0].detach()).requires_grad_()
    result = step(*arguments)
    expected = ops.group_norm_silu(arguments[0] * 2, 2, *arguments[1:]) * 3
    torch.testing.assert_close(result, expected)
    for mine, right in zip(
        torch.autograd.grad(result.sum(), arguments), torch.autograd.grad(expected.sum(), arguments), strict=True
    ):
        torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-5)
