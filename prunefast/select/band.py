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
        values = request.scores[positions]
        offset = np.empty(count)
        offset[np.argsort(-values, kind="stable")[::-1]] = np.arange(count) - request.options.centre * (count - 1)
        place = np.empty(count, dtype=np.int64)
        place[np.lexsort((offset > 0, np.abs(offset)))] = np.arange(count)  # as near above as below: below first
        scores[positions] = 1 - place / count
    return Choice(scores, DIRECTION)
