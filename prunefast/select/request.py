"""What a selection is asked (`Request`) and what it answers (`Choice`); one file a method has options and a
function."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prunefast.errors import InputError
from prunefast.graph import KnnGraph


@dataclass(frozen=True)
class Request:
    """options      of the method, its own dataclass
    total        N images
    groups       int64 [N], what the budget is split over: the class of every image, or 0 for all
    quota        int64 [groups]: how many of each are kept; empty for a threshold
    must_keep, must_drop   bool [N]; they fit `quota`
    labels       int64 [N] where there are classes, for models fitted to each class
    per_class    whether the budget is split over classes
    features     float32 or float64 [N, D], scores float64 [N], graph: None where the method takes none
    seed         of what is drawn
    """

    options: Any
    total: int
    groups: np.ndarray
    quota: np.ndarray
    must_keep: np.ndarray
    must_drop: np.ndarray
    labels: np.ndarray | None = None
    per_class: bool = False
    features: Any = None
    scores: Any = None
    graph: KnnGraph | None = None
    seed: int = 0

    @property
    def classes(self) -> np.ndarray | None:
        """Labels where each class is treated by itself, None where all images are."""
        return self.groups if self.per_class else None


@dataclass(frozen=True)
class Choice:
    """scores     float64 [N], higher = keep. The highest of every group are kept, unless `picked` is given
    direction  what a high score means
    picked     bool [N]: what is kept, where that is no cut of the scores
    clusters   int64 [N] < cluster_count, where the method makes any; the budget is split again over them by `inner`,
               the name of a rule of `prunefast.select.budget`, unless `picked` is given
    gains      float64 [N]: what each image added when it was picked, NaN for the others
    facts      JSON-able: what was found out, for the manifest
    """

    scores: np.ndarray
    direction: str
    picked: np.ndarray | None = None
    clusters: np.ndarray | None = None
    cluster_count: int = 0
    inner: str = ""
    gains: np.ndarray | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Selection:
    """One way to select. `takes`: what it needs of "scores", "features", "graph" (built from features if not given)."""

    name: str
    options: type
    choose: Callable[[Request], Choice]
    takes: tuple[str, ...] = ()
    by_score: bool = False  # a threshold on its score means something


def ranked(request: Request, order: list[int], gains: list[float], direction: str, **facts: Any) -> Choice:
    """The answer of a method that picks one image after the other: `order` within the whole, `gains` of the same
    length.

    The m-th of the n images of a group that are picked gets the score 1 - (m - 1) / n, all others 0: cutting these
    scores again, per group or over all, gives the coreset of any smaller budget without another run.
    """
    picks = np.asarray(order, dtype=np.int64)
    scores = np.zeros(request.total)
    gain = np.full(request.total, np.nan)
    gain[picks] = gains
    for group in np.unique(request.groups[picks]):
        own = picks[request.groups[picks] == group]
        scores[own] = 1 - np.arange(len(own)) / len(own)
    picked = np.zeros(request.total, dtype=bool)
    picked[picks] = True
    return Choice(scores, direction, picked, gains=gain, facts=facts)


def check_whole(name: str, value: Any, low: int = 1, high: int | None = None) -> None:
    """InputError unless `value` is an int from `low` (to `high`)."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low or (high and value > high):
        span = f"at least {low}" if high is None else f"from {low} to {high}"
        raise InputError(f"{name}: must be a whole number, {span}, not {value!r}")


def check_number(name: str, value: Any, low: float, high: float = np.inf, *, above: bool = False) -> None:
    """InputError unless `value` is a finite number in [low, high], or in (low, high] with `above`."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)
    if not good or not low <= value <= high or (above and value == low):
        span = f"above {low:g}" if above else f"at least {low:g}"
        raise InputError(
            f"{name}: must be a finite number {span}{f', at most {high:g}' if high < np.inf else ''}, not {value!r}"
        )


def check_share(name: str, value: Any) -> None:
    """InputError unless `value` is a number in [0, 1)."""
    check_number(name, value, 0)
    if value >= 1:
        raise InputError(f"{name}: must be below 1, not {value!r}")


def check_choice(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"{name}: must be one of {', '.join(known)}, not {value!r}")
