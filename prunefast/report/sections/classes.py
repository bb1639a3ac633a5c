"""Classes and clusters before and after, and the pictures of what was kept and dropped."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from prunefast.report import charts
from prunefast.report.sections.options import SEED, Options
from prunefast.report.sections.scores import Scored
from prunefast.report.selection import Cut, Row, extremes, find_cut, gallery
from prunefast.report.text import number, share, short
from prunefast.report.thumbnails import Thumbnails
from prunefast.select import Coreset

TABLE_CLASSES = 60  # rows of the class table
CLUSTER_BARS = 80


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
        "text": _balance_text(kept, total),
    }


def _balance_text(kept: NDArray[np.int64], total: NDArray[np.int64]) -> str:
    there = total > 0
    total, kept = total[there], kept[there]
    if len(total) < 2:
        return ""

    def spread(counts: NDArray[np.int64]) -> str:
        if counts.min() == counts.max():
            return f"all {len(counts):,} classes have {counts[0]:,} images each"
        ratio = counts.max() / counts.min()
        return f"the largest class has {counts.max():,} images, {ratio:.3g} times the smallest ({counts.min():,})"

    text = f"Before: {spread(total)}. "
    if (kept == 0).any():
        empty = int((kept == 0).sum())
        return text + f"After: {empty:,} of {len(kept):,} classes keep{'s' if empty == 1 else ''} no image at all."
    return text + f"After: {spread(kept)}."


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


def galleries(
    coreset: Coreset, scores: Scored | None, options: Options
) -> tuple[list[Group], str, tuple[str, str] | None]:
    """Groups to show, a word on what is left out, and the ends of the small charts' common axis."""
    everything = np.arange(coreset.total, dtype=np.int64)
    values = scores.values if scores is not None else None
    order = values if scores is not None and scores.own else None  # pictures are not ordered by what played no part
    if coreset.labels is None or not coreset.classes or options.gallery_classes == 0:
        cut = find_cut(values, coreset.keep) if scores is not None and scores.own and values is not None else None
        rows = gallery(everything, coreset.keep, order, options.gallery_images, SEED, cut)
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
        rows = gallery(members, coreset.keep, order, options.gallery_images, SEED, cut)
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
