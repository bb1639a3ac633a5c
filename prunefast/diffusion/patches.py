"""Patch Diffusion: train on crops that know where they lie (Wang et al. 2023, "Patch Diffusion: Faster and More
Data-Efficient Training of Diffusion Models", section 3).

A step trains on crops of one size, drawn for the whole step; every image is cut at a place of its own. Two more input
channels give the column and the row of each pixel in the full image (`prunefast.ops.add_noise`, ``coordinates=True``),
so the network learns one distribution, of which a crop is a part, and samples whole images at the end.

======  ===============  ===================  ==================
size    share of steps   images (multiplier)  pixels of the step
======  ===============  ===================  ==================
R       p                1                    1
R / 2   3/5 (1 - p)      2                    1/2
R / 4   2/5 (1 - p)      4                    1/4
======  ===============  ===================  ==================

Latents have two sizes, R at p and R / 2 at 1 - p. With p = 0.5 a step costs 0.70 of the pixels of a plain one and shows
1.90 as many images.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prunefast import ops
from prunefast.errors import InputError
from prunefast.ops.crop import Boxes
from prunefast.ops.philox import Stream

FULL_SIZE_SHARE = 0.5  # p of the paper's experiments
SCHEDULES = ("stochastic", "progressive")
LOSSES = ("sum", "mean")
# of the steps that are not full-size, by how many smaller sizes there are (the paper's eq. 5; latents have one)
_SMALLER_SHARES = {0: (), 1: (1.0,), 2: (3 / 5, 2 / 5)}
PIXEL_LEVELS, LATENT_LEVELS = 3, 2


@dataclass(frozen=True)
class Patch:
    """What one step trains on.

    size: side of the crops in pixels. multiplier: the step has so many times the batch size in images.
    loss_weight: what the mean loss over pixels is multiplied by.
    """

    size: int
    multiplier: int
    loss_weight: float


def full_coordinates(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[1, 2, size, size]: the coordinate channels of a whole image, column then row, as `ops.add_noise` makes them."""
    axis = torch.linspace(-1.0, 1.0, size, dtype=torch.float64) if size > 1 else torch.zeros(1)
    axis = axis.to(device=device, dtype=dtype)
    return torch.stack((axis[None, :].expand(size, size), axis[:, None].expand(size, size)))[None]


def crop_coordinates(corner: Tensor, size: int, image_size: int, dtype: torch.dtype) -> Tensor:
    """[B, 2, size, size]: those of the crops at `corner` int64 [B, 2], with the bits of `ops.add_noise`."""
    place = corner[:, :, None] + torch.arange(size, device=corner.device)
    rows, columns = ((2 * place - (image_size - 1)).float() / max(image_size - 1, 1)).to(dtype).unbind(1)
    shape = (len(corner), size, size)
    return torch.stack((columns[:, None, :].expand(shape), rows[:, :, None].expand(shape)), dim=1)


class PatchSchedule:
    """The patch of the step that begins at an image position: a function of (seed, position), the same on every rank.

        schedule = PatchSchedule(64, p=0.5)
        patch = schedule.at(12_800)                                # the step that begins at image 12,800
        corner = schedule.corners(patch, batch.position)           # int64 [B, 2], row and column
        x_t = prunefast.ops.add_noise(images, alpha, sigma, noise, boxes=(corner, patch.size, patch.size),
                                      coordinates=True)

    Args:
        image_size: R, a multiple of 2^(levels - 1).
        p: share of steps on full images, in [0, 1].
        levels: number of sizes, 1 ... 3: R, R / 2, R / 4.
        multiply: R / 2 and R / 4 take 2 and 4 times the images; False: every step has the batch size.
        schedule: "stochastic" draws a size for every step; "progressive" goes from the smallest to the largest, each
            for its share of `images` (better in time, worse in the paper's results).
        images: of the whole run, needed for "progressive".
        loss: "sum": the loss sums over pixels, as in the paper, in units of a full image: (s / R)^2 times the mean, so
            a full-size step is plain training and small patches pull weakly. "mean": the mean over the pixels there
            are.
        seed: of sizes and places.
    """

    def __init__(
        self,
        image_size: int,
        *,
        p: float = FULL_SIZE_SHARE,
        levels: int = PIXEL_LEVELS,
        multiply: bool = True,
        schedule: str = "stochastic",
        images: int | None = None,
        loss: str = "sum",
        seed: int = 0,
    ):
        if not 0 <= p <= 1:
            raise InputError(f"p must lie in [0, 1], not {p}")
        if levels - 1 not in _SMALLER_SHARES:
            raise InputError(f"levels must be 1, 2 or 3 (R, R / 2, R / 4), not {levels}")
        if schedule not in SCHEDULES:
            raise InputError(f"schedule '{schedule}' is not one of {', '.join(SCHEDULES)}")
        if loss not in LOSSES:
            raise InputError(f"loss '{loss}' is not one of {', '.join(LOSSES)}")
        if schedule == "progressive" and images is None:
            raise InputError("images: a progressive schedule needs the length of the run")
        smallest = 2 ** (levels - 1)
        if image_size < smallest or image_size % smallest:
            raise InputError(
                f"image_size must be a multiple of {smallest} for {levels} patch sizes, not {image_size}: "
                "take fewer levels or another image size"
            )
        self.image_size = image_size
        self.seed = seed
        self.images = images if schedule == "progressive" else None
        self.patches = tuple(
            Patch(image_size >> level, 1 << level if multiply else 1, 0.25**level if loss == "sum" else 1.0)
            for level in range(levels)
        )
        smaller = [(1 - p) * share for share in _SMALLER_SHARES[levels - 1]]
        self.shares = (1.0 - sum(smaller), *smaller)  # of each of `patches`; the full size has all where there is one

    def at(self, position: int) -> Patch:
        """Of the step whose first image has this position in the stream."""
        if self.images is not None:
            done, order = position / self.images, range(len(self.patches) - 1, -1, -1)
        else:
            where = torch.tensor([position])
            done = ops.uniform_philox((1,), self.seed, where, Stream.PATCH_SIZE, dtype=torch.float64).item()
            order = range(len(self.patches))
        for level in order:
            done -= self.shares[level]
            if done < 0:
                return self.patches[level]
        return self.patches[0]  # past the end of a progressive run; or u within rounding of 1

    def multiplier(self, position: int) -> int:
        """How many times the batch size the step that begins at `position` has in images."""
        return self.at(position).multiplier

    def corners(self, patch: Patch, position: Tensor) -> Tensor:
        """Top left pixels (row, column) of the crops, int64 [B, 2] on the device of `position` [B]: each image's own,
        uniform over all that fit."""
        u = ops.uniform_philox((len(position), 2), self.seed, position, Stream.CROP, dtype=torch.float64)
        return (u * (self.image_size - patch.size + 1)).long()

    def boxes(self, patch: Patch, position: Tensor) -> Boxes | None:
        """The crops as `ops.add_noise` and `DenoisingLoss` take them; None for full-size steps."""
        if patch.size == self.image_size:
            return None
        return Boxes(self.corners(patch, position), patch.size, patch.size)

    def windows(self, begin: int, position: np.ndarray, flip: bool = False) -> tuple[np.ndarray, int] | None:
        """Where the crops of the step that begins at `begin` lie in the images as they are stored: corners int32 [B, 2]
        and their side; None for a full-size step.

        flip: half of the images are mirrored, by `Stream.FLIP`, before they are cut: of those the crop is the window's
        mirror image.
        """
        patch = self.at(begin)
        if patch.size == self.image_size:
            return None
        where = torch.from_numpy(position)
        corner = self.corners(patch, where)
        if flip:
            mirrored = ops.uniform_philox((len(where),), self.seed, where, Stream.FLIP) < 0.5
            corner[:, 1] = torch.where(mirrored, self.image_size - patch.size - corner[:, 1], corner[:, 1])
        return corner.to(torch.int32).numpy(), patch.size

    @property
    def images_per_step(self) -> float:
        """Expected images of a step, in batch sizes."""
        return self._expected([patch.multiplier for patch in self.patches])

    @property
    def pixels_per_step(self) -> float:
        """Expected pixels of a step, 1 being a batch of full images."""
        return self._expected([patch.multiplier * (patch.size / self.image_size) ** 2 for patch in self.patches])

    def _expected(self, values: list[float]) -> float:
        if self.images is None:
            return sum(share * value for share, value in zip(self.shares, values, strict=True))
        # the shares of a progressive run are of its images: a size has share / multiplier of the steps
        steps = [share / patch.multiplier for share, patch in zip(self.shares, self.patches, strict=True)]
        return sum(step * value for step, value in zip(steps, values, strict=True)) / sum(steps)
