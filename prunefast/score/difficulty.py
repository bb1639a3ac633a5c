"""Difficulty score after D2C (Diffusion Dataset Condensation, arXiv 2507.05914, section 3.1).

difficulty_i = mean over a uniform set of times of ||eps - eps_theta(x_t, t, class)||^2 (mean over pixels), the error of
eps whatever the network predicts; score_i = - difficulty_i.

D2C sorts each class by difficulty and takes every k-th image (interval sampling): that is a selection over this score.
An error of eps weighs low noise heavily; `loss` treats the times alike.

Time: N K forward passes. Memory: 8 K bytes an image.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from prunefast.progress import Progress
from prunefast.score.denoising import DrawOptions, denoising_losses, eps_factor


@dataclass(frozen=True)
class DifficultyOptions(DrawOptions):
    """As `DrawOptions`."""


EASY = "minus the mean error of the noise (D2C's difficulty); easy images are kept"
HARD = "mean error of the noise (D2C's difficulty); difficult images are kept"


def difficulty_scores(data: Any, networks: Any, options: DifficultyOptions, seed: int, bar: Progress) -> np.ndarray:
    """float64 [N]; the mean over the checkpoints, where there are several."""
    parts = [
        (denoising_losses(data, network, options.times, seed, bar) * eps_factor(network, options.times)).mean(1)
        for network in networks
    ]
    difficulty = np.mean(parts, axis=0)
    return difficulty if options.keep_hard else -difficulty
