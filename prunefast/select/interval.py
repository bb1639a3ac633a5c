"""Interval sampling: every k-th image by difficulty, from the easiest, until the budget is full.

In every group: sort by score, the easiest (highest score) first; take the images 0, k, 2k, ... With k x n < N the
hardest are never reached, which is meant.

Source: D2C, diffusion dataset condensation (arXiv 2507.05914), within classes, difficulty = denoising loss under a
pre-trained model, k = 96 / 16 / 10 for 10 / 50 / 100 images of ImageNet's 1,300 a class. Its k spans 0.62 to 0.77 of a
class; the default here, the largest k that spans at most `span` = 0.7 of the group, is inferred from that.
Time O(N log N), memory 28 bytes an image.
"""

from dataclasses import dataclass

from prunefast.errors import InputError
from prunefast.score.features import classes_of, in_order
from prunefast.select.request import Choice, Request, check_choice, check_number, check_whole

DIRECTION = "the score given; every k-th image from the highest (easiest) on is kept"
HIGH_DIRECTION = "the score given; every k-th image from the lowest (easiest) on is kept"


@dataclass(frozen=True)
class IntervalOptions:
    """interval  k; None: the largest that spans at most `span` of a group, at least 1
    span      share of the group, from the easiest on, that the default k reaches over
    hard      which end is hard: "low" scores (in prunefast, high = keep) or "high"
    """

    interval: int | None = None
    span: float = 0.7
    hard: str = "low"

    def __post_init__(self) -> None:
        if self.interval is not None:
            check_whole("interval", self.interval)
        check_number("span", self.span, 0, 1, above=True)
        check_choice("hard", self.hard, ("low", "high"))


def choose(request: Request) -> Choice:
    options: IntervalOptions = request.options
    picked = request.must_keep.copy()
    forced = request.must_keep | request.must_drop
    for group, positions in classes_of(request.groups, request.total):
        free = positions[~forced[positions]]
        left = int(request.quota[group]) - int(request.must_keep[positions].sum())
        if left == 0:
            continue
        step = options.interval or max(1, int(options.span * len(free)) // left)
        reached = -(-len(free) // step)
        if reached < left:
            raise InputError(
                f"interval: every {step}th of {len(free)} images gives {reached}, not {left}; lower interval"
            )
        for place, where in in_order(request.scores, free, highest_first=options.hard == "low"):
            picked[where[(place % step == 0) & (place < step * left)]] = True
    return Choice(request.scores, DIRECTION if options.hard == "low" else HIGH_DIRECTION, picked)
