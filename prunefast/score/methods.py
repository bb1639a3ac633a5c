"""The registry of scores and the one function over it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from prunefast.checks import check_features, check_labels, check_seed
from prunefast.errors import InputError
from prunefast.score import clusters, coverage, gaussian, moderate, neighbours, ppca, prototypes, random
from prunefast.score.options import make_options
from prunefast.score.surrogate import SURROGATES, Checkpoints, surrogate_score

# (features or None, labels or None, rows, options, seed) -> float64 [rows]
ScoreFunction = Callable[[Any, np.ndarray | None, int, Any, int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to score. Higher = keep for every method without exception; `direction` says what that means here."""

    name: str
    function: ScoreFunction
    options: type
    direction: str
    needs_features: bool = True
    uses_classes: bool = True
    uses_graph: bool = False  # takes graph=; without one it builds its own

    def make_options(self, given: dict[str, Any]) -> Any:
        return make_options(self.options, self.name, given)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "random",
            lambda features, labels, rows, options, seed: random.random_scores(rows, seed),
            random.RandomOptions,
            random.DIRECTION,
            needs_features=False,
            uses_classes=False,
        ),
        Method(
            "gaussian",
            lambda features, labels, rows, options, seed: gaussian.gaussian_scores(features, labels, options),
            gaussian.GaussianOptions,
            gaussian.DIRECTION,
        ),
        Method(
            "moderate",
            lambda features, labels, rows, options, seed: moderate.moderate_scores(features, labels, options),
            moderate.ModerateOptions,
            moderate.DIRECTION,
        ),
        Method(
            "clusters",
            lambda features, labels, rows, options, seed: clusters.cluster_scores(features, labels, options, seed),
            clusters.ClustersOptions,
            clusters.DIRECTION,
        ),
        Method(
            "ppca",
            lambda features, labels, rows, options, seed: ppca.ppca_scores(features, labels, options),
            ppca.PpcaOptions,
            ppca.DIRECTION,
        ),
        Method(
            "knn",
            lambda features, labels, rows, options, seed: neighbours.knn_scores(features, labels, options, seed),
            neighbours.KnnOptions,
            neighbours.KNN_DIRECTION,
            uses_graph=True,
        ),
        Method(
            "density",
            lambda features, labels, rows, options, seed: neighbours.density_scores(features, labels, options, seed),
            neighbours.DensityOptions,
            neighbours.DENSITY_DIRECTION,
            uses_graph=True,
        ),
        Method(
            "prototypes",
            lambda features, labels, rows, options, seed: prototypes.prototype_scores(features, None, options, seed),
            prototypes.PrototypesOptions,
            prototypes.DIRECTION,
            uses_classes=False,
        ),
        Method(
            "coverage",
            lambda features, labels, rows, options, seed: coverage.coverage_scores(features, options, seed),
            coverage.CoverageOptions,
            coverage.DIRECTION,
            uses_classes=False,
        ),
    )
}


def find_method(name: str) -> Method:
    try:
        return METHODS[name]
    except (KeyError, TypeError):
        there = ", ".join([*METHODS, *SURROGATES])
        raise InputError(f"method: {name!r} is not a score; there are {there}") from None


def score(
    features: Any = None,
    labels: Any = None,
    *,
    method: str = "gaussian",
    per_class: bool = True,
    seed: int = 0,
    data: Any = None,
    checkpoint: Checkpoints | None = None,
    **options: Any,
) -> Any:
    """A score for every image: float64 [N], higher = keep; NumPy in gives NumPy, a torch tensor gives a tensor.

    features   [N, D] floating point, finite. For "random" anything with N rows will do.
    labels     integers [N]; needed where `per_class`
    method     "gaussian", "ppca" (log-likelihood), "knn", "density" (nearness of neighbours), "moderate" (middle of the
               distances), "clusters" (minus the distance to the own centroid), "prototypes" (distance to the nearest of
               all centroids), "coverage", "random"; `prunefast.score.METHODS` has them with their options
    per_class  fit a Gaussian, a prototype, clusters or neighbours to each class by itself; False: one for everything.
               "prototypes", "coverage" and "random" do not look at classes
    data, checkpoint   for scores from a trained diffusion model ("loss", "difficulty", "forgetting", "el2n", "grand",
               "moso"), in place of features and labels: `prunefast.score.surrogate.surrogate_score`
    options    of the method, such as ridge=1e-5 for "gaussian"

    Raises InputError/InputTypeError for bad features, labels or options, before any work.

        scores = prunefast.score(features, data.labels, method="gaussian")
        scores = prunefast.score(data=data, checkpoint="run", method="loss")
    """
    if method in SURROGATES:
        if features is not None or labels is not None or data is None:
            raise InputError(f"data: {method!r} looks at images; give data= and checkpoint= instead of features")
        return surrogate_score(data, checkpoint, method=method, seed=seed, **options)
    chosen = find_method(method)
    if data is not None or checkpoint is not None:
        raise InputError(f"checkpoint: means nothing to {method!r}; it is for {', '.join(SURROGATES)}")
    made = chosen.make_options(options)
    seed = check_seed(seed)
    array = check_features(features) if chosen.needs_features else None
    rows = len(features)
    checked = check_labels(labels, rows)
    if per_class and chosen.uses_classes and checked is None:
        raise InputError(f"labels: {method!r} per class needs the labels; pass labels, or per_class=False")
    result = chosen.function(array, checked if per_class else None, rows, made, seed)
    if hasattr(features, "detach"):
        import torch

        return torch.from_numpy(result).to(features.device)
    return result
