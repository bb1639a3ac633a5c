"""The denoising loss and its gradient in one pass on a GPU; formula and contract in prunefast/ops/denoising_loss.py.

Grid: samples x blocks of 1,024 elements, in one dimension (the others end at 65,535). Each program reads prediction,
clean image and noise once (or regenerates the noise), writes the gradient and one partial sum; the partial sums are
added in their order afterwards: no atomics, and a run repeats bit for bit. Any strides do: elements are numbered in the
logical order (channel, row, column), as the noise is.
"""

import torch
import triton
import triton.language as tl

from .images import corner_inside, elements_of_program, load_noise, load_unit, place_in_image, sources, strides
from .philox import BLOCK_QUADS, seed_words


@triton.jit(do_not_specialize=["seed_low", "seed_high"])
def denoising_loss_kernel(
    pred,
    x0,
    noise,
    position,
    corner,
    flip,
    a,
    b,
    scale,
    gradient,
    partial,
    elements,
    height,
    width,
    image_width,
    blocks,
    seed_low,
    seed_high,
    pred_sample,
    pred_channel,
    pred_row,
    pred_column,
    x0_sample,
    x0_channel,
    x0_row,
    x0_column,
    noise_sample,
    noise_channel,
    noise_row,
    noise_column,
    gradient_sample,
    gradient_channel,
    gradient_row,
    gradient_column,
    PHILOX: tl.constexpr,
    CROP: tl.constexpr,
    FLIP: tl.constexpr,
    GRADIENT: tl.constexpr,
    QUADS: tl.constexpr,
):
    # 1. where the elements of this block lie
    sample, block, element, channel, y, x = elements_of_program(blocks, height, width, QUADS)
    inside = element < elements
    # 2. the clean image: mirrored, then cut
    row, _column, source = place_in_image(corner, flip, sample, y, x, image_width, CROP, FLIP)
    clean = load_unit(x0 + sample * x0_sample + channel * x0_channel + row * x0_row + source * x0_column, inside)
    # 3. the noise of these elements: read, or made from the image's position
    offset = sample * noise_sample + channel * noise_channel + y * noise_row + x * noise_column
    random = load_noise(noise, position, sample, block, offset, inside, seed_low, seed_high, PHILOX, QUADS)
    # 4. the difference, its square, its gradient
    at = pred + sample * pred_sample + channel * pred_channel + y * pred_row + x * pred_column
    value = tl.load(at, mask=inside, other=0).to(tl.float32)
    difference = value - (tl.load(a + sample) * clean + tl.load(b + sample) * random)
    difference = tl.where(inside, difference, 0.0)
    tl.store(partial + sample * blocks + block, tl.sum(difference * difference, 0))
    if GRADIENT:
        at = gradient + sample * gradient_sample + channel * gradient_channel + y * gradient_row + x * gradient_column
        tl.store(at, (difference * tl.load(scale + sample)).to(gradient.dtype.element_ty), mask=inside)


def per_sample_loss(
    pred: torch.Tensor,
    x0: torch.Tensor,
    noise: torch.Tensor | None,
    seed: int,
    position: torch.Tensor | None,
    a: torch.Tensor,
    b: torch.Tensor,
    corner: torch.Tensor | None,
    flip: torch.Tensor | None,
    gradient: torch.Tensor | None,
    gradient_scale: torch.Tensor | None,
) -> torch.Tensor:
    """Mean squared difference float32 [samples]; writes `gradient` where it is given. All images are 4-dimensional."""
    samples, channels, height, width = pred.shape
    corner = corner_inside(corner, x0, height, width)
    elements = channels * height * width
    blocks = triton.cdiv(elements, BLOCK_QUADS * 4)
    partial = torch.empty((samples, blocks), dtype=torch.float32, device=pred.device)
    low, high = seed_words(seed)
    pointers, constants = sources(noise, position, corner, flip, a)  # as there, `a` stands for what is not read
    denoising_loss_kernel[(samples * blocks,)](
        pred,
        x0,
        *pointers,
        a,
        b,
        a if gradient_scale is None else gradient_scale,
        a if gradient is None else gradient,
        partial,
        elements,
        height,
        width,
        x0.shape[3],
        blocks,
        low,
        high,
        *pred.stride(),
        *x0.stride(),
        *strides(noise),
        *strides(gradient),
        GRADIENT=gradient is not None,
        **constants,
    )
    return (partial.sum(1, dtype=torch.float64) / elements).to(torch.float32)
