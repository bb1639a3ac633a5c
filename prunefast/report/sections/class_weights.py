"""Class weights over the proxy's training: where they went, and what came of it."""

from typing import Any

import numpy as np

from prunefast.report import charts
from prunefast.report.text import number, short, visible
from prunefast.reweight.weights import ClassWeights

MOST_ROWS = 40  # of the table: the heaviest and the lightest half of them


def class_weights_section(weights: ClassWeights | None) -> dict[str, Any] | None:
    """The trajectory of the classes that ended furthest apart (as many as there are line styles), and the table."""
    if weights is None:
        return None
    order = np.argsort(-weights.average, kind="stable")
    uniform = 1 / len(weights)
    shown = _ends(order, MOST_ROWS)
    return {
        "trajectory": _trajectory(weights, order),
        "rows": [
            {
                "name": short(weights.classes[c]),
                "weight": number(float(weights.average[c])),
                "times": f"{weights.average[c] / uniform:.2f}",
                "width": round(100 * float(weights.average[c] / weights.average.max()), 1),
                "excess": _excess(weights, c),
            }
            for c in shown.tolist()
        ],
        "left_out": len(order) - len(shown),
        "count": len(order),
        "kind": weights.groups if weights.groups != "own" else "groups",
        "uniform": number(uniform),
        "options": [
            (visible(name), visible(str(weights.manifest[name])))
            for name in ("step_size", "smoothing", "start", "draw", "images", "reference_path")
            if name in weights.manifest
        ],
    }


def _ends(order: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of `order`, from both ends."""
    if len(order) <= most:
        return order
    return np.concatenate([order[: most // 2], order[-(most // 2) :]])


def _excess(weights: ClassWeights, c: int) -> str:
    value = float(weights.history["excess"][-1, c]) if weights.history else np.nan
    return number(value) if np.isfinite(value) else "—"


def _trajectory(weights: ClassWeights, order: np.ndarray) -> dict[str, Any] | None:
    if not weights.history or len(weights.history["images"]) < 2:
        return None
    images = weights.history["images"].astype(np.float64)
    drawn = _ends(order, charts.LINE_STYLES).tolist()
    lines = [charts.Line(visible(weights.classes[c]), images, weights.history["weights"][:, c]) for c in drawn]
    ends = ", ".join(f"{line.name} {number(float(line.y[-1]))}" for line in lines)
    label = f"Class weights over the images the proxy has seen, ending at {ends}."
    return {
        "chart": charts.line_chart(lines, "images the proxy has seen", "weight", label),
        "names": [{"style": i, "name": short(line.name, 32)} for i, line in enumerate(lines)],
    }
