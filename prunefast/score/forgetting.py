"""Forgetting score: how often the loss of an image rose while the surrogate was trained.

With the losses l_c (c = 0 .. S - 1, the checkpoints in the order of training) at the same K draws of time and noise:

forgetting_i = share of the (S - 1) K pairs (checkpoint, draw) with l_c+1 > l_c

After "forgetting events" of classifiers (Toneva et al. 2019) and the loss-monotonicity score of "Data Pruning in
Generative Diffusion Models" (arXiv 2411.12523), which keeps the highest; `keep_hard=False` keeps the lowest. (The
release of that paper sorts by the image's number before it cuts; this does not.) The resolution is 1 / ((S - 1) K): a
few checkpoints with many draws, or many checkpoints.

Time: N S K forward passes. Memory: 16 K bytes an image.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from prunefast.errors import InputError
from prunefast.progress import Progress
from prunefast.score.denoising import DrawOptions, denoising_losses


@dataclass(frozen=True)
class ForgettingOptions(DrawOptions):
    """As `DrawOptions`, but hard images are kept unless keep_hard=False; ema=False by default: the average hardly ever
    forgets."""

    keep_hard: bool = True
    ema: bool = False


EASY = "minus the share of records in which the loss rose; images that are never forgotten are kept"
HARD = "share of records in which the loss rose; forgotten images are kept"


def forgetting_scores(data: Any, networks: Any, options: ForgettingOptions, seed: int, bar: Progress) -> np.ndarray:
    """float64 [N] in [0, 1] (or [-1, 0])."""
    rises = np.zeros(len(data))
    before: np.ndarray | None = None
    steps = 0
    for network in networks:
        losses = denoising_losses(data, network, options.times, seed, bar)
        if before is not None:
            rises += (losses > before).mean(1)
            steps += 1
        before = losses
    if steps == 0:
        raise InputError("checkpoint: forgetting compares at least two checkpoints of one training; give more")
    return rises / steps if options.keep_hard else -rises / steps
