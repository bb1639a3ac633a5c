"""Group norm, optional scale and shift by the time embedding, SiLU: the norm of a diffusion UNet in one call."""

import torch
from torch.nn import functional

from prunefast.errors import InputError, InputTypeError
from prunefast.ops import cuda, library, native
from prunefast.ops.arrays import check_integer
from prunefast.ops.backends import triton_is_live

_FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def group_norm_silu(
    x: torch.Tensor,
    groups: int,
    weight: torch.Tensor,
    bias: torch.Tensor,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """silu(group_norm(x) * weight + bias), or silu((group_norm(x) * weight + bias) * (1 + scale) + shift).

    Source: Wu & He, ECCV 2018; scale and shift as in ADM (Dhariwal & Nichol, 2021, section 3: adaptive group norm).

    Args:
        x: `[B, C, ...]`, NCHW or channels_last (the fused one on a CPU); groups divides C. weight, bias: `[C]`.
        scale, shift: `[B, C]`, both or none.
        eps: added to the variance.

    Returns:
        the shape, dtype and memory format of `x`; differentiable in every tensor.
    """
    if not isinstance(x, torch.Tensor) or not x.dtype.is_floating_point:
        raise InputTypeError("x: a floating tensor is needed")
    if x.ndim < 2:
        raise InputError(f"x: shape [samples, channels, ...] is needed, not {list(x.shape)}")
    groups = check_integer("groups", groups, 1, 1 << 31)
    if x.shape[1] % groups:
        raise InputError(f"groups: {groups} does not divide {x.shape[1]} channels")
    for name, value in (("weight", weight), ("bias", bias)):
        if value.shape != (x.shape[1],):
            raise InputError(f"{name}: shape [{x.shape[1]}] is needed, not {list(value.shape)}")
    if (scale is None) != (shift is None):
        raise InputError("scale: scale and shift are given together or not at all")
    for name, modulation in (("scale", scale), ("shift", shift)):
        if modulation is not None and modulation.shape != x.shape[:2]:
            raise InputError(f"{name}: shape {list(x.shape[:2])} is needed, not {list(modulation.shape)}")
    if x.numel() == 0:
        return x.clone()
    if can_fuse(x, weight, bias, scale, shift):
        return fused_group_norm(x, groups, weight, bias, scale, shift, eps)
    y = functional.group_norm(x, groups, weight.to(x.dtype), bias.to(x.dtype), eps)
    if scale is not None and shift is not None:
        spread = (...,) + (None,) * (x.ndim - 2)
        y = torch.addcmul(shift.to(x.dtype)[spread], y, 1 + scale.to(x.dtype)[spread])
    return functional.silu(y)


def can_fuse(x: torch.Tensor, *parameters: torch.Tensor | None) -> bool:
    """Whether a fused kernel takes it: CPU or GPU, not float64, channels of a pixel side by side, not in torch.func."""
    if x.device.type not in ("cpu", "cuda") or x.dtype not in _FUSED_DTYPES or not _channels_innermost(x):
        return False
    if any(p is not None and (p.dtype not in _FUSED_DTYPES or p.device != x.device) for p in parameters):
        return False
    return torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is None


def _channels_innermost(x: torch.Tensor) -> bool:
    if x.ndim == 4:
        return x.is_contiguous(memory_format=torch.channels_last)
    return x.ndim == 2 and x.is_contiguous()


def fused_group_norm(x, groups, weight, bias, scale, shift, eps, silu=True) -> torch.Tensor:
    """`group_norm_silu` of what `can_fuse` allows, without its checks; silu=False leaves the activation out."""
    tensors = (x, weight, bias, scale, shift)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _GroupNormSiLU.apply(x, groups, weight, bias, scale, shift, eps, silu)
    return _forward(x, groups, *_wide(weight, bias, scale, shift), eps, silu)[0]


def _wide(*parameters: torch.Tensor | None) -> list[torch.Tensor | None]:
    return [None if p is None else p.float().contiguous() for p in parameters]


class _GroupNormSiLU(torch.autograd.Function):
    """Keeps x and the statistics; the normalised values are computed again in backward."""

    @staticmethod
    def forward(ctx, x, groups, weight, bias, scale, shift, eps, silu):
        y, mean, rstd = _forward(x, groups, *_wide(weight, bias, scale, shift), eps, silu)
        ctx.save_for_backward(x, weight, bias, scale, shift, mean, rstd)
        ctx.groups, ctx.silu = groups, silu
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        x, *parameters, mean, rstd = ctx.saved_tensors
        results = _backward(gradient.to(x.dtype), x, mean, rstd, ctx.groups, *_wide(*parameters), ctx.silu)
        weight, bias, scale, shift = (
            None if p is None else result.to(p.dtype) for p, result in zip(parameters, results[1:], strict=True)
        )
        return results[0], None, weight, bias, scale, shift, None, None


def _innermost(x: torch.Tensor) -> torch.Tensor:
    """The values of `x` in the layout of the kernel."""
    return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.contiguous_format)


def _cpu(x, groups, weight, bias, scale, shift, eps, silu):
    return native.group_norm_silu(_innermost(x), groups, weight, bias, scale, shift, eps, silu)


def _cpu_backward(gradient, x, *rest):
    return native.group_norm_silu_backward(_innermost(gradient), _innermost(x), *rest)


def _cuda(x, groups, weight, bias, scale, shift, eps, silu):
    """CUDA C++ where it was built, Triton otherwise, else torch."""
    x = _innermost(x)
    arguments = (x, groups, weight, bias, scale, shift, eps, silu)
    if cuda.live(x) and cuda.takes_norm(x, weight, bias, scale, shift):
        return cuda.group_norm_silu(*arguments)
    if not triton_is_live() or x.numel() == 0:
        return _portable(*arguments)
    from prunefast.kernels.group_norm_silu import group_norm_silu as kernel

    with torch.cuda.device(x.device):
        return kernel(*arguments)


def _cuda_backward(gradient, x, mean, rstd, groups, weight, bias, scale, shift, silu):
    gradient, x = _innermost(gradient), _innermost(x)
    arguments = (gradient, x, mean, rstd, groups, weight, bias, scale, shift, silu)
    if cuda.live(x) and all(cuda.takes_norm(t, weight, bias, scale, shift) for t in (x, gradient)):
        return cuda.group_norm_silu_backward(*arguments)
    if not triton_is_live() or x.numel() == 0:
        return _portable_backward(*arguments)
    from prunefast.kernels.group_norm_silu import group_norm_silu_backward as kernel

    with torch.cuda.device(x.device):
        return kernel(*arguments)


def _normalised(x, mean, rstd, groups):
    grouped = x.float().unflatten(1, (groups, -1)).flatten(2)
    return ((grouped - mean[..., None]) * rstd[..., None]).reshape(x.shape)


def _portable(x, groups, weight, bias, scale, shift, eps, silu):
    grouped = x.float().unflatten(1, (groups, -1)).flatten(2)
    variance, mean = torch.var_mean(grouped, 2, correction=0)
    rstd = torch.rsqrt(variance + eps)
    spread = (...,) + (None,) * (x.ndim - 2)
    y = _normalised(x, mean, rstd, groups) * weight[spread] + bias[spread]
    if scale is not None:
        y = y * (1 + scale[spread]) + shift[spread]
    out = torch.empty_like(_innermost(x))
    return out.copy_(functional.silu(y) if silu else y), mean, rstd


def _portable_backward(gradient, x, mean, rstd, groups, weight, bias, scale, shift, silu):
    spread, pixels = (...,) + (None,) * (x.ndim - 2), tuple(range(2, x.ndim))
    normal = _normalised(x, mean, rstd, groups)
    inner = normal * weight[spread] + bias[spread]
    factor = torch.ones_like(x[:1, :1], dtype=torch.float32) if scale is None else 1 + scale[spread]
    h = inner if scale is None else inner * factor + shift[spread]
    dh = gradient.float()
    if silu:
        s = torch.sigmoid(h)
        dh = dh * (s * (1 + h * (1 - s)))
    of_scale, of_shift = weight.new_empty(0), weight.new_empty(0)
    if scale is not None:
        of_scale, of_shift = (dh * inner).sum(pixels), dh.sum(pixels)
    dg = dh * factor
    of_weight, of_bias = (dg * normal).sum((0, *pixels)), dg.sum((0, *pixels))
    dn = (dg * weight[spread]).unflatten(1, (groups, -1)).flatten(2)
    n = normal.unflatten(1, (groups, -1)).flatten(2)
    dx = (dn - dn.mean(2, keepdim=True) - n * (dn * n).mean(2, keepdim=True)) * rstd[..., None]
    return torch.empty_like(_innermost(x)).copy_(dx.reshape(x.shape)), of_weight, of_bias, of_scale, of_shift


def _fake(x, groups, weight, bias, scale, shift, eps, silu):
    statistics = weight.new_empty((x.shape[0], groups))
    return torch.empty_like(_innermost(x)), statistics, torch.empty_like(statistics)


def _fake_backward(gradient, x, mean, rstd, groups, weight, bias, scale, shift, silu):
    modulation = weight.new_empty(0) if scale is None else scale
    return tuple(torch.empty_like(t) for t in (_innermost(x), weight, bias, modulation, modulation))


_forward = library.define(
    "group_norm_silu(Tensor x, int groups, Tensor weight, Tensor bias, Tensor? scale, Tensor? shift, float eps, "
    "bool silu) -> (Tensor, Tensor, Tensor)",
    cpu=_cpu,
    cuda=_cuda,
    portable=_portable,
    fake=_fake,
)
_backward = library.define(
    "group_norm_silu_backward(Tensor gradient, Tensor x, Tensor mean, Tensor rstd, int groups, Tensor weight, "
    "Tensor bias, Tensor? scale, Tensor? shift, bool silu) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    cpu=_cpu_backward,
    cuda=_cuda_backward,
    portable=_portable_backward,
    fake=_fake_backward,
)
