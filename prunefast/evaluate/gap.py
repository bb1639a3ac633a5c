"""Does the network know its training images better than others: the held-out denoising gap.

The loss of the network (its average weights, without dropout) on images not trained on, minus that on images trained
on. Image i of either set gets the same K times and noises, so the gap is of the images; its standard error is that of
two means of independent images. A network that generalises has a gap of zero within it.

Needs images that differ from the training images by nothing else: of a random coreset those that were left out, for
any other selection a data set of their own (a test split), because what a score left out may be harder by itself.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prunefast import ops
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


@torch.no_grad()
def fixed_losses(
    model: Any,
    loss: Any,
    batches: Iterator[tuple[NDArray[np.uint8], NDArray[np.int64] | None]],
    *,
    seed: int = 0,
    draws: int = DRAWS,
    bar: Progress | None = None,
) -> NDArray[np.float64]:
    """float64 [N, K]: the error of each image (uint8 [B, R, R, C], labels [B] or None) at each draw.

    model: called as model(x, network_time, labels), in eval mode. loss: its `DenoisingLoss`.
    """
    device = next(model.parameters()).device
    rows = []
    done = 0
    for images, labels in batches:
        pixels = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2)
        given = None if labels is None else torch.from_numpy(labels).to(device)
        # the number in the set, not in the data: image i of both sets meets the same noise
        position = torch.arange(done, done + len(pixels), device=device)
        columns = []
        for k in range(draws):
            share = torch.full((len(pixels),), (k + 0.5) / draws, dtype=torch.float64, device=device)
            time = loss.process.sample_time(share)
            noise = ops.randn_philox(pixels.shape, seed, position, STREAM + k)
            alpha, sigma = loss.process.input_coefficients(time)
            x = ops.add_noise(pixels, alpha, sigma, noise, memory_format=torch.channels_last)
            prediction = model(x, loss.process.network_time(time), given)
            columns.append(loss.per_sample(prediction, pixels, noise, time))
        rows.append(torch.stack(columns, 1).double().cpu().numpy())
        done += len(pixels)
        if bar is not None:
            bar.advance(len(pixels))
    return np.concatenate(rows)


def batches_of(
    data: Any, items: NDArray[np.int64], labelled: bool, threads: int | None = None
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64] | None]]:
    """Images and labels of `items`, in their order."""
    done = 0
    for _, images in data.batches(items, BATCH, threads):
        rows = items[done : done + len(images)]
        done += len(images)
        yield images, np.asarray(data.labels)[rows].astype(np.int64) if labelled else None
