"""GraNd analogue: the norm of the gradient of an image's loss.

grand_i = mean over draws and checkpoints of ||grad_theta l_ik||_2

GraNd (Paul et al. 2021, "Deep Learning on a Data Diet", definition 2.1) for the denoising loss: how far a step on this
image alone would move the network. Give early checkpoints, of several seeds where there are some. `keep_hard=True` as
there.

Time: N S K backward passes of single images (`chunk` of them at a time). Memory: see `GradientOptions`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from prunefast.progress import Progress
from prunefast.score.denoising import BATCH, check_finite, per_image
from prunefast.score.gradients import GradientOptions, PerSampleGradients, squared_norms


@dataclass(frozen=True)
class GrandOptions(GradientOptions):
    """As `GradientOptions`."""


EASY = "minus the norm of the loss gradient; images that move the network little are kept"
HARD = "norm of the loss gradient; images that move the network much are kept"


def grand_scores(data: Any, networks: Any, options: GrandOptions, seed: int, bar: Progress) -> np.ndarray:
    """float64 [N]."""
    parts = []
    for network in networks:
        gradients = PerSampleGradients(network)

        def work(items: np.ndarray, images: np.ndarray, gradients: PerSampleGradients = gradients) -> np.ndarray:
            norms = np.empty((len(items), options.times))
            for rows, k, found in gradients.draws(data, items, images, seed, options.times, options.chunk):
                norms[rows, k] = np.sqrt(squared_norms(found))
            return norms

        parts.append(check_finite(per_image(data, BATCH, options.times, work, bar), network).mean(1))
    norm = np.mean(parts, axis=0)
    return norm if options.keep_hard else -norm
