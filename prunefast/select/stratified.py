"""Stratified: a random sample spread evenly over the range of a score, without the hardest images.

In every group: drop the `beta` share with the lowest scores (the hardest: they are few, and often broken); cut the
range of the others into `strata` of equal width; go through them from the smallest to the largest and take
min(size, what is left of the budget / strata left) of each, at random.

Source: coverage-centric coreset selection, CCS (Zheng et al., ICLR 2023), there on AUM, with 50 strata and beta 0.1 to
0.3 by pruning rate. Its published code puts the highest of all-negative scores into no stratum and gives every class
the budget of the last one; strata here are relative to the range, and budgets are exact.

`scale="rank"` cuts ranks instead of scores: strata then are equally full, and the answer is a random one without the
hardest. Time O(N log N), memory O(N).
"""

from dataclasses import dataclass

import numpy as np

from prunefast.errors import InputError
from prunefast.score.combine import ranks
from prunefast.score.features import classes_of
from prunefast.score.random import random_scores
from prunefast.select import budget
from prunefast.select.request import Choice, Request, check_choice, check_number, check_whole

DIRECTION = "the score given; a random sample over its whole range is kept, without the lowest"
HIGH_DIRECTION = "the score given; a random sample over its whole range is kept, without the highest"


@dataclass(frozen=True)
class StratifiedOptions:
    """strata  of equal width, for every group
    beta    share of each group, the hardest, that is left out first. None: 0.3 where at most a tenth of it is kept,
            0.2 up to a fifth (the source's values for ImageNet), and 0 above (ours)
    hard    which end is hard: "low" scores (in prunefast, high = keep) or "high"
    scale   "score", the source's, or "rank"
    """

    strata: int = 50
    beta: float | None = None
    hard: str = "low"
    scale: str = "score"

    def __post_init__(self) -> None:
        check_whole("strata", self.strata)
        if self.beta is not None:
            check_number("beta", self.beta, 0)
            if self.beta >= 1:
                raise InputError(f"beta: must be below 1, not {self.beta!r}")
        check_choice("hard", self.hard, ("low", "high"))
        check_choice("scale", self.scale, ("score", "rank"))


def choose(request: Request) -> Choice:
    options: StratifiedOptions = request.options
    picked = request.must_keep.copy()
    drawn = random_scores(request.total, request.seed, stream=1)
    values = request.scores if options.hard == "low" else -request.scores
    for group, positions in classes_of(request.groups, request.total):
        want = int(request.quota[group])
        free = positions[~request.must_keep[positions] & ~request.must_drop[positions]]
        left = want - int(request.must_keep[positions].sum())
        beta = _beta(want / len(positions)) if options.beta is None else options.beta
        hardest = int(beta * len(free))
        rest = free[np.argsort(values[free], kind="stable")[hardest:]] if hardest else free
        if len(rest) < left:
            raise InputError(
                f"beta: {beta:g} of {len(free)} images leaves {len(rest)} for a budget of {left}; lower beta or keep"
            )
        scaled = values[rest] if options.scale == "score" else ranks(values[rest])
        number, counts = _strata(scaled, options.strata, left)
        nothing = np.zeros(len(rest), dtype=bool)
        picked[rest[budget.top_of_groups(drawn[rest], number, counts, nothing, nothing)]] = True
    direction = DIRECTION if options.hard == "low" else HIGH_DIRECTION
    return Choice(request.scores, direction, picked)


def _beta(keep: float) -> float:
    return 0.3 if keep <= 0.1 else 0.2 if keep <= 0.2 else 0.0


def _strata(values: np.ndarray, strata: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The stratum int64 of every value, and how many of each stratum are kept, int64 [strata]; they sum to n."""
    number = np.zeros(len(values), dtype=np.int64)
    counts = np.zeros(strata, dtype=np.int64)
    if not len(values):
        return number, counts
    low, high = values.min(), values.max()
    width = (high - low) / strata
    if width > 0:
        number = np.minimum(((values - low) / width).astype(np.int64), strata - 1)
    sizes = np.bincount(number, minlength=strata)
    filled = np.flatnonzero(sizes)
    left = n
    for place, stratum in enumerate(filled[np.argsort(sizes[filled], kind="stable")]):
        counts[stratum] = min(sizes[stratum], left // (len(filled) - place))
        left -= counts[stratum]
    return number, counts
