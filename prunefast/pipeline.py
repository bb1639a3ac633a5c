"""The steps of a run as functions on a run folder: what each command of the command line does.

Every step looks first at what lies in the folder. Where the same work is done already it returns at once with
``repeated=True``; where an option or an earlier step changed, the work is done again.
"""

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prunefast.data import ImageDataset, open_dataset, open_run_dataset
from prunefast.dedup import Deduplication, deduplicate
from prunefast.dedup.deduplicate import ask, survivor_rank
from prunefast.encode import embed, open_features
from prunefast.errors import InputError
from prunefast.evaluate import Evaluation, evaluate
from prunefast.export import export
from prunefast.export.export import usage
from prunefast.files import RunFolder, lock_folder, make_folder, read_json, remove_folder, remove_leftovers
from prunefast.progress import format_seconds
from prunefast.report import report
from prunefast.reweight import reweight
from prunefast.score import score
from prunefast.score.features import check_features
from prunefast.score.methods import find_method
from prunefast.score.parquet_file import to_json
from prunefast.score.surrogate import SURROGATES, Checkpoints, resolve_checkpoints, surrogate_score
from prunefast.score.table import load_manifests, load_scores, save_scores
from prunefast.select import Coreset, select
from prunefast.select.budget import index_mask
from prunefast.select.selection import check_selection
from prunefast.train import TrainConfig, sample, train
from prunefast.train.sample import PROTOCOL_FILE, check_sampling
from prunefast.train.setup import check_training
from prunefast.train.state import find_checkpoint, list_checkpoints

# Clusters spread the budget over the data by themselves; the others choose inside each class where there are classes.
GLOBAL_METHODS = ("clusters",)


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
) -> None:
    """Raise now what the steps of a run would raise one after the other, hours of work in between."""
    check_selection(data, method, per_class=_per_class(data, method, budget, per_class), seed=seed, **budget, **options)
    check_training(config, data)
    check_sampling(config.process, **sampling)


def _per_class(data: ImageDataset, method: str, budget: Mapping[str, Any], per_class: bool | None) -> bool:
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
    """One column of scores.parquet. per_class None: per class where the data has classes."""
    chosen = find_method(method)
    per_class = data.labels is not None if per_class is None else per_class
    made = dataclasses.asdict(chosen.make_options(options))
    manifest = {"method": method, "options": made, "per_class": per_class, "seed": seed, "direction": chosen.direction}
    if chosen.needs_features:
        features: np.ndarray = _open_finite(run, data)
        manifest["features"] = _digest(run.features_manifest)
    else:
        features = np.empty((len(data), 0), np.float32)
    known = load_manifests(run.scores, data).get(method) if run.scores.exists() else None
    repeated = known is not None and _agrees(known, manifest)
    if not repeated:
        values = score(features, data.labels, method=method, per_class=per_class, seed=seed, **options)
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
        arguments = {"method": method, "seed": seed, "device": device, "progress": progress, **options}
        save_scores(run.scores, data, method, surrogate_score(data, paths, **arguments), manifest)
    return Outcome(f"{len(data):,} scores, {method}, {len(paths)} checkpoint(s)", manifest, repeated)


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
    **options: Any,
) -> Outcome:
    """coreset.parquet (or `coreset_path`). `budget`: one of keep, keep_n, threshold; `forced`: must_keep, must_drop.

    "gaussian" without options cuts the column of scores.parquet, however that was scored, if it belongs to the features
    that are there; otherwise it scores first. A coreset that a model was trained on is not replaced by another one.
    """
    path = coreset_path or run.coreset
    per_class = _per_class(data, method, budget, per_class)
    check_selection(data, method, per_class=per_class, seed=seed, **budget, **options)
    request: dict[str, Any] = {"method": method, "per_class": per_class, "seed": seed, "budget": dict(budget)}
    request |= {"options": options, "forced": {key: sorted(map(int, value)) for key, value in (forced or {}).items()}}
    arguments: dict[str, Any] = {**(forced or {}), **options}
    if duplicates is not None:
        request["dedup"] = [duplicates.level, duplicates.threshold, duplicates.digest]
        dropped = index_mask("must_drop", (forced or {}).get("must_drop"), len(data)) | ~duplicates.keep
        arguments |= {"must_drop": dropped, "groups": duplicates.groups}
    if method == "gaussian" and not options:
        features = _digest(run.features_manifest) if run.features_manifest.exists() else None
        known = load_manifests(run.scores, data).get(method) if run.scores.exists() else None
        if known is None or known.get("features") != features:
            score_run(run, data, method, seed=seed)
        arguments["scores"] = load_scores(run.scores, method, data)
        request["scores"] = load_manifests(run.scores, data)[method]
    elif method != "random":
        arguments["features"] = _open_finite(run, data)
        request["features"] = _digest(run.features_manifest)
    repeated = path.exists() and _agrees(Coreset.load(path, data).manifest.get("request"), request)
    if repeated:
        coreset = Coreset.load(path, data)
    else:
        coreset = select(data, method=method, per_class=per_class, seed=seed, **budget, **arguments)
        coreset.manifest["request"] = to_json(request)
        _refuse_if_trained(path)
        coreset.save(path)
    facts = {"kept": len(coreset), "images": len(data), "method": method, "counts": coreset.counts_per_class()}
    return Outcome(coreset.summary().splitlines()[0], facts, repeated)


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
    progress: bool = False,
    **options: Any,
) -> Outcome:
    """metrics.json at `out`. Done already where the samples and the options are those of the file."""
    request = {
        "samples": _digest(samples / PROTOCOL_FILE) if (samples / PROTOCOL_FILE).exists() else None,
        "coreset": coreset.fingerprint if coreset is not None else None,
        "reference": reference.fingerprint,
        "options": options,
    }
    if request["samples"] is not None and out.exists():
        known = Evaluation.load(out)
        if _agrees(known.protocol.get("request"), request):
            return _evaluation_outcome(known, out, repeated=True)
    result = evaluate(samples, reference, coreset=coreset, progress=progress, **options)
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
