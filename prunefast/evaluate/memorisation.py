"""Does the model copy its training images? Nearest-neighbour distances of samples, in feature space.

Let T be the training images (the coreset), H images of the same kind that were not trained on (those the coreset left
out), and d(s, A) the Euclidean distance of sample s to its nearest image in A.

ratio_median   median over samples of d(s, T') / d(s, H'), where T' and H' are seeded subsets of T and H of one size
               (a larger set has nearer neighbours by its size alone). About 1: samples are as near to images never
               trained on. Well below 1: they hug the training images; that is copying, or a coreset that lies elsewhere
               in feature space than what it left out, so compare with a random coreset before accusing the model.
copied_share   share of samples with d(s, T) <= q, where q is the a-th percentile (a = 1 by default) of the distances
               d(t, T without t) of training images to their nearest other training image. Fresh images of T's
               distribution give about a %; a multiple of that is memorisation. It uses all of T, and needs no H.

novelty        share of samples with d(s, T) above the median of d(t, T without t): about half of fresh images of T's
               distribution; few where samples crowd around training images, nearly all where they lie elsewhere. Beside
               it mean and median of d(s, T), as Briq et al. 2024 report them.

Distances are those of the encoder that is named in the protocol; a crop or a colour shift may be far away in pixels and
near in a network's features.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from prunefast import ops
from prunefast.errors import InputError
from prunefast.evaluate.features import as_features, seeded_subset

PERCENTILE = 1.0
CLOSEST = 8  # pairs kept for the report: enough to judge by eye


@dataclass(frozen=True)
class Memorisation:
    """Result of `memorisation`; distances in feature units, `None` where there is nothing to compare with.

    nearest_train_median   median of d(s, T); `nearest_train_mean` its mean
    novelty                see the module's text; `training_nearest_median` = median of d(t, T without t)
    ratio_median           see the module's text; `ratio_images` = size of T' and H'
    copied_share           in [0, 1]; `copied_share_expected` = a / 100; `copied_distance` = q
    closest                (sample, training row, distance), nearest first: rows of the arrays that were given
    """

    nearest_train_median: float
    nearest_held_out_median: float | None
    ratio_median: float | None
    ratio_images: int | None
    copied_share: float
    copied_share_expected: float
    copied_distance: float
    novelty: float
    nearest_train_mean: float
    training_nearest_median: float
    closest: tuple[tuple[int, int, float], ...]

    def as_dict(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "closest"}


def memorisation(
    samples: ArrayLike | torch.Tensor,
    training: ArrayLike | torch.Tensor,
    held_out: ArrayLike | torch.Tensor | None = None,
    *,
    percentile: float = PERCENTILE,
    seed: int = 0,
) -> Memorisation:
    """Features of samples [N, D], of the training images [T, D] (T >= 2), of images not trained on [H, D] or None."""
    if not 0.0 < percentile < 100.0:
        raise InputError(f"percentile: {percentile} is not between 0 and 100")
    x = np.ascontiguousarray(as_features("samples", samples, at_least=1), np.float32)
    train = np.ascontiguousarray(as_features("training", training), np.float32)
    if train.shape[1] != x.shape[1]:
        raise InputError(f"training: {train.shape[1]} features, but the samples have {x.shape[1]}")
    index, to_train = _nearest(x, train)
    _, squared = ops.topk(train, train, 1, exclude_self=True)
    within = np.sqrt(np.asarray(squared, np.float64))
    limit, usual = float(np.percentile(within, percentile)), float(np.median(within))
    order = np.argsort(to_train, kind="stable")[:CLOSEST]

    held_out_median = ratio = None
    size = None
    other = (
        None if held_out is None else np.ascontiguousarray(as_features("held_out", held_out, at_least=0), np.float32)
    )
    if other is not None and len(other) > 0:
        if other.shape[1] != x.shape[1]:
            raise InputError(f"held_out: {other.shape[1]} features, but the samples have {x.shape[1]}")
        size = min(len(train), len(other))
        # the subsets are drawn apart: the same rows of two sets in one order would not be independent
        _, near = _nearest(x, train[seeded_subset(len(train), size, seed, purpose=1)])
        _, far = _nearest(x, other[seeded_subset(len(other), size, seed, purpose=2)])
        held_out_median = float(np.median(far))
        ratio = _median_ratio(near, far)

    return Memorisation(
        nearest_train_median=float(np.median(to_train)),
        nearest_held_out_median=held_out_median,
        ratio_median=ratio,
        ratio_images=size,
        # "<=", so that copies count even where duplicates in the training set make q = 0
        copied_share=float((to_train <= limit).mean()),
        copied_share_expected=percentile / 100.0,
        copied_distance=limit,
        novelty=float((to_train > usual).mean()),
        nearest_train_mean=float(to_train.mean()),
        training_nearest_median=usual,
        closest=tuple((int(i), int(index[i]), float(to_train[i])) for i in order),
    )


def _nearest(x: NDArray[np.float32], y: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    index, squared = ops.nearest(x, y)
    return np.asarray(index), np.sqrt(np.asarray(squared, np.float64))


def _median_ratio(near: NDArray[np.float64], far: NDArray[np.float64]) -> float | None:
    """Median of near / far; 0 / 0 (a sample equal to an image of both) counts as 1. None where it is infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where((near == 0) & (far == 0), 1.0, near / far)
    median = float(np.median(ratios))
    return median if np.isfinite(median) else None
