"""Clean images to noisy ones in one pass: uint8 to [-1, 1], mirror, crop, mix with noise, training dtype and layout."""

from typing import Any

import torch

from prunefast.errors import InputError, InputTypeError
from prunefast.ops import cuda, library, native
from prunefast.ops.arrays import as_tensor, check_per_sample, like
from prunefast.ops.backends import triton_is_live
from prunefast.ops.crop import check_boxes, check_corners, check_flip, crop_flip, to_unit
from prunefast.ops.denoising_loss import FLOATS, check_data, refuse_gradient
from prunefast.ops.noise import check_noise, noise_tensor

COORDINATE_CHANNELS = 2  # column, then row


def add_noise(
    x0: Any,
    alpha: Any,
    sigma: Any,
    noise: Any,
    *,
    boxes: Any = None,
    flip: Any = None,
    coordinates: bool = False,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format | None = None,
) -> Any:
    """x_t = alpha_i x0_i + sigma_i noise_i of the mirrored, then cropped images.

    Args:
        x0: `[B, ...]`, any float, or uint8 (mapped to x / 127.5 - 1); images with boxes, flip, coordinates.
        alpha, sigma: `[B]` (or one number).
        noise: a tensor of the shape of the result, or (seed, position int64 `[B]`) as in `denoising_loss`. It belongs
            to the result: it is neither mirrored nor cropped.
        boxes: (corner int64 `[B, 2]`, height, width), see `Boxes`: rows and columns in the mirrored image.
        flip: bool `[B]`, which images are mirrored left to right.
        coordinates: append two channels, the column and the row of each pixel in the (mirrored) image, -1 at the first
            and 1 at the last (0 where there is only one); as Patch Diffusion (Wang et al., 2023, section 3.1).
        dtype: of the result; default that of x0, float32 for uint8.
        memory_format: torch.contiguous_format or torch.channels_last; default that of x0.

    Returns:
        `[B, C (+ 2), height, width]`. Not differentiable.

    Raises:
        InputError, InputTypeError: an argument of the wrong shape, dtype, device or range.
    """
    data = as_tensor("x0", x0)
    check_data(data, data.device)
    if data.ndim < 2:
        raise InputError(f"x0: shape [samples, ...] is needed, not {list(data.shape)}")
    if dtype is None:
        dtype = torch.float32 if data.dtype == torch.uint8 else data.dtype
    if dtype not in FLOATS:
        raise InputTypeError(f"dtype: a floating type is needed, not {dtype}")
    if coordinates and data.ndim != 4:
        raise InputError(f"coordinates: x0 must be [samples, channels, height, width], not {list(data.shape)}")
    corner, height, width = check_boxes(boxes, data)
    mirror = check_flip(flip, data)
    last = _is_channels_last(data, memory_format)
    shape = data.shape if corner is None else (*data.shape[:2], height, width)
    noise_values, seed, position = check_noise(noise, shape, data.device)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    first = check_per_sample("alpha", alpha, data.shape[0], wide, data.device)
    second = check_per_sample("sigma", sigma, data.shape[0], wide, data.device)
    constants = {"x0": data, "noise": noise_values, "alpha": first, "sigma": second}
    refuse_gradient(constants, "add_noise is not differentiable")
    result = _add_noise(
        data, first, second, noise_values, seed, position, corner, height, width, mirror, coordinates, dtype, last
    )
    return like(x0, result)


def _is_channels_last(data: torch.Tensor, memory_format: torch.memory_format | None) -> bool:
    if memory_format is None or memory_format == torch.preserve_format:
        if data.ndim != 4:
            return False
        last = data.is_contiguous(memory_format=torch.channels_last)
        return last and not data.is_contiguous()
    if memory_format not in (torch.contiguous_format, torch.channels_last):
        raise InputTypeError(f"memory_format: {memory_format} is not supported")
    if memory_format == torch.channels_last and data.ndim != 4:
        raise InputError(f"memory_format: channels_last is for [B, C, H, W], not {list(data.shape)}")
    return memory_format == torch.channels_last


def _add_noise_portable(
    x0, alpha, sigma, noise, seed, position, corner, height, width, flip, coordinates, dtype, channels_last
):
    spread = (slice(None),) + (None,) * (x0.ndim - 1)
    data = crop_flip(x0, corner, height, width, flip) if x0.ndim == 4 else x0
    values = noise_tensor(noise, seed, position, data.shape).to(alpha.dtype)
    mixed = alpha[spread] * to_unit(data, alpha.dtype) + sigma[spread] * values
    if coordinates:
        mixed = torch.cat([mixed, _coordinates(x0, corner, height, width, alpha.dtype)], dim=1)
    form = torch.channels_last if channels_last else torch.contiguous_format
    return mixed.to(dtype).contiguous(memory_format=form)


def _coordinates(x0, corner, height, width, dtype):
    """[B, 2, height, width]: column and row, -1 .. 1 over the whole image."""
    zero = torch.zeros(x0.shape[0], dtype=torch.int64, device=x0.device)
    top, left = (zero, zero) if corner is None else (corner[:, 0], corner[:, 1])
    rows = _axis(top[:, None] + torch.arange(height, device=x0.device), x0.shape[2], dtype)
    columns = _axis(left[:, None] + torch.arange(width, device=x0.device), x0.shape[3], dtype)
    size = (x0.shape[0], height, width)
    return torch.stack([columns[:, None, :].expand(size), rows[:, :, None].expand(size)], 1)


def _axis(place: torch.Tensor, size: int, dtype: torch.dtype) -> torch.Tensor:
    return (2 * place - (size - 1)).to(dtype) / max(size - 1, 1)


def _add_noise_cpu(x0, alpha, sigma, noise, *rest):
    """Native, but for float64: there the portable code after the checks that read data."""
    _seed, _position, corner, height, width, _flip, _coordinates, dtype, _last = rest
    if torch.float64 not in (x0.dtype, dtype, None if noise is None else noise.dtype):
        return native.add_noise(x0, alpha, sigma, noise, *rest)
    check_corners(corner, height, width, x0)
    return _add_noise_portable(x0, alpha, sigma, noise, *rest)


def _add_noise_cuda(x0, alpha, sigma, noise, *rest):
    """CUDA C++ where it was built, Triton otherwise; torch for float64."""
    dtype = rest[7]
    if dtype in native.DTYPES and cuda.live(x0) and cuda.takes(x0, noise):
        return cuda.add_noise(x0, alpha, sigma, noise, *rest)
    if alpha.dtype == torch.float64 or not triton_is_live():
        return _add_noise_portable(x0, alpha, sigma, noise, *rest)
    from prunefast.kernels.add_noise import add_noise as kernel

    with torch.cuda.device(x0.device):
        return kernel(x0, alpha, sigma, noise, *rest)


def _add_noise_fake(
    x0, alpha, sigma, noise, seed, position, corner, height, width, flip, coordinates, dtype, channels_last
):
    if x0.ndim != 4:
        return x0.new_empty(x0.shape, dtype=dtype)
    shape = (x0.shape[0], x0.shape[1] + COORDINATE_CHANNELS * coordinates, height, width)
    form = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device=x0.device, memory_format=form)


_add_noise = library.define(
    "add_noise(Tensor x0, Tensor alpha, Tensor sigma, Tensor? noise, int seed, Tensor? position, Tensor? corner, "
    "SymInt height, SymInt width, Tensor? flip, bool coordinates, ScalarType dtype, bool channels_last) -> Tensor",
    cpu=_add_noise_cpu,
    cuda=_add_noise_cuda,
    portable=_add_noise_portable,
    fake=_add_noise_fake,
)
