"""The nearest row on a GPU: screened by tensor cores in float16, proven by a bound, decided by float64 differences.

    score s_ij = x_i y_j - |y_j|^2 / 2 on centred rows; its largest value marks the nearest row

1. `pack_kernel` centres rows, scales them by powers of two so that float16 holds them, and keeps their lengths. Float16
   rounds eight times finer than bfloat16 at the same speed, and the scaling takes away its narrow range.
2. `score_kernel` starts its accumulator at -|y|^2 / 2: a tile costs a product and one max-with-index. It keeps the
   best score, its column and the runner-up. A row whose margin is above twice the rounding bound is done; others enter
   a list that stays on the device, with its length.
3. `distance_kernel` writes the float64 direct distance of each row's pick.
4. `exact_kernel` walks that list: float32 direct differences of every column, whose relative error is known, and
   float64 ones for those tiles that could hold the nearest row. So duplicates and ties end right, only slower.

The host reads nothing back. Sizes are run-time arguments, so nothing recompiles for a new N, K or D.
"""

import torch
import triton
import triton.language as tl

from .configs import choose

EXACT_PROGRAMS = 1024  # that share the list of unproven rows
UNIT = 2.0**-24  # half a unit in the last place of float32


@triton.jit
def pack_kernel(
    x,
    centre,
    half,
    length,
    scale,
    row_stride,
    columns,
    padded,
    common_scale,
    OWN_SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row: float16((x - centre) scale), |x - centre| scale, and scale, a power of two."""
    row = tl.program_id(0).to(tl.int64)
    limit = tl.load(common_scale)
    largest = tl.full((), 0.0, tl.float32)
    square = tl.full((), 0.0, tl.float64)
    for start in range(0, padded, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < columns
        value = tl.load(x + row * row_stride + column, mask=inside, other=0.0)
        value = tl.where(inside, value - tl.load(centre + column, mask=inside, other=0.0), 0.0)
        largest = tl.maximum(largest, tl.max(tl.abs(value), 0))
        square += tl.sum(value.to(tl.float64) * value.to(tl.float64), 0)
    times = limit
    if OWN_SCALE:
        # 2^-e with e the exponent of the largest value: from its bits, so exactly; at most 1,024 times the common one
        exponent = (largest.to(tl.int32, bitcast=True) >> 23) & 0xFF
        own = (tl.minimum(tl.maximum(253 - exponent, 1), 254) << 23).to(tl.float32, bitcast=True)
        times = tl.minimum(own, limit * 1024.0)
    for start in range(0, padded, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < columns
        value = tl.load(x + row * row_stride + column, mask=inside, other=0.0)
        value = tl.where(inside, value - tl.load(centre + column, mask=inside, other=0.0), 0.0)
        tl.store(half + row * padded + column, (value * times).to(tl.float16), mask=column < padded)
    tl.store(length + row, (tl.sqrt(square) * times.to(tl.float64)).to(tl.float32))
    tl.store(scale + row, times)


@triton.jit
def score_kernel(
    x,
    y,
    start_score,
    length,
    scale,
    limits,
    index,
    undecided,
    count,
    rows,
    others,
    padded,
    slack,
    CERTIFY: tl.constexpr,
    SELF: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """ROWS rows of x against all of y. limits: scale of y, largest length of y, both of packed values."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    ratio = tl.load(scale + row, mask=inside, other=0.0) / tl.load(limits)
    best = tl.full((ROWS,), float("-inf"), tl.float32)
    second = tl.full((ROWS,), float("-inf"), tl.float32)
    place = tl.zeros((ROWS,), tl.int32)
    depth = tl.arange(0, DEPTH)
    for first in range(0, others, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        there = column < others
        start = tl.load(start_score + column, mask=there, other=float("-inf"))
        score = ratio[:, None] * start[None, :]
        score = tl.where(there[None, :], score, float("-inf"))
        column64 = column.to(tl.int64)
        for k in range(0, padded, DEPTH):
            a = tl.load(x + row[:, None] * padded + (k + depth)[None, :], mask=inside[:, None], other=0.0)
            b = tl.load(y + column64[None, :] * padded + (k + depth)[:, None], mask=there[None, :], other=0.0)
            score = tl.dot(a, b, score, input_precision=PRECISION)
        if SELF:
            score = tl.where(row[:, None] == column64[None, :], float("-inf"), score)
        top, where = tl.max(score, 1, return_indices=True)
        if CERTIFY:
            rest = tl.where(tl.arange(0, COLUMNS)[None, :] == where[:, None], float("-inf"), score)
            second = tl.maximum(tl.maximum(second, tl.max(rest, 1)), tl.minimum(best, top))
        better = top > best
        place = tl.where(better, first + where, place)
        best = tl.maximum(best, top)
    tl.store(index + row, place.to(tl.int64), mask=inside)
    if CERTIFY:
        # |error of a score| <= bound: rounding of both operands to float16 (2^-11 each, 2^-25 where subnormal), the
        # product's float32 sums (padded + 8 terms), the start value.
        longest = tl.load(limits + 1)
        mine = tl.load(length + row, mask=inside, other=0.0)
        product = mine * longest
        bound = 0.000978 * product + 3.0e-8 * tl.sqrt(padded.to(tl.float32)) * (mine + longest)
        bound += slack * (product + ratio * longest * longest * 0.5)
        unproven = inside & (best - second <= 2.0 * bound)
        ones = unproven.to(tl.int32)
        slot = tl.atomic_add(count, tl.sum(ones, 0)) + tl.cumsum(ones, 0) - ones
        tl.store(undecided + slot, row, mask=unproven)


@triton.jit
def exact_kernel(
    x,
    y,
    index,
    distance,
    undecided,
    count,
    row_stride,
    y_row_stride,
    others,
    columns,
    each,
    unit,
    INNER: tl.constexpr,
    SELF: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Rows of the list, one at a time: the `each` smallest float64 direct distances, ties to the smallest index. Each
    has a pass of its own over y, for the smallest of what comes after the last one."""
    depth = tl.arange(0, DEPTH)
    for i in range(tl.program_id(0), tl.load(count), tl.num_programs(0)):
        row = tl.load(undecided + i)
        last = tl.full((), float("-inf"), tl.float64)
        last_place = tl.full((), -1, tl.int64)
        for n in range(0, each):
            best = tl.full((), float("inf"), tl.float64)
            place = tl.full((), 0, tl.int64)
            for first in range(0, others, COLUMNS):
                column = (first + tl.arange(0, COLUMNS)).to(tl.int64)
                there = column < others
                if SELF:
                    there = there & (column != row)
                quick = tl.zeros((COLUMNS,), tl.float32)
                size = tl.zeros((COLUMNS,), tl.float32)
                for k in range(0, columns, DEPTH):
                    mine = k + depth < columns
                    a = tl.load(x + row * row_stride + k + depth, mask=mine, other=0.0)
                    both = there[:, None] & mine[None, :]
                    b = tl.load(y + column[:, None] * y_row_stride + (k + depth)[None, :], mask=both, other=0.0)
                    if INNER:
                        term = a[None, :] * b
                        quick -= tl.sum(term, 1)
                        size += tl.sum(tl.abs(term), 1)
                    else:
                        difference = a[None, :] - b
                        quick += tl.sum(difference * difference, 1)
                if not INNER:
                    size = quick
                # |quick - true| <= unit * sum of |terms|, so this is never above the truth (underflow: the last term)
                least = tl.where(size < float("inf"), quick - unit * size - 1.0e-37, float("-inf"))
                least = tl.where(there, least, float("inf"))
                if tl.min(least, 0).to(tl.float64) <= best:
                    total = tl.zeros((COLUMNS,), tl.float64)
                    for k in range(0, columns, DEPTH):
                        mine = k + depth < columns
                        a = tl.load(x + row * row_stride + k + depth, mask=mine, other=0.0).to(tl.float64)
                        both = there[:, None] & mine[None, :]
                        at = y + column[:, None] * y_row_stride + (k + depth)[None, :]
                        b = tl.load(at, mask=both, other=0.0).to(tl.float64)
                        if INNER:
                            total -= tl.sum(a[None, :] * b, 1)
                        else:
                            total += tl.sum((a[None, :] - b) * (a[None, :] - b), 1)
                    later = (total > last) | ((total == last) & (column > last_place))
                    total = tl.where(there & later, total, float("inf"))
                    smallest = tl.min(total, 0)
                    where = tl.min(tl.where(total == smallest, column, 9223372036854775807), 0)
                    better = smallest < best
                    place = tl.where(better, where, place)
                    best = tl.minimum(best, smallest)
            tl.store(index + row * each + n, place)
            tl.store(distance + row * each + n, best.to(tl.float32))
            last = best
            last_place = place


@triton.jit
def distance_kernel(
    x,
    y,
    index,
    distance,
    row_stride,
    y_row_stride,
    total,
    each,
    columns,
    INNER: tl.constexpr,
    PAIRS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Float64 direct distance of PAIRS pairs: row pair // each of x, row index[pair] of y."""
    pair = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    inside = pair < total
    row = pair // each
    other = tl.load(index + pair, mask=inside, other=0)
    depth = tl.arange(0, DEPTH)
    sum = tl.zeros((PAIRS,), tl.float64)
    for k in range(0, columns, DEPTH):
        both = inside[:, None] & (k + depth < columns)[None, :]
        a = tl.load(x + row[:, None] * row_stride + (k + depth)[None, :], mask=both, other=0.0).to(tl.float64)
        b = tl.load(y + other[:, None] * y_row_stride + (k + depth)[None, :], mask=both, other=0.0).to(tl.float64)
        if INNER:
            sum -= tl.sum(a * b, 1)
        else:
            sum += tl.sum((a - b) * (a - b), 1)
    tl.store(distance + pair, sum.to(distance.dtype.element_ty), mask=inside)


def direct(x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, inner: bool, dtype: torch.dtype) -> torch.Tensor:
    """Direct distances of rows of x to rows `index` [rows, each] of y."""
    result = torch.empty(index.shape, dtype=dtype, device=x.device)
    if result.numel():
        distance_kernel[(triton.cdiv(index.numel(), 32),)](
            x,
            y,
            index,
            result,
            x.stride(0),
            y.stride(0),
            index.numel(),
            index.shape[1],
            x.shape[1],
            INNER=inner,
            PAIRS=32,
            DEPTH=64,
        )
    return result


class Packed:
    """Rows of y ready for the score, and what rows of x need to be packed beside them."""

    def __init__(self, y: torch.Tensor, inner: bool, depth: int):
        self.padded = triton.cdiv(y.shape[1], depth) * depth
        self.centre = torch.zeros_like(y[0]) if inner else y.mean(0, dtype=torch.float64).float()
        largest = (y - self.centre).abs().amax().clamp(2.0**-100, 2.0**100)
        # 2^-e as in the kernel: the largest value becomes 1 .. 2, and no sum of float16 products leaves float32
        self.common = torch.exp2(-torch.floor(torch.log2(largest))).reshape(1)
        self.half, self.length, _ = self.pack(y, False)
        start = torch.zeros_like(self.length) if inner else self.length.double().square().mul(-0.5).float()
        self.start = start
        self.limits = torch.cat([self.common, self.length.amax().reshape(1)])

    def pack(self, rows: torch.Tensor, own_scale: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(float16 [rows, padded], lengths, scales)."""
        half = torch.empty((rows.shape[0], self.padded), dtype=torch.float16, device=rows.device)
        length, scale = torch.empty((2, rows.shape[0]), dtype=torch.float32, device=rows.device)
        pack_kernel[(rows.shape[0],)](
            rows,
            self.centre,
            half,
            length,
            scale,
            rows.stride(0),
            rows.shape[1],
            self.padded,
            self.common,
            OWN_SCALE=own_scale,
            BLOCK=512,
        )
        return half, length, scale


def nearest(
    x: torch.Tensor, y: torch.Tensor, inner: bool, certify: bool, exclude_self: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(index int64 [rows, 1], distance float32 [rows, 1]); rows of x and y are dense float32."""
    rows, others = x.shape[0], y.shape[0]
    index = torch.empty((rows, 1), dtype=torch.int64, device=x.device)
    if rows == 0:
        return index, index.float()
    tile = choose("nearest", x.device)
    packed = Packed(y, inner, tile["depth"])
    half, length, scale = packed.pack(x, True)
    undecided = torch.empty(rows, dtype=torch.int64, device=x.device)
    count = torch.zeros(1, dtype=torch.int32, device=x.device)
    score_kernel[(triton.cdiv(rows, tile["rows"]),)](
        half,
        packed.half,
        packed.start,
        length,
        scale,
        packed.limits,
        index,
        undecided,
        count,
        rows,
        others,
        packed.padded,
        4 * UNIT * (packed.padded + 8),
        CERTIFY=certify,
        SELF=exclude_self,
        ROWS=tile["rows"],
        COLUMNS=tile["columns"],
        DEPTH=tile["depth"],
        PRECISION="ieee",
        num_warps=tile["num_warps"],
        num_stages=tile["num_stages"],
    )
    distance = direct(x, y, index, inner, torch.float32)
    if certify:
        decide(x, y, index, distance, undecided, count, inner, exclude_self)
    return index, distance


def decide(
    x: torch.Tensor,
    y: torch.Tensor,
    index: torch.Tensor,
    distance: torch.Tensor,
    undecided: torch.Tensor,
    count: torch.Tensor,
    inner: bool,
    exclude_self: bool,
) -> None:
    """Index and distance [rows, k] anew, by float64 differences, for the first `count` rows of the list `undecided`."""
    exact_kernel[(EXACT_PROGRAMS,)](
        x,
        y,
        index,
        distance,
        undecided,
        count,
        x.stride(0),
        y.stride(0),
        y.shape[0],
        x.shape[1],
        index.shape[1],
        UNIT * (x.shape[1] + 8),
        INNER=inner,
        SELF=exclude_self,
        COLUMNS=64,
        DEPTH=32,
    )
