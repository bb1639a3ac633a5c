"""`select`: scores or features -> Coreset under an exact budget.

A budget is split over groups (classes, or one group of everything); a method gets the quota of each and answers with a
score for every image, of which the highest of each group are kept, ties to the smallest index, or with the images
themselves where they are no cut of a score. `SELECTIONS` is the registry.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from prunefast.checks import as_numpy, check_features, check_labels, check_seed
from prunefast.errors import InputError, InputTypeError
from prunefast.score.clusters import cluster
from prunefast.score.methods import METHODS, Method
from prunefast.score.moderate import ModerateOptions, middle_scores
from prunefast.score.options import make_options
from prunefast.select import (
    band,
    budget,
    d2,
    facility,
    herding,
    hierarchical,
    interval,
    k_center,
    prototypes,
    stratified,
)
from prunefast.select.clusters import ClusterSelectionOptions, pick_scores
from prunefast.select.coreset import Coreset, LabelledData
from prunefast.select.graph_options import GraphOptions, graph_of
from prunefast.select.request import Choice, Request, Selection

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


def _top(request: Request) -> Choice:
    return Choice(request.scores, TOP_DIRECTION)


def _moderate(request: Request) -> Choice:
    options: ModerateSelectionOptions = request.options
    direction = METHODS["moderate"].direction
    within_class = request.per_class or options.rank_within == "class"
    if options.distances is not None:
        if request.features is not None:
            raise InputError("distances, features: give one of them")
        values = _check_scores("distances", options.distances, request.total)
        return Choice(middle_scores(values, request.labels if within_class else None), direction)
    features = _features(request.features, "moderate", request.total)
    made = dataclasses.replace(options, rank_within="class") if within_class else options
    return Choice(METHODS["moderate"].function(features, request.labels, request.total, made, request.seed), direction)


def _clusters(request: Request) -> Choice:
    options: ClusterSelectionOptions = request.options
    found = cluster(request.features, request.classes, options, request.seed)
    scores = pick_scores(found, options.pick, request.seed)
    return Choice(scores, options.direction, None, found.cluster, found.count, options.quota)


def _by_score(method: Method) -> Selection:
    """Keep the highest of a score that is computed from the features."""

    def choose(request: Request) -> Choice:
        labels = request.labels if method.uses_classes else None
        if method.uses_graph and (request.graph is not None or not request.per_class):
            made = dataclasses.replace(request.options, graph=request.graph)
            return Choice(method.function(request.features, None, request.total, made, request.seed), method.direction)
        return Choice(
            method.function(request.features, labels, request.total, request.options, request.seed), method.direction
        )

    takes = ("features",) if method.needs_features else ()
    return Selection(method.name, method.options, choose, takes, by_score=method.name != "random")


# what each selection takes; every method's options dataclass is beside the method
SELECTIONS: dict[str, Selection] = {
    selection.name: selection
    for selection in (
        Selection("top", TopOptions, _top, ("scores",), by_score=True),
        Selection("random", METHODS["random"].options, _by_score(METHODS["random"]).choose),
        Selection("moderate", ModerateSelectionOptions, _moderate),
        Selection("clusters", ClusterSelectionOptions, _clusters, ("features",)),
        Selection("hierarchical", hierarchical.HierarchicalOptions, hierarchical.choose, ("features",)),
        Selection("band", band.BandOptions, band.choose, ("scores",)),
        Selection("stratified", stratified.StratifiedOptions, stratified.choose, ("scores",)),
        Selection("interval", interval.IntervalOptions, interval.choose, ("scores",)),
        Selection("d2", d2.D2Options, d2.choose, ("scores", "graph")),
        Selection("k-center", k_center.KCenterOptions, k_center.choose, ("features",)),
        Selection("herding", herding.HerdingOptions, herding.choose, ("features",)),
        Selection("prototypes", prototypes.PrototypesSelectionOptions, prototypes.choose, ("features",), by_score=True),
        Selection("facility-location", facility.FacilityLocationOptions, facility.choose, ("graph",)),
    )
}
SELECTIONS |= {
    name: _by_score(method) for name, method in METHODS.items() if name not in SELECTIONS and method.needs_features
}


def select(
    data: LabelledData,
    *,
    scores: Any = None,
    features: Any = None,
    graph: Any = None,
    method: str | None = None,
    keep: float | None = None,
    keep_n: int | None = None,
    threshold: float | None = None,
    per_class: bool = False,
    class_target: str | Mapping[Any, float] | None = None,
    must_keep: Any = None,
    must_drop: Any = None,
    groups: Any = None,
    seed: int = 0,
    **options: Any,
) -> Coreset:
    """Keep the part of `data` that a method chooses, of exactly the size asked for.

    scores     [N], higher = keep. `method` may name the score they are (it goes into the manifest): the highest are
               kept
    features   [N, D] for a method that looks at them
    graph      a `prunefast.graph.KnnGraph` or a CSR matrix (cleanlab's contract) for "d2", "facility-location", "knn"
               and "density"; without it one is built from the features
    method     of scores: "top" (the default with scores), "band", "stratified", "interval", "d2" (with features or
               graph). Of features: a score ("gaussian", "ppca", "knn", ...), "moderate" (takes distances= as well),
               "clusters" (quota="proportional"|"equal", pick="nearest"|"furthest"|"middle"|"random"), "hierarchical",
               "k-center", "herding", "facility-location". "random". `prunefast.select.SELECTIONS` has the options
    keep, keep_n, threshold   exactly one: a fraction in (0, 1], a number of images, or a score (images with that score
               or more are kept). keep * N is rounded half up.
    per_class  split the budget over classes, and treat each class by itself (clusters, ranks, k-center, herding).
               Gaussians and prototypes are per class wherever there are labels.
    class_target   how it is split, with per_class implied: "input" in proportion to class sizes (the default; largest
               remainder, ties to the smaller class), "uniform", or {class name or number: share}
    must_keep, must_drop   indices or masks that override the method within the budget. A class with more forced images
               than its quota keeps them all, and the others give up places one by one (`budget.proportional`).
    groups     [N], `Deduplication.groups`, for `Coreset.groups`; with must_drop=found.dropped the selection starts from
               what a deduplication kept
    seed       of "random", of k-means and of whatever is drawn

    Raises InputError for a budget that cannot be met exactly and for bad arguments, before any work.

        coreset = prunefast.select(data, scores=scores, keep=0.3, per_class=True)
    """
    total = len(data)
    budget.check_one_budget(keep, keep_n, threshold)
    n = None if threshold is not None else budget.number_kept(total, keep, keep_n)
    per_class = per_class or class_target is not None
    labels = _labels(data, per_class)
    kept_mask = budget.index_mask("must_keep", must_keep, total)
    dropped_mask = budget.index_mask("must_drop", must_drop, total)
    budget.check_forced(kept_mask, dropped_mask, n)
    seed = check_seed(seed)
    name = _method_name(method, scores, features, graph)
    # a score that is given is cut as it is, whatever its name
    selection = SELECTIONS["top"] if scores is not None and "scores" not in SELECTIONS[name].takes else SELECTIONS[name]
    if selection.name == "top" and options:
        raise InputError(f"{next(iter(options))}: is an option of scoring, and scores are given; leave it out")
    made: Any = make_options(selection.options, selection.name, options)
    if threshold is not None:
        _check_threshold(threshold, selection, per_class)

    parts = labels if per_class and labels is not None else np.zeros(total, dtype=np.int64)
    quota = np.zeros(0, dtype=np.int64)
    if n is not None:
        quota = _outer_quota(data, class_target, parts, n, kept_mask, dropped_mask)
    if scores is not None:
        scores = _check_scores("scores", scores, total)
    if features is not None or "features" in selection.takes:
        features = _features(features, name, total)
    if "graph" in selection.takes:
        if features is None and graph is None:
            raise InputError(f"features: method {name!r} needs them, or graph=; pass features=prunefast.embed(data)")
        if total < 2:
            raise InputError(f"features: method {name!r} needs at least 2 images; there is {total}")
        assert isinstance(made, GraphOptions)
        graph = graph_of(made, features, graph, total, seed)
    request = Request(
        made, total, parts, quota, kept_mask, dropped_mask, labels, per_class, features, scores, graph, seed
    )
    choice = selection.choose(request)
    direction = METHODS[name].direction if selection.name == "top" and name in METHODS else choice.direction

    if threshold is not None:
        indices = np.flatnonzero(((choice.scores >= threshold) | kept_mask) & ~dropped_mask)
        if not len(indices):
            best = choice.scores.max() if total else float("nan")
            raise InputError(f"threshold: no image scores {threshold:g} or more (the highest is {best:g}); lower it")
    elif choice.picked is not None:
        indices = np.flatnonzero(choice.picked)
    else:
        if choice.clusters is not None:
            parts, quota = choice.clusters, _inner_quota(choice, parts, quota, kept_mask, dropped_mask)
        indices = budget.top_of_groups(choice.scores, parts, quota, kept_mask, dropped_mask)

    return Coreset.from_indices(
        data,
        indices,
        scores=choice.scores,
        clusters=choice.clusters,
        groups=groups,
        gains=None if choice.gains is None else choice.gains[indices],
        manifest={
            "method": name,
            "options": _recorded(made, choice),
            "direction": direction,
            "seed": seed,
            "budget": {"keep": keep, "keep_n": keep_n, "threshold": threshold},
            "per_class": bool(per_class),
            "class_target": class_target
            if class_target is None or isinstance(class_target, str)
            else dict(class_target),
            "must_keep": int(kept_mask.sum()),
            "must_drop": int(dropped_mask.sum()),
            **({"graph": {"metric": graph.metric, **graph.manifest}} if graph is not None else {}),
            **choice.facts,
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
    class_target: str | Mapping[Any, float] | None = None,
    seed: int = 0,
    **options: Any,
) -> None:
    """Raise what `select` would raise for these arguments, without scores or features: before those are computed."""
    total = len(data)
    budget.check_one_budget(keep, keep_n, threshold)
    n = None if threshold is not None else budget.number_kept(total, keep, keep_n)
    per_class = per_class or class_target is not None
    labels = _labels(data, per_class)
    check_seed(seed)
    selection = _find(method)
    make_options(selection.options, method, options)
    if threshold is not None:
        _check_threshold(threshold, selection, per_class)
    if n is not None and class_target is not None and labels is not None:
        nothing = np.zeros(total, dtype=bool)
        _outer_quota(data, class_target, labels, n, nothing, nothing)


def _find(name: str) -> Selection:
    try:
        return SELECTIONS[name]
    except (KeyError, TypeError):
        raise InputError(f"method: {name!r} is not a selection; there are {', '.join(SELECTIONS)}") from None


def _labels(data: LabelledData, per_class: bool) -> np.ndarray | None:
    labels = check_labels(data.labels, len(data))
    if per_class and labels is None:
        raise InputError(
            "per_class: this data has no classes; leave per_class out, or put each class into a folder of its own"
        )
    return labels


def _method_name(method: str | None, scores: Any, features: Any, graph: Any) -> str:
    if method is None:
        if scores is None:
            raise InputError("method: give scores=, or a method with features=, such as method='gaussian'")
        method = "top"
    takes = _find(method).takes
    if "scores" in takes and scores is None:
        raise InputError(f"scores: method {method!r} works on scores; pass scores=")
    if scores is not None and "scores" not in takes and (method not in METHODS or method == "clusters"):
        raise InputError(f"scores: method {method!r} makes its own; pass features=")
    if scores is not None and features is not None and "graph" not in takes:
        raise InputError(
            "scores, features: give one of them; with scores the highest are kept, features are for a method"
        )
    if graph is not None and "graph" not in takes and not (method in METHODS and METHODS[method].uses_graph):
        raise InputError(f"graph: method {method!r} does not look at it; leave it out")
    return method


def _check_threshold(threshold: float, selection: Selection, per_class: bool) -> None:
    if not np.isfinite(threshold):
        raise InputError(f"threshold: must be finite, not {threshold!r}")
    if per_class:
        raise InputError("threshold: is the same score for every class; leave out per_class, or use keep")
    if not selection.by_score:
        raise InputError(f"threshold: method {selection.name!r} is about shares, not about a score; use keep or keep_n")


def _check_scores(name: str, scores: Any, total: int) -> np.ndarray:
    values = np.asarray(as_numpy(scores), dtype=np.float64)  # no copy: nothing writes to it
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


def _outer_quota(
    data: LabelledData,
    target: str | Mapping[Any, float] | None,
    groups: np.ndarray,
    n: int,
    must_keep: np.ndarray,
    must_drop: np.ndarray,
) -> np.ndarray:
    """The quota of every group (class), by `target`."""
    if target is None or (isinstance(target, str) and target == "input"):
        return _split("proportional", groups, None, n, must_keep, must_drop)
    counts = np.bincount(groups)
    lower = np.bincount(groups[must_keep], minlength=len(counts))
    upper = counts - np.bincount(groups[must_drop], minlength=len(counts))
    names = [str(name) for name in data.classes] or [str(number) for number in range(len(counts))]
    if isinstance(target, str):
        if target != "uniform":
            raise InputError(f'class_target: must be "input", "uniform" or a share for each class, not {target!r}')
        share = (counts > 0).astype(np.float64)
    else:
        share = _shares(target, names, len(counts))
    return budget.by_share(share, n, lower, upper, names)


def _shares(target: Any, names: list[str], count: int) -> np.ndarray:
    """float64 [classes] from {class name or number: share}; classes that are not named get 0."""
    if not isinstance(target, Mapping):
        raise InputTypeError(f'class_target: must be "input", "uniform" or a share for each class, not {target!r}')
    number_of = {name: number for number, name in enumerate(names)}
    share = np.zeros(count)
    for key, value in target.items():
        number = number_of.get(key, key if isinstance(key, int | np.integer) and not isinstance(key, bool) else -1)
        if not 0 <= number < count:
            raise InputError(f"class_target: {key!r} is no class with images; there are {', '.join(names[:20])}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < np.inf:
            raise InputError(f"class_target: the share of {key!r} must be a finite number, at least 0, not {value!r}")
        share[number] = value
    if not share.sum() > 0:
        raise InputError("class_target: all shares are 0")
    return share


def _inner_quota(
    choice: Choice, outer: np.ndarray, outer_quota: np.ndarray, must_keep: np.ndarray, must_drop: np.ndarray
) -> np.ndarray:
    """The quota of every cluster: those of a class share its quota."""
    assert choice.clusters is not None
    quota = np.zeros(choice.cluster_count, dtype=np.int64)
    for number, share in enumerate(outer_quota):
        among = None if len(outer_quota) == 1 else outer == number
        quota += _split(choice.inner, choice.clusters, among, int(share), must_keep, must_drop, len(quota))
    return quota


def _split(
    kind: str,
    groups: np.ndarray,
    among: np.ndarray | None,
    n: int,
    must_keep: np.ndarray,
    must_drop: np.ndarray,
    group_count: int = 0,
) -> np.ndarray:
    """Quota of every group for `n` of the images in `among` (None: of all)."""
    if among is not None:
        groups, must_keep, must_drop = groups[among], must_keep[among], must_drop[among]
    counts = np.bincount(groups, minlength=group_count)
    lower = np.bincount(groups[must_keep], minlength=len(counts))
    upper = counts - np.bincount(groups[must_drop], minlength=len(counts))
    if kind == "equal":
        return budget.equal(n, lower, upper)
    return budget.proportional(counts, n, lower, upper)


def _recorded(made: Any, choice: Choice) -> dict[str, Any]:
    """Options as the manifest has them: what was decided for the user in full, arrays left out."""
    options = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    for name in ("distances", "graph"):
        options.pop(name, None)
    if choice.clusters is not None:
        options["clusters"] = choice.cluster_count
    return options
