"""Selection by clusters: k-means, a quota for every cluster, and a rule which images of a cluster fill it.

Source: "Data Pruning in Generative Diffusion Models" (arXiv 2411.12523) and its follow-ups, where equal quotas did best
of all methods tried. `quota="proportional"` keeps the density of the data, `quota="equal"` flattens it (rare kinds of
images are kept, common ones thinned). Quotas sum to the budget exactly; see `budget.proportional` and `budget.equal`.
"""

from dataclasses import dataclass

import numpy as np

from prunefast.errors import InputError
from prunefast.score.clusters import Clustering, ClustersOptions
from prunefast.score.moderate import middle_scores
from prunefast.score.random import random_scores

_PICKS = {
    "nearest": "minus the distance to the own centroid; the nearest of every cluster are kept",
    "furthest": "the distance to the own centroid; the furthest of every cluster are kept",
    "middle": "nearness to the middle distance within the cluster; both tails of every cluster are dropped",
    "random": "uniform random numbers; the largest of every cluster are kept",
}
QUOTAS = ("proportional", "equal")


@dataclass(frozen=True)
class ClusterSelectionOptions(ClustersOptions):
    """quota  "proportional" to the cluster sizes, or "equal" for all clusters (those of one class, where per class)
    pick   which of a cluster: "nearest" to its centroid, "furthest", the "middle" band of distances, or "random"
    The rest as in `prunefast.score.clusters.ClustersOptions`.
    """

    quota: str = "proportional"
    pick: str = "nearest"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quota not in QUOTAS:
            raise InputError(f"quota: must be one of {', '.join(QUOTAS)}, not {self.quota!r}")
        if self.pick not in _PICKS:
            raise InputError(f"pick: must be one of {', '.join(_PICKS)}, not {self.pick!r}")

    @property
    def direction(self) -> str:
        return _PICKS[self.pick]


def pick_scores(found: Clustering, pick: str, seed: int) -> np.ndarray:
    """float64 [N], higher = keep, to be compared within a cluster."""
    if pick == "nearest":
        return -found.distance
    if pick == "furthest":
        return found.distance
    if pick == "middle":
        return middle_scores(found.distance, found.cluster)
    return random_scores(len(found.distance), seed)
