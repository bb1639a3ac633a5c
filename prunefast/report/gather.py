"""Reading a run folder for the report: what is there, and a word for each part that is not."""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from prunefast.data import ImageDataset, open_dataset, open_run_dataset
from prunefast.dedup import Deduplication
from prunefast.encode import open_features
from prunefast.errors import InputError
from prunefast.evaluate.result import Evaluation
from prunefast.files import RunFolder, read_json
from prunefast.reweight.weights import ClassWeights
from prunefast.score.table import load_manifests, load_scores
from prunefast.select import Coreset

T = TypeVar("T")


@dataclass
class Training:
    """images, loss [n]: the finite points of metrics.jsonl, `skipped` its other lines; summary: summary.json."""

    images: NDArray[np.float64]
    loss: NDArray[np.float64]
    summary: dict[str, Any]
    skipped: int = 0


@dataclass
class Arm:
    """One selection and what came of it. `notes`: section name -> why that part is missing from the page."""

    name: str
    folder: RunFolder
    coreset: Coreset | None = None
    training: Training | None = None
    samples: ImageDataset | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    evaluation: Evaluation | None = None
    notes: dict[str, str] = field(default_factory=dict)


@dataclass
class Run:
    """What all arms share. features: float [N, D] (a memmap); scores: float64 [N] of the column `score_name`."""

    folder: RunFolder
    data: ImageDataset | None = None
    features: NDArray[np.floating] | None = None
    features_manifest: dict[str, Any] = field(default_factory=dict)
    score_name: str | None = None
    scores: NDArray[np.float64] | None = None
    class_weights: ClassWeights | None = None
    duplicates: Deduplication | None = None
    notes: dict[str, str] = field(default_factory=dict)


def gather(run: str | os.PathLike[str], arms: Mapping[str, str | os.PathLike[str]] | None) -> tuple[Run, list[Arm]]:
    """The run and its arms; without `arms`, one arm: the run itself.

    Raises InputError where there is nothing to report, or a coreset that is not of the run's data.
    """
    folder = run if isinstance(run, RunFolder) else RunFolder(run)
    if not folder.path.is_dir():
        raise InputError(f"{folder.path}: no such run folder; make one with: prunefast run DATA -o {folder.path}")
    shared = read_run(folder)
    if arms is None:
        read = [read_arm("", folder, shared)]
    else:
        if not arms:
            raise InputError("arms: is empty; leave it out, or give {name: folder}")
        for name, path in arms.items():
            if not Path(path).is_dir():
                raise InputError(f"arms: {name!r}: {os.fspath(path)}: no such folder")
        read = [read_arm(str(name), RunFolder(path), shared) for name, path in arms.items()]
    if not shared.duplicates and not any(arm.coreset or arm.training or arm.samples or arm.evaluation for arm in read):
        raise InputError(
            f"{folder.path}: nothing to report yet; select a coreset first: "
            f"prunefast select {folder.path} --method gaussian --keep 0.3"
        )
    return shared, read


def read_run(folder: RunFolder) -> Run:
    run = Run(folder)
    run.data = _part(run.notes, "images", folder.items, "no items.parquet, so no images are shown", open_run_dataset)
    if folder.features_manifest.is_file():
        manifest = _part(run.notes, "features.json", folder.features_manifest, "", read_json)
        run.features_manifest = manifest if isinstance(manifest, dict) else {}
    missing = "no features.npy (prunefast embed makes it)"
    run.features = _part(run.notes, "map", folder.features, missing, lambda path: open_features(path, run.data))
    missing = "no groups.parquet (prunefast dedup makes it)"
    run.duplicates = _part(
        run.notes, "duplicates", folder.groups, missing, lambda _: Deduplication.load(folder.path, run.data)
    )
    if run.data is not None and folder.scores.is_file():
        names = _part(run.notes, "scores", folder.scores, "", load_manifests)
        if names:
            run.score_name = next(iter(names))
            data, column = run.data, run.score_name
            run.scores = _part(run.notes, "scores", folder.scores, "", lambda path: load_scores(path, column, data))
    if folder.class_weights.is_file():
        run.class_weights = _part(run.notes, "class_weights", folder.class_weights, "", ClassWeights.load)
    return run


def read_arm(name: str, folder: RunFolder, run: Run) -> Arm:
    arm = Arm(name, folder)
    if folder.coreset.is_file():
        arm.coreset = Coreset.load(folder.coreset, run.data)  # one of other data would make the whole page wrong
    else:
        arm.notes["selection"] = "no coreset.parquet (prunefast select makes it)"
    arm.training = _part(
        arm.notes, "training", folder.train, "no train/ folder (prunefast train makes it)", read_training
    )
    samples = folder.samples if folder.samples.is_dir() else folder.train / "samples"
    arm.samples = _part(arm.notes, "samples", samples, "no samples/ folder (prunefast sample makes it)", _open_samples)
    if (samples / "samples.json").is_file():
        sampling = _part(arm.notes, "samples.json", samples / "samples.json", "", read_json)
        arm.sampling = sampling if isinstance(sampling, dict) else {}
    arm.evaluation = _part(
        arm.notes, "metrics", folder.metrics, "no metrics.json (prunefast evaluate makes it)", Evaluation.load
    )
    return arm


def read_training(folder: Path) -> Training | None:
    """Curve and summary of a train/ folder. Lines that are not JSON or have no finite loss are counted, not fatal:
    a killed run leaves its last line unfinished."""
    images, loss, skipped = [], [], 0
    path = folder / "metrics.jsonl"
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                point = float(record["images"]), float(record["loss"])
            except (ValueError, TypeError, KeyError, RecursionError):
                skipped += 1
                continue
            if not all(map(math.isfinite, point)):
                skipped += 1
                continue
            images.append(point[0])
            loss.append(point[1])
    summary: Any = {}
    if (folder / "summary.json").is_file():
        summary = read_json(folder / "summary.json")
    if not images and not summary:
        raise InputError(f"{folder}: has neither metrics.jsonl nor summary.json yet")
    x, y = np.array(images, dtype=np.float64), np.array(loss, dtype=np.float64)
    order = np.argsort(x, kind="stable")
    return Training(x[order], y[order], summary if isinstance(summary, dict) else {}, skipped)


def _part(notes: dict[str, str], section: str, path: Path, missing: str, read: Callable[[Path], T]) -> T | None:
    """What `read` makes of `path`, or None with a note where it is missing or broken."""
    if not path.exists():
        notes[section] = missing
        return None
    try:
        return read(path)
    except (InputError, OSError, ValueError) as error:
        notes[section] = str(error).splitlines()[0] if str(error) else f"{path}: cannot be read"
        return None


def _open_samples(path: Path) -> ImageDataset:
    return open_dataset(path, split="all")
