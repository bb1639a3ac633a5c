"""Moderate score: neither the most typical nor the most unusual images, but the middle of the distances.

The prototype of a class is the per-dimension median of its features; images are ranked by their Euclidean distance to
the prototype of their class, and the middle of the ranks is kept: for n of N images a band of n neighbouring ranks with
as many ranks below it as above (one more above where they cannot be equal).

Source: Moderate-DS (Xia et al., ICLR 2023), whose function returns the complement - the images to prune. A well-known
copy uses that list as the images to keep and so keeps the two tails.

Score of the image on rank r: 1 for the middle rank, falling towards both ends, distinct for distinct ranks, so that the
n highest scores are exactly the band. Equal distances rank by index. Time O(N D + N log N).
"""

from dataclasses import dataclass

import numpy as np

from prunefast.errors import InputError
from prunefast.score.features import classes_of, distances, in_order, rows_of


@dataclass(frozen=True)
class ModerateOptions:
    """prototype    "median" (the source) or "mean" of the class
    rank_within  "all": ranks over the whole data set, as the source does; "class": ranks within each class, so that
                 the band is the middle of every class
    """

    prototype: str = "median"
    rank_within: str = "all"

    def __post_init__(self) -> None:
        if self.prototype not in ("median", "mean"):
            raise InputError(f'prototype: must be "median" or "mean", not {self.prototype!r}')
        if self.rank_within not in ("all", "class"):
            raise InputError(f'rank_within: must be "all" or "class", not {self.rank_within!r}')


DIRECTION = "nearness to the middle rank of the distances to the class prototype; both tails are dropped"


def prototype_distances(features: np.ndarray, labels: np.ndarray | None, prototype: str = "median") -> np.ndarray:
    """float64 [N]: distance of every image to the prototype of its class (of everything without labels)."""
    result = np.empty(len(features))
    for _, positions in classes_of(labels, len(features)):
        rows = rows_of(features, positions)
        result[positions] = distances(
            rows, _median(rows) if prototype == "median" else rows.mean(axis=0, dtype=np.float64)
        )
    return result


def _median(rows: np.ndarray) -> np.ndarray:
    """float64 [D], some columns at a time: each is copied, and partitioned where it lies together."""
    lower, upper = (len(rows) - 1) // 2, len(rows) // 2
    result = np.empty(rows.shape[1])
    step = max(1, (1 << 25) // len(rows))
    for start in range(0, rows.shape[1], step):
        columns = np.array(rows[:, start : start + step].T, order="C")
        columns.partition((lower, upper), axis=1)
        result[start : start + step] = (columns[:, lower].astype(np.float64) + columns[:, upper]) / 2
    return result


def middle_scores(values: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
    """float64 [N] in (0, 1]: 1 for the middle of the sorted `values` (of each group), falling towards both ends."""
    scores = np.empty(len(values))
    for _, positions in classes_of(groups, len(values)):
        count = len(positions)
        for rank, where in in_order(values, positions):
            # 2 r - (N - 1) is the signed double distance from the middle: 0, -2, 2, -4, ... or -1, 1, -3, 3, ...; made
            # into the order of keeping 0, 1, 2, ..., in which every beginning of length n is a band of neighbours
            offset = 2 * rank - (count - 1)
            place = np.where(offset > 0, offset, np.maximum(-offset - 1, 0))
            scores[where] = 1 - place / count
    return scores


def moderate_scores(features: np.ndarray, labels: np.ndarray | None, options: ModerateOptions) -> np.ndarray:
    """float64 [N] in (0, 1]."""
    groups = labels if options.rank_within == "class" else None
    return middle_scores(prototype_distances(features, labels, options.prototype), groups)
