"""Prototypes as a selection: the score, and a floor under every class where one is asked for.

Source: "Beyond neural scaling laws" (Sorscher et al. 2022). It prunes over all classes at once and, so that none is
lost, keeps of each at least half of what a balanced pruning would keep (its "50 % class balancing", recalled, not read
in code). With a floor of f, n of N images kept and N_c of class c:

    first  floor(f n N_c / N) of every class, its highest scores;    then the highest of all that are left

0 is no floor, 1 the split of `per_class=True` but for rounding. Time O(N) after the score.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from prunefast.errors import InputError
from prunefast.score.prototypes import DIRECTION, PrototypesOptions, prototype_scores
from prunefast.select import budget
from prunefast.select.request import Choice, Request, check_number


@dataclass(frozen=True)
class PrototypesSelectionOptions(PrototypesOptions):
    """class_floor  share of a class's proportional part of the budget that it gets in any case; the source's is 0.5.
                 For a budget over all images (per_class=False)
    The rest as in `prunefast.score.prototypes.PrototypesOptions`.
    """

    class_floor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("class_floor", self.class_floor, 0, 1)


def choose(request: Request) -> Choice:
    options: PrototypesSelectionOptions = request.options
    if options.class_floor:
        if request.per_class:
            raise InputError("class_floor: per_class splits the budget already; give one of them")
        if request.labels is None:
            raise InputError("class_floor: this data has no classes; leave it out")
        if not len(request.quota):
            raise InputError("class_floor: is a share of a budget; give keep or keep_n instead of threshold")
    made = PrototypesOptions(
        **{field.name: getattr(options, field.name) for field in dataclasses.fields(PrototypesOptions)}
    )
    scores = prototype_scores(request.features, None, made, request.seed)
    if not options.class_floor:
        return Choice(scores, DIRECTION)
    assert request.labels is not None
    n = int(request.quota.sum())
    labels, kept, dropped = request.labels, request.must_keep, request.must_drop
    counts = np.bincount(labels)
    allowed = counts - np.bincount(labels[dropped], minlength=len(counts))
    forced = np.bincount(labels[kept], minlength=len(counts))
    floor = np.clip(np.floor(options.class_floor * n * counts / len(labels)).astype(np.int64), forced, allowed)
    if int(floor.sum()) > n:
        raise InputError(
            f"class_floor: with what must be kept it makes {int(floor.sum())} images for a budget of {n}; lower it"
        )
    first = np.zeros(len(labels), dtype=bool)
    first[budget.top_of_groups(scores, labels, floor, kept, dropped)] = True
    everything = budget.top_of_groups(scores, request.groups, request.quota, first, dropped)
    picked = np.zeros(len(labels), dtype=bool)
    picked[everything] = True
    return Choice(scores, DIRECTION, picked, facts={"class_floor_kept": floor.tolist()})
