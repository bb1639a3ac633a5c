"""How varied are images among themselves: the Vendi score, an effective number of different ones.

exp of the entropy of the eigenvalues of K / n, with K_ij = the cosine of features i and j (Friedman & Dieng 2023): n
where all are orthogonal, 1 where all are the same. It grows with n, so compare sets of one size.
"""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from prunefast.errors import InputError
from prunefast.evaluate.features import as_features


def vendi_score(features: ArrayLike | torch.Tensor) -> float:
    """Of features [N, D]; the eigenvalues are those of the smaller of the N x N and the D x D side, in float64.

    Raises InputError for a row of zeros, which has no direction.
    """
    x = np.asarray(as_features("features", features, at_least=1), np.float64)
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    if not norms.all():
        raise InputError(f"features: row {int(np.argmin(norms))} is zero; the cosine has no value for it")
    x = x / norms
    side: NDArray[np.float64] = x.T @ x if len(x) > x.shape[1] else x @ x.T  # equal but for zeros
    values = np.linalg.eigvalsh(side / len(x))
    values = values[values > 0]
    return float(np.exp(-(values * np.log(values)).sum()))
