"""Loss score: how well a trained diffusion model denoises the image, at fixed times and noise.

score_i = - mean over draws k of (l_ik - mean_j l_jk) / std_j l_jk,    l_ik = mean over pixels of the squared error

The l2 score of "Data Pruning in Generative Diffusion Models" (arXiv 2411.12523) takes one time (or a random one, which
makes the score mostly noise). Here every image gets the same K times, one a stratum, and each time is standardised
over the images before the mean: without that the mean is the loss of the noisiest (or cleanest) time alone, by the
prediction. `normalise=False` gives the plain mean.

Time: N K forward passes. Memory: 8 K bytes an image.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from prunefast.errors import InputError
from prunefast.progress import Progress
from prunefast.score.denoising import DrawOptions, denoising_losses


@dataclass(frozen=True)
class LossOptions(DrawOptions):
    """normalise  standardise each time over the images before the mean"""

    normalise: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.normalise, bool):
            raise InputError(f"normalise: must be true or false, not {self.normalise!r}")


EASY = "minus the denoising loss of the surrogate; images it denoises well are kept"
HARD = "denoising loss of the surrogate; images it denoises badly are kept"


def loss_scores(data: Any, networks: Any, options: LossOptions, seed: int, bar: Progress) -> np.ndarray:
    """float64 [N]; the mean over the checkpoints, where there are several."""
    total = np.zeros(len(data))
    count = 0
    for network in networks:
        losses = denoising_losses(data, network, options.times, seed, bar)
        total += (standardised(losses) if options.normalise else losses).mean(1)
        count += 1
    return (total if options.keep_hard else -total) / count


def standardised(losses: np.ndarray) -> np.ndarray:
    """Each column with mean 0 and standard deviation 1; 0 where a column is constant."""
    spread = losses.std(0)
    return (losses - losses.mean(0)) / np.where(spread > 0, spread, 1.0)
