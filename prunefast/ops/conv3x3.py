"""A 3 x 3 convolution of bfloat16 images with 16/36 of its products, by Winograd's method.

On a processor with AVX512-BF16 only; everything else is torch's convolution. docs/ops/conv3x3.md says where it wins and
what it costs in accuracy.
"""

import os
from typing import Any

import torch
from torch.nn import functional

from prunefast import _native
from prunefast.errors import InputError, InputTypeError
from prunefast.ops import library, native

# Channels come in multiples of this, and an image has at least so many rows and columns: below, tiles of 2 x 2 pixels
# are too few for what transforming the filters costs.
CHANNELS, LEAST_SIZE = 32, 4


def conv3x3(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """conv2d(x, weight, bias, padding=1) of 3 x 3 filters.

    Source: Lavin & Gray, CVPR 2016, section 4.1: F(2 x 2, 3 x 3); its gradients are the same sums turned round.

    Args:
        x: `[B, C, H, W]`. The fast way needs bfloat16 on a CPU, channels_last, C and O multiples of 32, H and W at
            least 4.
        weight: `[O, C, 3, 3]`, bias `[O]` or None: the fast way takes float32 and rounds nothing before it transforms.

    Returns:
        `[B, O, H, W]` in the dtype and memory format of `x`; differentiable in every tensor, once on the fast way.
    """
    if not isinstance(x, torch.Tensor) or not x.dtype.is_floating_point:
        raise InputTypeError("x: a floating tensor is needed")
    if x.ndim != 4:
        raise InputError(f"x: shape [samples, channels, height, width] is needed, not {list(x.shape)}")
    if weight.ndim != 4 or weight.shape[1:] != (x.shape[1], 3, 3):
        raise InputError(f"weight: shape [outputs, {x.shape[1]}, 3, 3] is needed, not {list(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InputError(f"bias: shape [{len(weight)}] is needed, not {list(bias.shape)}")
    if can_speed_up(x, weight, bias):
        return fast_conv3x3(x, weight, bias)
    return functional.conv2d(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), padding=1)


def can_speed_up(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> bool:
    """Whether the native core takes this bfloat16 convolution, and is asked to: see `switched_on`."""
    outputs, inputs = weight.shape[:2]
    if x.device.type != "cpu" or x.dtype != torch.bfloat16 or not x.is_contiguous(memory_format=torch.channels_last):
        return False
    if any(p is not None and (p.dtype != torch.float32 or p.device != x.device) for p in (weight, bias)):
        return False
    if inputs % CHANNELS or outputs % CHANNELS or min(x.shape[2:]) < LEAST_SIZE or not len(x) or not switched_on():
        return False
    return torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is None


_available = _native.conv3x3_available()


def switched_on() -> bool:
    """Whether this processor can, and PRUNEFAST_WINOGRAD is not 0."""
    return _available and os.environ.get("PRUNEFAST_WINOGRAD", "1") != "0"


def fast_conv3x3(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`conv3x3` of what `can_speed_up` allows, without its checks."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return _Conv3x3.apply(x, weight, bias)
    return _forward(x, _innermost(weight), bias)


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return _forward(x, _innermost(weight), bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        gradient = _innermost(gradient.to(x.dtype))
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _gradient_x(gradient, _innermost(weight)) if of_x else None,
            _gradient_weight(gradient, x) if of_weight else None,
            gradient.sum((2, 3), dtype=torch.float32).sum(0) if of_bias else None,
        )


def _innermost(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _portable(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    y = functional.conv2d(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), padding=1)
    return _innermost(y)


def _backward(gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, which: int) -> Any:
    mask = [which == 0, which == 1, False]
    ones, zeros = [1, 1], [0, 0]
    results = torch.ops.aten.convolution_backward(
        gradient, x, weight.to(x.dtype), None, ones, ones, ones, False, zeros, 1, mask
    )
    return _innermost(results[which])


def _portable_gradient_x(gradient, weight):
    return _backward(gradient, gradient.new_empty(_input_shape(gradient, weight)), weight, 0)


def _portable_gradient_weight(gradient, x):
    weight = x.new_empty((gradient.shape[1], x.shape[1], 3, 3))
    return _backward(gradient, x, weight, 1).float()


def _input_shape(gradient, weight):
    return (gradient.shape[0], weight.shape[1], *gradient.shape[2:])


def _empty(x, shape, dtype):
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=torch.channels_last)


def _fake(x, weight, bias):
    return _empty(x, (x.shape[0], weight.shape[0], *x.shape[2:]), x.dtype)


def _fake_gradient_x(gradient, weight):
    return _empty(gradient, _input_shape(gradient, weight), gradient.dtype)


def _fake_gradient_weight(gradient, x):
    return _empty(x, (gradient.shape[1], x.shape[1], 3, 3), torch.float32)


_forward = library.define(
    "conv3x3(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    cpu=native.conv3x3,
    portable=_portable,
    fake=_fake,
)
_gradient_x = library.define(
    "conv3x3_gradient_x(Tensor gradient, Tensor weight) -> Tensor",
    cpu=native.conv3x3_gradient_x,
    portable=_portable_gradient_x,
    fake=_fake_gradient_x,
)
_gradient_weight = library.define(
    "conv3x3_gradient_weight(Tensor gradient, Tensor x) -> Tensor",
    cpu=native.conv3x3_gradient_weight,
    portable=_portable_gradient_weight,
    fake=_fake_gradient_weight,
)
