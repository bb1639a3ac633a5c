"""Coresets side by side: what they share, whom they keep, what they cover, and what choosing them costs and saves.

Coverage is improved precision and recall (`prunefast.evaluate.precision_recall`) of kept images against images of the
whole set, in the features: precision falls where oddities are kept, recall where kinds of images are lost. Both depend
on the number of images, so every coreset shows the same number of its images, and none of those it is compared with.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunefast.errors import InputError
from prunefast.evaluate.precision_recall import precision_recall
from prunefast.select.coreset import Coreset

COVERAGE_IMAGES = 5000  # of each side: seconds, and a standard error of at most 0.7 %
NEIGHBOURS = 3  # the radius of the balls, as Kynkaanniemi et al. 2019


@dataclass(frozen=True)
class Comparison:
    """names      of the coresets, in the order given
    overlap    float64 [M, M]: the share of the row's images that the column keeps as well
    expected   float64 [M]: the overlap that any coreset has with a random one of the column's size
    counts     name -> class -> (kept, total)
    precision, recall   float64 [M], NaN where too few images are kept to measure them
    measured   images of each side of precision and recall
    seconds    of selecting, after embedding
    saved      share of the images of an epoch that training leaves out
    """

    names: list[str]
    overlap: np.ndarray
    expected: np.ndarray
    counts: dict[str, dict[str, tuple[int, int]]]
    precision: np.ndarray
    recall: np.ndarray
    measured: int
    seconds: np.ndarray
    saved: np.ndarray
    total: int
    images_per_second: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            name: {
                "overlap": dict(zip(self.names, self.overlap[i].tolist(), strict=True)),
                "counts": self.counts[name],
                "precision": float(self.precision[i]),
                "recall": float(self.recall[i]),
                "seconds": float(self.seconds[i]),
                "saved_per_epoch": float(self.saved[i]),
                "net_seconds_of_one_epoch": self.net_seconds(i),
                "break_even_epochs": self.break_even_epochs(i),
            }
            for i, name in enumerate(self.names)
        }

    def net_seconds(self, i: int, epochs: float = 1) -> float | None:
        """Predicted seconds of training saved in `epochs` minus those of selecting; None without a training speed."""
        if self.images_per_second is None:
            return None
        return float(epochs * self.saved[i] * self.total / self.images_per_second - self.seconds[i])

    def break_even_epochs(self, i: int) -> float | None:
        """Epochs of training after which the images left out have paid for selecting; None without a training speed."""
        if self.images_per_second is None or self.saved[i] == 0:
            return None
        return float(self.seconds[i] * self.images_per_second / (self.saved[i] * self.total))

    def __str__(self) -> str:
        width = max(map(len, self.names))
        lines = [f"{'':{width}}  {'kept':>9}  precision  recall  selecting  saved an epoch   net of it  pays after"]
        for i, name in enumerate(self.names):
            epochs, net = self.break_even_epochs(i), self.net_seconds(i)
            pays = "?" if epochs is None else f"{epochs:.2g} epochs"
            kept = round(self.total * (1 - self.saved[i]))
            lines.append(
                f"{name:{width}}  {kept:>9,}  {_share(self.precision[i]):>9}  {_share(self.recall[i]):>6}  "
                f"{self.seconds[i]:>7.1f} s  {self.saved[i]:>14.1%}  "
                f"{'?' if net is None else f'{net:,.1f} s':>10}  {pays:>10}"
            )
        lines += ["", f"{'also kept by':{width}}  " + "  ".join(f"{name:>{max(6, len(name))}}" for name in self.names)]
        for i, name in enumerate(self.names):
            cells = (f"{self.overlap[i, j]:>{max(6, len(other))}.1%}" for j, other in enumerate(self.names))
            lines.append(f"{name:{width}}  " + "  ".join(cells))
        chance = "  ".join(f"{self.expected[j]:>{max(6, len(other))}.1%}" for j, other in enumerate(self.names))
        lines.append(f"{'by chance':{width}}  {chance}")
        classes = list(next(iter(self.counts.values())))
        if classes:
            wide = max(max(map(len, classes)), width)
            lines += [
                "",
                f"{'kept of class':{wide}}  " + "  ".join(f"{name:>{max(7, len(name))}}" for name in self.names),
            ]
            for label in classes:
                cells = (f"{self.counts[name][label][0]:>{max(7, len(name))},}" for name in self.names)
                lines.append(f"{label:{wide}}  " + "  ".join(cells) + f"  of {self.counts[self.names[0]][label][1]:,}")
        if self.measured:
            lines += ["", f"precision and recall: {self.measured:,} kept images against {self.measured:,} of all"]
        return "\n".join(lines)


def _share(value: float) -> str:
    return "?" if np.isnan(value) else f"{value:.3f}"


def check_rate(images_per_second: float | None) -> None:
    if images_per_second is not None and not 0 < images_per_second < np.inf:
        raise InputError(f"images_per_second: must be a finite number above 0, not {images_per_second!r}")


def compare(
    coresets: Mapping[str, Coreset],
    features: Any,
    seconds: Mapping[str, float],
    *,
    images_per_second: float | None = None,
    seed: int = 0,
) -> Comparison:
    """Compare coresets of one data set; `features` [N, D] are those of its images, `seconds` what selecting took."""
    names = list(coresets)
    sets = list(coresets.values())
    total = sets[0].total
    for name, coreset in coresets.items():
        if coreset.data_fingerprint != sets[0].data_fingerprint:
            raise InputError(f"coresets: {name!r} is of another data set than {names[0]!r}")
    check_rate(images_per_second)
    overlap = np.array([[a.keep[b.indices].sum() / len(b) for a in sets] for b in sets])
    measured = min(COVERAGE_IMAGES, min(map(len, sets)) // 2)
    coverage = np.full((len(sets), 2), np.nan)
    if measured > NEIGHBOURS:
        order = np.random.Generator(np.random.Philox(key=seed)).permutation(total)
        reference = np.sort(order[:measured])
        for i, coreset in enumerate(sets):
            shown = order[measured:]
            shown = np.sort(shown[coreset.keep[shown]][:measured])
            found = precision_recall(np.asarray(features[shown]), np.asarray(features[reference]), k=NEIGHBOURS)
            coverage[i] = found.precision, found.recall
    return Comparison(
        names,
        overlap,
        np.array([len(coreset) / total for coreset in sets]),
        {name: coreset.counts_per_class() for name, coreset in coresets.items()},
        coverage[:, 0],
        coverage[:, 1],
        measured if measured > NEIGHBOURS else 0,
        np.array([seconds[name] for name in names]),
        np.array([1 - len(coreset) / total for coreset in sets]),
        total,
        images_per_second,
    )
