"""PPCA score: log-likelihood under a Gaussian with q principal directions of its own and one variance for the rest.

score(z) = log N(z; mu, W diag(lambda_1..q) W' + s^2 (I - W W') + ridge I),   s^2 = mean of the other D - q eigenvalues

q is the smallest number of components that hold `variance` of the variance of the class, as instance selection
(DeVries et al. 2020, its density "ppca") has it, there with scikit-learn's divisor N - 1; here N, as for `gaussian`.
Keeps typical images, and is of use where a class has fewer images than features: the directions without data share one
variance instead of the ridge alone.

Time O(N D^2 + classes D^3) (a class with fewer images n than D: n^2 D), memory O(D^2 + one class in float64).
"""

from dataclasses import dataclass

import numpy as np

from prunefast import ops
from prunefast.errors import InputError
from prunefast.score.features import classes_of, rows_of


@dataclass(frozen=True)
class PpcaOptions:
    """variance    share of the variance that the components hold, in (0, 1); the source's 0.95
    components  their number, the same for every class, instead of `variance`
    ridge       added to every variance, in squared units of the features; decides where a class spans few dimensions
    """

    variance: float = 0.95
    components: int | None = None
    ridge: float = 1e-5

    def __post_init__(self) -> None:
        if not isinstance(self.variance, int | float) or not 0 < self.variance < 1:
            raise InputError(f"variance: must be a number in (0, 1), not {self.variance!r}")
        whole = isinstance(self.components, int) and not isinstance(self.components, bool)
        if self.components is not None and not (whole and self.components >= 1):
            raise InputError(f"components: must be a whole number, at least 1, not {self.components!r}")
        if not isinstance(self.ridge, int | float) or not 0 <= self.ridge < float("inf"):
            raise InputError(f"ridge: must be a finite number, at least 0, not {self.ridge!r}")


DIRECTION = "log-likelihood under the PPCA model of the class; typical images are kept"


def ppca_scores(features: np.ndarray, labels: np.ndarray | None, options: PpcaOptions) -> np.ndarray:
    """float64 [N]; one model a class, or one for everything where `labels` is None."""
    dimensions = features.shape[1]
    if dimensions < 2:
        raise InputError("features: ppca needs at least 2 dimensions; take method='gaussian'")
    scores = np.empty(len(features))
    for name, positions in classes_of(labels, len(features)):
        rows = rows_of(features, positions)
        where = "features" if labels is None else f"features of class {name}"
        if len(rows) < 2:
            raise InputError(f"{where}: {len(rows)} image; ppca needs at least 2; take method='gaussian'")
        try:
            scores[positions] = ops.ppca_log_likelihood(rows, _fit(rows, options), ridge=options.ridge)
        except (InputError, np.linalg.LinAlgError) as error:
            raise InputError(f"{where} ({len(rows)} images, {dimensions} dimensions): {error}") from None
    return scores


def _fit(rows: np.ndarray, options: PpcaOptions) -> ops.Ppca:
    """The model with as many components as the options ask for."""
    most = min(rows.shape[1], len(rows)) - 1
    if options.components is not None:
        return ops.fit_ppca(rows, components=options.components)
    full = ops.fit_ppca(rows, components=most)
    along = np.asarray(full.explained_variance)
    rest = float(full.noise_variance) * (rows.shape[1] - most)  # what the components left out hold together
    total = along.sum() + rest
    count = min(int(np.searchsorted(np.cumsum(along), options.variance * total)) + 1, most)
    noise = (along[count:].sum() + rest) / (rows.shape[1] - count)
    return ops.Ppca(full.mean, full.components[:count], along[:count], np.float64(noise))
