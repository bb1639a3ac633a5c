"""What a selection looks like: where the score was cut, and which images show it best. Pure functions on arrays."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EXCEPTIONS = 0.01  # share of the kept images that may lie on the wrong side of a cut (must_keep, must_drop, ties)


@dataclass(frozen=True)
class Cut:
    """Kept are the scores >= low (None: no lower end) and <= high (None: no upper end), but for `exceptions` images."""

    low: float | None
    high: float | None
    exceptions: int = 0

    @property
    def values(self) -> list[float]:
        return [value for value in (self.low, self.high) if value is not None]


def find_cut(scores: NDArray[np.float64], keep: NDArray[np.bool_]) -> Cut | None:
    """The cut through `scores` [N] that gives `keep` [N]; None where there is none, or nothing was cut."""
    count = int(keep.sum())
    if count == 0 or count == len(keep) or scores.min() == scores.max():
        return None
    kept, dropped = scores[keep], scores[~keep]
    allowed = int(EXCEPTIONS * count)
    order = np.sort(scores)
    threshold = float(order[-count])
    wrong = max(int((kept < threshold).sum()), int((dropped > threshold).sum()))
    if wrong <= allowed:
        return Cut(threshold, None, wrong)
    low, high = float(kept.min()), float(kept.max())
    if not ((dropped > low) & (dropped < high)).any():
        return Cut(low if (dropped <= low).any() else None, high if (dropped >= high).any() else None)
    return None


@dataclass(frozen=True)
class Row:
    """A row of pictures: `indices` into the data set, in the order shown."""

    title: str
    kept: bool
    indices: list[int]


def gallery(
    members: NDArray[np.int64],
    keep: NDArray[np.bool_],
    scores: NDArray[np.float64] | None,
    count: int,
    seed: int = 0,
    cut: Cut | None = None,
) -> list[Row]:
    """Up to four rows of up to `count` images of `members` (indices): the ends of what was kept and what was dropped.

    Without scores: images drawn at random (the same ones for the same seed). No image is in two rows.
    """
    kept, dropped = members[keep[members]], members[~keep[members]]
    if scores is None:
        rows = [
            Row("Kept, drawn at random", True, _draw(kept, 2 * count, seed)),
            Row("Dropped, drawn at random", False, _draw(dropped, 2 * count, seed)),
        ]
        return [row for row in rows if row.indices]
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    dropped = dropped[np.argsort(-scores[dropped], kind="stable")]
    one_sided = cut is not None and cut.high is None
    rows = [
        Row("Kept, highest scores", True, kept[:count].tolist()),
        Row("Kept, just above the cut" if one_sided else "Kept, lowest scores", True, kept[count:][-count:].tolist()),
        Row(
            "Dropped, just below the cut" if one_sided else "Dropped, highest scores",
            False,
            dropped[:count].tolist(),
        ),
        Row("Dropped, lowest scores", False, dropped[count:][-count:].tolist()),
    ]
    return [row for row in rows if row.indices]


def _draw(members: NDArray[np.int64], count: int, seed: int) -> list[int]:
    if len(members) <= count:
        return members.tolist()
    generator = np.random.Generator(np.random.Philox(key=[seed, 0]))
    return np.sort(generator.choice(members, size=count, replace=False)).tolist()


def extremes(shares: NDArray[np.float64], most: int) -> list[int]:
    """All positions when there are at most `most`; else the most // 2 smallest and largest shares, in list order."""
    if len(shares) <= most:
        return list(range(len(shares)))
    order = np.argsort(shares, kind="stable")
    return sorted([*order[: most - most // 2].tolist(), *order[-(most // 2) :].tolist()])
