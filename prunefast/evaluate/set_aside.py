"""Which images of a coreset a training with `holdout = SHARE` leaves out: training and evaluation agree on them."""

import numpy as np
from numpy.typing import NDArray

from prunefast.data import ImageDataset
from prunefast.select import Coreset

_STREAM = 0x401D0  # + purpose: of the numbers that belong to held-out images


def seeded_order(count: int, seed: int, purpose: int) -> NDArray[np.int64]:
    """A permutation of `count` things. purpose: 0 what is set aside, 1 and 2 what is measured of either set."""
    return np.random.Generator(np.random.Philox(key=[seed, _STREAM + purpose])).permutation(count)


def set_aside(
    data: ImageDataset, coreset: Coreset, share: float, seed: int
) -> tuple[Coreset | None, NDArray[np.int64]]:
    """(the coreset without a random `share` of its images, the items int64 [n] set aside, ascending). None: none is
    left."""
    order, count = seeded_order(len(coreset), seed, 0), round(share * len(coreset))
    items, rows = coreset.indices[np.sort(order[:count])], np.sort(order[count:])
    if not len(rows):
        return None, items
    left = Coreset.from_indices(
        data,
        coreset.indices[rows],
        coreset.weights[rows],
        clusters=coreset.clusters,
        manifest={key: coreset.manifest[key] for key in ("method", "options", "direction", "seed")}
        | {"held_out": count},
    )
    return left, items
