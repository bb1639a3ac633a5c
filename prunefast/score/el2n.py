"""EL2N analogue: the norm of the error vector, early in training.

el2n_i = mean over draws and checkpoints of ||prediction - target||_2 / sqrt(pixels)

EL2N of classifiers is ||softmax(f(x)) - onehot(y)||_2 after a few epochs, averaged over several trainings (Paul et al.
2021, "Deep Learning on a Data Diet", definition 2.2); a denoiser's prediction stands for the softmax, its target for
the label. Give early checkpoints, of several seeds where there are some. `keep_hard=True` as there.

Time: N S K forward passes. Memory: 8 K bytes an image.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from prunefast.progress import Progress
from prunefast.score.denoising import DrawOptions, denoising_losses


@dataclass(frozen=True)
class El2nOptions(DrawOptions):
    """As `DrawOptions`, but hard images are kept unless keep_hard=False."""

    keep_hard: bool = True


EASY = "minus the norm of the denoising error; images with small errors are kept"
HARD = "norm of the denoising error; images with large errors are kept"


def el2n_scores(data: Any, networks: Any, options: El2nOptions, seed: int, bar: Progress) -> np.ndarray:
    """float64 [N]."""
    parts = [np.sqrt(denoising_losses(data, network, options.times, seed, bar)).mean(1) for network in networks]
    norm = np.mean(parts, axis=0)
    return norm if options.keep_hard else -norm
