"""Groups of duplicates with one survivor each, at any threshold up to the one that pairs were looked for.

The rule. Images are taken from the best to the worst (by the survivor rule; ties to the smallest index). An image that
nothing kept so far is within the threshold of is kept, and all others within the threshold of it are dropped. So

- every dropped image is within the threshold of one that is kept (the kept ones dominate the graph of close pairs): in
  a chain a - b - c, where a and c are far apart, c stays when a does, and is not lost for being near b;
- no two kept images are within the threshold of each other;
- the order of the images does not matter but for ties.

A dropped image belongs to the group of the nearest kept one. Time O(P log P) for P pairs.
"""

import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from prunefast.dedup.pairs import Pairs
from prunefast.errors import InputError, InputTypeError
from prunefast.select.coreset import Coreset, LabelledData


@dataclass(frozen=True)
class Group:
    """kept: index of the survivor. dropped int64 [n]: its duplicates, nearest first. distance float64 [n]."""

    kept: int
    dropped: np.ndarray
    distance: np.ndarray


class Deduplication:
    """What `deduplicate` found. Indices are positions in the data set; distances are in the unit of the level.

    level, threshold, max_threshold, options   as asked for
    keep       bool [N]
    kept, dropped   int64, sorted
    groups     int64 [N]: number of the image's group, -1 for an image without a duplicate here
    survivor   int64 [N]: the kept image that stands for this one (itself where it is kept; -1 where it was dropped for
               an image of the other data set)
    distance   float64 [N]: to the survivor, or to that image; 0 where kept
    against    int64 [N]: position in the other data set of the image this one was dropped for, -1 otherwise
    """

    def __init__(
        self, pairs: Pairs, rank: np.ndarray, *, level: str, threshold: float, max_threshold: float, **manifest: Any
    ):
        self.pairs = pairs
        self.rank = rank  # int64 [N]: 0 for the image that survives first
        self.level = level
        self.max_threshold = max_threshold
        self.threshold = check_threshold(threshold, max_threshold)
        self.manifest: dict[str, Any] = manifest
        self.survivor, self.distance, self.against = _decide(pairs, rank, self.threshold)
        self.keep = self.survivor == np.arange(len(rank))
        self.groups = _number_groups(self.survivor)

    def __len__(self) -> int:
        """Number of images kept."""
        return int(self.keep.sum())

    def __repr__(self) -> str:
        return f"Deduplication({self.summary()})"

    @property
    def options(self) -> Mapping[str, Any]:
        return self.manifest.get("options", {})

    @property
    def total(self) -> int:
        return len(self.keep)

    @cached_property
    def kept(self) -> np.ndarray:
        return np.flatnonzero(self.keep)

    @cached_property
    def dropped(self) -> np.ndarray:
        return np.flatnonzero(~self.keep)

    @cached_property
    def digest(self) -> str:
        """Names the contents and pairs that were found, whatever the threshold."""
        return self.pairs.digest()

    @property
    def group_count(self) -> int:
        return int(self.groups.max(initial=-1)) + 1

    def __iter__(self) -> Iterator[Group]:
        """The groups, by number: those of two images or more, in the order of their survivors."""
        order = np.lexsort((np.arange(self.total), self.distance, ~self.keep, self.groups))
        order = order[self.groups[order] >= 0]
        for members in np.split(order, np.flatnonzero(np.diff(self.groups[order])) + 1):
            if len(members):
                yield Group(int(members[0]), members[1:], self.distance[members[1:]])

    def least_similar(self, count: int = 10) -> list[tuple[int, int, float]]:
        """(dropped, kept, distance) of the images furthest from their survivor: where a threshold errs first. Of many
        at one distance, as hashes have it, some from all over the data set, not all from its first class."""
        inside = self.dropped[self.against[self.dropped] < 0]
        scattered = inside.astype(np.uint64) * np.uint64(2654435761) % np.uint64(1 << 32)  # Knuth's multiplicative hash
        worst = inside[np.lexsort((scattered, -self.distance[inside]))[:count]]
        return [(int(i), int(self.survivor[i]), float(self.distance[i])) for i in worst]

    def rethreshold(self, threshold: float) -> "Deduplication":
        """The same images at another threshold, up or down to `max_threshold`; nothing is read or compared again."""
        return Deduplication(
            self.pairs,
            self.rank,
            level=self.level,
            threshold=threshold,
            max_threshold=self.max_threshold,
            **self.manifest,
        )

    def coreset(self, data: LabelledData) -> Coreset:
        """What is kept as a coreset, with weight 1."""
        check_same_data(self.manifest.get("data_fingerprint"), data.fingerprint)
        return self._coreset(data.keys, data.labels, data.classes)

    def _coreset(self, keys: Any, labels: Any, classes: Any) -> Coreset:
        manifest = {
            "method": "dedup",
            "options": {"level": self.level, "threshold": self.threshold, **self.options},
            "direction": "one image of each group of duplicates is kept",
        }
        return Coreset(
            indices=self.kept,
            keys=keys,
            labels=labels,
            classes=classes,
            data_fingerprint=self.manifest["data_fingerprint"],
            groups=self.groups,
            rethresholder=lambda threshold: self.rethreshold(threshold)._coreset(keys, labels, classes),
            manifest=manifest,
        )

    def summary(self) -> str:
        """One line for people."""
        outside = int((self.against >= 0).sum())
        inside = len(self.dropped) - outside
        text = (
            f"{len(self):,} of {self.total:,} images kept: {inside:,} duplicates in {self.group_count:,} groups dropped"
        )
        if "against" in self.manifest:
            text += f", {outside:,} for images of the other data set"
        return f"{text} ({self.level}, {describe_threshold(self.level, self.threshold)})"

    def save(self, run: str | os.PathLike[str], data: LabelledData) -> None:
        """Write groups.parquet and pairs.parquet into the folder `run`."""
        from prunefast.dedup.table import save

        save(run, self, data)

    @staticmethod
    def load(run: str | os.PathLike[str], data: LabelledData | None = None) -> "Deduplication":
        """Read what `save` wrote; with `data`, refuse that of another data set."""
        from prunefast.dedup.table import load

        return load(run, data)


def describe_threshold(level: str, threshold: float) -> str:
    if level == "perceptual":
        return f"at most {threshold:g} bits apart"
    return f"1 - cosine at most {threshold:g}" if level == "semantic" else "identical"


def check_threshold(threshold: Any, most: float) -> float:
    if isinstance(threshold, bool) or not isinstance(threshold, int | float | np.integer | np.floating):
        raise InputTypeError(f"threshold: must be a number, not {threshold!r}")
    if not 0 <= threshold <= most:
        raise InputError(
            f"threshold: pairs were looked for up to {most:g}, {threshold:g} is outside 0 .. {most:g}; "
            "deduplicate again with a larger max_threshold"
            if threshold > most
            else f"threshold: must be 0 or more, not {threshold!r}"
        )
    return float(threshold)


def check_same_data(recorded: Any, given: Any) -> None:
    if recorded != given:
        raise InputError(
            f"data: these duplicates are of another data set (its fingerprint is {str(recorded)[:12]}, this data has "
            f"{str(given)[:12]}); deduplicate this one"
        )


def _decide(pairs: Pairs, rank: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(survivor, distance, against) of every image."""
    total = len(rank)
    contents = int(pairs.content.max(initial=-1)) + 1
    outside = pairs.against_distance <= threshold
    # the best image of each content stands for it; all images of a content are alike to the other data set too
    order = np.argsort(rank, kind="stable")
    best = np.empty(contents, dtype=np.int64)
    best[pairs.content[order[::-1]]] = order[::-1]
    alive = ~outside[best] if contents else np.zeros(0, dtype=bool)
    close = (pairs.distance <= threshold) & alive[pairs.first] & alive[pairs.second]
    first, second, apart = pairs.first[close], pairs.second[close], pairs.distance[close]
    stands = _dominating(first, second, rank[best], alive)

    # each other content goes to the nearest that stands, ties to the better one; no two that stand are close
    one = stands[first] != stands[second]
    first, second, apart = first[one], second[one], apart[one]
    target = np.where(stands[first], first, second)
    source = first + second - target
    nearest = np.lexsort((rank[best[target]], apart, source))
    nearest = nearest[np.diff(source[nearest], prepend=-1) != 0]
    representative, distance = np.arange(contents), np.zeros(contents)
    representative[source[nearest]], distance[source[nearest]] = target[nearest], apart[nearest]

    survivor = best[representative[pairs.content]] if contents else np.zeros(total, dtype=np.int64)
    return (
        np.where(outside, -1, survivor),
        np.where(outside, pairs.against_distance, distance[pairs.content] if contents else np.zeros(total)),
        np.where(outside, pairs.against, -1),
    )


def _dominating(first: np.ndarray, second: np.ndarray, rank: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """bool [C]: greedy by rank, those that no better one that stands is close to."""
    stands = alive.copy()
    # from each better node to its worse neighbours; only nodes that have any need a look
    better = np.where(rank[first] < rank[second], first, second)
    worse = first + second - better
    order = np.argsort(rank[better], kind="stable")
    better, worse = better[order], worse[order]
    bounds = np.flatnonzero(np.diff(better, prepend=-1, append=-1)).tolist()
    for start, stop in itertools.pairwise(bounds):
        if stands[better[start]]:
            stands[worse[start:stop]] = False
    return stands


def _number_groups(survivor: np.ndarray) -> np.ndarray:
    """int64 [N]: 0, 1, ... in the order of the survivors of two images or more; -1 for the others."""
    inside = survivor >= 0
    size = np.bincount(survivor[inside], minlength=len(survivor))
    number = np.where(size > 1, np.cumsum(size > 1) - 1, -1)
    return np.where(inside, number[survivor], -1) if len(survivor) else np.zeros(0, dtype=np.int64)
