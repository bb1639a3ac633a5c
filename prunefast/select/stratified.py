"""Stratified: a random sample spread evenly over the range of a score, without the hardest images.

In every group: drop the `beta` share with the lowest scores (the hardest: they are few, and often broken); cut the
range of the others into `strata` of equal width; go through them from the smallest to the largest and take
min(size, what is left of the budget / strata left) of each, at random.

Source: coverage-centric coreset selection, CCS (Zheng et al., ICLR 2023), there on AUM, with 50 strata and beta 0.1 to
0.3 by pruning rate. Its published code puts the highest of all-negative scores into no stratum and gives every class
the budget of the last one; strata here are relative to the range, and budgets are exact.

`scale="rank"` cuts ranks instead of scores: strata then are equally full, and the answer is a random one without the
hardest. Time O(N), memory 41 bytes an image.
"""

from dataclasses import dataclass

import numpy as np

from prunefast.errors import InputError
from prunefast.score.combine import ranks
from prunefast.score.features import classes_of
from prunefast.score.random import random_scores
from prunefast.select import budget
from prunefast.select.request import Choice, Request, check_choice, check_share, check_whole

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
            check_share("beta", self.beta)
        check_choice("hard", self.hard, ("low", "high"))
        check_choice("scale", self.scale, ("score", "rank"))


def choose(request: Request) -> Choice:
    options: StratifiedOptions = request.options
    picked = request.must_keep.copy()
    drawn = random_scores(request.total, request.seed, stream=1)
    forced = request.must_keep | request.must_drop
    none_forced = not forced.any()
    for group, positions in classes_of(request.groups, request.total):
        want = int(request.quota[group])
        free = positions if none_forced else positions[~forced[positions]]
        left = want - int(request.must_keep[positions].sum())
        beta = _beta(want / len(positions)) if options.beta is None else options.beta
        rest = without_hardest(request.scores, free, beta, left, options.hard)
        scaled = request.scores[rest] if options.scale == "score" else ranks(request.scores[rest])
        number, counts = strata_of(scaled, options.strata, left, options.hard)
        del scaled
        picked[rest[_top(drawn[rest], number, counts)]] = True
    direction = DIRECTION if options.hard == "low" else HIGH_DIRECTION
    return Choice(request.scores, direction, picked)


def _beta(keep: float) -> float:
    return 0.3 if keep <= 0.1 else 0.2 if keep <= 0.2 else 0.0


def _top(values: np.ndarray, groups: np.ndarray, quota: np.ndarray) -> np.ndarray:
    nothing = np.zeros(len(values), dtype=bool)
    return budget.top_of_groups(values, groups, quota, nothing, nothing)


def without_hardest(scores: np.ndarray, positions: np.ndarray, beta: float, left: int, hard: str) -> np.ndarray:
    """`positions` (ascending) less the `beta` share that is hardest, the highest index of equal ones first; InputError
    where fewer than `left` remain."""
    n = len(positions) - int(beta * len(positions))
    if n < left:
        raise InputError(
            f"beta: {beta:g} of {len(positions)} images leaves {n} for a budget of {left}; lower beta or keep"
        )
    if n == len(positions):
        return positions
    easy = scores[positions] if hard == "low" else -scores[positions]
    return positions[_top(easy, np.zeros(len(easy), dtype=np.uint8), np.array([n]))]


def strata_of(values: np.ndarray, strata: int, n: int, hard: str) -> tuple[np.ndarray, np.ndarray]:
    """The stratum of every value (counted from the hard end; `values` are overwritten), and how many of each stratum
    are kept, int64 [strata]; they sum to n."""
    counts = np.zeros(strata, dtype=np.int64)
    kind = np.min_scalar_type(strata)
    if not len(values):
        return np.zeros(0, kind), counts
    low, high = values.min(), values.max()
    if hard == "high":
        np.subtract(high, values, out=values)
    else:
        values -= low
    width = (high - low) / strata
    if width > 0:
        values /= width
        np.minimum(values, strata - 1, out=values)
    else:
        values[:] = 0
    number = values.astype(kind)
    sizes = np.bincount(number, minlength=strata)
    filled = np.flatnonzero(sizes)
    left = n
    for place, stratum in enumerate(filled[np.argsort(sizes[filled], kind="stable")]):
        counts[stratum] = min(sizes[stratum], left // (len(filled) - place))
        left -= counts[stratum]
    return number, counts
