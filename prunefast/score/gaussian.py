"""Gaussian score: log-likelihood of an image's features under a Gaussian fitted to its class.

score(z) = -1/2 [ (z - mu)^T S^-1 (z - mu) + ln|S| + D ln 2 pi ],   S = covariance of the class (divisor N) + ridge I

Source: instance selection (DeVries et al. 2020), taken up for diffusion models by "Pruning then Reweighting"
(arXiv 2409.19128). Keeps typical images: fidelity rises, diversity falls. The full covariance is singular in a class
with fewer images than features, and there the ridge decides; 1e-5 is what instance selection used.

Time O(N D^2 + classes D^3), memory O(D^2 + one class).
"""

from dataclasses import dataclass

import numpy as np

from prunefast import ops
from prunefast.errors import InputError
from prunefast.score.features import classes_of, rows_of


@dataclass(frozen=True)
class GaussianOptions:
    """ridge: added to every variance; in squared units of the features. Raise it where a class has few images."""

    ridge: float = 1e-5

    def __post_init__(self) -> None:
        if not isinstance(self.ridge, int | float) or not 0 <= self.ridge < float("inf"):
            raise InputError(f"ridge: must be a finite number, at least 0, not {self.ridge!r}")


DIRECTION = "log-likelihood under the Gaussian of the class; typical images are kept"


def gaussian_scores(features: np.ndarray, labels: np.ndarray | None, options: GaussianOptions) -> np.ndarray:
    """float64 [N]; one Gaussian a class, or one for everything where `labels` is None."""
    scores = np.empty(len(features))
    for name, positions in classes_of(labels, len(features)):
        rows = rows_of(features, positions)
        where = "features" if labels is None else f"features of class {name}"
        try:
            score = ops.gaussian_log_likelihood(rows, ops.fit_gaussian(rows), ridge=options.ridge)
        except (InputError, np.linalg.LinAlgError) as error:
            raise InputError(
                f"{where} ({len(positions)} images, {features.shape[1]} dimensions): the covariance cannot be inverted "
                f"with ridge={options.ridge:g}; raise ridge [{error}]"
            ) from None
        score = np.asarray(score, dtype=np.float64)
        if not np.isfinite(score).all():
            raise InputError(f"{where}: the likelihood is not finite with ridge={options.ridge:g}; raise ridge")
        scores[positions] = score
    return scores
