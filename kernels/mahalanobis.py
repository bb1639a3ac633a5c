"""Squared Mahalanobis distances on a GPU: |W (x - mean)|^2, W the inverse Cholesky factor: a product and a row norm.

The product runs in three TF32 parts (about float32 accuracy), so the result is good to some 1e-6 of itself times the
condition number of W: a screening, or a score where six digits do. `gaussian_log_likelihood` promises more and stays in
float64.
"""

import torch
import triton
import triton.language as tl

from .configs import choose


@triton.jit
def row_norm_kernel(
    x,
    mean,
    weight,
    out,
    rows,
    columns,
    row_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    depth = tl.arange(0, DEPTH)
    total = tl.zeros((ROWS,), tl.float32)
    for first in range(0, columns, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        there = column < columns
        white = tl.zeros((ROWS, COLUMNS), tl.float32)
        for k in range(0, tl.minimum(first + COLUMNS, columns), DEPTH):  # W is lower triangular
            mine = k + depth < columns
            a = tl.load(
                x + row[:, None] * row_stride + (k + depth)[None, :], mask=inside[:, None] & mine[None, :], other=0.0
            )
            a = tl.where(mine[None, :], a - tl.load(mean + k + depth, mask=mine, other=0.0)[None, :], 0.0)
            both = there[None, :] & mine[:, None]
            b = tl.load(weight + column[None, :].to(tl.int64) * columns + (k + depth)[:, None], mask=both, other=0.0)
            white = tl.dot(a, b, white, input_precision=PRECISION)
        total += tl.sum(white * white, 1)
    tl.store(out + row, total, mask=inside)


def squared_mahalanobis(x: torch.Tensor, mean: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Float32 [rows] of dense float32 x, with mean [columns] and the lower Cholesky factor [columns, columns]."""
    eye = torch.eye(factor.shape[0], dtype=torch.float64, device=x.device)
    weight = torch.linalg.solve_triangular(factor.double(), eye, upper=False).float().contiguous()
    out = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    tile = choose("mahalanobis", x.device)
    if x.shape[0]:
        row_norm_kernel[(triton.cdiv(x.shape[0], tile["rows"]),)](
            x,
            mean.float(),
            weight,
            out,
            x.shape[0],
            x.shape[1],
            x.stride(0),
            ROWS=tile["rows"],
            COLUMNS=tile["columns"],
            DEPTH=tile["depth"],
            PRECISION="tf32x3",
            num_warps=tile["num_warps"],
            num_stages=tile["num_stages"],
        )
    return out
