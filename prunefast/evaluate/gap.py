"""Does the network know its training images better than others: the held-out denoising gap.

The loss of the network (its average weights, without dropout) on images not trained on, minus that on images trained
on. Image i of either set gets the same K times and noises, so the gap is of the images; its standard error is that of
two means of independent images. A network that generalises has a gap of zero within it.

Needs images that differ from the training images by nothing else: those that training set aside, of a random coreset
those that were left out, for any other selection a data set of their own (a test split), because what a score left out
may be harder by itself.

Every network is asked for whole images and all of their tokens, however it is trained: one of patches with the
coordinates of the full image, one of masked tokens without a mask, one of latents with one draw of each.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunefast import ops
from prunefast.data.latents import LatentScale
from prunefast.diffusion.latents import draw_latents
from prunefast.progress import Progress
from prunefast.score.denoising import BATCH, STREAM

DRAWS = 8  # times an image: one in each of so many equally likely strata
MOST_IMAGES = 2_048  # of each set: the standard error falls with their root, and a pass over them costs a minute


@dataclasses.dataclass(frozen=True)
class DenoisingGap:
    """training, held_out   mean losses, uniform weighting
    gap                  held_out - training
    standard_error       of the gap, over images
    relative             gap / training
    """

    training: float
    held_out: float
    gap: float
    standard_error: float
    relative: float
    images: tuple[int, int]
    draws: int

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"images": list(self.images)}


def gap_of(training: NDArray[np.float64], held_out: NDArray[np.float64]) -> DenoisingGap:
    """Of the losses of images [n, K] and [m, K] at the same K draws."""
    means = [losses.mean(axis=1) for losses in (training, held_out)]
    on_training, on_others = (float(values.mean()) for values in means)
    squared = sum(float(values.var(ddof=1)) / len(values) if len(values) > 1 else np.inf for values in means)
    gap = on_others - on_training
    sizes = (len(training), len(held_out))
    return DenoisingGap(on_training, on_others, gap, squared**0.5, gap / on_training, sizes, training.shape[1])


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """A network, and how it is asked.

    model        called as model(x, network_time, labels), in eval mode; labels int64 [B], or None
    loss         its `DenoisingLoss`; a `HybridLoss` where it learns the variance
    labelled     it is told classes
    captions     it is told captions in their place, as text=captions(n texts): float [n, tokens, width]
    coordinates  it takes the coordinate channels of patches
    timesteps    shares of the training times that it was trained between
    latents      it denoises latents of this scale
    encode       images uint8 [B, 3, R, R] -> their moments [B, 2 C, side, side], where the data holds images
    """

    model: Any
    loss: Any
    labelled: bool = False
    captions: Callable[[Sequence[str]], Tensor] | None = None
    coordinates: bool = False
    timesteps: tuple[float, float] = (0.0, 1.0)
    latents: LatentScale | None = None
    encode: Callable[[Tensor], Tensor] | None = None

    def told(self, data: Any, rows: NDArray[np.int64], device: torch.device) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Labels and keyword arguments of the model for some items."""
        if self.captions is not None:
            with torch.autocast(device.type, enabled=False):
                return None, {"text": self.captions([data.captions[row] or "" for row in rows.tolist()]).to(device)}
        labels = np.asarray(data.labels)[rows].astype(np.int64) if self.labelled else None
        return None if labels is None else torch.from_numpy(labels).to(device), {}

    def clean(self, rows: Tensor, seed: int, position: Tensor) -> Tensor:
        """What is denoised: the images themselves, or a draw of their latents."""
        if self.latents is None:
            return rows
        moments = rows if rows.is_floating_point() or self.encode is None else self.encode(rows)
        return draw_latents(moments, self.latents, seed, position)


@torch.no_grad()
def fixed_losses(
    measured: Measured,
    data: Any,
    items: NDArray[np.int64],
    *,
    seed: int = 0,
    draws: int = DRAWS,
    threads: int | None = None,
    bar: Progress | None = None,
) -> NDArray[np.float64]:
    """float64 [N, K]: the error of each of `items`, in their order, at each draw."""
    model, loss = measured.model, measured.loss
    device = next(model.parameters()).device
    low, high = measured.timesteps
    losses = []
    done = 0
    for _, images in data.batches(items, BATCH, threads):
        count = len(images)
        labels, told = measured.told(data, items[done : done + count], device)
        # the number in the set, not in the data: image i of both sets meets the same noise
        position = torch.arange(done, done + count, device=device)
        rows = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2)
        x0 = measured.clean(rows, seed, position)
        columns = []
        for k in range(draws):
            quantile = low + (high - low) * (k + 0.5) / draws
            time = loss.process.sample_time(torch.full((count,), quantile, dtype=torch.float64, device=device))
            noise = ops.randn_philox(x0.shape, seed, position, STREAM + k)
            alpha, sigma = loss.process.input_coefficients(time)
            x = ops.add_noise(
                x0, alpha, sigma, noise, coordinates=measured.coordinates, memory_format=torch.channels_last
            )
            prediction = model(x, loss.process.network_time(time), labels, **told)
            columns.append(loss.per_sample(prediction, x0, noise, time))
        losses.append(torch.stack(columns, 1).double().cpu().numpy())
        done += count
        if bar is not None:
            bar.advance(count)
    return np.concatenate(losses)
