"""Band: neighbouring ranks of a score, by default the middle ones; the extremes on both sides go.

Images of a group are ranked by score, lowest first; kept are the n ranks nearest to `centre` x (N - 1). centre=1/2 is
the "mid" of "Data Pruning in Generative Diffusion Models" (arXiv 2411.12523) and the band of Moderate-DS on any score;
1 is `top`, 0 the lowest scores. Equal scores rank by index, the larger index lower. Time O(N log N).
"""

from dataclasses import dataclass

import numpy as np

from prunefast.score.features import classes_of
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
        rank = np.empty(count, dtype=np.int64)
        rank[np.argsort(-request.scores[positions], kind="stable")] = np.arange(count - 1, -1, -1)
        scores[positions] = 1 - _place(rank, request.options.centre) / count
    return Choice(scores, DIRECTION)


def _place(rank: np.ndarray, centre: float) -> np.ndarray:
    """int64: how many ranks are nearer to the centre c than each one, the lower of two equally near ones first.

    The ranks are 0 .. count - 1, so it can be counted: those between a rank and its mirror image 2 c - rank.
    """
    count = len(rank)
    twice = round(2 * centre * (count - 1), 6)
    below = int(twice // 2)  # the highest rank that is not above c
    mirror = np.ceil(twice - rank).astype(np.int64)
    nearer_above = np.minimum(mirror - 1, count - 1) - below
    nearer_below = below - np.maximum(mirror, 0) + 1
    return np.where(rank <= below, below - rank + nearer_above, rank - below - 1 + nearer_below)
