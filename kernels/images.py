"""What the kernels of images share: where an element lies, its pixel of the clean image, its noise.

Elements are numbered in the logical order (channel, row, column) whatever the strides, as the noise is; a program takes
1,024 of one sample.
"""

import torch
import triton
import triton.language as tl

from .philox import BLOCK_QUADS, normals


@triton.jit
def elements_of_program(blocks, height, width, QUADS: tl.constexpr):
    """(sample, its block, the elements of that block, and their channels, rows and columns)."""
    program = tl.program_id(0).to(tl.int64)
    block = program % blocks
    element = block * QUADS * 4 + tl.arange(0, QUADS * 4)
    return program // blocks, block, element, element // width // height, element // width % height, element % width


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


def sources(noise, position, corner, flip, nothing: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], dict]:
    """Pointers and constants of a launch; `nothing` stands for a pointer that a branch left out never reads."""
    flip = None if flip is None else flip.view(torch.uint8)
    pointers = tuple(nothing if tensor is None else tensor for tensor in (noise, position, corner, flip))
    constants = {"PHILOX": noise is None, "CROP": corner is not None, "FLIP": flip is not None, "QUADS": BLOCK_QUADS}
    return pointers, constants


def strides(image: torch.Tensor | None) -> tuple[int, ...]:
    return (0, 0, 0, 0) if image is None else image.stride()
