"""Prototype score: how far an image lies from the nearest self-supervised prototype.

score(z) = 1 - cos(z, nearest centroid),   centroids of spherical k-means over all images, no labels

Source: "Beyond neural scaling laws" (Sorscher et al. 2022), k-means in SwAV features; their finding: keep the hard
(far) images where data are plentiful, the easy (near) ones where they are scarce. `keep_hard=False` turns the score
round. k is the source's 1,000 for ImageNet and follows N below that (our choice). The floor under classes is an option
of the selection (`prunefast.select.prototypes`).

Time O(iterations N k D), memory one unit copy of the features, float32.
"""

from dataclasses import dataclass

import numpy as np

from prunefast.errors import InputError
from prunefast.score.clusters import ClustersOptions, cluster


@dataclass(frozen=True)
class PrototypesOptions:
    """k           prototypes; None: one per 1,000 images, at least 10 and at most 1,000
    iterations  Lloyd steps at most
    keep_hard   True: far from every prototype is high; False: near is
    """

    k: int | None = None
    iterations: int = 100
    keep_hard: bool = True

    def __post_init__(self) -> None:
        ClustersOptions(k=self.k, iterations=self.iterations)
        if not isinstance(self.keep_hard, bool):
            raise InputError(f"keep_hard: must be true or false, not {self.keep_hard!r}")


DIRECTION = "cosine distance to the nearest prototype; far (hard) images are kept, near ones with keep_hard=False"


def prototype_scores(
    features: np.ndarray, labels: np.ndarray | None, options: PrototypesOptions, seed: int
) -> np.ndarray:
    """float64 [N] in [0, 2], or in [-2, 0] for keep_hard=False."""
    clustering = ClustersOptions(k=options.k, iterations=options.iterations, spherical=True)
    found = cluster(features, labels, clustering, seed)
    far = np.square(found.distance) / 2  # of unit vectors: |a - b|^2 = 2 - 2 cos
    return far if options.keep_hard else -far
