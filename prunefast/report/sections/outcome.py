"""What came of a selection: training, samples, metrics, and arms side by side."""

import json
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from prunefast.data import ImageDataset
from prunefast.evaluate.result import metric_rows, protocol_rows
from prunefast.report import charts
from prunefast.report.gather import Arm, Training
from prunefast.report.sections.options import Options
from prunefast.report.sections.summary import flat_rows
from prunefast.report.text import number, seconds, share, short, visible
from prunefast.report.thumbnails import Thumbnails


def training_chart(arms: Sequence[Arm]) -> dict[str, Any] | None:
    """One curve an arm that has at least two points."""
    trained = [
        (number_, arm) for number_, arm in enumerate(arms) if arm.training is not None and len(arm.training.loss) >= 2
    ]
    if not trained:
        return None
    lines = [
        charts.Line(visible(arm.name) or "loss", arm.training.images, arm.training.loss)
        for _, arm in trained
        if arm.training is not None
    ]
    ends = [f"{line.name} ends at {number(float(charts.running_mean(line.y)[-1]))}" for line in lines]
    label = "Training loss over the images seen: " + "; ".join(ends) + "."
    return {
        "chart": charts.line_chart(lines, "images seen", "training loss", label),
        "names": [{"style": i % charts.LINE_STYLES, "name": short(line.name, 32)} for i, line in enumerate(lines)],
        "label": label,
        "skipped": sum(arm.training.skipped for _, arm in trained if arm.training is not None),
    }


def training_facts(training: Training | None) -> list[tuple[str, str]]:
    if training is None:
        return []
    summary = training.summary
    rows = [
        ("images seen", number(_figure(summary, "images"))),
        ("steps", number(_figure(summary, "steps"))),
        ("time", seconds(_figure(summary, "seconds"))),
        ("images per second", number(_figure(summary, "images_per_second"))),
        ("training loss", number(final_loss(training))),
        ("model", visible(summary["model"]) if isinstance(summary.get("model"), str) else "—"),
        ("parameters", number(_figure(summary, "parameters"))),
    ]
    rows += _held_out_rows(summary.get("held_out"))
    if summary.get("finished") is False:
        rows.append(("state", "not finished: these numbers are of a run that was stopped"))
    return [(name, value) for name, value in rows if value != "—"]


def _held_out_rows(held_out: Any) -> list[tuple[str, str]]:
    """The last measurement on images that were not trained on."""
    keys = ("held_out_loss", "held_out_gap", "held_out_error", "images")
    values = [_figure(held_out, key) for key in keys] if isinstance(held_out, dict) else [None]
    if None in values:
        return []
    loss, gap, error, images = map(number, values)
    rows = [("held-out loss", f"{loss} after {images} images, {gap} ± {error} above that on training images")]
    found = held_out.get("overfitting")
    return [*rows, ("overfitting", f"suspected: {visible(found)}")] if isinstance(found, str) else rows


def final_loss(training: Training) -> float | None:
    """The summary's loss; without a summary (a run that was killed) the mean over the last 5 % of the curve."""
    loss = _figure(training.summary, "loss")
    if loss is not None:
        return loss
    return float(charts.running_mean(training.loss)[-1]) if len(training.loss) else None


def _figure(values: dict[str, Any], key: str) -> float | int | None:
    value = values.get(key)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def sample_picks(samples: ImageDataset, options: Options) -> list[tuple[str, list[int]]]:
    """(class name or "", indices): evenly over the classes, the first of each; in one list they take turns."""
    most = options.sample_images
    if samples.labels is None or not samples.classes:
        return [("", list(range(min(len(samples), most))))]
    labels = np.asarray(samples.labels)
    present = np.unique(labels)
    shown = present[:most]
    each = max(1, most // len(shown))
    picks = [(samples.classes[label], np.flatnonzero(labels == label)[:each].tolist()) for label in shown.tolist()]
    if options.samples_by_class:
        return picks
    turns = [index for turn in zip_longest(*(indices for _, indices in picks)) for index in turn if index is not None]
    return [("", turns)]


def sample_section(
    samples: ImageDataset, picks: list[tuple[str, list[int]]], pictures: Thumbnails, sampling: dict[str, Any]
) -> dict[str, Any]:
    keys = samples.keys
    groups = [
        {
            "name": short(name, 24),
            "images": [{"uri": pictures[i], "alt": f"Sample {short(keys[i])}"} for i in indices],
        }
        for name, indices in picks
    ]
    shown = sum(len(indices) for _, indices in picks)
    return {
        "groups": groups,
        "shown": f"{shown:,}",
        "total": f"{len(samples):,}",
        "classes": bool(samples.classes),
        "protocol": flat_rows(sampling),
    }


def metric_section(arm: Arm) -> dict[str, Any] | None:
    if arm.evaluation is None:
        return None
    rows = [tuple(visible(cell) for cell in row) for row in metric_rows(arm.evaluation.metrics)]
    return {
        "rows": rows,
        "first": [row for row in rows if row[0] in ("Frechet distance", "precision", "recall", "FID (Inception)")][:3],
        "protocol": [tuple(visible(cell) for cell in row) for row in protocol_rows(arm.evaluation.protocol)],
        "warnings": [visible(warning) for warning in arm.evaluation.warnings],
    }


def closest_pairs(arm: Arm, data: ImageDataset | None) -> list[tuple[int, int, float]]:
    """(sample row, data row, distance) from the evaluation, where both images can be shown."""
    if arm.evaluation is None or arm.samples is None or data is None or arm.coreset is None:
        return []
    memory = arm.evaluation.metrics.get("memorisation")
    pairs = memory.get("closest") if isinstance(memory, dict) else None
    if not isinstance(pairs, list):
        return []
    row_of = {key: row for row, key in enumerate(arm.samples.keys)}
    found = []
    for pair in pairs:
        if not isinstance(pair, dict):
            continue
        sample, training, distance = (
            row_of.get(pair.get("sample", "")),
            pair.get("training_index"),
            pair.get("distance"),
        )
        if sample is None or not isinstance(training, int) or not isinstance(distance, int | float):
            continue
        if 0 <= training < len(data) and data.keys[training] == pair.get("training"):
            found.append((sample, training, float(distance)))
    return found


COMPARED = (
    # column, unit or note, which way is better ("" where that means nothing), format
    ("images per second", "in training", "high", ",.0f"),
    ("training loss", "", "", ".4f"),
    ("Frechet distance", "lower is better", "low", ",.2f"),
    ("precision", "higher is better", "high", ".3f"),
    ("recall", "higher is better", "high", ".3f"),
    ("seconds", "of training", "", ",.0f"),
)


def comparison(arms: Sequence[Arm]) -> dict[str, Any]:
    """The table of arms side by side; the best of a column is marked where arms can be ranked by it."""
    figures: list[list[float | int | None]] = []
    for arm in arms:
        metrics = arm.evaluation.metrics if arm.evaluation is not None else {}
        summary = arm.training.summary if arm.training is not None else {}
        figures.append(
            [
                _figure(summary, "images_per_second"),
                final_loss(arm.training) if arm.training is not None else None,
                _figure(metrics, "frechet_distance"),
                _figure(metrics, "precision"),
                _figure(metrics, "recall"),
                _figure(summary, "seconds"),
            ]
        )
    best: list[float | int | None] = []
    for column, (_, _, better, _) in enumerate(COMPARED):
        known = [row[column] for row in figures if row[column] is not None]
        comparable = better and len(known) > 1 and len(set(known)) > 1
        best.append((min(known) if better == "low" else max(known)) if comparable else None)  # type: ignore[type-var]
    rows = []
    for arm, values in zip(arms, figures, strict=True):
        coreset = arm.coreset
        rows.append(
            {
                "name": short(arm.name, 32),
                "kept": f"{len(coreset):,}" if coreset is not None else "—",
                "share": share(len(coreset), coreset.total) if coreset is not None else "",
                "cells": [
                    {"text": _fixed(value, COMPARED[column][3]), "best": value is not None and value == best[column]}
                    for column, value in enumerate(values)
                ],
            }
        )
    protocols = [arm.evaluation.protocol for arm in arms if arm.evaluation is not None]
    counts = {protocol.get("sample_count") for protocol in protocols}
    encoders = {json.dumps(protocol.get("encoder"), sort_keys=True, default=str) for protocol in protocols}
    return {
        "columns": [{"name": name, "note": note} for name, note, _, _ in COMPARED],
        "rows": rows,
        "mixed": len(counts) > 1 or len(encoders) > 1,
        "has_best": any(value is not None for value in best),
    }


def _fixed(value: float | int | None, digits: str) -> str:
    return "—" if value is None or not np.isfinite(value) else format(value, digits)
