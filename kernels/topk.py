"""The k nearest rows on a GPU, k up to 1,024: scores of some rows at a time, torch's selection, float64 decision.

As nearest.py, but the scores of a block of rows are written (at most SCORES of them, never all) and torch.topk selects
candidates from them. A row is proven when the worst score kept is below the k-th best by twice the rounding bound; the
few others become a list on the device, and are decided by `nearest.exact_kernel`. The host reads nothing back.
"""

import torch
import triton
import triton.language as tl

from .configs import choose
from .nearest import UNIT, Packed, decide, direct

SCORES = 1 << 26  # float32 scores at a time: 256 MB
SPARE = 32  # candidates beyond k


@triton.jit
def scores_kernel(
    x,
    y,
    start_score,
    scale,
    limits,
    out,
    rows,
    others,
    padded,
    first_row,
    SELF: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of scores, in units of the row's scale times y's. One dimension of programs: others end at 65,535."""
    tiles = tl.cdiv(others, COLUMNS)
    row = (tl.program_id(0) // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) % tiles * COLUMNS + tl.arange(0, COLUMNS)
    inside = row < rows
    there = column < others
    ratio = tl.load(scale + row, mask=inside, other=0.0) / tl.load(limits)
    start = tl.load(start_score + column, mask=there, other=0.0)
    score = ratio[:, None] * start[None, :]
    depth = tl.arange(0, DEPTH)
    column64 = column.to(tl.int64)
    for k in range(0, padded, DEPTH):
        a = tl.load(x + row[:, None] * padded + (k + depth)[None, :], mask=inside[:, None], other=0.0)
        b = tl.load(y + column64[None, :] * padded + (k + depth)[:, None], mask=there[None, :], other=0.0)
        score = tl.dot(a, b, score, input_precision=PRECISION)
    if SELF:
        score = tl.where((first_row + row)[:, None] == column64[None, :], float("-inf"), score)
    both = inside[:, None] & there[None, :]
    tl.store(out + row[:, None] * others + column64[None, :], score, mask=both)


def topk(
    x: torch.Tensor, y: torch.Tensor, k: int, inner: bool, certify: bool, exclude_self: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(index int64 [rows, k], distance float32 [rows, k]); rows of x and y are dense float32."""
    rows, others = x.shape[0], y.shape[0]
    index = torch.empty((rows, k), dtype=torch.int64, device=x.device)
    distance = torch.empty((rows, k), dtype=torch.float32, device=x.device)
    unproven = torch.zeros(rows, dtype=torch.bool, device=x.device)
    if rows == 0:
        return index, distance
    tile = choose("nearest", x.device)
    packed = Packed(y, inner, tile["depth"])
    step = max(1, min(rows, SCORES // others))
    keep = min(others, k + SPARE)
    for first in range(0, rows, step):
        block = x[first : first + step]
        half, length, scale = packed.pack(block, True)
        score = torch.empty((block.shape[0], others), dtype=torch.float32, device=x.device)
        scores_kernel[(triton.cdiv(block.shape[0], tile["rows"]) * triton.cdiv(others, tile["columns"]),)](
            half,
            packed.half,
            packed.start,
            scale,
            packed.limits,
            score,
            block.shape[0],
            others,
            packed.padded,
            first,
            SELF=exclude_self,
            ROWS=tile["rows"],
            COLUMNS=tile["columns"],
            DEPTH=tile["depth"],
            PRECISION="ieee",
            num_warps=tile["num_warps"],
            num_stages=tile["num_stages"],
        )
        best, candidate = torch.topk(score, keep, dim=1)
        part = slice(first, first + block.shape[0])
        if certify and keep < others:
            longest = packed.limits[1]
            product = length * longest
            bound = 0.000978 * product + 3.0e-8 * packed.padded**0.5 * (length + longest)
            ratio = scale / packed.limits[0]
            bound += 4 * UNIT * (packed.padded + 8) * (product + ratio * longest.square() / 2)
            unproven[part] = ~(best[:, -1] < best[:, k - 1] - 2 * bound)
        candidate = candidate.sort(1).values  # ascending, so that a stable sort gives ties to the smallest index
        exact = direct(block, y, candidate, inner, torch.float64)
        if exclude_self:
            own = torch.arange(first, first + block.shape[0], device=x.device)
            exact.masked_fill_(candidate == own[:, None], torch.inf)
        order = torch.sort(exact, dim=1, stable=True)
        index[part] = candidate.gather(1, order.indices[:, :k])
        distance[part] = order.values[:, :k].float()
    if certify and keep < others:
        undecided = torch.sort(unproven, descending=True, stable=True).indices
        decide(x, y, index, distance, undecided, unproven.sum(dtype=torch.int32), inner, exclude_self)
    return index, distance
