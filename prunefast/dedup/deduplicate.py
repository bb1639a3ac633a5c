"""`deduplicate`: a data set -> groups of duplicates."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from prunefast.data import ImageDataset
from prunefast.dedup.exact import ExactOptions, find_exact
from prunefast.dedup.groups import Deduplication, check_threshold
from prunefast.dedup.perceptual import PerceptualOptions, find_perceptual
from prunefast.dedup.semantic import SemanticOptions, find_semantic
from prunefast.errors import InputError
from prunefast.score.features import as_numpy, check_features
from prunefast.score.options import make_options


@dataclasses.dataclass(frozen=True)
class Level:
    """threshold: the default. reach: of max_threshold, where the threshold is not larger."""

    options: type
    threshold: float
    reach: float


# Each default is where docs/deduplication.md measured no different pair among the duplicates.
LEVELS = {
    "exact": Level(ExactOptions, 0, 0),
    "perceptual": Level(PerceptualOptions, 7, 11),  # of 64 bits; 11 is as far as multi-index hashing helps
    "semantic": Level(SemanticOptions, 0.05, 0.1),
}
SURVIVORS = ("resolution", "size", "first")


def deduplicate(
    data: ImageDataset,
    level: str = "perceptual",
    *,
    threshold: float | None = None,
    max_threshold: float | None = None,
    features: Any = None,
    graph: Any = None,
    against: ImageDataset | None = None,
    against_features: Any = None,
    within: bool = True,
    survivor: Any = "resolution",
    progress: bool = False,
    **options: Any,
) -> Deduplication:
    """Find the duplicates in `data`, and which image of each group survives.

    level      "exact": the same bytes (pixels=True: the same decoded pixels). "perceptual": hashes of `bits` (64 or
               256) that differ in few bits; finds re-encoded, resized, slightly cropped and brightened copies, and
               mirrored ones with mirrored=True. "semantic": `features` [N, D] with a small 1 - cosine.
    threshold  the largest distance between duplicates: bits (default 7 of 64), or 1 - cosine (default 0.05)
    max_threshold   how far `rethreshold` can go later; default 11 of 64 bits, or 0.1
    graph      for "semantic": the kNN graph of the features by "cosine" (`prunefast.graph`), where there is one;
               rows whose neighbours end within the distance are searched again. An approximate graph misses pairs.
    against    a second data set (for "semantic" its features too): images of `data` that have a duplicate there are
               dropped. Test-set leakage, or new images for an old coreset.
    within     False: look for duplicates in `against` only
    survivor   "resolution" (pixels, then bytes of the file), "size" (bytes, then pixels), "first", or numbers [N], the
               highest survives (a score, or a column of yours); ties to the smallest index

    Every dropped image is within the threshold of a kept one, or of one of `against` (`prunefast.dedup.groups`).
    Raises InputError or InputTypeError for bad arguments, before any work.
    """
    asked = ask(level, threshold, max_threshold, options)
    made, threshold, max_threshold = asked.options, asked.threshold, asked.max_threshold
    rank = survivor_rank(data, survivor)
    if not within and against is None:
        raise InputError("within: without it there is nothing to do; give against=")
    if level == "semantic":
        x = _features("features", features, data)
        y = None if against is None else _features("against_features", against_features, against)
        if y is not None and y.shape[1] != x.shape[1]:
            raise InputError(
                f"against_features: {y.shape[1]} columns where features have {x.shape[1]}; use one encoder"
            )
        pairs = find_semantic(x, y, max_threshold, within=within, graph=graph)
    elif features is not None or against_features is not None or graph is not None:
        raise InputError(f"features: level {level!r} reads the images; leave them out, or take level='semantic'")
    elif isinstance(made, PerceptualOptions):
        pairs = find_perceptual(data, against, made, int(max_threshold), within=within, progress=progress)
    else:
        pairs = find_exact(data, against, made, progress)
    if not within:
        pairs = dataclasses.replace(pairs, content=np.arange(len(data)))
    manifest = {
        "options": dataclasses.asdict(made),
        "data_fingerprint": data.fingerprint,
        "survivor": survivor if isinstance(survivor, str) else "values",
        "within": within,
    }
    if against is not None:
        manifest["against"] = {"path": against.path, "data_fingerprint": against.fingerprint}
    return Deduplication(pairs, rank, level=level, threshold=threshold, max_threshold=max_threshold, **manifest)


@dataclasses.dataclass(frozen=True)
class Question:
    """What is looked for, checked and with its defaults filled in."""

    options: Any
    threshold: float
    max_threshold: float


def ask(level: str, threshold: Any, most: Any, given: Mapping[str, Any]) -> Question:
    if level not in LEVELS:
        raise InputError(f"level: {level!r} is not one of {', '.join(LEVELS)}")
    options: Any = make_options(LEVELS[level].options, level, given)
    scale = options.bits / 64 if isinstance(options, PerceptualOptions) else 1.0
    limit = {"exact": 0, "perceptual": 64 * scale, "semantic": 2}[level]
    chosen = _number("threshold", LEVELS[level].threshold * scale if threshold is None else threshold, limit)
    if most is None:
        most = max(chosen, LEVELS[level].reach * scale)
    most = _number("max_threshold", most, limit)
    return Question(options, check_threshold(chosen, most), most)


def _number(name: str, value: Any, limit: float) -> float:
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if limit == 0 and value != 0:
        raise InputError(f"{name}: exact duplicates are at distance 0; leave it out")
    if not number or not 0 <= value <= limit:
        raise InputError(f"{name}: must be a number from 0 to {limit:g} at this level, not {value!r}")
    return float(value)


def survivor_rank(data: ImageDataset, survivor: Any) -> np.ndarray:
    """int64 [N]: the place of every image in the order in which images survive."""
    total = len(data)
    if isinstance(survivor, str):
        if survivor not in SURVIVORS:
            raise InputError(
                f"survivor: {survivor!r} is not one of {', '.join(SURVIVORS)}, or numbers (--survivor score:NAME "
                "or FILE.npy)"
            )
        pixels = data.widths.astype(np.int64) * data.heights
        size = data.table["length"].to_numpy()
        keys = {"resolution": (-size, -pixels), "size": (-pixels, -size), "first": ()}[survivor]
    else:
        values = np.asarray(as_numpy(survivor))
        if values.shape != (total,) or values.dtype.kind not in "biuf":
            raise InputError(
                f"survivor: {values.dtype} of shape {list(values.shape)} for {total} images; give a number each"
            )
        if not np.isfinite(values).all():
            raise InputError(f"survivor: {values[~np.isfinite(values)][0]} is among the values; they must be finite")
        keys = (-values.astype(np.float64),)
    rank = np.empty(total, dtype=np.int64)
    rank[np.lexsort((np.arange(total), *keys))] = np.arange(total)
    return rank


def _features(name: str, features: Any, data: ImageDataset) -> np.ndarray:
    if features is None:
        raise InputError(f"{name}: level 'semantic' compares features; pass {name}=prunefast.embed(...)")
    array = check_features(features)
    if len(array) != len(data):
        raise InputError(f"{name}: {len(array)} rows for {len(data)} images; embed this data set")
    return array
