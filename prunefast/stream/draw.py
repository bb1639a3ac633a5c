"""Class weights at the loader: what each class counts for, as a factor of the loss or as how often it is drawn.

Both have the same expected objective, sum over classes of weight_c x mean loss of class c:

    in the loss     every image is drawn equally often, and one of class c weighs weight_c / p_c, where p_c is the share
                    of class c among the images of the coreset
    in the sampler  an image of class c is drawn weight_c / p_c times as often, and weighs 1

The sampler draws an epoch of n images by systematic resampling (Kitagawa 1996): with E_c = n (weight_0 + ... +
weight_c) and one uniform number u an epoch, class c gets floor(E_c + u) - floor(E_{c-1} + u) images. So the counts sum
to n, each is within one of n weight_c in every epoch and equal to it in expectation. Inside a class the images take
turns: in one epoch, the counts of two of them differ by one at most. Everything is a function of (seed, epoch).
"""

import hashlib
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from prunefast.diffusion.loss import distribution
from prunefast.errors import InputError, InputTypeError
from prunefast.stream.order import EpochOrder, epoch_order, raw_bits

DRAW_STREAM = 6  # the highest counter word, beside ORDER_STREAM

Place = Literal["loss", "sampler"]
PLACES: tuple[Place, ...] = ("loss", "sampler")


@dataclass(frozen=True, eq=False)
class ClassDraw:
    """groups int64 [n]: the class (or cluster) of each image of a coreset; weights float64 [C], summing to 1, 0 for a
    class without images."""

    groups: np.ndarray
    weights: np.ndarray

    @property
    def shares(self) -> np.ndarray:
        """p_c, float64 [C]."""
        return np.bincount(self.groups, minlength=len(self.weights)) / len(self.groups)

    def image_factors(self) -> np.ndarray:
        """weight_c / p_c of each image's class, float64 [n]; their mean is 1."""
        return (self.weights / np.maximum(self.shares, 1e-300))[self.groups]

    def digest(self) -> str:
        return hashlib.sha256(self.groups.tobytes() + self.weights.tobytes()).hexdigest()[:16]


def make_draw(class_weights: Any, groups: Any, indices: np.ndarray) -> ClassDraw:
    """class_weights: a simplex [C] in any form `DenoisingLoss` takes. groups: integers [N], the class of every image of
    the data set. A class with a weight but without an image in the coreset is left out, with a warning: the others
    share its weight in proportion."""
    weights = distribution("class_weights", class_weights)
    mine = check_groups(groups, indices)
    if mine.max() >= len(weights):
        raise InputError(f"class_weights: {len(weights)} weights, and an image of class {int(mine.max())}")
    empty = np.bincount(mine, minlength=len(weights)) == 0
    lost = float(weights[empty].sum())
    if lost >= 1:
        raise InputError("class_weights: only classes without images have a weight; nothing would be drawn")
    if lost > 0:
        names = ", ".join(map(str, np.flatnonzero(empty & (weights > 0))[:5].tolist()))
        warnings.warn(
            f"class_weights: no image of class {names} is in the coreset; the others share its weight ({lost:.3g})",
            stacklevel=3,
        )
    kept = np.where(empty, 0.0, weights)
    return ClassDraw(mine, kept / kept.sum())


def check_groups(groups: Any, indices: np.ndarray) -> np.ndarray:
    """The groups [N] of the images at `indices`, int64 [n], none negative."""
    if groups is None:
        raise InputError("class_weights: the images have no classes; give groups (clusters of a coreset, for example)")
    array = np.asarray(groups)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputTypeError(f"groups: must be integers [N], not {array.dtype} of shape {list(array.shape)}")
    if len(array) <= indices.max():
        raise InputError(f"groups: has {len(array)} entries; give one for every image of the data set")
    mine = array[indices].astype(np.int64)
    if mine.min() < 0:
        raise InputError("groups: must not be negative; number them from 0")
    return mine


def draw_fingerprint(fingerprint: str, draw: ClassDraw) -> str:
    """Of a stream whose order depends on the draw too: a saved position belongs to both. 32 hex digits."""
    return hashlib.sha256(f"{fingerprint} {draw.digest()}".encode()).hexdigest()[:32]


class WeightedOrder(EpochOrder):
    """Items of 0..n-1 by position, drawn by class: an epoch has n images, some of them more than once."""

    def __init__(self, draw: ClassDraw, seed: int, shuffle: bool):
        if not shuffle:
            raise InputError("shuffle=False: class weights in the sampler draw at random; leave shuffle out")
        super().__init__(len(draw.groups), seed, shuffle)
        self._draw = draw
        self._images = np.bincount(draw.groups, minlength=len(draw.weights))
        self._first = np.cumsum(self._images) - self._images  # of each class, in an order sorted by class

    def _make(self, epoch: int) -> np.ndarray:
        bits = raw_bits(self.n + 1, self.seed, epoch, DRAW_STREAM)
        counts = systematic_counts(self._draw.weights, self.n, float(bits[0] >> np.uint64(11)) * 2.0**-53)
        by_class = np.lexsort((bits[1:], self._draw.groups))  # inside each class in random order
        drawn = np.repeat(np.arange(len(counts)), counts)
        turn = np.arange(self.n) - np.repeat(np.cumsum(counts) - counts, counts)
        items = by_class[self._first[drawn] + turn % np.maximum(self._images[drawn], 1)]
        return items[epoch_order(self.n, self.seed, epoch)].astype(np.int64)


def systematic_counts(weights: np.ndarray, n: int, u: float) -> np.ndarray:
    """int64 [C] summing to n, each within one of n * weights; u in [0, 1)."""
    ends = n * np.cumsum(weights)
    ends[np.flatnonzero(weights)[-1] :] = n  # the sum may miss 1 by a rounding
    ends = np.minimum(np.floor(ends + u), n)  # n + u rounds to n + 1 for the largest u
    return np.diff(ends.astype(np.int64), prepend=0)
