"""From arrays to what the template shows: one function a section, each gives a dict, or None where there is nothing."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from prunefast.data import ImageDataset
from prunefast.evaluate.result import metric_rows, protocol_rows
from prunefast.report import charts
from prunefast.report.gather import Arm, Run, Training
from prunefast.report.projection import project, spread
from prunefast.report.selection import Cut, Row, extremes, find_cut, gallery
from prunefast.report.text import number, seconds, share, short, visible
from prunefast.report.thumbnails import Thumbnails
from prunefast.select import Coreset

GALLERY_CLASSES = 24  # classes with pictures of their own: with more, those with the smallest and largest kept share
GALLERY_IMAGES = 12  # a row
TABLE_CLASSES = 60  # rows of the class table
CLUSTER_BARS = 80
MAP_POINTS = 2400  # 0.4 MB of page
MAP_CLASSES = 20  # that can be switched to
SMALL_MAP_POINTS = 1500
MOSAIC = (16, 11)  # columns and rows of pictures on the map
SAMPLE_IMAGES = 96
SEED = 0  # of the draws for pictures and map


@dataclass(frozen=True)
class Options:
    """How much of a section is shown: arms side by side are shorter than a run by itself."""

    gallery_images: int = GALLERY_IMAGES
    gallery_classes: int = GALLERY_CLASSES
    sample_images: int = SAMPLE_IMAGES
    full_map: bool = True


FULL = Options()
COMPACT = Options(gallery_images=16, gallery_classes=0, sample_images=40, full_map=False)


# ------------------------------------------------------------------------------------------------------------ summary


def headline(run: Run, arm: Arm) -> dict[str, Any] | None:
    """Kept of total, and the sentences that say how."""
    coreset = arm.coreset
    if coreset is None:
        return None
    manifest = coreset.manifest
    method = str(manifest.get("method", "unknown"))
    return {
        "kept": f"{len(coreset):,}",
        "total": f"{coreset.total:,}",
        "share": share(len(coreset), coreset.total),
        "percent": 100 * len(coreset) / max(coreset.total, 1),
        "method": visible(method),
        "per_class": bool(manifest.get("per_class")),
        "budget": budget_text(manifest),
        "direction": visible(manifest.get("direction", "")),
        "encoder": encoder_text(run),
        "forced": forced_text(manifest),
    }


def budget_text(manifest: dict[str, Any]) -> str:
    budget = manifest.get("budget")
    if not isinstance(budget, dict):
        return ""
    if budget.get("keep") is not None:
        return f"keep = {number(budget['keep'])}"
    if budget.get("keep_n") is not None:
        return f"keep_n = {number(budget['keep_n'])}"
    if budget.get("threshold") is not None:
        return f"threshold = {number(budget['threshold'])}"
    return ""


def forced_text(manifest: dict[str, Any]) -> str:
    parts = [
        f"{manifest[key]:,} images by {key}"
        for key in ("must_keep", "must_drop")
        if isinstance(manifest.get(key), int) and manifest[key] > 0
    ]
    return " and ".join(parts)


def encoder_text(run: Run) -> str:
    manifest = run.features_manifest
    encoder = manifest.get("encoder", manifest)
    name = encoder.get("name") or encoder.get("encoder") if isinstance(encoder, dict) else encoder
    return short(name, 40) if name else ""


# ------------------------------------------------------------------------------------------------------------- scores


@dataclass(frozen=True)
class Scored:
    """The scores the page shows for a coreset. `own`: they are what the selection cut."""

    values: NDArray[np.float64]
    name: str
    own: bool


def scored(run: Run, coreset: Coreset) -> Scored | None:
    """The coreset's own scores; for a random or full one another score of the run, if it has any, for comparison."""
    method = str(coreset.manifest.get("method", ""))
    if coreset.scores is not None and method not in ("random", "full"):
        return Scored(coreset.scores, "score" if method == "top" else f"{visible(method)} score", True)
    if run.scores is not None and run.score_name not in (None, "random") and len(run.scores) == coreset.total:
        return Scored(run.scores, f"{visible(run.score_name)} score", False)
    return None


def score_section(coreset: Coreset, scores: Scored | None) -> dict[str, Any] | None:
    """Histogram over all images with the cut, and a text that says what the cut is."""
    if scores is None or coreset.total == 0:
        return None
    cut = find_cut(scores.values, coreset.keep) if scores.own else None
    per_class = coreset.labels is not None and bool(coreset.manifest.get("per_class"))
    histogram = charts.make_histogram(scores.values, coreset.keep)
    text = _cut_text(coreset, scores, cut, per_class)
    kept, dropped = scores.values[coreset.keep], scores.values[~coreset.keep]
    summary = f"Histogram of the {scores.name} of {coreset.total:,} images."
    if len(kept):
        summary += f" Median of the kept {number(float(np.median(kept)))}"
        summary += f", of the dropped {number(float(np.median(dropped)))}." if len(dropped) else "."
    outside = []
    if histogram.below:
        outside.append(f"{histogram.below:,} images below {number(float(histogram.edges[0]))} are in the first bar")
    if histogram.above:
        outside.append(f"{histogram.above:,} images above {number(float(histogram.edges[-1]))} are in the last bar")
    return {
        "chart": charts.histogram_chart(histogram, cut.values if cut else [], scores.name, f"{summary} {text}"),
        "text": text,
        "summary": summary,
        "outside": "; ".join(outside),
        "dropped": len(dropped) > 0,
    }


def _cut_text(coreset: Coreset, scores: Scored, cut: Cut | None, per_class: bool) -> str:
    if len(coreset.dropped) == 0:
        return "Every image is kept."
    if not scores.own:
        return (
            f"This selection did not look at the {scores.name}; it is shown to compare: what is kept has the same shape "
            "as the whole when the two have nothing to do with each other."
        )
    if cut is not None:
        if cut.high is None:
            text = f"Images with a score of {number(cut.low)} or more are kept"
        elif cut.low is None:
            text = f"Images with a score of {number(cut.high)} or less are kept"
        else:
            text = f"Images with scores from {number(cut.low)} to {number(cut.high)} are kept"
        return text + (f", apart from {cut.exceptions:,} (forced, or ties at the cut)." if cut.exceptions else ".")
    if coreset.clusters is not None:
        return "The best of each cluster are kept, so that there is one cut a cluster: over all images the two overlap."
    if per_class:
        return "Each class has a cut of its own (shown with the classes below), so over all classes the two overlap."
    return "Kept and dropped images overlap: this selection is no single cut through the score."


# ------------------------------------------------------------------------------------------------------------ classes


def class_table(coreset: Coreset) -> dict[str, Any] | None:
    """Images per class before and after."""
    counts = coreset.counts_per_class()
    if not counts:
        return None
    names, pairs = list(counts), np.array(list(counts.values()), dtype=np.int64)
    kept, total = pairs[:, 0], pairs[:, 1]
    shares = kept / np.maximum(total, 1)
    shown = extremes(shares, TABLE_CLASSES)
    largest = max(1, int(total.max()))
    filled = kept[kept > 0]
    return {
        "rows": [
            {
                "name": short(names[i]),
                "kept": f"{kept[i]:,}",
                "total": f"{total[i]:,}",
                "share": share(int(kept[i]), int(total[i])),
                "kept_width": f"{100 * kept[i] / largest:.2f}",
                "total_width": f"{100 * total[i] / largest:.2f}",
            }
            for i in shown
        ],
        "count": len(names),
        "left_out": len(names) - len(shown),
        "before": _balance(total[total > 0]),
        "after": _balance(filled),
        "empty": int((kept[total > 0] == 0).sum()),
    }


def _balance(counts: NDArray[np.int64]) -> str:
    if len(counts) == 0:
        return "—"
    return number(round(float(counts.max() / counts.min()), 2))


def cluster_bars(coreset: Coreset) -> dict[str, Any] | None:
    """Kept and total per cluster, largest first."""
    if coreset.clusters is None or coreset.total == 0:
        return None
    total = np.bincount(coreset.clusters)
    kept = np.bincount(coreset.clusters[coreset.indices], minlength=len(total))
    order = np.argsort(-total, kind="stable")
    order = order[total[order] > 0]
    shown = order[:CLUSTER_BARS]
    label = f"Images in each of the {len(order):,} clusters, largest first, and how many of them are kept."
    return {
        "chart": charts.column_chart(total[shown], kept[shown], "cluster, largest first", label),
        "label": label,
        "count": len(order),
        "left_out": len(order) - len(shown),
        "kept_range": f"{kept[order].min():,} to {kept[order].max():,}",
        "total_range": f"{total[order].min():,} to {total[order].max():,}",
    }


@dataclass
class Group:
    """A class (or everything) with its rows of pictures, before the pictures are read."""

    name: str
    kept: int
    total: int
    rows: list[Row]
    chart: Markup | None
    cut: Cut | None


def galleries(coreset: Coreset, scores: Scored | None, options: Options) -> tuple[list[Group], str, tuple[str, str] | None]:
    """Groups to show, a word on what is left out, and the ends of the small charts' common axis."""
    everything = np.arange(coreset.total, dtype=np.int64)
    values = scores.values if scores is not None else None
    if coreset.labels is None or not coreset.classes or options.gallery_classes == 0:
        cut = find_cut(values, coreset.keep) if scores is not None and scores.own and values is not None else None
        rows = gallery(everything, coreset.keep, values, options.gallery_images, SEED, cut)
        return [Group("", len(coreset), coreset.total, rows, None, cut)], "", None
    counts = np.array(list(coreset.counts_per_class().values()), dtype=np.int64)
    present = np.flatnonzero(counts[:, 1])
    shown = present[extremes(counts[present, 0] / counts[present, 1], options.gallery_classes)]
    limits = charts.robust_limits(values) if values is not None else None
    groups = []
    for label in shown.tolist():
        members = everything[coreset.labels == label]
        cut, chart = None, None
        if values is not None and scores is not None:
            cut = find_cut(values[members], coreset.keep[members]) if scores.own else None
            histogram = charts.make_histogram(values[members], coreset.keep[members], 40, limits)
            text = f"Histogram of the {scores.name} of class {short(coreset.classes[label])}"
            chart = charts.small_histogram(histogram, cut.values if cut else [], text)
        rows = gallery(members, coreset.keep, values, options.gallery_images, SEED, cut)
        name = coreset.classes[label]
        groups.append(Group(name, int(counts[label, 0]), int(counts[label, 1]), rows, chart, cut))
    left_out = len(present) - len(shown)
    note = f"{left_out:,} more classes are not shown: these are the ones with the smallest and the largest kept share."
    ends = (number(limits[0]), number(limits[1])) if limits is not None else None
    return groups, note if left_out else "", ends


def group_view(group: Group, coreset: Coreset, scores: Scored | None, pictures: Thumbnails | None) -> dict[str, Any]:
    rows = []
    for row in group.rows:
        images = []
        for index in row.indices:
            name = short(coreset.keys[index])
            value = f", {scores.name} {number(float(scores.values[index]))}" if scores is not None else ""
            alt = f"{name}, {'kept' if row.kept else 'dropped'}{value}"
            images.append({"uri": pictures[index] if pictures is not None else None, "alt": alt})
        rows.append({"title": row.title, "kept": row.kept, "images": images})
    cut = ""
    if group.cut is not None:
        cut = " and ".join(number(value) for value in group.cut.values)
    return {
        "name": short(group.name),
        "kept": f"{group.kept:,}",
        "total": f"{group.total:,}",
        "share": share(group.kept, group.total),
        "rows": rows,
        "chart": group.chart,
        "cut": cut,
    }


# ---------------------------------------------------------------------------------------------------------------- map


@dataclass
class MapData:
    """The points of the map, before their pictures are read. Shared by all arms."""

    indices: NDArray[np.int64]
    xy: NDArray[np.float64]
    inside: NDArray[np.bool_]
    variance: tuple[float, float]
    tiles: NDArray[np.int64]  # positions within `indices`
    total: int


def map_points(features: NDArray[np.floating] | None, full: bool) -> MapData | None:
    """A seeded draw of the features, projected on two axes."""
    if features is None or len(features) == 0:
        return None
    most = MAP_POINTS if full else SMALL_MAP_POINTS
    indices = np.arange(len(features), dtype=np.int64)
    if len(indices) > most:
        generator = np.random.Generator(np.random.Philox(key=[SEED, 1]))
        indices = generator.permutation(len(features))[:most]  # drawn in this order: neither kind covers the other
    order = np.argsort(indices)
    rows = np.empty((len(indices), features.shape[1]), dtype=features.dtype)
    rows[order] = features[indices[order]]  # a memory map is read in its own order
    found = project(rows)
    tiles = np.flatnonzero(found.inside)
    tiles = tiles[spread(found.xy[tiles], *MOSAIC)]
    return MapData(indices.astype(np.int64), found.xy, found.inside, found.variance, tiles, len(features))


def map_section(map_: MapData, coreset: Coreset, scores: Scored | None, pictures: Thumbnails | None) -> dict[str, Any]:
    """The map of a run by itself: points, pictures, and classes to switch."""
    labels = coreset.labels
    shown = np.flatnonzero(map_.inside)
    points = [_map_point(map_, i, coreset, scores, None) for i in shown.tolist()]
    tiles = []
    if pictures is not None:
        tiles = [
            _map_point(map_, i, coreset, scores, pictures[int(map_.indices[i])]) for i in map_.tiles.tolist()
        ]
    kept = int(coreset.keep[map_.indices[shown]].sum())
    label = (
        f"Map of {len(shown):,} images on the first two principal components of their features; {kept:,} are kept, "
        f"{len(shown) - kept:,} dropped."
    )
    classes = []
    if labels is not None and 2 <= len(coreset.classes) <= MAP_CLASSES:
        classes = [{"number": i, "name": short(name, 24)} for i, name in enumerate(coreset.classes)]
    return {
        "points": charts.scatter(points, label),
        "pictures": charts.mosaic(tiles, f"The same map with {len(tiles)} of its images as pictures.") if tiles else None,
        "tiles": len(tiles),
        "classes": classes,
        "label": label,
        "drawn": f"{len(map_.indices):,}",
        "all": f"{map_.total:,}",
        "sampled": len(map_.indices) < map_.total,
        "outside": len(map_.indices) - len(shown),
        "variance": [f"{100 * value:.1f} %" for value in map_.variance],
    }


def _map_point(map_: MapData, i: int, coreset: Coreset, scores: Scored | None, image: str | None) -> charts.MapPoint:
    index = int(map_.indices[i])
    kept = bool(coreset.keep[index])
    group = int(coreset.labels[index]) if coreset.labels is not None else -1
    value = f", {scores.name} {number(float(scores.values[index]))}" if scores is not None else ""
    tip = f"{short(coreset.keys[index])}, {'kept' if kept else 'dropped'}{value}"
    return charts.MapPoint(float(map_.xy[i, 0]), float(map_.xy[i, 1]), kept, group, tip, image)


def small_map(map_: MapData, coreset: Coreset, name: str) -> Markup:
    points = [_map_point(map_, i, coreset, None, None) for i in np.flatnonzero(map_.inside).tolist()]
    return charts.small_map(points, f"Map of the features with what {name or 'the selection'} keeps.")


# ----------------------------------------------------------------------------------------------------------- training


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
    if summary.get("finished") is False:
        rows.append(("state", "not finished: these numbers are of a run that was stopped"))
    return [(name, value) for name, value in rows if value != "—"]


def final_loss(training: Training) -> float | None:
    """The summary's loss; without a summary (a run that was killed) the mean over the last 5 % of the curve."""
    loss = _figure(training.summary, "loss")
    if loss is not None:
        return loss
    return float(charts.running_mean(training.loss)[-1]) if len(training.loss) else None


def _figure(values: dict[str, Any], key: str) -> float | int | None:
    value = values.get(key)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


# ------------------------------------------------------------------------------------------------------------ samples


def sample_picks(samples: ImageDataset, most: int) -> list[tuple[str, list[int]]]:
    """(class name or "", indices): evenly over the classes, the first of each."""
    if samples.labels is None or not samples.classes:
        return [("", list(range(min(len(samples), most))))]
    labels = np.asarray(samples.labels)
    present = np.unique(labels)
    shown = present[:most]
    each = max(1, most // len(shown))
    return [(samples.classes[label], np.flatnonzero(labels == label)[:each].tolist()) for label in shown.tolist()]


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
    return {"groups": groups, "shown": f"{shown:,}", "total": f"{len(samples):,}", "protocol": flat_rows(sampling)}


# ------------------------------------------------------------------------------------------------------------ metrics


def metric_section(arm: Arm) -> dict[str, Any] | None:
    if arm.evaluation is None:
        return None
    return {
        "rows": [tuple(visible(cell) for cell in row) for row in metric_rows(arm.evaluation.metrics)],
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
        sample, training, distance = row_of.get(pair.get("sample", "")), pair.get("training_index"), pair.get("distance")
        if sample is None or not isinstance(training, int) or not isinstance(distance, int | float):
            continue
        if 0 <= training < len(data) and data.keys[training] == pair.get("training"):
            found.append((sample, training, float(distance)))
    return found


COMPARED = (
    # column, unit or note, which way is better ("" where that means nothing)
    ("images per second", "", "high"),
    ("training loss", "", ""),
    ("Frechet distance", "lower is better", "low"),
    ("precision", "higher is better", "high"),
    ("recall", "higher is better", "high"),
    ("seconds", "of training", ""),
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
    for column, (_, _, better) in enumerate(COMPARED):
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
                    {"text": number(value, 3), "best": value is not None and value == best[column]}
                    for column, value in enumerate(values)
                ],
            }
        )
    protocols = [arm.evaluation.protocol for arm in arms if arm.evaluation is not None]
    counts = {protocol.get("sample_count") for protocol in protocols}
    encoders = {json.dumps(protocol.get("encoder"), sort_keys=True, default=str) for protocol in protocols}
    return {
        "columns": [{"name": name, "note": note} for name, note, _ in COMPARED],
        "rows": rows,
        "mixed": len(counts) > 1 or len(encoders) > 1,
        "has_best": any(value is not None for value in best),
    }


# ----------------------------------------------------------------------------------------------------------- manifest


def flat_rows(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A JSON value as (path, text) rows; lists of plain values stay on one line."""
    if isinstance(value, dict):
        rows = []
        for key, inner in value.items():
            rows += flat_rows(inner, f"{prefix} › {visible(key)}" if prefix else visible(key))
        return rows
    if isinstance(value, list):
        if all(not isinstance(item, dict | list) for item in value):
            return [(prefix, visible(", ".join(str(item) for item in value)))]
        return [(prefix, visible(json.dumps(value, ensure_ascii=False)))]
    return [(prefix, "—" if value is None else visible(value))]


def manifest_rows(run: Run, coreset: Coreset | None) -> list[tuple[str, str]]:
    rows = []
    if coreset is not None:
        counts = {"classes", "counts_per_class"}  # they are in the table of classes
        rows += flat_rows({key: value for key, value in coreset.manifest.items() if key not in counts})
        rows.append(("coreset fingerprint", coreset.fingerprint))
    if run.features_manifest:
        rows += flat_rows(run.features_manifest, "features")
    return rows


def data_name(run: Run) -> str:
    """What to call the data set: the last part of its path, with the split."""
    if run.data is None:
        return visible(run.folder.path.name)
    name = PurePath(str(run.data.path)).name or str(run.data.path)
    return visible(f"{name}, {run.data.split}" if run.data.split else name)
