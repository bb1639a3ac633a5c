"""Noising of clean images in one pass on a GPU; formula and contract in prunefast/ops/add_noise.py.

Grid: samples x blocks of 1,024 elements of the result, numbered in the logical order, as in denoising_loss. The
coordinate channels are part of that numbering and read nothing.
"""

import torch
import triton
import triton.language as tl

from .images import corner_inside, elements_of_program, load_noise, load_unit, place_in_image, sources, strides
from .philox import BLOCK_QUADS, seed_words


@triton.jit(do_not_specialize=["seed_low", "seed_high"])
def add_noise_kernel(
    x0,
    noise,
    position,
    corner,
    flip,
    alpha,
    sigma,
    out,
    elements,
    noisy,
    height,
    width,
    image_height,
    image_width,
    blocks,
    seed_low,
    seed_high,
    x0_sample,
    x0_channel,
    x0_row,
    x0_column,
    noise_sample,
    noise_channel,
    noise_row,
    noise_column,
    out_sample,
    out_channel,
    out_row,
    out_column,
    PHILOX: tl.constexpr,
    CROP: tl.constexpr,
    FLIP: tl.constexpr,
    COORDINATES: tl.constexpr,
    QUADS: tl.constexpr,
):
    sample, block, element, channel, y, x = elements_of_program(blocks, height, width, QUADS)
    inside = element < noisy
    row, column, source = place_in_image(corner, flip, sample, y, x, image_width, CROP, FLIP)
    clean = load_unit(x0 + sample * x0_sample + channel * x0_channel + row * x0_row + source * x0_column, inside)
    offset = sample * noise_sample + channel * noise_channel + y * noise_row + x * noise_column
    random = load_noise(noise, position, sample, block, offset, inside, seed_low, seed_high, PHILOX, QUADS)
    value = tl.load(alpha + sample) * clean + tl.load(sigma + sample) * random
    if COORDINATES:
        first = element < noisy + height * width
        size = tl.where(first, image_width, image_height)
        place = tl.where(first, column, row)
        along = (2 * place - (size - 1)).to(tl.float32) / tl.where(size > 1, size - 1, 1).to(tl.float32)
        value = tl.where(inside, value, along)
    at = out + sample * out_sample + channel * out_channel + y * out_row + x * out_column
    tl.store(at, value.to(out.dtype.element_ty), mask=element < elements)


def add_noise(
    x0, alpha, sigma, noise, seed, position, corner, height, width, flip, coordinates, dtype, channels_last
) -> torch.Tensor:
    """The operator's arguments; x0 of two or more dimensions."""
    if x0.ndim == 4:
        form = torch.channels_last if channels_last else torch.contiguous_format
        shape = (x0.shape[0], x0.shape[1] + 2 * coordinates, height, width)
        result = torch.empty(shape, dtype=dtype, device=x0.device, memory_format=form)
        out = result
    else:
        result = x0.new_empty(x0.shape, dtype=dtype)
        x0, out = x0.reshape(x0.shape[0], 1, 1, -1), result.view(x0.shape[0], 1, 1, -1)
        noise = None if noise is None else noise.reshape(out.shape)
    if result.numel() == 0:
        return result
    corner = corner_inside(corner, x0, out.shape[2], out.shape[3])
    elements = out[0].numel()
    blocks = triton.cdiv(elements, BLOCK_QUADS * 4)
    low, high = seed_words(seed)
    alpha, sigma = alpha.contiguous(), sigma.contiguous()
    pointers, constants = sources(noise, position, corner, flip, alpha)
    add_noise_kernel[(x0.shape[0] * blocks,)](
        x0,
        *pointers,
        alpha,
        sigma,
        out,
        elements,
        x0.shape[1] * out.shape[2] * out.shape[3],
        out.shape[2],
        out.shape[3],
        x0.shape[2],
        x0.shape[3],
        blocks,
        low,
        high,
        *x0.stride(),
        *strides(noise),
        *out.stride(),
        COORDINATES=bool(coordinates),
        **constants,
    )
    return result
