"""How many images are kept: in all, per group, and which ones are forced.

Everything here is exact integer arithmetic on counts. A *group* is what a budget is split over: a class, a cluster, or
a cluster inside a class. Quotas of groups always sum to the budget of the whole.
"""

import heapq
from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import numpy as np

from prunefast.errors import InputError, InputTypeError
from prunefast.score.features import classes_of


def check_one_budget(keep: float | None, keep_n: int | None, threshold: float | None) -> None:
    """Exactly one of the three must be given."""
    given = [
        name for name, value in (("keep", keep), ("keep_n", keep_n), ("threshold", threshold)) if value is not None
    ]
    if len(given) != 1:
        found = " and ".join(given) if given else "none"
        raise InputError(f"budget: give exactly one of keep=, keep_n= and threshold=, not {found}")


def number_kept(total: int, keep: float | None, keep_n: int | None) -> int:
    """n of `total` images: `keep_n`, or keep * total rounded half up.

    `keep` counts as the decimal number it is printed as: 0.29 of 50 images is 14.5, so 15, although the float nearest
    to 0.29 is a little less.
    """
    if keep is not None:
        if isinstance(keep, bool) or not isinstance(keep, int | float | np.integer | np.floating):
            raise InputTypeError(f"keep: must be a number in (0, 1], not {keep!r}")
        if not 0 < keep <= 1:
            hint = f"; to keep {keep:g} images pass keep_n" if keep > 1 and float(keep).is_integer() else ""
            raise InputError(f"keep: must be in (0, 1], not {keep!r}{hint}")
        n = int((Decimal(str(keep)) * total).to_integral_value(ROUND_HALF_UP))
        if n < 1:
            raise InputError(f"keep: {keep!r} of {total} images is no image; raise it, or pass keep_n=1")
        return n
    if isinstance(keep_n, bool) or not isinstance(keep_n, int | np.integer):
        raise InputTypeError(f"keep_n: must be a whole number, not {keep_n!r}")
    if not 1 <= keep_n <= total:
        raise InputError(f"keep_n: must be between 1 and the number of images, {total}, not {keep_n}")
    return int(keep_n)


def index_mask(name: str, chosen: Any, total: int) -> np.ndarray:
    """bool [total] from indices or from a mask; None chooses nothing."""
    mask = np.zeros(total, dtype=bool)
    if chosen is None:
        return mask
    array = np.asarray(chosen)
    if array.ndim != 1:
        raise InputTypeError(f"{name}: must be a list of indices or a mask with one entry an image, not {array.shape}")
    if array.dtype == bool:
        if len(array) != total:
            raise InputError(f"{name}: the mask has {len(array)} entries for {total} images")
        return array.copy()
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise InputTypeError(f"{name}: must hold integers or booleans, not {array.dtype}")
    outside = (array < 0) | (array >= total)
    if outside.any():
        raise InputError(f"{name}: {array[outside][0]} is out of range for {total} images")
    mask[array.astype(np.int64)] = True
    return mask


def check_forced(must_keep: np.ndarray, must_drop: np.ndarray, n: int | None) -> None:
    """Refuse forced choices that contradict each other or the budget `n`."""
    both = must_keep & must_drop
    if both.any():
        raise InputError(f"must_keep, must_drop: image {int(both.argmax())} is in both; take it out of one")
    if n is None:
        return
    forced, allowed = int(must_keep.sum()), int((~must_drop).sum())
    if forced > n:
        raise InputError(f"must_keep: {forced} images are more than the budget of {n}; raise the budget")
    if allowed < n:
        raise InputError(f"must_drop: leaves {allowed} images for a budget of {n}; lower the budget")


def largest_remainder(counts: Sequence[int] | np.ndarray, n: int) -> np.ndarray:
    """Split `n` in proportion to `counts` (Hamilton's method): int64, sums to n exactly, never above a count.

    Every group gets the whole part of its share n * count / sum(counts); what is left goes one by one to the largest
    fractions, ties to the smaller group number. Needs n <= sum(counts).
    """
    counts = np.asarray(counts, dtype=np.int64)
    total = int(counts.sum())
    if total == 0:
        return np.zeros_like(counts)
    # Python integers where n * count would not fit 64 bits
    product = counts * n if int(counts.max()) * n < 2**62 else counts.astype(object) * n
    quota = (product // total).astype(np.int64)
    remainder = product % total
    left = n - int(quota.sum())
    order = np.argsort(-remainder, kind="stable")
    quota[order[:left]] += 1
    return quota


def proportional(counts: np.ndarray, n: int, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """`largest_remainder`, then moved into lower <= quota <= upper (forced and forbidden images) with the same sum.

    A group with more forced images than its quota keeps them all; what that costs is taken one by one from the groups
    that stand furthest above their proportional share, and what a group cannot use is given one by one to those
    furthest below it (ties to the smaller group number). Needs sum(lower) <= n <= sum(upper).
    """
    quota = np.clip(largest_remainder(counts, n), lower, upper)
    share = np.asarray(counts, dtype=np.float64) * n / max(int(np.sum(counts)), 1)
    missing = n - int(quota.sum())
    step = 1 if missing > 0 else -1
    bound = upper if missing > 0 else lower
    heap = [(step * (quota[g] - share[g]), g) for g in range(len(quota)) if quota[g] != bound[g]]
    heapq.heapify(heap)
    for _ in range(abs(missing)):
        distance, group = heapq.heappop(heap)
        quota[group] += step
        if quota[group] != bound[group]:
            heapq.heappush(heap, (distance + 1, group))
    return quota


def equal(n: int, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """The same number from every group, as far as `lower` <= quota <= `upper` allow; sums to n exactly.

    n // G each (the first n % G groups one more); what small groups cannot give is redistributed one by one to the
    group with the most spare capacity, ties to the smaller group number. Needs sum(lower) <= n <= sum(upper).
    """
    groups = len(upper)
    filled = int((upper > 0).sum())
    if filled == 0:
        return np.zeros(groups, dtype=np.int64)
    want = np.zeros(groups, dtype=np.int64)
    want[upper > 0] = n // filled
    want[np.flatnonzero(upper > 0)[: n % filled]] += 1
    quota = np.clip(want, lower, upper).astype(np.int64)
    missing = n - int(quota.sum())
    step = 1 if missing > 0 else -1
    spare = upper - quota if missing > 0 else quota - lower
    heap = [(-int(spare[g]), g) for g in range(groups) if spare[g] > 0]
    heapq.heapify(heap)
    for _ in range(abs(missing)):
        negative_spare, group = heapq.heappop(heap)
        quota[group] += step
        if negative_spare + 1 < 0:
            heapq.heappush(heap, (negative_spare + 1, group))
    return quota


def by_share(share: np.ndarray, n: int, lower: np.ndarray, upper: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """`n` in proportion to `share` float64 [G] (largest remainder, ties to the smaller group), exactly.

    InputError naming the group where one has fewer images than its share asks for (what to ask instead is said), or
    more that must be kept: a target that cannot be met is not met in secret.
    """
    exact = share / share.sum() * n
    quota = np.floor(exact).astype(np.int64)
    order = np.lexsort((np.arange(len(share)), -np.where(share > 0, exact - quota, -1.0)))
    quota[order[: n - int(quota.sum())]] += 1
    short = quota > upper
    if short.any():
        group = int(short.argmax())
        most = int(np.min(np.floor(upper[share > 0] / share[share > 0] * share.sum())))
        raise InputError(
            f"class_target: class {names[group]!r} has {upper[group]} images for a quota of {quota[group]}; "
            f"keep at most {most} images, or change the target"
        )
    forced = quota < lower
    if forced.any():
        group = int(forced.argmax())
        raise InputError(
            f"class_target: class {names[group]!r} has {lower[group]} images that must be kept for a quota of "
            f"{quota[group]}; keep more, or change the target"
        )
    return quota


def top_of_groups(
    scores: np.ndarray, groups: np.ndarray, quota: np.ndarray, must_keep: np.ndarray, must_drop: np.ndarray
) -> np.ndarray:
    """int64 [sum(quota)], sorted: from each group the forced images, then the highest scores; ties to the smallest
    index.

    scores float64 [N], groups integers [N] in 0 .. len(quota)-1. By partition, not by sorting: O(N) for each group's
    images, and a radix sort of the groups where there is more than one. Memory: 18 bytes an image.
    """
    kept, forced = must_keep.copy(), must_keep | must_drop
    none_forced = not forced.any()
    left = quota - np.bincount(groups[must_keep], minlength=len(quota))
    for group, positions in classes_of(groups, len(groups)):
        n = int(left[group])
        if n <= 0:
            continue
        free = positions if none_forced else positions[~forced[positions]]
        limit = _nth_highest(scores[free], n)
        above = scores[free] > limit
        kept[free[above]] = True
        kept[free[scores[free] == limit][: n - int(above.sum())]] = True
    return np.flatnonzero(kept)


def _nth_highest(values: np.ndarray, n: int) -> float:
    """Of `values`, which are shuffled."""
    values.partition(len(values) - n)
    return values[len(values) - n]
