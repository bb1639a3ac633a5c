"""Coverage score: how much of the feature space an image covers that others do not, by Monte-Carlo in random planes.

    for every draw: two feature dimensions, a point in their plane (triangular between minimum, median and maximum);
                    the image nearest to the point: score + 1
                    its `redundancy` nearest images in the plane share a penalty of 1, in proportion to 1 / distance^4

Source: after zero-shot coreset selection (ZCore, as in voxel51's code). What differs, and is ours: draws share `planes`
pairs of dimensions, distances in a plane are Euclidean (there: city block), neighbours that coincide with the image
share the penalty equally, and every draw is seeded. Images that cover are kept, images that repeat others are not.

Time O(draws N) with two dimensions, by the native search; memory O(N + draws x redundancy / planes).
"""

from dataclasses import dataclass

import numpy as np

from prunefast import ops
from prunefast.errors import InputError


@dataclass(frozen=True)
class CoverageOptions:
    """draws       Monte-Carlo points in all; None: 10 for every image
    planes      pairs of dimensions they fall into
    redundancy  neighbours that share the penalty of a draw, at most 1,023
    """

    draws: int | None = None
    planes: int = 64
    redundancy: int = 100

    def __post_init__(self) -> None:
        for name in ("draws", "planes", "redundancy"):
            value = getattr(self, name)
            if value is None and name == "draws":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name}: must be a whole number, at least 1, not {value!r}")
        if self.redundancy > 1023:
            raise InputError(f"redundancy: must be at most 1023, not {self.redundancy}")


DIRECTION = "coverage of random planes less redundancy; images that cover what others do not are kept"


def coverage_scores(features: np.ndarray, options: CoverageOptions, seed: int) -> np.ndarray:
    """float64 [N], unbounded; the mean is near 0."""
    rows, dimensions = features.shape
    generator = np.random.Generator(np.random.Philox(key=seed))
    draws = options.draws if options.draws is not None else 10 * rows
    scores = np.zeros(rows)
    for share in np.diff(np.linspace(0, draws, options.planes + 1).round().astype(np.int64)):
        pair = generator.choice(dimensions, size=2, replace=False) if dimensions > 1 else np.array([0])
        points = generator.random((int(share), len(pair)))
        if share:
            scores += _plane(np.ascontiguousarray(features[:, np.sort(pair)]), points, options.redundancy)
    return scores


def _plane(plane: np.ndarray, uniform: np.ndarray, redundancy: int) -> np.ndarray:
    """The part of one plane: `plane` [N, 2] are the images in it, `uniform` [draws, 2] become points."""
    wide = plane.astype(np.float64)
    low, middle, high = wide.min(axis=0), np.median(wide, axis=0), wide.max(axis=0)
    drawn = _triangular(uniform, low, middle, high)
    nearest, _ = ops.nearest(drawn.astype(np.float32), plane.astype(np.float32))
    times = np.bincount(nearest, minlength=len(plane))
    scores = times.astype(np.float64)
    covering = np.flatnonzero(times)
    count = min(redundancy, len(plane) - 1)
    if count < 1:
        return scores
    index, squared = ops.topk(plane[covering].astype(np.float32), plane.astype(np.float32), count + 1)
    index, squared = np.asarray(index), np.asarray(squared, dtype=np.float64)
    own = index == covering[:, None]
    same = (squared == 0).any(axis=1, where=~own)
    with np.errstate(divide="ignore"):
        penalty = np.where(same[:, None], squared == 0, squared**-2.0)  # 1 / distance^4; duplicates alone, where any
    penalty = np.where(own, 0.0, penalty)
    penalty *= (times[covering] / penalty.sum(axis=1))[:, None]
    return scores - np.bincount(index.ravel(), weights=penalty.ravel(), minlength=len(plane))


def _triangular(uniform: np.ndarray, low: np.ndarray, mode: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Inverse of the triangular distribution function, column by column."""
    width = np.where(high > low, high - low, 1.0)
    split = (mode - low) / width
    rising = low + np.sqrt(uniform * width * (mode - low))
    falling = high - np.sqrt((1 - uniform) * width * (high - mode))
    return np.where(uniform < split, rising, falling)
