"""Group norm, modulation and SiLU of channels_last images on a GPU, in the steps of csrc/cuda/group_norm_silu.cu.

Sums of each channel over a chunk of pixels (about the first pixel, so an offset costs no digits), torch for the small
tables of channels in float64, then one pass of a multiply-add and the activation. Chunks are summed in their order.
"""

import torch
import triton
import triton.language as tl

PIXELS = 64  # of a program
CHANNELS = 64


@triton.jit
def sigmoid(z):
    return 1.0 / (1.0 + tl.exp(-z))


@triton.jit
def spot(pixels, channels, chunks, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    """(sample, chunk, channels of this program, offsets within the sample, mask)."""
    program = tl.program_id(0).to(tl.int64)
    sample = program // chunks
    chunk = program % chunks
    pixel = chunk * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    return sample, chunk, channel, pixel[:, None] * channels + channel[None, :], inside


@triton.jit
def moments_kernel(x, partial, pixels, channels, chunks, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    sample, chunk, channel, offset, inside = spot(pixels, channels, chunks, PIXELS, CHANNELS)
    image = x + sample * pixels * channels
    pivot = tl.load(image + channel, mask=channel < channels, other=0).to(tl.float32)
    value = tl.load(image + offset, mask=inside, other=0).to(tl.float32) - pivot[None, :]
    value = tl.where(inside, value, 0.0)
    to = partial + (sample * chunks + chunk) * 2 * channels + channel
    tl.store(to, tl.sum(value, 0), mask=channel < channels)
    tl.store(to + channels, tl.sum(value * value, 0), mask=channel < channels)


@triton.jit
def forward_kernel(
    x, factor, offset_of, y, pixels, channels, chunks, SILU: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr
):
    sample, _chunk, channel, offset, inside = spot(pixels, channels, chunks, PIXELS, CHANNELS)
    table = sample * channels + channel
    times = tl.load(factor + table, mask=channel < channels, other=0)
    plus = tl.load(offset_of + table, mask=channel < channels, other=0)
    base = sample * pixels * channels
    z = tl.load(x + base + offset, mask=inside, other=0).to(tl.float32) * times[None, :] + plus[None, :]
    if SILU:
        z = z * sigmoid(z)
    tl.store(y + base + offset, z.to(y.dtype.element_ty), mask=inside)


@triton.jit
def slope_of(x, dy, factor, offset_of, table, at, channel, channels, inside, SILU: tl.constexpr):
    """(x, dz, factor) of a tile in float32."""
    times = tl.load(factor + table, mask=channel < channels, other=0)
    plus = tl.load(offset_of + table, mask=channel < channels, other=0)
    value = tl.load(x + at, mask=inside, other=0).to(tl.float32)
    slope = tl.load(dy + at, mask=inside, other=0).to(tl.float32)
    if SILU:
        z = value * times[None, :] + plus[None, :]
        s = sigmoid(z)
        slope = slope * (s * (1.0 + z * (1.0 - s)))
    return value, slope, times


@triton.jit
def gradient_sums_kernel(
    x,
    dy,
    centre,
    factor,
    offset_of,
    partial,
    pixels,
    channels,
    chunks,
    SILU: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    sample, chunk, channel, offset, inside = spot(pixels, channels, chunks, PIXELS, CHANNELS)
    table = sample * channels + channel
    at = sample * pixels * channels + offset
    value, slope, _times = slope_of(x, dy, factor, offset_of, table, at, channel, channels, inside, SILU)
    mean = tl.load(centre + table, mask=channel < channels, other=0)
    slope = tl.where(inside, slope, 0.0)
    to = partial + (sample * chunks + chunk) * 2 * channels + channel
    tl.store(to, tl.sum(slope, 0), mask=channel < channels)
    tl.store(to + channels, tl.sum(slope * (value - mean[None, :]), 0), mask=channel < channels)


@triton.jit
def backward_kernel(
    x,
    dy,
    centre,
    factor,
    offset_of,
    inner,
    constant,
    dx,
    pixels,
    channels,
    chunks,
    SILU: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    sample, _chunk, channel, offset, inside = spot(pixels, channels, chunks, PIXELS, CHANNELS)
    table = sample * channels + channel
    at = sample * pixels * channels + offset
    value, slope, times = slope_of(x, dy, factor, offset_of, table, at, channel, channels, inside, SILU)
    there = channel < channels
    mean = tl.load(centre + table, mask=there, other=0)
    of_x = tl.load(inner + table, mask=there, other=0)
    plus = tl.load(constant + table, mask=there, other=0)
    result = times[None, :] * slope - (value - mean[None, :]) * of_x[None, :] - plus[None, :]
    tl.store(dx + at, result.to(dx.dtype.element_ty), mask=inside)


def _grid(x: torch.Tensor) -> tuple[tuple[int, int], tuple[int, int, int]]:
    """(grid, (pixels, channels, chunks)) of channels_last [samples, channels, ...]."""
    samples, channels = x.shape[:2]
    pixels = x[0, 0].numel()
    chunks = triton.cdiv(pixels, PIXELS)
    return (samples * chunks, triton.cdiv(channels, CHANNELS)), (pixels, channels, chunks)


def _tables(mean, rstd, weight, bias, scale, shift):
    """Float64 [samples, channels]: mean, rstd, weight (1 + scale), factor and offset."""
    each = weight.shape[0] // mean.shape[1]
    centre, inverse = (t.double().repeat_interleave(each, 1, output_size=weight.shape[0]) for t in (mean, rstd))
    times = 1.0 if scale is None else 1.0 + scale.double()
    gain = weight.double() * times
    offset = bias.double() * times - centre * inverse * gain
    if shift is not None:
        offset = offset + shift.double()
    return centre, inverse, gain.expand_as(centre), inverse * gain, offset


def group_norm_silu(x, groups, weight, bias, scale, shift, eps, silu) -> tuple[torch.Tensor, ...]:
    """(y, mean, rstd) of channels_last x."""
    samples, channels = x.shape[:2]
    grid, sizes = _grid(x)
    partial = torch.empty((samples, sizes[2], 2, channels), dtype=torch.float32, device=x.device)
    moments_kernel[grid](x, partial, *sizes, PIXELS=PIXELS, CHANNELS=CHANNELS)
    sums = partial.sum(1, dtype=torch.float64)
    pivot = x.flatten(2)[:, :, 0].double() if x.ndim > 2 else x.double()
    grouped = (samples, groups, channels // groups)
    total, square, pivot = (t.reshape(grouped) for t in (sums[:, 0], sums[:, 1], pivot))
    elements = sizes[0] * (channels // groups)
    mean = (total + sizes[0] * pivot).sum(2) / elements
    away = pivot - mean[:, :, None]
    variance = (square + 2 * away * total + sizes[0] * away.square()).sum(2).clamp_min(0) / elements
    mean, rstd = mean.float(), torch.rsqrt(variance + eps).float()
    *_, factor, offset = _tables(mean, rstd, weight, bias, scale, shift)
    y = torch.empty_like(x)
    forward_kernel[grid](
        x, factor.float(), offset.float(), y, *sizes, SILU=bool(silu), PIXELS=PIXELS, CHANNELS=CHANNELS
    )
    return y, mean, rstd


def group_norm_silu_backward(
    gradient, x, mean, rstd, groups, weight, bias, scale, shift, silu
) -> tuple[torch.Tensor, ...]:
    """Gradients of x, weight, bias, scale, shift (the last two empty without modulation), float32 but for x's."""
    samples, channels = x.shape[:2]
    grid, sizes = _grid(x)
    centre, inverse, gain, factor, offset = _tables(mean, rstd, weight, bias, scale, shift)
    partial = torch.empty((samples, sizes[2], 2, channels), dtype=torch.float32, device=x.device)
    tables = (centre.float(), factor.float(), offset.float())
    constants = {"SILU": bool(silu), "PIXELS": PIXELS, "CHANNELS": CHANNELS}
    gradient_sums_kernel[grid](x, gradient, *tables, partial, *sizes, **constants)
    sums = partial.sum(1, dtype=torch.float64)
    first, second = sums[:, 0], sums[:, 1] * inverse
    elements = sizes[0] * (channels // groups)

    def over_group(values: torch.Tensor) -> torch.Tensor:
        total = values.reshape(samples, groups, -1).sum(2) / elements
        return total.repeat_interleave(channels // groups, 1, output_size=channels)

    inner = inverse.square() * over_group(gain * second)
    constant = inverse * over_group(gain * first)
    dx = torch.empty_like(x)
    backward_kernel[grid](x, gradient, *tables, inner.float(), constant.float(), dx, *sizes, **constants)
    times = 1.0 if scale is None else 1.0 + scale.double()
    results = [(times * second).sum(0), (times * first).sum(0)]
    if scale is None:
        results += [first.new_empty(0), first.new_empty(0)]
    else:
        results += [weight.double() * second + bias.double() * first, first]
    return dx, *(t.float() for t in results)
