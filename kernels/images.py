"""What the kernels of images share: where an element lies, its pixel of the clean image, its noise.

Elements are numbered in the logical order (channel, row, column) whatever the strides, as the noise is; a program takes
1,024 of one sample.
"""

import torch
import triton
import triton.language as tl

from .philox import normals


@triton.jit
def load_unit(pointer, mask):
    """A pixel as float32; uint8 becomes x / 127.5 - 1."""
    value = tl.load(pointer, mask=mask, other=0)
    if pointer.dtype.element_ty == tl.uint8:
        return (2.0 * value.to(tl.float32) - 255.0) / 255.0
    return value.to(tl.float32)


@triton.jit
def place_in_image(corner, flip, sample, y, x, image_width, CROP: tl.constexpr, FLIP: tl.constexpr):
    """(row, column) in the mirrored image, and the column in memory: images are mirrored, then cut."""
    row = y
    column = x
    if CROP:
        row += tl.load(corner + 2 * sample)
        column += tl.load(corner + 2 * sample + 1)
    source = column
    if FLIP:
        source = tl.where(tl.load(flip + sample) != 0, image_width - 1 - column, column)
    return row, column, source


@triton.jit
def load_noise(
    noise, position, sample, block, offset, inside, seed_low, seed_high, PHILOX: tl.constexpr, QUADS: tl.constexpr
):
    """The noise of a block of a sample: read at `offset`, or made from the sample's position."""
    if PHILOX:
        quad = block * QUADS + tl.arange(0, QUADS)
        values = normals(quad, 0, tl.load(position + sample), seed_low, seed_high)
    else:
        values = tl.load(noise + offset, mask=inside, other=0).to(tl.float32)
    return values


def corner_inside(corner: torch.Tensor | None, x0: torch.Tensor, height: int, width: int) -> torch.Tensor | None:
    """Boxes that leave their image moved inside, as the CUDA kernels do: no address is trusted, and nothing waits."""
    if corner is None:
        return None
    return torch.stack([corner[:, 0].clamp(0, x0.shape[2] - height), corner[:, 1].clamp(0, x0.shape[3] - width)], 1)
