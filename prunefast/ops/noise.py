"""The noise argument of `add_noise` and `denoising_loss`: a tensor, or (seed, position) to regenerate it from."""

import math
from typing import Any

import torch

from prunefast.errors import InputError, InputTypeError
from prunefast.ops.arrays import SEED_LIMIT, as_tensor, check_integer, check_position, check_same_device, signed
from prunefast.ops.philox import SAMPLE_LIMIT, Stream, _philox


def check_noise(
    noise: Any, shape: torch.Size | tuple[int, ...], device: torch.device
) -> tuple[torch.Tensor | None, int, torch.Tensor | None]:
    """(tensor, 0, None) or (None, signed seed, position)."""
    if isinstance(noise, tuple):
        if len(noise) != 2:
            raise InputTypeError("noise: a tensor, or a pair (seed, position) is needed")
        seed = check_integer("noise", noise[0], 0, SEED_LIMIT)
        position = check_position("noise", noise[1])
        check_same_device("noise", position, device)
        if position.shape[0] != shape[0]:
            raise InputError(f"noise: {position.shape[0]} positions for {shape[0]} samples")
        if math.prod(shape[1:]) > SAMPLE_LIMIT:
            raise InputError(f"noise: {list(shape[1:])} is more than 2^34 elements a sample")
        return None, signed(seed), position.contiguous()
    tensor = as_tensor("noise", noise)
    if not tensor.dtype.is_floating_point:
        raise InputTypeError(f"noise: a floating tensor is needed, not {tensor.dtype}")
    if tensor.shape != torch.Size(shape):
        raise InputError(f"noise: shape {list(shape)} is needed, not {list(tensor.shape)}")
    check_same_device("noise", tensor, device)
    return tensor, 0, None


def noise_tensor(noise: torch.Tensor | None, seed: int, position: torch.Tensor | None, shape) -> torch.Tensor:
    """The noise itself, for code that does not fuse it."""
    if noise is not None:
        return noise
    assert position is not None
    return _philox(list(shape), seed, position, int(Stream.NOISE), True, torch.float32)
