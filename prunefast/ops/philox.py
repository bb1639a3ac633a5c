"""Random numbers that belong to an image, not to a batch: Philox-4x32-10 keyed by (seed, global position).

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. The map from words to numbers is written
once, in docs/ops/philox.md; `reference.py` restates it in float64.
"""

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import torch

from prunefast.errors import InputError, InputTypeError
from prunefast.ops import cuda, library, native
from prunefast.ops.arrays import SEED_LIMIT, WORD_LIMIT, check_integer, check_position, signed
from prunefast.ops.backends import triton_is_live

_MASK = WORD_LIMIT - 1
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

SAMPLE_LIMIT = 4 * WORD_LIMIT  # elements of a sample: the counter holds element // 4 in one word


class Stream(IntEnum):
    """The second counter word: what the numbers of an image are for. Streams never share a number."""

    NOISE = 0
    TIME = 1
    CROP = 2
    FLIP = 3
    LABEL_DROP = 4
    ORDER = 5
    PATCH_SIZE = 16  # keyed by the first position of a step
    TOKEN_MASK = 17
    LATENT = 18  # the draw from an autoencoder's posterior
    SAMPLER = 1024  # + step of an ancestral sampler
    DROPOUT = 1 << 24  # + number of the layer


def randn_philox(
    shape: Sequence[int],
    seed: int,
    position: Any,
    stream: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """Standard normals; sample i depends on (seed, position[i], stream) only, whatever the batch, threads or backend.

    Args:
        shape: `[samples, ...]`; a sample's numbers are laid out in C order of `shape[1:]`.
        seed: 0 .. 2^64 - 1.
        position: int64 `[samples]`, the global position of each image.
        stream: a `Stream`, 0 .. 2^32 - 1.
        device: default: that of `position` (a NumPy array of positions gives a NumPy array of numbers).
        dtype: float32 (default), float64, bfloat16 or float16; all are rounded from the same float32 normals but
            float64, which is computed in float64 from the same words.

    Raises:
        InputError, InputTypeError: an argument of the wrong shape, type or range.
    """
    if dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise InputTypeError(f"dtype: a floating type is needed, not {dtype}")
    return _random(shape, seed, position, stream, device, dtype, normal=True)


def uniform_philox(
    shape: Sequence[int],
    seed: int,
    position: Any,
    stream: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """Uniform numbers (k + 1/2) / 2^23, k in 0 .. 2^23 - 1: never 0 or 1, and the same values in float32 and float64.

    Arguments as in `randn_philox`; dtype is float32 or float64 (narrower types would round to 0 or 1).
    """
    if dtype not in (torch.float32, torch.float64):
        raise InputTypeError(f"dtype: float32 or float64 is needed, not {dtype}")
    return _random(shape, seed, position, stream, device, dtype, normal=False)


def _random(shape, seed, position, stream, device, dtype, *, normal: bool) -> Any:
    as_numpy = isinstance(position, np.ndarray) and device is None
    place = torch.device(device) if device is not None else None
    tensor = check_position("position", position, place)
    seed = check_integer("seed", seed, 0, SEED_LIMIT)
    stream = check_integer("stream", stream, 0, WORD_LIMIT)
    shape = [check_integer("shape", size, 0, 1 << 62) for size in shape]
    if not shape or shape[0] != tensor.shape[0]:
        raise InputError(f"shape: {shape} does not begin with the number of positions, {tensor.shape[0]}")
    if math.prod(shape[1:]) > SAMPLE_LIMIT:
        raise InputError(f"shape: {shape[1:]} is more than 2^34 elements a sample")
    numbers = _philox(shape, signed(seed), tensor, stream, normal, dtype)
    return numbers.numpy() if as_numpy else numbers


def words(counter: Sequence[torch.Tensor | int], seed: int, device: torch.device) -> list[torch.Tensor]:
    """Philox-4x32-10 in torch: four counter words and the four output words, as int64 tensors in 0 .. 2^32 - 1."""
    c0, c1, c2, c3 = (torch.as_tensor(word, dtype=torch.int64, device=device) & _MASK for word in counter)
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return [c0, c1, c2, c3]


def _multiply(multiplier: int, word: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low word of a 32 x 32 bit product; no step passes 2^63."""
    low_part = multiplier * (word & 0xFFFF)
    high_part = multiplier * (word >> 16)
    return (high_part + (low_part >> 16)) >> 16, (((high_part & 0xFFFF) << 16) + low_part) & _MASK


def _philox_portable(
    shape: list[int], seed: int, position: torch.Tensor, stream: int, normal: bool, dtype: torch.dtype
) -> torch.Tensor:
    samples, size = shape[0], math.prod(shape[1:])
    quads = torch.arange((size + 3) // 4, dtype=torch.int64, device=position.device)[None, :]
    place = position[:, None]
    output = torch.stack(
        torch.broadcast_tensors(*words((quads, stream, place, place >> 32), seed, position.device)), -1
    )
    uniform = ((output >> 9).to(torch.float64) + 0.5) * 2.0**-23
    if normal:
        radius = torch.sqrt(-2.0 * torch.log(uniform[..., 0::2]))
        angle = 2.0 * math.pi * uniform[..., 1::2]
        uniform = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], -1)
    if dtype not in (torch.float32, torch.float64):
        uniform = uniform.to(torch.float32)
    return uniform.reshape(samples, -1)[:, :size].to(dtype).reshape(shape).contiguous()


def _philox_cpu(
    shape: list[int], seed: int, position: torch.Tensor, stream: int, normal: bool, dtype: torch.dtype
) -> torch.Tensor:
    if dtype == torch.float64:
        if normal:
            return _philox_portable(shape, seed, position, stream, normal, dtype)
        return _philox_cpu(shape, seed, position, stream, normal, torch.float32).double()
    out = torch.empty(shape, dtype=dtype)
    native.philox(native.NORMAL if normal else native.UNIFORM, out, seed, position, stream)
    return out


def _philox_cuda(
    shape: list[int], seed: int, position: torch.Tensor, stream: int, normal: bool, dtype: torch.dtype
) -> torch.Tensor:
    if dtype != torch.float64 and cuda.live(position):
        out = torch.empty(shape, dtype=dtype, device=position.device)
        cuda.philox(native.NORMAL if normal else native.UNIFORM, out, seed, position, stream)
        return out
    if dtype == torch.float64 or not triton_is_live():
        return _philox_portable(shape, seed, position, stream, normal, dtype)
    from prunefast.kernels.philox import fill

    out = torch.empty(shape, dtype=dtype, device=position.device)
    with torch.cuda.device(position.device):
        fill(out, seed, position, stream, "normal" if normal else "uniform")
    return out


def _philox_fake(shape, seed, position, stream, normal, dtype):
    return torch.empty(shape, dtype=dtype, device=position.device)


_philox = library.define(
    "philox(SymInt[] shape, int seed, Tensor position, int stream, bool normal, ScalarType dtype) -> Tensor",
    cpu=_philox_cpu,
    cuda=_philox_cuda,
    portable=_philox_portable,
    fake=_philox_fake,
)
