"""What the scores from a diffusion surrogate share: the fixed (time, noise) draws and the passes over the images.

Draw k of K is the same for every image and checkpoint: its time is the (k + 1/2) / K quantile of the times the
surrogate was trained on (a low-discrepancy set: one time in each of K equally likely strata), and its noise is that of
the image's index. So the losses of two images differ by the images, those of two checkpoints by the training between.

Images are streamed in batches aligned on their index; under torchrun the ranks share the batches.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunefast import distributed, ops
from prunefast.diffusion.parameterisation import target_coefficients
from prunefast.errors import InputError
from prunefast.progress import Progress

STREAM = 512  # + k: the noise of draw k; below the streams of samplers, above those of training
MOST_DRAWS = 512


@dataclass(frozen=True)
class DrawOptions:
    """times      draws an image (K): forward passes, and columns of what is kept in memory
    keep_hard  high instead of low is kept
    ema        the averaged weights of the checkpoint; False: the raw ones
    """

    times: int = 8
    keep_hard: bool = False
    ema: bool = True

    def __post_init__(self) -> None:
        check_whole("times", self.times, MOST_DRAWS)
        for name in ("keep_hard", "ema"):
            if not isinstance(getattr(self, name, True), bool):
                raise InputError(f"{name}: must be true or false, not {getattr(self, name)!r}")


def check_whole(name: str, value: Any, most: int | None = None) -> None:
    good = isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 1
    if not good or (most is not None and value > most):
        raise InputError(f"{name}: must be a whole number from 1{f' to {most}' if most else ''}, not {value!r}")


@dataclass(frozen=True, eq=False)
class Noised:
    """One draw of one batch. images uint8 [B, 3, R, R]; x the network's input; target = a images + b noise, where
    images stand for x / 127.5 - 1."""

    images: Tensor
    noise: Tensor
    time: Tensor
    network_time: Tensor
    x: Tensor
    labels: Tensor | None

    def target(self, loss: Any) -> Tensor:
        """float32 [B, 3, R, R]: what the network should have answered."""
        process = loss.process
        alpha, sigma = process.alpha_sigma(self.time, torch.float64)
        a, b = target_coefficients(loss.prediction, alpha, sigma, process.sigma_data)
        spread = (slice(None), None, None, None)
        return (a[spread] * (self.images.double() / 127.5 - 1) + b[spread] * self.noise.double()).float()


def noised(data: Any, network: Any, items: np.ndarray, images: np.ndarray, seed: int, k: int, times: int) -> Noised:
    """Draw k of the images at `items`; images uint8 [B, R, R, 3]."""
    device = next(network.model.parameters()).device
    process = network.loss.process
    pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)
    position = torch.from_numpy(items).to(device)
    u = torch.full((len(items),), (k + 0.5) / times, dtype=torch.float64, device=device)
    time = process.sample_time(u)
    noise = ops.randn_philox(pixels.shape, seed, position, STREAM + k)
    alpha, sigma = process.input_coefficients(time)
    x = ops.add_noise(pixels, alpha, sigma, noise, dtype=torch.float32, memory_format=torch.channels_last)
    labels = None
    if network.num_classes is not None:
        labels = torch.from_numpy(np.asarray(data.labels)[items]).to(device)
    return Noised(pixels, noise, time, process.network_time(time), x, labels)


def my_batches(data: Any, batch_size: int) -> tuple[np.ndarray, Iterator[tuple[np.ndarray, np.ndarray]]]:
    """This rank's items, and (items, images) batch by batch. Batches are cut the same way in every world."""
    count = len(data)
    blocks = distributed.owned(-(-count // batch_size))
    items = [np.arange(block * batch_size, min((block + 1) * batch_size, count)) for block in blocks]
    mine = np.concatenate(items) if items else np.zeros(0, np.int64)
    return mine, data.batches(mine, batch_size)


def per_image(
    data: Any, batch_size: int, columns: int, work: Callable[[np.ndarray, np.ndarray], np.ndarray], bar: Progress
) -> np.ndarray:
    """float64 [N, columns] of all ranks: `work(items, images)` gives the rows of a batch."""
    mine, batches = my_batches(data, batch_size)
    rows = np.empty((len(mine), columns))

    def own() -> None:
        done = 0
        for items, images in batches:
            rows[done : done + len(items)] = work(items, images)
            done += len(items)
            bar.advance(len(items))

    distributed.everywhere(own)
    result = np.empty((len(data), columns))
    result[distributed.all_gather_rows(mine)] = distributed.all_gather_rows(rows)
    return result


BATCH = 64  # images a forward pass; part of the last digits of a result, so no option


def denoising_losses(data: Any, network: Any, times: int, seed: int, bar: Progress) -> np.ndarray:
    """float64 [N, K]: mean over pixels of the squared error of each image at each draw.

    N K forward passes; 8 K bytes an image.
    """

    @torch.no_grad()
    def work(items: np.ndarray, images: np.ndarray) -> np.ndarray:
        losses = []
        for k in range(times):
            draw = noised(data, network, items, images, seed, k, times)
            prediction = network.model(draw.x, draw.network_time, draw.labels)
            losses.append(network.loss.per_sample(prediction, draw.images, draw.noise, draw.time))
        return torch.stack(losses, 1).double().cpu().numpy()

    return check_finite(per_image(data, BATCH, times, work, bar), network)


def check_finite(values: np.ndarray, network: Any) -> np.ndarray:
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).all(1))[0])
        raise InputError(f"checkpoint: {network.path} gives no finite loss for image {row}; take another checkpoint")
    return values


def eps_factor(network: Any, times: int) -> np.ndarray:
    """float64 [K]: error of the prediction x this = error of eps at each draw (`prunefast.diffusion.weighting`)."""
    from prunefast.diffusion.weighting import signal_and_noise_share

    process = network.loss.process
    time = process.sample_time((torch.arange(times, dtype=torch.float64) + 0.5) / times)
    alpha, sigma = process.alpha_sigma(time, torch.float64)
    return signal_and_noise_share(network.loss.prediction, alpha, sigma, process.sigma_data)[0].numpy()
