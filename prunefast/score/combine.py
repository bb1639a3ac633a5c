"""Several scores as one: the weighted sum of their ranks within each class.

combined_i = sum_m weight_m rank_m(i) / sum_m |weight_m|,   rank in [0, 1]: 0 the lowest of the class, 1 the highest

Ranks, because scores have no common unit (a log-likelihood beside a caption length); ties share the mean of their
ranks, so that equal scores stay equal. A class with one image has rank 1/2. A negative weight turns a score round.
Time O(M N log N).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from prunefast.checks import as_numpy, check_labels
from prunefast.errors import InputError
from prunefast.score.features import classes_of

DIRECTION = "weighted mean of ranks; images that the parts rank high are kept"


def ranks(values: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
    """float64 [N] in [0, 1] within each group: 0 the lowest, 1 the highest, the mean rank for equal values."""
    result = np.empty(len(values))
    for _, positions in classes_of(groups, len(values)):
        _, place, count = np.unique(values[positions], return_inverse=True, return_counts=True)
        last = np.cumsum(count)
        middle = last - (count + 1) / 2
        result[positions] = middle[place] / (len(positions) - 1) if len(positions) > 1 else 0.5
    return result


def combine(scores: Mapping[str, Any], weights: Mapping[str, float] | None = None, labels: Any = None) -> np.ndarray:
    """float64 [N] in [-1, 1], higher = keep, from several scores [N], each higher = keep.

    weights  for each name, finite, not all 0; None: all 1
    labels   integers [N]: ranks within each class; None: over all images

        mixed = prunefast.score.combine({"gaussian": a, "aesthetic": b}, {"gaussian": 0.7, "aesthetic": 0.3})
    """
    if not scores:
        raise InputError("scores: none to combine")
    factor = check_weights(scores, weights)
    total = len(next(iter(scores.values())))
    groups = check_labels(labels, total)
    result = np.zeros(total)
    for name, given in scores.items():
        values = np.asarray(as_numpy(given), dtype=np.float64)
        if values.shape != (total,):
            raise InputError(f"scores: {name!r} has shape {list(values.shape)} where the first has {total}")
        if not np.isfinite(values).all():
            raise InputError(f"scores: {name!r} has NaN or infinity in row {int((~np.isfinite(values)).argmax())}")
        result += factor[name] * ranks(values, groups)
    return result / sum(map(abs, factor.values()))


def check_weights(names: Any, weights: Mapping[str, Any] | None) -> dict[str, float]:
    """A finite weight for each of `names`, not all 0."""
    given = dict.fromkeys(names, 1.0) if weights is None else dict(weights)
    for name in given:
        if name not in names:
            raise InputError(f"weights: {name!r} is no score here; there are {', '.join(names)}")
    for name in names:
        value = given.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise InputError(f"weights: {name!r} needs a finite number, not {value!r}")
    if not any(given.values()):
        raise InputError("weights: all are 0")
    return {name: float(given[name]) for name in names}
