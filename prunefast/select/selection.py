"""`select`: scores or features -> Coreset under an exact budget.

Every method comes down to three arrays: a score for each image (higher = keep), a group for each image, and a quota for
each group. The highest scores of each group are kept, ties to the smallest index. Time O(N log N) after scoring.
"""

import dataclasses
from typing import Any

import numpy as np

from prunefast.errors import InputError
from prunefast.score.clusters import cluster
from prunefast.score.features import as_numpy, check_features, check_labels
from prunefast.score.methods import METHODS
from prunefast.score.moderate import ModerateOptions, middle_scores
from prunefast.score.options import check_seed, make_options
from prunefast.select import budget
from prunefast.select.clusters import ClusterSelectionOptions, pick_scores
from prunefast.select.coreset import Coreset, LabelledData

TOP_DIRECTION = "scores as given; the highest are kept"


@dataclasses.dataclass(frozen=True)
class TopOptions:
    """No options."""


@dataclasses.dataclass(frozen=True)
class ModerateSelectionOptions(ModerateOptions):
    """distances  float [N], instead of features: distance of every image to its prototype. The rest as in
    `prunefast.score.moderate.ModerateOptions`; `per_class=True` means rank_within="class".
    """

    distances: Any = None


# what each selection takes; every method's options dataclass is beside the method
SELECTIONS: dict[str, type] = {
    "top": TopOptions,
    "random": METHODS["random"].options,
    "gaussian": METHODS["gaussian"].options,
    "moderate": ModerateSelectionOptions,
    "clusters": ClusterSelectionOptions,
}


@dataclasses.dataclass(frozen=True)
class _Choice:
    """What a method found: scores, and clusters where it makes any (`count` of them, with their kind of quota)."""

    scores: np.ndarray
    direction: str
    clusters: np.ndarray | None = None
    cluster_count: int = 0
    quota: str = ""


def select(
    data: LabelledData,
    *,
    scores: Any = None,
    features: Any = None,
    method: str | None = None,
    keep: float | None = None,
    keep_n: int | None = None,
    threshold: float | None = None,
    per_class: bool = False,
    must_keep: Any = None,
    must_drop: Any = None,
    groups: Any = None,
    seed: int = 0,
    **options: Any,
) -> Coreset:
    """Keep the part of `data` that a method chooses, of exactly the size asked for.

    scores     [N], higher = keep: the highest are kept. `method` may name the score they are (it goes into the
               manifest).
    features   [N, D] for a method that scores by itself
    method     "top" (the default with scores), "random", "gaussian", "moderate" (the middle band of distances; takes
               features or distances=), "clusters" (k=, quota="proportional"|"equal",
               pick="nearest"|"furthest"|"middle"|"random")
    keep, keep_n, threshold   exactly one: a fraction in (0, 1], a number of images, or a score (images with that score
               or more are kept). keep * N is rounded half up.
    per_class  split the budget over classes in proportion to their size (largest remainder, ties to the smaller class),
               and for "clusters" and "moderate" cluster and rank each class by itself. Gaussians and prototypes are per
               class wherever there are labels.
    must_keep, must_drop   indices or masks that override the method within the budget. A class with more forced images
               than its quota keeps them all, and the others give up places one by one (`budget.proportional`).
    groups     [N], `Deduplication.groups`, for `Coreset.groups`; with must_drop=found.dropped the selection starts from
               what a deduplication kept
    seed       of "random", of k-means and of pick="random"

    Raises InputError for a budget that cannot be met exactly and for bad arguments, before any work.

        coreset = prunefast.select(data, scores=scores, keep=0.3, per_class=True)
    """
    total = len(data)
    budget.check_one_budget(keep, keep_n, threshold)
    n = None if threshold is not None else budget.number_kept(total, keep, keep_n)
    labels = _labels(data, per_class)
    kept_mask = budget.index_mask("must_keep", must_keep, total)
    dropped_mask = budget.index_mask("must_drop", must_drop, total)
    budget.check_forced(kept_mask, dropped_mask, n)
    seed = check_seed(seed)
    name = _method_name(method, scores, features)
    made = _method_options(name, options, given_scores=scores is not None)
    if threshold is not None:
        _check_threshold(threshold, name, per_class, given_scores=scores is not None)

    if scores is not None:
        direction = METHODS[name].direction if name in METHODS else TOP_DIRECTION
        choice = _Choice(_check_scores("scores", scores, total), direction)
    else:
        choice = _choose(name, made, features, labels, per_class, total, seed)

    if threshold is not None:
        indices = np.flatnonzero(((choice.scores >= threshold) | kept_mask) & ~dropped_mask)
        if not len(indices):
            best = choice.scores.max() if total else float("nan")
            raise InputError(f"threshold: no image scores {threshold:g} or more (the highest is {best:g}); lower it")
    else:
        parts, quota = _quotas(choice, labels if per_class else None, n or 0, kept_mask, dropped_mask)
        indices = budget.top_of_groups(choice.scores, parts, quota, kept_mask, dropped_mask)

    return Coreset.from_indices(
        data,
        indices,
        scores=choice.scores,
        clusters=choice.clusters,
        groups=groups,
        manifest={
            "method": name,
            "options": _recorded(made, choice),
            "direction": choice.direction,
            "seed": seed,
            "budget": {"keep": keep, "keep_n": keep_n, "threshold": threshold},
            "per_class": bool(per_class),
            "must_keep": int(kept_mask.sum()),
            "must_drop": int(dropped_mask.sum()),
        },
    )


def check_selection(
    data: LabelledData,
    method: str,
    *,
    keep: float | None = None,
    keep_n: int | None = None,
    threshold: float | None = None,
    per_class: bool = False,
    seed: int = 0,
    **options: Any,
) -> None:
    """Raise what `select` would raise for these arguments, without scores or features: before those are computed."""
    budget.check_one_budget(keep, keep_n, threshold)
    if threshold is None:
        budget.number_kept(len(data), keep, keep_n)
    _labels(data, per_class)
    check_seed(seed)
    if method not in SELECTIONS or method == "top":
        names = ", ".join(name for name in SELECTIONS if name != "top")
        raise InputError(f"method: {method!r} is not a selection; there are {names}")
    make_options(SELECTIONS[method], method, options)
    if threshold is not None:
        _check_threshold(threshold, method, per_class, given_scores=False)


def _labels(data: LabelledData, per_class: bool) -> np.ndarray | None:
    labels = check_labels(data.labels, len(data))
    if per_class and labels is None:
        raise InputError(
            "per_class: this data has no classes; leave per_class out, or put each class into a folder of its own"
        )
    return labels


def _method_name(method: str | None, scores: Any, features: Any) -> str:
    if scores is not None and features is not None:
        raise InputError(
            "scores, features: give one of them; with scores the highest are kept, features are for a method"
        )
    if method is None:
        if scores is None:
            raise InputError("method: give scores=, or a method with features=, such as method='gaussian'")
        return "top"
    if method not in SELECTIONS:
        raise InputError(f"method: {method!r} is not a selection; there are {', '.join(SELECTIONS)}")
    if method == "top" and scores is None:
        raise InputError("scores: method 'top' keeps the highest scores; pass scores=")
    if method == "clusters" and scores is not None:
        raise InputError("scores: method 'clusters' makes its own; pass features=")
    return method


def _method_options(name: str, options: dict[str, Any], *, given_scores: bool) -> Any:
    if given_scores and options:
        raise InputError(f"{next(iter(options))}: is an option of scoring, and scores are given; leave it out")
    return make_options(SELECTIONS[name], name, options)


def _check_threshold(threshold: float, name: str, per_class: bool, *, given_scores: bool) -> None:
    if not np.isfinite(threshold):
        raise InputError(f"threshold: must be finite, not {threshold!r}")
    if per_class:
        raise InputError("threshold: is the same score for every class; leave out per_class, or use keep")
    if name == "clusters" or (name in ("random", "moderate") and not given_scores):
        raise InputError(f"threshold: method {name!r} is about shares, not about a score; use keep or keep_n")


def _check_scores(name: str, scores: Any, total: int) -> np.ndarray:
    values = np.array(as_numpy(scores), dtype=np.float64)
    if values.shape != (total,):
        raise InputError(f"{name}: shape {list(values.shape)} for {total} images")
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise InputError(f"{name}: {values[row]} in row {row}; every image needs a finite one")
    return values


def _features(features: Any, name: str, total: int) -> np.ndarray:
    if features is None:
        raise InputError(f"features: method {name!r} needs them; pass features=prunefast.embed(data)")
    array = check_features(features)
    if len(array) != total:
        raise InputError(f"features: {len(array)} rows for {total} images; embed this data set")
    return array


def _choose(
    name: str, made: Any, features: Any, labels: np.ndarray | None, per_class: bool, total: int, seed: int
) -> _Choice:
    if name == "moderate" and made.distances is not None:
        if features is not None:
            raise InputError("distances, features: give one of them")
        groups = labels if per_class or made.rank_within == "class" else None
        values = _check_scores("distances", made.distances, total)
        return _Choice(middle_scores(values, groups), METHODS["moderate"].direction)
    if name == "random":
        return _Choice(METHODS["random"].function(None, None, total, made, seed), METHODS["random"].direction)
    array = _features(features, name, total)
    if name == "clusters":
        found = cluster(array, labels if per_class else None, made, seed)
        return _Choice(pick_scores(found, made.pick, seed), made.direction, found.cluster, found.count, made.quota)
    if name == "moderate" and per_class:
        made = dataclasses.replace(made, rank_within="class")
    return _Choice(METHODS[name].function(array, labels, total, made, seed), METHODS[name].direction)


def _quotas(
    choice: _Choice, labels: np.ndarray | None, n: int, must_keep: np.ndarray, must_drop: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(group of every image, quota of every group): groups are classes, clusters, or the clusters within classes."""
    total = len(choice.scores)
    outer = np.zeros(total, dtype=np.int64) if labels is None else labels
    outer_quota = _split("proportional", outer, np.ones(total, dtype=bool), n, must_keep, must_drop)
    if choice.clusters is None:
        return outer, outer_quota
    quota = np.zeros(choice.cluster_count, dtype=np.int64)
    for number, share in enumerate(outer_quota):
        quota += _split(choice.quota, choice.clusters, outer == number, int(share), must_keep, must_drop, len(quota))
    return choice.clusters, quota


def _split(
    kind: str,
    groups: np.ndarray,
    among: np.ndarray,
    n: int,
    must_keep: np.ndarray,
    must_drop: np.ndarray,
    group_count: int = 0,
) -> np.ndarray:
    """Quota of every group for `n` of the images in `among`."""
    counts = np.bincount(groups[among], minlength=group_count)
    lower = np.bincount(groups[among & must_keep], minlength=len(counts))
    upper = counts - np.bincount(groups[among & must_drop], minlength=len(counts))
    if kind == "equal":
        return budget.equal(n, lower, upper)
    return budget.proportional(counts, n, lower, upper)


def _recorded(made: Any, choice: _Choice) -> dict[str, Any]:
    """Options as the manifest has them: what was decided for the user in full, arrays left out."""
    options = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    options.pop("distances", None)
    if choice.clusters is not None:
        options["clusters"] = choice.cluster_count
    return options
