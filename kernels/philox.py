"""Philox-4x32-10 and the normals of docs/ops/philox.md on a GPU: the words and the map of the CPU.

Logarithm, sine and cosine are the CPU's polynomials: with the hardware's lg2.approx the radius near u = 1 errs by 7e-4.
"""

import torch
import triton
import triton.language as tl

BLOCK_QUADS = 256  # 1,024 numbers a program: eight stores of 16 bytes a thread with four warps


@triton.jit
def philox_words(quad, stream, position, seed_low, seed_high):
    """Four words of each quad. `quad` and `position` int64; the other three are any integers, taken modulo 2^32."""
    zero = tl.zeros_like(quad)
    c0 = quad.to(tl.uint32)
    c1 = (zero + stream).to(tl.uint32)
    c2 = (zero + position).to(tl.uint32)
    c3 = (zero + (position >> 32)).to(tl.uint32)
    k0 = (zero + seed_low).to(tl.uint32)
    k1 = (zero + seed_high).to(tl.uint32)
    m0 = tl.full(c0.shape, 0xD2511F53, tl.uint32)
    m1 = tl.full(c0.shape, 0xCD9E8D57, tl.uint32)
    s0 = tl.full(c0.shape, 0x9E3779B9, tl.uint32)
    s1 = tl.full(c0.shape, 0xBB67AE85, tl.uint32)
    for _ in tl.static_range(10):
        high0 = tl.umulhi(m0, c0)
        high1 = tl.umulhi(m1, c2)
        low0 = m0 * c0
        low1 = m1 * c2
        c0 = high1 ^ c1 ^ k0
        c1 = low1
        c2 = high0 ^ c3 ^ k1
        c3 = low0
        k0 += s0
        k1 += s1
    return c0, c1, c2, c3


@triton.jit
def uniform(word):
    """(k + 1/2) / 2^23 of the upper 23 bits, exact."""
    return ((word >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07


@triton.jit
def radius(u):
    """sqrt(-2 ln u): exponent and atanh series of the mantissa, as csrc/cpu/kernels/philox.h."""
    offset = u.to(tl.int32, bitcast=True) - 0x3F3504F3
    exponent = (offset >> 23).to(tl.float32)
    mantissa = ((offset & 0x007FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True)
    below = mantissa - 1.0
    s = below / (below + 2.0)
    s2 = s * s
    series = (((0.1111111111111111 * s2 + 0.14285714285714285) * s2 + 0.2) * s2 + 0.3333333333333333) * s2 * s
    log = exponent * 0.693115234375 + (2.0 * (s + series) + exponent * 3.194618329871446e-05)
    return tl.sqrt(-2.0 * log)


@triton.jit
def turn(u):
    """cos and sin of 2 pi u by quarter turns, as csrc/cpu/kernels/philox.h."""
    quarters = u * 4.0
    q = (quarters + 0.5).to(tl.int32)
    r = quarters - q.to(tl.float32)
    r2 = r * r
    sine = r2 * 0.000160441184787359822
    sine = r2 * (sine - 0.00468175413531868810)
    sine = r2 * (sine + 0.0796926262461670451)
    sine = r2 * (sine - 0.645964097506246254)
    sine = r * (sine + 1.57079632679489662)
    cosine = r2 * -0.0000252020423730606054
    cosine = r2 * (cosine + 0.000919260274839426580)
    cosine = r2 * (cosine - 0.0208634807633529608)
    cosine = r2 * (cosine + 0.253669507901048014)
    cosine = r2 * (cosine - 1.23370055013616983)
    cosine = cosine + 1.0
    odd = (q & 1) == 1
    first = tl.where(odd, sine, cosine)
    second = tl.where(odd, cosine, sine)
    return tl.where(((q + 1) & 2) == 2, -first, first), tl.where((q & 2) == 2, -second, second)


@triton.jit
def in_order(z0, z1, z2, z3):
    """Four numbers of each quad -> one run, quad after quad."""
    return tl.interleave(tl.interleave(z0, z2), tl.interleave(z1, z3))


@triton.jit
def normals(quad, stream, position, seed_low, seed_high):
    """Standard normals of a block of quads, in order: four times as many as quads."""
    w0, w1, w2, w3 = philox_words(quad, stream, position, seed_low, seed_high)
    cosine0, sine0 = turn(uniform(w1))
    cosine1, sine1 = turn(uniform(w3))
    radius0 = radius(uniform(w0))
    radius1 = radius(uniform(w2))
    return in_order(radius0 * cosine0, radius0 * sine0, radius1 * cosine1, radius1 * sine1)


@triton.jit(do_not_specialize=["seed_low", "seed_high", "stream"])
def philox_kernel(
    out,
    position,
    elements,
    blocks,
    seed_low,
    seed_high,
    stream,
    NORMAL: tl.constexpr,
    WORDS: tl.constexpr,
    QUADS: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    sample = program // blocks
    block = program % blocks
    place = tl.load(position + sample)
    quad = block * QUADS + tl.arange(0, QUADS)
    if NORMAL:
        values = normals(quad, stream, place, seed_low, seed_high)
    else:
        w0, w1, w2, w3 = philox_words(quad, stream, place, seed_low, seed_high)
        if WORDS:
            values = in_order(w0.to(tl.int64), w1.to(tl.int64), w2.to(tl.int64), w3.to(tl.int64))
        else:
            values = in_order(uniform(w0), uniform(w1), uniform(w2), uniform(w3))
    element = block * QUADS * 4 + tl.arange(0, QUADS * 4)
    tl.store(out + sample * elements + element, values.to(out.dtype.element_ty), mask=element < elements)


def seed_words(seed: int) -> tuple[int, int]:
    """The halves of a 64-bit seed as signed 32-bit integers, so that every seed has one compiled kernel."""
    halves = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)
    low, high = (half - (1 << 32) if half >= 1 << 31 else half for half in halves)
    return low, high


def fill(out: torch.Tensor, seed: int, position: torch.Tensor, stream: int, kind: str) -> None:
    """Fill contiguous `out` [samples, ...] with "normal" or "uniform" numbers, or with "words" (int64)."""
    samples = out.shape[0]
    if out.numel() == 0:
        return
    elements = out.numel() // samples
    low, high = seed_words(seed)
    blocks = triton.cdiv(elements, BLOCK_QUADS * 4)
    signed_stream = stream - (1 << 32) if stream >= 1 << 31 else stream
    philox_kernel[(samples * blocks,)](
        out,
        position.contiguous(),
        elements,
        blocks,
        low,
        high,
        signed_stream,
        NORMAL=kind == "normal",
        WORDS=kind == "words",
        QUADS=BLOCK_QUADS,
    )
