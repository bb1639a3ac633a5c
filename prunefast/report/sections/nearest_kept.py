"""What stands for the images that were dropped: the nearest kept image of each, by the features."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunefast.ops import nearest
from prunefast.report.gather import Run
from prunefast.report.sections.options import SEED
from prunefast.report.text import number, short
from prunefast.report.thumbnails import Thumbnails
from prunefast.select import Coreset

DRAWN = 2000  # dropped images that are looked up: seconds, whatever the size of the data set
SHOWN = 12  # pairs of each kind
_ROWS = 65_536  # kept images at a time


class Found:
    """dropped, kept int64 [n], distance float64 [n], by distance. furthest, spread: positions that are shown."""

    def __init__(self, dropped: NDArray[np.int64], kept: NDArray[np.int64], distance: NDArray[np.float64]):
        order = np.argsort(distance, kind="stable")
        self.dropped, self.kept, self.distance = dropped[order], kept[order], distance[order]
        count = len(order)
        self.furthest = list(range(count - 1, max(-1, count - 1 - SHOWN), -1))
        rest = count - len(self.furthest)
        self.spread = np.unique(np.linspace(0, rest - 1, min(SHOWN, rest)).round().astype(int)).tolist() if rest else []

    @property
    def pictures(self) -> list[int]:
        shown = self.furthest + self.spread
        return self.dropped[shown].tolist() + self.kept[shown].tolist()


def find(run: Run, coreset: Coreset) -> Found | None:
    """The nearest kept image of dropped ones (a seeded draw where there are many); None where nothing was dropped."""
    features = run.features
    dropped = coreset.dropped
    if features is None or not len(dropped) or not len(coreset):
        return None
    if len(dropped) > DRAWN:
        generator = np.random.Generator(np.random.Philox(key=[SEED, 2]))
        dropped = np.sort(generator.choice(dropped, DRAWN, replace=False))
    rows = np.asarray(features[dropped], dtype=np.float32)
    best, distance = np.zeros(len(dropped), np.int64), np.full(len(dropped), np.inf)
    for start in range(0, len(coreset), _ROWS):
        kept = coreset.indices[start : start + _ROWS]
        index, squared = nearest(rows, np.asarray(features[kept], dtype=np.float32))
        closer = squared < distance
        best[closer], distance[closer] = kept[index[closer]], squared[closer]
    return Found(dropped, best, np.sqrt(distance))


def section(found: Found, coreset: Coreset, pictures: Thumbnails) -> dict[str, Any]:
    def pairs(positions: list[int]) -> list[dict[str, str]]:
        rows = []
        for at in positions:
            dropped, kept = int(found.dropped[at]), int(found.kept[at])
            name = f"{short(coreset.keys[dropped])}, nearest kept {short(coreset.keys[kept])}"
            text = f"distance {number(float(found.distance[at]), 3)}"
            rows.append({"left": pictures[dropped], "right": pictures[kept], "name": name, "text": text})
        return rows

    middle = number(float(np.median(found.distance)), 3)
    drawn = f"a seeded draw of {len(found.dropped):,} of the {len(coreset.dropped):,}"
    return {
        "text": f"The nearest kept image of {drawn if len(found.dropped) < len(coreset.dropped) else 'all'} dropped "
        f"images, by their features: the dropped one at the left. The median distance is {middle}.",
        "furthest": pairs(found.furthest),
        "spread": pairs(found.spread),
    }
