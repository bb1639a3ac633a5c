"""The scores a selection was made by, and its cut."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunefast.report import charts
from prunefast.report.gather import Run
from prunefast.report.selection import Cut, find_cut
from prunefast.report.text import number, visible
from prunefast.select import Coreset


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
            f"This selection did not look at the {scores.name}; it is shown to compare: where the two have nothing to "
            "do with each other, what is kept has the shape of the whole."
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
