"""The steps of a run as functions on a run folder: what each command of the command line does.

Every step looks first at what lies in the folder. Where the same work is done already it returns at once with
``repeated=True``; where an option or an earlier step changed, the work is done again.
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prunefast.checks import check_features
from prunefast.data import ImageDataset, open_dataset, open_run_dataset
from prunefast.dedup import Deduplication, deduplicate
from prunefast.dedup.deduplicate import ask, survivor_rank
from prunefast.distributed import is_main
from prunefast.encode import embed, open_features
from prunefast.errors import InputError
from prunefast.evaluate import Evaluation, evaluate
from prunefast.export import export
from prunefast.export.export import usage
from prunefast.files import RunFolder, lock_folder, make_folder, read_json, remove_folder, remove_leftovers
from prunefast.graph import KnnGraph, build_graph
from prunefast.graph.build import EXACT_OPERATIONS, exact_operations
from prunefast.progress import format_seconds
from prunefast.report import report
from prunefast.reweight import reweight
from prunefast.score import METHODS, column_scores, combine, score
from prunefast.score import column as user_column
from prunefast.score.combine import DIRECTION as COMBINE_DIRECTION
from prunefast.score.combine import check_weights
from prunefast.score.methods import find_method
from prunefast.score.options import make_options
from prunefast.score.parquet_file import to_json
from prunefast.score.surrogate import SURROGATES, Checkpoints, resolve_checkpoints, surrogate_score
from prunefast.score.table import load_manifests, load_scores, save_scores
from prunefast.select import SELECTIONS, Coreset, select
from prunefast.select.budget import index_mask, number_kept
from prunefast.select.compare import check_rate, compare
from prunefast.select.selection import check_selection
from prunefast.together import handed_out
from prunefast.train import TrainConfig, sample, train
from prunefast.train.sample import PROTOCOL_FILE, check_sampling
from prunefast.train.setup import check_training
from prunefast.train.state import find_checkpoint, list_checkpoints

# Clusters spread the budget over the data by themselves; the others choose inside each class where there are classes.
GLOBAL_METHODS = ("clusters", "hierarchical", "facility-location")

_DEDUP_NEIGHBOURS = 16  # of the graph; an image with more duplicates is searched for again


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a step did: `text` for people, `facts` (JSON-able) for machines; `repeated`: its work was done before."""

    text: str
    facts: dict[str, Any]
    repeated: bool = False

    def __str__(self) -> str:
        first, *more = self.text.splitlines()
        return "\n".join([f"{first} (was there already)" if self.repeated else first, *more])


def open_run(
    run: RunFolder, source: str | os.PathLike[str] | None = None, *, progress: bool = False, **options: Any
) -> ImageDataset:
    """The data set of a run. A new run records `source` in items.parquet; one that exists is bound to its data.

    `options` go to `open_dataset`. InputError for a run without data, or for another source than the run's.
    """
    if source is not None:
        data = open_dataset(source, progress=progress, **options)
        if not run.items.exists() or not _has_results(run):  # data that was repaired after a first try failed
            make_folder(run.path)
            data.save_items(run.items)
            return data
    elif not run.items.exists():
        raise _no_run(run)
    recorded = open_run_dataset(run.items)
    if source is not None and (data.fingerprint, data.image_size) != (recorded.fingerprint, recorded.image_size):
        here, there = (f"{d.path} ({len(d):,} images, size {d.image_size or 'as stored'})" for d in (recorded, data))
        raise InputError(f"{run.path}: is a run on {here}, not on {there}; choose another -o folder")
    return recorded


def _has_results(run: RunFolder) -> bool:
    """Whether anything in the run depends on its data."""
    return any(
        path.exists()
        for path in (run.features, run.scores, run.groups, run.coreset, run.train, run.samples, run.metrics)
    )


@contextlib.contextmanager
def writing(run: RunFolder, *, new: bool = False) -> Iterator[None]:
    """Hold the run for one process, without what a killed one left unfinished. `new`: it need not exist before."""
    existed = run.path.exists()
    if not existed and not new:
        raise _no_run(run)
    try:
        with lock_folder(make_folder(run.path), "working"):
            remove_leftovers(run.path)
            yield
    finally:
        if not existed:
            with contextlib.suppress(OSError):
                run.path.rmdir()  # still empty: nothing came of it


def _no_run(run: RunFolder) -> InputError:
    return InputError(f"{run.path}: holds no run (no items.parquet); start one: prunefast embed DATA -o {run.path}")


def check_run(
    data: ImageDataset,
    config: TrainConfig,
    method: str,
    *,
    budget: Mapping[str, Any],
    per_class: bool | None,
    seed: int,
    options: Mapping[str, Any],
    sampling: Mapping[str, Any],
    score_name: str | None = None,
    class_target: Any = None,
) -> None:
    """Raise now what the steps of a run would raise one after the other, hours of work in between."""
    per_class = _per_class(data, method, budget, per_class, class_target)
    check_selection(data, method, per_class=per_class, class_target=class_target, seed=seed, **budget, **options)
    column = _score_column(method, score_name)
    if column is not None and column not in METHODS:
        raise InputError(f"--score {column}: is not made by a run; there are {', '.join(METHODS)}")
    check_training(config, data)
    check_sampling(config.process, **sampling)


def _per_class(
    data: ImageDataset, method: str, budget: Mapping[str, Any], per_class: bool | None, class_target: Any = None
) -> bool:
    if class_target is not None:
        if per_class is False:
            raise InputError("class_target: is a budget for each class; leave --global out")
        return True
    if per_class is not None:
        return per_class
    return data.labels is not None and method not in GLOBAL_METHODS and "threshold" not in budget


def embed_run(run: RunFolder, data: ImageDataset, *, progress: bool = False, **options: Any) -> Outcome:
    """features.npy and features.json. `options` go to `embed`."""
    before = _written(run.features)
    features = embed(data, out=run.features, progress=progress, **options)
    encoder = read_json(run.features_manifest)["encoder"]
    facts = {"encoder": encoder["encoder"], "images": len(features), "dimensions": features.shape[1]}
    text = f"{facts['images']:,} images x {facts['dimensions']} features of {facts['encoder']}"
    return Outcome(text, facts, repeated=_written(run.features) == before)


def score_run(
    run: RunFolder, data: ImageDataset, method: str, *, per_class: bool | None = None, seed: int = 0, **options: Any
) -> Outcome:
    """One column of scores.parquet. per_class None: per class where the data has classes; scores of the kNN graph over
    all images, so that one graph serves them all.
    """
    chosen = find_method(method)
    per_class = data.labels is not None and not chosen.uses_graph if per_class is None else per_class
    made = dataclasses.asdict(chosen.make_options(options))
    made.pop("graph", None)
    manifest = {"method": method, "options": made, "per_class": per_class, "seed": seed, "direction": chosen.direction}
    if chosen.needs_features:
        features: np.ndarray = _open_finite(run, data)
        manifest["features"] = _digest(run.features_manifest)
    else:
        features = np.empty((len(data), 0), np.float32)
    known = load_manifests(run.scores, data).get(method) if run.scores.exists() else None
    repeated = known is not None and _agrees(known, manifest)
    if not repeated:
        more = dict(options)
        if chosen.uses_graph and not per_class:
            more["graph"] = graph_run(run, data, made["k"], made["metric"], made["graph_method"])
        values = score(features, data.labels, method=method, per_class=per_class, seed=seed, **more)
        save_scores(run.scores, data, method, values, manifest)
    kind = "per class" if per_class and chosen.uses_classes else "over all images"
    return Outcome(f"{len(data):,} scores, {method}, {kind}", manifest, repeated)


def surrogate_run(
    run: RunFolder,
    data: ImageDataset,
    method: str,
    checkpoint: Checkpoints | None,
    *,
    seed: int = 0,
    device: str = "auto",
    progress: bool = False,
    **options: Any,
) -> Outcome:
    """One column of scores.parquet from a trained diffusion model (`SURROGATES`)."""
    chosen = SURROGATES[method]
    made = chosen.make_options(options)
    paths = resolve_checkpoints(checkpoint, method)
    manifest = {"method": method, "options": dataclasses.asdict(made), "seed": seed}
    manifest |= {"checkpoints": [find_checkpoint(path)[1]["digest"] for path in paths]}
    manifest |= {"direction": chosen.direction(made)}
    known = load_manifests(run.scores, data).get(method) if run.scores.exists() else None
    repeated = known is not None and _agrees(known, manifest)
    if not repeated:
        arguments = {"method": method, "seed": seed, "device": device, **options}
        job = functools.partial(_surrogate_scores, run.items, paths, arguments, progress)
        save_scores(run.scores, data, method, handed_out(job), manifest)
    return Outcome(f"{len(data):,} scores, {method}, {len(paths)} checkpoint(s)", manifest, repeated)


def _surrogate_scores(items: Path, paths: Checkpoints, arguments: Mapping[str, Any], progress: bool) -> np.ndarray:
    """On any rank: it opens the data itself, which may be too large to be sent."""
    return surrogate_score(open_run_dataset(items), paths, progress=progress and is_main(), **arguments)


def column_run(
    run: RunFolder,
    data: ImageDataset,
    source: str | os.PathLike[str],
    name: str,
    *,
    column: str | None = None,
    key: str | None = None,
    keep_low: bool = False,
) -> Outcome:
    """The column `name` of scores.parquet from a file of the user's (`prunefast.score.column`)."""
    _check_score_name(name)
    values = column_scores(source, data, column=column, key=key, keep_low=keep_low)
    manifest = {
        "method": "column",
        "options": {"source": os.path.abspath(source), "column": column, "key": key, "keep_low": keep_low},
        "per_class": False,
        "seed": None,
        "direction": user_column.LOW_DIRECTION if keep_low else user_column.DIRECTION,
        "values": hashlib.sha256(values.tobytes()).hexdigest()[:16],
    }
    return _written_once(run, data, name, values, manifest, f"{len(data):,} scores, {name}, from {source}")


def combine_run(
    run: RunFolder, data: ImageDataset, weights: Mapping[str, float], name: str, *, per_class: bool | None = None
) -> Outcome:
    """The column `name` of scores.parquet: the weighted mean of the ranks of other columns."""
    _check_score_name(name)
    per_class = data.labels is not None if per_class is None else per_class
    if per_class and data.labels is None:
        raise InputError("per_class: this data has no classes; leave --per-class out")
    check_weights(list(weights), weights)
    parts = {part: load_scores(run.scores, part, data) for part in weights}
    known = load_manifests(run.scores, data)
    values = combine(parts, weights, data.labels if per_class else None)
    manifest = {
        "method": "combine",
        "options": {"weights": dict(weights)},
        "per_class": per_class,
        "seed": None,
        "direction": COMBINE_DIRECTION,
        "parts": {part: known[part] for part in weights},
    }
    kind = "ranks within classes" if per_class else "ranks over all images"
    return _written_once(run, data, name, values, manifest, f"{len(data):,} scores, {name}, {kind}")


def _check_score_name(name: str) -> None:
    if name in METHODS:
        raise InputError(f"--as {name}: is the name of a method; choose another")


def _written_once(
    run: RunFolder, data: ImageDataset, name: str, values: np.ndarray, manifest: dict[str, Any], text: str
) -> Outcome:
    known = load_manifests(run.scores, data).get(name) if run.scores.exists() else None
    repeated = known is not None and _agrees(known, manifest)
    if not repeated:
        save_scores(run.scores, data, name, values, manifest)
    return Outcome(text, manifest, repeated)


def graph_run(
    run: RunFolder, data: ImageDataset, k: int, metric: str = "l2", method: str = "auto", *, progress: bool = False
) -> KnnGraph:
    """The kNN graph of the run's features: knn.npz (knn-cosine.npz for that metric), built where it is missing, of
    other features, or has too few neighbours; otherwise its first `k`. Scores, D2, facility location and deduplication
    share it.
    """
    digest = _digest(run.features_manifest) if run.features_manifest.exists() else None
    path = run.knn if metric == "l2" else run.knn.with_stem(f"knn-{metric}")
    if path.exists():
        graph = KnnGraph.load(path, data)
        made = graph.manifest
        same = made.get("features") == digest and made.get("metric") == metric
        if same and graph.k >= k and method in ("auto", made.get("method")):
            return graph.first(k)
    graph = build_graph(_open_finite(run, data), k, metric=metric, method=method, progress=progress)
    graph.manifest |= {"data_fingerprint": data.fingerprint, "features": digest}
    graph.save(path)
    return KnnGraph.load(path, data)


def _open_finite(run: RunFolder, data: ImageDataset) -> np.ndarray:
    """The features of the run. `embed` takes a finished file as it is, so a damaged one has to go first."""
    features = open_features(run.features, data)
    try:
        check_features(features)
    except InputError as error:
        reason = str(error).partition(";")[0].removeprefix("features: ")
        raise InputError(f"{run.features}: {reason}; delete the file and embed again") from None
    return features


def dedup_run(
    run: RunFolder,
    data: ImageDataset,
    level: str,
    *,
    threshold: float | None = None,
    max_threshold: float | None = None,
    against: str | os.PathLike[str] | None = None,
    against_split: str | None = None,
    within: bool = True,
    survivor: Any = "resolution",
    progress: bool = False,
    **options: Any,
) -> Outcome:
    """groups.parquet and pairs.parquet. `against`: a data set, or a run (for "semantic" a run with features).

    Where the pairs of the same question lie there already, the threshold is moved and nothing compared again.
    """
    asked = ask(level, threshold, max_threshold, options)
    other = None if against is None else _open_against(against, against_split)
    rank = survivor_rank(data, survivor)
    request: dict[str, Any] = {
        "level": level,
        "options": dataclasses.asdict(asked.options),
        "within": within,
        "against": None if other is None else other[0].fingerprint,
        "survivors": hashlib.sha256(rank.tobytes()).hexdigest()[:16],
    }
    if level == "semantic":
        request["features"] = _digest(run.features_manifest) if run.features_manifest.exists() else None
    known = Deduplication.load(run.path, data) if run.groups.exists() else None
    reach = asked.threshold if max_threshold is None else asked.max_threshold
    if known is not None and _agrees(known.manifest.get("request"), request) and known.max_threshold >= reach:
        repeated = known.threshold == asked.threshold
        found = known if repeated else known.rethreshold(asked.threshold)
    else:
        repeated = False
        more: dict[str, Any] = {}
        if level == "semantic":
            more["features"] = _open_finite(run, data)
            more["graph"] = _shared_graph(run, data, more["features"]) if within else None
            if other is not None:
                more["against_features"] = _against_features(run, *other)
        found = deduplicate(
            data,
            level,
            threshold=asked.threshold,
            max_threshold=asked.max_threshold,
            against=None if other is None else other[0],
            within=within,
            survivor=survivor,
            progress=progress,
            **more,
            **options,
        )
        found.manifest["request"] = to_json(request)
        if more.get("graph") is not None:
            found.manifest["graph"] = to_json(more["graph"].manifest)  # with the recall, where it is approximate
    if not repeated:
        found.save(run.path, data)
    facts = {
        "level": level,
        "threshold": found.threshold,
        "max_threshold": found.max_threshold,
        "kept": len(found),
        "dropped": len(found.dropped),
        "groups": found.group_count,
        "dropped_for_other": int((found.against >= 0).sum()),
    }
    return Outcome(found.summary(), facts, repeated)


def _shared_graph(run: RunFolder, data: ImageDataset, features: np.ndarray) -> KnnGraph | None:
    """The run's kNN graph by cosine: an exact one that is there, or any where comparing all pairs takes too long."""
    if exact_operations(*features.shape) > EXACT_OPERATIONS:
        return graph_run(run, data, _DEDUP_NEIGHBOURS, "cosine")
    if not run.knn.exists():
        return None
    graph = KnnGraph.load(run.knn, data)
    made = graph.manifest
    same = made.get("features") == _digest(run.features_manifest) and graph.metric == "cosine"
    return graph if same and made.get("method") == "exact" else None


def _open_against(source: str | os.PathLike[str], split: str | None) -> tuple[ImageDataset, RunFolder | None]:
    folder = RunFolder(source)
    if not folder.items.exists():
        return open_dataset(source, split=split), None
    if split is not None:
        raise InputError(f"--against-split: the run in {folder.path} has its data already; leave it out")
    return open_run_dataset(folder.items), folder


def _against_features(run: RunFolder, other: ImageDataset, folder: RunFolder | None) -> np.ndarray:
    encoder = read_json(run.features_manifest)["encoder"]
    if folder is None or not folder.features.exists():
        name = other.path if folder is None else folder.path
        raise InputError(
            f"--against {name}: level semantic needs its features; run: prunefast embed DATA -o RUN2 --encoder "
            f"{encoder['encoder']}, and give --against RUN2"
        )
    if read_json(folder.features_manifest)["encoder"] != encoder:
        raise InputError(
            f"--against {folder.path}: was embedded with another encoder than {run.path} (pixels "
            "is fitted to its data); embed both with the same weights"
        )
    return _open_finite(folder, other)


def export_run(
    data: ImageDataset, coreset: Coreset, out: Path, to: str, *, progress: bool = False, **options: Any
) -> Outcome:
    """The coreset in another tool's form at `out`."""
    before = _written(out)
    export(data, coreset, out, to=to, progress=progress, **options)
    facts = {"format": to, "out": str(out), "images": len(coreset), "use": usage(to, out)}
    text = f"{len(coreset):,} images as {to}: {out}\nread it by: {facts['use']}"
    return Outcome(text, facts, repeated=_written(out) == before)


def select_run(
    run: RunFolder,
    data: ImageDataset,
    method: str,
    *,
    coreset_path: Path | None = None,
    per_class: bool | None = None,
    seed: int = 0,
    budget: Mapping[str, Any],
    forced: Mapping[str, Sequence[int]] | None = None,
    duplicates: Deduplication | None = None,
    score_name: str | None = None,
    class_target: Any = None,
    **options: Any,
) -> Outcome:
    """coreset.parquet (or `coreset_path`). `budget`: one of keep, keep_n, threshold; `forced`: must_keep, must_drop;
    `score_name`: the column of scores.parquet for a method that works on scores (default: gaussian).

    A score without options cuts its column of scores.parquet, however that was scored, if it belongs to the features
    that are there; otherwise it scores first. A coreset that a model was trained on is not replaced by another one.
    """
    path = coreset_path or run.coreset
    request, arguments = _selection_inputs(
        run, data, method, per_class, seed, budget, forced, score_name, class_target, options
    )
    if duplicates is not None:
        request["dedup"] = [duplicates.level, duplicates.threshold, duplicates.digest]
        dropped = index_mask("must_drop", (forced or {}).get("must_drop"), len(data)) | ~duplicates.keep
        if "threshold" not in budget:
            _check_left(int((~dropped).sum()), number_kept(len(data), budget.get("keep"), budget.get("keep_n")))
        arguments |= {"must_drop": dropped, "groups": duplicates.groups}
    repeated = path.exists() and _agrees(Coreset.load(path, data).manifest.get("request"), request)
    if repeated:
        coreset = Coreset.load(path, data)
    else:
        coreset = select(data, **_with_graph(run, data, method, arguments))
        coreset.manifest["request"] = to_json(request)
        _refuse_if_trained(path)
        coreset.save(path)
    facts = {"kept": len(coreset), "images": len(data), "method": method, "counts": coreset.counts_per_class()}
    return Outcome(coreset.summary().splitlines()[0], facts, repeated)


def _check_left(left: int, n: int) -> None:
    if left < n:
        raise InputError(
            f"--dedup: it leaves {left:,} images for a budget of {n:,}; lower the budget, or move the threshold "
            "of prunefast dedup"
        )


def compare_run(
    run: RunFolder,
    data: ImageDataset,
    methods: Sequence[str],
    *,
    per_class: bool | None = None,
    seed: int = 0,
    budget: Mapping[str, Any],
    forced: Mapping[str, Sequence[int]] | None = None,
    score_name: str | None = None,
    class_target: Any = None,
    images_per_second: float | None = None,
) -> Outcome:
    """Coresets of several methods at one budget, random always among them, side by side. Nothing but scores and the kNN
    graph is written. `images_per_second`: of training; None: that of the run's own training, where there is one.
    """
    check_rate(images_per_second)
    names = list(dict.fromkeys([*methods, "random"]))
    targets = {"class_target": class_target}
    for name in names:  # all are checked before the first is made
        column = score_name if name in SELECTIONS and "scores" in SELECTIONS[name].takes else None
        each = _per_class(data, name, budget, per_class, class_target)
        check_selection(data, name, per_class=each, seed=seed, **budget, **targets)
        _score_column(name, column)
    summary = run.train / "summary.json"
    if images_per_second is None and summary.exists():
        images_per_second = read_json(summary).get("images_per_second")
    coresets, seconds = {}, {}
    for name in names:
        column = score_name if "scores" in SELECTIONS[name].takes else None
        begun = time.perf_counter()
        _, arguments = _selection_inputs(run, data, name, per_class, seed, budget, forced, column, class_target, {})
        coresets[name] = select(data, **_with_graph(run, data, name, arguments))
        seconds[name] = time.perf_counter() - begun
    found = compare(coresets, _open_finite(run, data), seconds, images_per_second=images_per_second, seed=seed)
    return Outcome(str(found), found.to_json())


def _score_column(method: str, score_name: str | None) -> str | None:
    """The column of scores.parquet that `method` works on; None where it does not work on one."""
    takes = SELECTIONS[method].takes
    if "scores" not in takes:
        if score_name is not None:
            raise InputError(f"--score {score_name}: method {method!r} makes its own; leave it out")
        return None
    if score_name is None and method == "top":
        raise InputError("method: 'top' keeps the highest of a score; name it with --score")
    return score_name or "gaussian"


def _selection_inputs(
    run: RunFolder,
    data: ImageDataset,
    method: str,
    per_class: bool | None,
    seed: int,
    budget: Mapping[str, Any],
    forced: Mapping[str, Sequence[int]] | None,
    score_name: str | None,
    class_target: Any,
    options: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what is asked for, JSON-able; the arguments of `select`), with the scores and features of the run, checked."""
    per_class = _per_class(data, method, budget, per_class, class_target)
    check_selection(data, method, per_class=per_class, class_target=class_target, seed=seed, **budget, **options)
    column = _score_column(method, score_name)
    request: dict[str, Any] = {"method": method, "per_class": per_class, "seed": seed, "budget": dict(budget)}
    request |= {"options": dict(options), "class_target": class_target}
    request["forced"] = {key: sorted(map(int, value)) for key, value in (forced or {}).items()}
    arguments: dict[str, Any] = {"method": method, "per_class": per_class, "class_target": class_target, "seed": seed}
    arguments |= {**budget, **(forced or {}), **options}
    selection = SELECTIONS[method]
    cuts_column = method in METHODS and selection.by_score and method != "moderate" and not options
    if column is not None or cuts_column:
        column = column or method
        _score_if_stale(run, data, column, seed)
        arguments["scores"] = load_scores(run.scores, column, data)
        request["scores"] = load_manifests(run.scores, data)[column]
        request["score_name"] = column
    if method != "random" and not cuts_column and (column is None or "graph" in selection.takes):
        arguments["features"] = _open_finite(run, data)
        request["features"] = _digest(run.features_manifest)
    return request, arguments


def _score_if_stale(run: RunFolder, data: ImageDataset, column: str, seed: int) -> None:
    """Score where `column` is a method whose column is missing or of other features."""
    if column not in METHODS:
        return  # of the user's: it is there, or `load_scores` says that it is not
    features = _digest(run.features_manifest) if run.features_manifest.exists() else None
    known = load_manifests(run.scores, data).get(column) if run.scores.exists() else None
    if known is None or (METHODS[column].needs_features and known.get("features") != features):
        score_run(run, data, column, seed=seed)


def _with_graph(run: RunFolder, data: ImageDataset, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """`arguments` with the run's kNN graph, where the method takes one."""
    if "graph" not in SELECTIONS[method].takes:
        return arguments
    kind = SELECTIONS[method].options
    known = {field.name for field in dataclasses.fields(kind)}
    made: Any = make_options(kind, method, {name: value for name, value in arguments.items() if name in known})
    return arguments | {"graph": graph_run(run, data, min(made.k, len(data) - 1), made.metric, made.graph_method)}


def _refuse_if_trained(coreset_path: Path) -> None:
    folder = coreset_path.parent / "train"
    if coreset_path.exists() and list_checkpoints(folder):
        raise InputError(
            f"{coreset_path}: a model was trained on this coreset; choose another -o folder, or delete {folder} first"
        )


def reweight_run(
    config: TrainConfig,
    data: ImageDataset,
    coreset: Coreset,
    reference: str | os.PathLike[str],
    *,
    progress: bool = False,
    **options: Any,
) -> Outcome:
    """OUT/class_weights.json, by a proxy in OUT/reweight. Continues a run that was stopped."""
    path = RunFolder(config.out).class_weights
    before = list_checkpoints(RunFolder(config.out).reweight)[:1]
    weights = reweight(config, data, coreset, reference=reference, progress=progress, **options)
    facts = {"class_weights": str(path), "average": dict(zip(weights.classes, weights.average.tolist(), strict=True))}
    repeated = before != [] and before == list_checkpoints(RunFolder(config.out).reweight)[:1]
    return Outcome(f"weights of {len(weights)} {weights.groups}: {path}", facts, repeated)


def train_run(config: TrainConfig, data: ImageDataset, coreset: Coreset, *, progress: bool = False) -> Outcome:
    """OUT/train. Continues a run that was stopped."""
    result = train(config, data, coreset, progress=progress)
    facts = {"checkpoint": str(result.checkpoint), **read_json(result.folder / "summary.json")}
    rate = f", {result.images_per_second:,.1f} img/s" if result.images_per_second else ""
    loss = f", loss {result.loss:.4f}" if result.loss is not None else ""
    text = f"{result.images:,} images on {len(coreset):,} in {format_seconds(result.seconds)}{rate}{loss}"
    return Outcome(text, facts, result.repeated)


def open_trained(
    run: RunFolder,
    state: Mapping[str, Any],
    *,
    data: str | None = None,
    coreset: str | None = None,
    **options: Any,
) -> tuple[ImageDataset, Coreset]:
    """The data and the coreset that a checkpoint of `run` was trained on, opened again: those given, those of the run,
    or those its configuration names, in this order."""
    config = state["config"]
    if data is not None:
        opened = open_dataset(data, **{**options, "image_size": options.get("image_size") or config.get("image_size")})
    elif run.items.exists():
        opened = open_run(run)
    elif config.get("data"):
        given = {key: options.get(key) or config.get(key) for key in ("split", "image_size")}
        opened = open_dataset(config["data"], **{**options, **given})
    else:
        raise InputError(f"{run.path}: does not know its data; name what the network was trained on (--data)")
    size = state["model"]["image_size"]
    opened = opened if opened.image_size == size else opened.with_image_size(size)
    known = [coreset, config.get("coreset"), str(run.coreset) if run.coreset.exists() else None]
    path = next((entry for entry in known if entry), None)
    return opened, Coreset.load(path, opened) if path else Coreset.full(opened)


def sample_run(folder: Path, n: int, out: Path | None = None, *, progress: bool = False, **options: Any) -> Outcome:
    """FOLDER/samples (or `out`) from the newest checkpoint of FOLDER.

    FOLDER/samples belong to the run: those of an older checkpoint or of other options are replaced. In a folder of the
    user's they are an error.
    """
    target = out or folder / "samples"
    protocol = target / PROTOCOL_FILE
    if out is None and protocol.exists() and not _still_wanted(folder, target, {"n": n, **options}):
        remove_folder(target)
    before = _digest(protocol) if protocol.exists() else None
    sample(folder, n, out=target, progress=progress, **options)
    return Outcome(f"{n:,} samples in {target}", {"n": n, "folder": str(target)}, repeated=_digest(protocol) == before)


def _still_wanted(folder: Path, samples: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether `samples` came from the newest checkpoint of `folder` with the options `wanted` (and no more images)."""
    record = read_json(samples / PROTOCOL_FILE)
    made = record.get("protocol") if isinstance(record, dict) else None
    if not isinstance(made, dict) or not isinstance(made.get("n"), int):
        raise InputError(f"{samples / PROTOCOL_FILE}: is no record of samples; delete {samples} to sample again")
    newest = list_checkpoints(folder / "train")[:1]
    if not newest or read_json(newest[0] / "state.json").get("digest") != made.get("checkpoint"):
        return False
    same = all(made[key] == value for key, value in wanted.items() if key in made and key != "n")
    return same and made["n"] <= wanted["n"]


def evaluate_run(
    samples: Path,
    reference: ImageDataset,
    out: Path,
    *,
    coreset: Coreset | None,
    checkpoint: Path | None = None,
    features: Path | None = None,
    progress: bool = False,
    **options: Any,
) -> Outcome:
    """metrics.json at `out`. Done already where the samples, the model and the options are those of the file.
    `features`: of the reference, used where `options` name their encoder."""
    request = {
        "samples": _digest(samples / PROTOCOL_FILE) if (samples / PROTOCOL_FILE).exists() else None,
        "coreset": coreset.fingerprint if coreset is not None else None,
        "checkpoint": None if checkpoint is None else find_checkpoint(checkpoint)[1]["digest"],
        "reference": reference.fingerprint,
        "options": options,
    }
    if request["samples"] is not None and out.exists():
        known = Evaluation.load(out)
        if _agrees(known.protocol.get("request"), request):
            return _evaluation_outcome(known, out, repeated=True)
    given: dict[str, Any] = {"coreset": coreset, "checkpoint": checkpoint, "reference_features": features}
    result = evaluate(samples, reference, **given, progress=progress, **options)
    result.protocol["request"] = to_json(request)
    result.save(out)
    return _evaluation_outcome(result, out)


def _evaluation_outcome(result: Evaluation, out: Path, repeated: bool = False) -> Outcome:
    return Outcome(f"{out}\n{result}", {"metrics": result.metrics, "protocol": result.protocol}, repeated)


def report_run(run: RunFolder, *, arms: Mapping[str, Path] | None = None, title: str | None = None) -> Outcome:
    """report.html; written anew each time, it takes seconds."""
    path = report(run, arms=arms, title=title)
    return Outcome(str(path), {"report": str(path)})


def _written(path: Path) -> tuple[int, int] | None:
    """Changes with every atomic write of the file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _agrees(recorded: Any, wanted: Mapping[str, Any]) -> bool:
    """Whether `recorded` holds every entry of `wanted` (it may hold more, such as versions)."""
    plain = to_json(wanted)
    return isinstance(recorded, dict) and all(
        key in recorded and recorded[key] == value for key, value in plain.items()
    )
