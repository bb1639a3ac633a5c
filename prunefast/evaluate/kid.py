"""Kernel distance ("KID" with Inception features): unbiased squared MMD with a cubic kernel (Binkowski et al. 2018).

    k(x, y) = (x.y / D + 1)^3
    MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

Unlike the Frechet distance it has no bias from the number of images, so it may come out slightly negative for equal
distributions. It is averaged over blocks drawn without replacement, and their spread is reported.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from prunefast.errors import InputError
from prunefast.evaluate.features import as_feature_pair

DEGREE = 3  # of the polynomial, written out in _kernel
BLOCKS = 100  # as torch-fidelity
BLOCK_SIZE = 1000  # as torch-fidelity


@dataclass(frozen=True)
class KernelDistance:
    """Mean and standard deviation over blocks. `standard_deviation` is that of one block, not of the mean."""

    mean: float
    standard_deviation: float
    blocks: int
    block_size: int


def kernel_distance(
    samples: ArrayLike | torch.Tensor,
    reference: ArrayLike | torch.Tensor,
    *,
    blocks: int = BLOCKS,
    block_size: int | None = None,
    seed: int = 0,
) -> KernelDistance:
    """KID of features [N, D] against [M, D], N and M >= 4.

    block_size: images of each set in a block; default min(1000, half the smaller set), so that blocks of a small set
    still differ and their spread means something. Lower is better; 0 is a perfect match.
    """
    x, y = as_feature_pair(samples, reference, at_least=4)
    smaller = min(len(x), len(y))
    if block_size is None:
        block_size = min(BLOCK_SIZE, smaller // 2)
    if not 2 <= block_size <= smaller:
        raise InputError(f"block_size: {block_size} is not between 2 and the {smaller} images of the smaller set")
    if blocks < 1:
        raise InputError(f"blocks: {blocks} is not at least 1")
    values = np.empty(blocks)
    for block in range(blocks):
        # keyed by the block, so that 100 blocks begin with the same 10 that 10 blocks have
        generator = np.random.Generator(np.random.Philox(key=[seed, block]))
        rows = np.sort(generator.choice(len(x), size=block_size, replace=False))
        columns = np.sort(generator.choice(len(y), size=block_size, replace=False))
        values[block] = squared_mmd(np.asarray(x[rows], np.float64), np.asarray(y[columns], np.float64))
    return KernelDistance(float(values.mean()), float(values.std()), blocks, block_size)


def squared_mmd(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """The unbiased estimate on float64 [n, D] and [m, D], n and m >= 2, without blocks."""

    def off_diagonal_mean(z: NDArray[np.float64]) -> float:
        kernel = _kernel(z, z)
        return float((kernel.sum() - np.trace(kernel)) / (len(z) * (len(z) - 1)))

    return off_diagonal_mean(x) + off_diagonal_mean(y) - 2.0 * float(_kernel(x, y).mean())


def _kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    kernel = x @ y.T
    kernel /= x.shape[1]
    kernel += 1.0
    return kernel * kernel * kernel  # the power function takes twenty times as long
