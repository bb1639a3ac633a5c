"""Group norm, optional scale and shift by the time embedding, SiLU: the norm of a diffusion UNet in one call."""

import torch
from torch.nn import functional

from prunefast.errors import InputError, InputTypeError
from prunefast.ops.arrays import check_integer


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
        x: `[B, C, ...]`, NCHW or channels_last; groups divides C. weight, bias: `[C]`.
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
    y = functional.group_norm(x, groups, weight.to(x.dtype), bias.to(x.dtype), eps)
    if scale is not None and shift is not None:
        spread = (...,) + (None,) * (x.ndim - 2)
        y = torch.addcmul(shift.to(x.dtype)[spread], y, 1 + scale.to(x.dtype)[spread])
    return functional.silu(y)
