"""Frechet distance between Gaussians fitted to two sets of features.

    d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)          (Dowson and Landau 1982; FID: Heusel et al. 2017)

The usual way, a general matrix square root of S1 S2, turns complex or diverges where a covariance is singular, which is
the rule as soon as there are fewer images than features. With symmetric factors S = F F^T from an eigen-decomposition,
the eigenvalues of S1 S2 are the squared singular values of F1^T F2, so

    tr (S1 S2)^(1/2) = sum of the singular values of F1^T F2,

which is real, never negative and exact to rounding for singular covariances too: nothing is added to the diagonal.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from prunefast.errors import InputError
from prunefast.evaluate.features import as_features

BLOCK_ROWS = 8192  # rows made float64 at a time: 128 MiB for Inception's 2,048 features


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean float64 [D], covariance float64 [D, D] (divisor count - 1, as FID has it) and the number of images."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    count: int


def feature_statistics(features: ArrayLike | torch.Tensor, name: str = "features") -> FeatureStatistics:
    """Statistics of features [N, D], N >= 2, in float64 and two passes (mean first), a block of rows at a time."""
    x = as_features(name, features)
    count, dim = x.shape
    total = np.zeros(dim)
    for start in range(0, count, BLOCK_ROWS):
        total += x[start : start + BLOCK_ROWS].sum(axis=0, dtype=np.float64)
    mean = total / count
    scatter = np.zeros((dim, dim))
    for start in range(0, count, BLOCK_ROWS):
        centred = x[start : start + BLOCK_ROWS].astype(np.float64) - mean
        scatter += centred.T @ centred
    return FeatureStatistics(mean, scatter / (count - 1), count)


def frechet_distance(
    samples: ArrayLike | torch.Tensor | FeatureStatistics, reference: ArrayLike | torch.Tensor | FeatureStatistics
) -> float:
    """Squared Frechet distance (what is called "FID" with Inception features). 0 for equal sets; lower is better.

    samples, reference: features [N, D] and [M, D], or their `FeatureStatistics`. The number depends on N: with few
    images (N below some thousands, or N <= D) it is biased upward and compares only with others of the same N.
    """
    a = samples if isinstance(samples, FeatureStatistics) else feature_statistics(samples, "samples")
    b = reference if isinstance(reference, FeatureStatistics) else feature_statistics(reference, "reference")
    if a.mean.shape != b.mean.shape:
        raise InputError(
            f"samples: {a.mean.size} features, but the reference has {b.mean.size}; encode both with the same encoder"
        )
    for name, statistics in (("samples", a), ("reference", b)):
        if not (np.isfinite(statistics.mean).all() and np.isfinite(statistics.covariance).all()):
            raise InputError(f"{name}: the statistics hold NaN or infinity")
    difference = a.mean - b.mean
    traces = float(np.trace(a.covariance) + np.trace(b.covariance))
    overlap = np.linalg.svd(_factor(a.covariance).T @ _factor(b.covariance), compute_uv=False).sum()
    # rounding can leave -1e-13 for equal sets; a squared distance is never negative
    return max(0.0, float(difference @ difference) + traces - 2.0 * float(overlap))


def _factor(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """F [D, rank] with F F^T = covariance, without the directions that are zero to rounding."""
    eigenvalues, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    # A zero eigenvalue comes out as about eps * largest; its root, 1e-8 of the largest, would be noise that counts.
    largest = max(float(eigenvalues[-1]), 0.0)
    keep = eigenvalues > len(eigenvalues) * np.finfo(np.float64).eps * largest
    return vectors[:, keep] * np.sqrt(eigenvalues[keep])
