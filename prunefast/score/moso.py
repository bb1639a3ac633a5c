"""MoSo: how much the risk over the whole set would change if the image were left out.

With g_i the gradient of the loss of image i (mean over the draws), gbar the mean of g over all N images, a checkpoint:

score_i = (2N-3)/(N-1)^2 ||gbar||^2 - 1/(N-1)^2 ||g_i||^2 + (2N-4)/(N-1)^2 <gbar - g_i / N, g_i>

and the mean of it over the checkpoints (Tan et al. 2023, "Data Pruning via Moving-one-Sample-out"; the learning rate of
each checkpoint, constant after the warm-up, is left out). Images whose gradient points the way of the others' are kept.
The formula is that of the authors' code and of "Data Pruning in Generative Diffusion Models" (arXiv 2411.12523), which
trains one surrogate for each subset and takes ten checkpoints of each; here the checkpoints are those that are given.

Time: 2 N S K backward passes (gbar first). Memory: see `GradientOptions`, and 32 bytes a parameter: gbar is
summed in 4 blocks, which ranks share, so that it is the same for every number of them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from prunefast import distributed
from prunefast.errors import InputError
from prunefast.progress import Progress
from prunefast.score.denoising import BATCH, check_finite, noised, per_image
from prunefast.score.gradients import GradientOptions, Gradients, PerSampleGradients, inner_products, squared_norms

_BLOCKS = 4  # of images whose gradients are summed by one rank; part of the last digits of a result, so no option


@dataclass(frozen=True)
class MosoOptions(GradientOptions):
    """As `GradientOptions`; keep_hard=False turns the score round."""


EASY = "minus the MoSo influence; images the others can do without are kept"
HARD = "MoSo influence on the risk of the whole set; images whose gradient agrees with all others are kept"


def moso_scores(data: Any, networks: Any, options: MosoOptions, seed: int, bar: Progress) -> np.ndarray:
    """float64 [N]; at least 3 images."""
    if len(data) < 3:
        raise InputError(f"data: {len(data)} images; MoSo needs at least 3")
    parts = [_influence(data, network, options, seed, bar) for network in networks]
    influence = np.mean(parts, axis=0)
    return influence if options.keep_hard else -influence


def _influence(data: Any, network: Any, options: MosoOptions, seed: int, bar: Progress) -> np.ndarray:
    mean = mean_gradient(data, network, options.times, seed, bar)
    gradients = PerSampleGradients(network)

    def work(items: np.ndarray, images: np.ndarray) -> np.ndarray:
        """||g_i||^2 and <gbar, g_i>."""
        found = np.empty((len(items), 2))
        total: Gradients = {}
        for rows, k, part in gradients.draws(data, items, images, seed, options.times, options.chunk):
            total = part if k == 0 else {name: total[name] + gradient for name, gradient in part.items()}
            if k == options.times - 1:
                found[rows, 0] = squared_norms(total) / options.times**2
                found[rows, 1] = inner_products(total, mean) / options.times
        return found

    norm, inner = check_finite(per_image(data, BATCH, 2, work, bar), network).T
    n = len(data)
    mean_norm = sum(float(g.square().sum()) for g in mean.values())
    return ((2 * n - 3) * mean_norm - norm + (2 * n - 4) * (inner - norm / n)) / (n - 1) ** 2


def mean_gradient(data: Any, network: Any, times: int, seed: int, bar: Progress) -> Gradients:
    """gbar, float64: the gradient of the mean loss over all images and draws, by ordinary backward passes."""
    batches = -(-len(data) // BATCH)
    bounds = [batches * block // _BLOCKS * BATCH for block in range(_BLOCKS + 1)]
    own = distributed.owned(_BLOCKS)
    sums = distributed.everywhere(
        lambda: [
            _summed_gradient(data, network, np.arange(bounds[b], min(bounds[b + 1], len(data))), times, seed, bar)
            for b in own
        ]
    )
    total = {}
    for name, parameter in network.model.named_parameters():  # one at a time: all blocks of one on every rank
        mine = [block.pop(name).contiguous() for block in sums]  # one layout, so one order of later sums
        stacked = torch.stack(mine) if mine else parameter.new_zeros((0, *parameter.shape), dtype=torch.float64)
        total[name] = distributed.sum_blocks(stacked, _BLOCKS) / (len(data) * times)
    return total


def _summed_gradient(data: Any, network: Any, mine: np.ndarray, times: int, seed: int, bar: Progress) -> Gradients:
    """float64: summed over the images `mine` and the draws."""
    model = network.model
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}
    for items, images in data.batches(mine, BATCH):
        for k in range(times):
            draw = noised(data, network, items, images, seed, k, times)
            live = {name: p.detach().requires_grad_() for name, p in parameters.items()}
            prediction = torch.func.functional_call(model, live, (draw.x, draw.network_time, draw.labels))
            loss = network.loss.per_sample(prediction, draw.images, draw.noise, draw.time).sum()
            gradients = torch.autograd.grad(loss, list(live.values()), materialize_grads=True)
            for name, gradient in zip(live, gradients, strict=True):
                total[name] += gradient
        bar.advance(len(items))
    return total
