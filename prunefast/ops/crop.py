"""The crop and mirror that noising and the loss share: the image is mirrored first, then cut at the box."""

from typing import NamedTuple

import torch

from prunefast.errors import InputError, InputTypeError
from prunefast.ops.arrays import as_tensor, check_same_device


class Boxes(NamedTuple):
    """One box a sample, all of one size. A plain tuple of the same three does as well.

    corner: int64 [samples, 2], row and column of the top left pixel in the (mirrored) image. height, width: in pixels.
    """

    corner: torch.Tensor
    height: int
    width: int


def check_boxes(boxes, x0: torch.Tensor) -> tuple[torch.Tensor | None, int, int]:
    """(corner or None, height, width) of the part of `x0` [samples, channels, height, width] that is used.

    Corners are read, and so checked against the image, by the operators on a CPU only: a GPU is never waited for.
    """
    if boxes is None:
        return (None, x0.shape[-2], x0.shape[-1]) if x0.ndim == 4 else (None, 1, 1)
    if x0.ndim != 4:
        raise InputError(f"boxes: x0 must be [samples, channels, height, width], not {list(x0.shape)}")
    if not isinstance(boxes, tuple) or len(boxes) != 3:
        raise InputTypeError("boxes: a tuple (corner [samples, 2], height, width) is needed")
    corner, height, width = as_tensor("boxes", boxes[0]), int(boxes[1]), int(boxes[2])
    if corner.dtype.is_floating_point or corner.shape != (x0.shape[0], 2):
        raise InputError(f"boxes: corners must be integers [{x0.shape[0]}, 2], not {corner.dtype} {list(corner.shape)}")
    check_same_device("boxes", corner, x0.device)
    if not (0 < height <= x0.shape[2] and 0 < width <= x0.shape[3]):
        raise InputError(f"boxes: {height} x {width} does not fit the {x0.shape[2]} x {x0.shape[3]} images")
    return corner.to(torch.int64).contiguous(), height, width


def check_flip(flip, x0: torch.Tensor) -> torch.Tensor | None:
    """Bool [samples] or None."""
    if flip is None:
        return None
    flip = as_tensor("flip", flip)
    if x0.ndim != 4:
        raise InputError(f"flip: x0 must be [samples, channels, height, width], not {list(x0.shape)}")
    if flip.dtype != torch.bool:
        raise InputTypeError(f"flip: bool is needed, not {flip.dtype}")
    if flip.shape != (x0.shape[0],):
        raise InputError(f"flip: shape [{x0.shape[0]}] is needed, not {list(flip.shape)}")
    check_same_device("flip", flip, x0.device)
    return flip.contiguous()


def check_corners(corner: torch.Tensor | None, height: int, width: int, x0: torch.Tensor) -> None:
    """Every box inside the image; reads the corners, so for CPU kernels only."""
    if corner is None or corner.numel() == 0:
        return
    low, high = corner.amin(0).tolist(), corner.amax(0).tolist()
    if min(low) < 0 or high[0] + height > x0.shape[2] or high[1] + width > x0.shape[3]:
        raise InputError(f"boxes: a box leaves the {x0.shape[2]} x {x0.shape[3]} image (corners {low} to {high})")


def crop_flip(
    x: torch.Tensor, corner: torch.Tensor | None, height: int, width: int, flip: torch.Tensor | None
) -> torch.Tensor:
    """The mirrored, then cut images, materialised: what the fused operators never write."""
    if flip is not None:
        x = torch.where(flip[:, None, None, None], x.flip(-1), x)
    if corner is not None:
        rows = corner[:, 0, None] + torch.arange(height, device=x.device)
        columns = corner[:, 1, None] + torch.arange(width, device=x.device)
        samples = torch.arange(x.shape[0], device=x.device)[:, None, None, None]
        channels = torch.arange(x.shape[1], device=x.device)[None, :, None, None]
        x = x[samples, channels, rows[:, None, :, None], columns[:, None, None, :]]
    return x


def to_unit(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """uint8 to [-1, 1] with one rounding: x / 127.5 - 1 = (2 x - 255) / 255; floats are converted."""
    if x.dtype == torch.uint8:
        return (2.0 * x.to(dtype) - 255.0) / 255.0
    return x.to(dtype)
