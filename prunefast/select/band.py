"""Band: neighbouring ranks of a score, by default the middle ones; the extremes on both sides go.

Images of a group are ranked by score, lowest first; kept are the n ranks nearest to `centre` x (N - 1). centre=1/2 is
the "mid" of "Data Pruning in Generative Diffusion Models" (arXiv 2411.12523) and the band of Moderate-DS on any score;
1 is `top`, 0 the lowest scores. Equal scores rank by index, the larger index lower. Time O(N log N), memory 28 bytes
an image.
"""

from dataclasses import dataclass

import numpy as np

from prunefast.score.features import classes_of, in_order
from prunefast.select.request import Choice, Request, check_number

DIRECTION = "nearness of the rank to the centre of the band; what ranks higher and lower is dropped"


@dataclass(frozen=True)
class BandOptions:
    """centre: of the band, as a share of the ranks from the lowest score (0) to the highest (1)."""

    centre: float = 0.5

    def __post_init__(self) -> None:
        check_number("centre", self.centre, 0, 1)


def choose(request: Request) -> Choice:
    scores = np.empty(request.total)
    for _, positions in classes_of(request.groups, request.total):
        count = len(positions)
        for above, where in in_order(request.scores, positions, highest_first=True):
            scores[where] = 1 - _place(count - 1 - above, count, request.options.centre) / count
    return Choice(scores, DIRECTION)


def _place(rank: np.ndarray, count: int, centre: float) -> np.ndarray:
    """int64: how many of the ranks 0 .. count - 1 are nearer to the centre c than each one, the lower of two equally
    near ones first: those between a rank and its mirror image 2 c - rank.
    """
    twice = round(2 * centre * (count - 1), 6)
    below = int(twice // 2)  # the highest rank that is not above c
    mirror = np.ceil(twice - rank).astype(np.int64)
    nearer_above = np.minimum(mirror - 1, count - 1) - below
    nearer_below = below - np.maximum(mirror, 0) + 1
    return np.where(rank <= below, below - rank + nearer_above, rank - below - 1 + nearer_below)
