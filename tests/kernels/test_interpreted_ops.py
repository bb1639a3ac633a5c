"""Distances, noising and the norm in Triton, run by its interpreter on a CPU, against the native core and float64.

As test_interpreted.py: in a process of its own. The interpreter multiplies float16 and float32 right (not bfloat16),
never in TF32, one program after the other: races and the hardware's rounding do not show here.
"""

import os
import subprocess
import sys

import numpy
import pytest

triton = pytest.importorskip("triton")


def version(module):
    return tuple(int(part) for part in module.__version__.split(".")[:2])


# Samples 2^30 elements apart, the last of three past 2^31: in a sparse file, of which only touched pages take memory.
FAR = """
import tempfile
import numpy as np, torch
def far(values):
    step = (1 << 30) + 8
    size = (2 * step + values[0].numel()) * values.element_size()
    flat = torch.from_numpy(np.memmap(tempfile.TemporaryFile(), dtype=np.uint8, mode="w+", shape=size))
    return flat.view(values.dtype).as_strided(values.shape, (step, *values.stride()[1:])).copy_(values)
"""

SEARCH = """
import torch
from prunefast.kernels import mahalanobis, nearest, topk
from prunefast.ops import native
nearest.EXACT_PROGRAMS, topk.SPARE = 3, 4
g = torch.Generator().manual_seed(0)
normal = lambda *shape: torch.randn(*shape, generator=g)
small = lambda *shape: torch.randint(0, 3, shape, generator=g).float()
# 64 rows are a tile; where every row stays unproven each takes a pass over y, so that few rows show as much
z, ties = normal(70, 65), small(66, 4)
three = normal(3, 37)
wide = normal(20, 90)[:, 3:40]
CASES = {
    "plain": (normal(70, 37), normal(150, 37)),
    "strided": (wide, normal(33, 90)[:, 5:42]),
    "offset": (normal(20, 37) * 0.01 + 1000, normal(45, 37) * 0.01 + 1000),
    "integers": (small(66, 5), small(90, 5)),
    "tiny": (normal(20, 37) * 1e-20, normal(15, 37) * 1e-20),
    "huge": (normal(20, 37) * 1e18, normal(15, 37) * 1e18),
    "overflow": (normal(20, 37) * 1e30, normal(25, 37) * 1e30),
    "unequal": (normal(20, 37) * 1e-6, normal(15, 37)),
    "outlier": (normal(20, 37), torch.cat([normal(30, 37), normal(1, 37) * 1e5])),
    "duplicates": (z, z),
    "column": (normal(17, 1), normal(13, 1)),
    "one": (normal(17, 3), normal(1, 3)),
    "equal": (torch.ones(5, 3), torch.ones(9, 3)),
    "far": (far(three), normal(13, 37)),
    "others far": (normal(13, 37), far(three)),
}
for name, (x, y) in CASES.items():
    for inner in (False, True):
        expected = native.topk(x, y, 1, inner, True, False)
        found = nearest.nearest(x, y, inner, True, False)
        print("nearest", name, inner, all(torch.equal(a, b) for a, b in zip(found, expected)))
        k = min(5, len(y))
        expected = native.topk(x, y, k, inner, True, False)
        found = topk.topk(x, y, k, inner, True, False)
        print("topk", name, inner, all(torch.equal(a, b) for a, b in zip(found, expected)))
for name, x in (("z", z), ("ties", ties)):
    expected = native.topk(x, x, 1, False, True, True)
    found = nearest.nearest(x, x, False, True, True)
    print("self", name, 1, all(torch.equal(a, b) for a, b in zip(found, expected)))
    expected = native.topk(x, x, 4, False, True, True)
    found = topk.topk(x, x, 4, False, True, True)
    print("self", name, 4, all(torch.equal(a, b) for a, b in zip(found, expected)))
x, y = CASES["plain"]
unproven, decide = [], topk.decide
topk.decide = lambda *arguments: (unproven.append(int(arguments[5])), decide(*arguments))
topk.topk(x, y, 5, False, True, False)
print("proven", "most", 5, len(unproven) == 1 and unproven[0] < len(x) // 5)
x = torch.randn(70, 37, generator=g, dtype=torch.float64)
factor = torch.linalg.cholesky(torch.cov(x.T) + torch.eye(37))
mean = x.mean(0)
expected = torch.linalg.solve_triangular(factor, (x - mean).T, upper=False).square().sum(0)
x = x.float()  # in place of x, also as float64, strided, and so far off that float32 would lose three digits
for shape, values in (("plain", x), ("wide", x.double()), ("strided", torch.cat([x, x], 1)[:, :37]), ("few", x[:3])):
    for offset in (0, 4096):
        values = values + offset
        mean = values.double().mean(0)
        centred = values.double() - mean
        expected = torch.linalg.solve_triangular(factor, centred.T, upper=False).square().sum(0)
        found = mahalanobis.squared_mahalanobis(values, mean, factor)
        close = ((found - expected) / expected).abs().max() < 1e-12
        print("mahalanobis", shape, offset, bool(close) and found.dtype == torch.float64)
"""

IMAGES = """
import torch
from prunefast.kernels.add_noise import add_noise
from prunefast.kernels.denoising_loss import per_sample_loss
from prunefast.kernels.group_norm_silu import group_norm_silu, group_norm_silu_backward
from prunefast.ops import native

g = torch.Generator().manual_seed(0)
for shape, image in (((2, 3, 8, 8), (8, 8)), ((3, 2, 5, 7), (9, 8)), ((2, 1, 1, 1030), (1, 1030))):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for options in range(16):
            random, cut, last, coordinates = options & 1, options & 2 or image != shape[2:], options & 4, options & 8
            x0 = torch.randint(0, 256, (*shape[:2], *image), generator=g, dtype=torch.uint8)
            noise, (alpha, sigma) = torch.randn(shape, generator=g), torch.randn(2, shape[0], generator=g)
            limits = (image[0] - shape[2] + 1, image[1] - shape[3] + 1)
            corner = torch.stack([torch.randint(0, limit, shape[:1], generator=g) for limit in limits], 1)
            flip, place = torch.arange(shape[0]) % 2 == 0, torch.arange(shape[0]) + 3
            source = (None, 7, place) if random else (noise, 0, None)
            crop = (corner, *shape[2:], flip) if cut else (None, *shape[2:], None)
            arguments = (x0, alpha, sigma, *source, *crop, bool(coordinates), dtype, bool(last))
            found, expected = add_noise(*arguments), native.add_noise(*arguments)
            tolerance = 4 * torch.finfo(dtype).eps
            close = torch.allclose(found, expected, rtol=tolerance, atol=1e-5)
            print("noise", close and found.stride() == expected.stride())
flat = (torch.randn(3, 11, generator=g), *torch.randn(2, 3, generator=g), torch.randn(3, 11, generator=g), 0, None)
flat += (None, 1, 1, None, False, torch.float32, False)
print("noise", torch.allclose(add_noise(*flat), native.add_noise(*flat), atol=1e-6))
pred, x0, noise = (torch.randn(3, 2, 5, 7, generator=g) for _ in range(3))
a, b = torch.randn(2, 3, generator=g)
sums, written, mixed = [], [], []
for place in (lambda values: values, far):
    sources = (place(x0), place(noise), 0, None)
    mixed.append(add_noise(sources[0], a, b, *sources[1:], None, 5, 7, None, False, torch.float32, False))
    written.append(place(torch.zeros_like(pred)))
    sums.append(per_sample_loss(place(pred), *sources, a, b, None, None, written[-1], b))
print("far", torch.equal(*mixed))
print("far", torch.equal(*sums))
print("far", torch.equal(*written))

for shape in ((3, 16, 5, 4), (2, 72, 9, 17), (2, 24, 1, 1)):
    for dtype in (torch.float32, torch.bfloat16):
        for options in range(4):
            form = torch.channels_last
            x, dy = ((torch.randn(shape, generator=g) * 2 + 1).to(dtype).contiguous(memory_format=form) for _ in "ab")
            weight, bias = torch.randn(2, shape[1], generator=g)
            modulation = torch.randn(2, *shape[:2], generator=g).unbind() if options & 1 else (None, None)
            silu, groups = bool(options & 2), 8
            y, mean, rstd = group_norm_silu(x, groups, weight, bias, *modulation, 1e-5, silu)
            found = (y, *group_norm_silu_backward(dy, x, mean, rstd, groups, weight, bias, *modulation, silu))
            leaves = [None if t is None else t.double().requires_grad_() for t in (x, weight, bias, *modulation)]
            z = torch.nn.functional.group_norm(leaves[0], groups, *leaves[1:3], 1e-5)
            if options & 1:
                z = z * (1 + leaves[3][..., None, None]) + leaves[4][..., None, None]
            z = torch.nn.functional.silu(z) if silu else z
            z.backward(dy.double())
            expected = [z.detach(), *(None if t is None else t.grad for t in leaves)]
            tolerance = 1.6e-2 if dtype == torch.bfloat16 else 2e-5
            for result, truth in zip(found, expected, strict=True):
                if truth is None:
                    print("norm", result.numel() == 0)
                    continue
                bound = tolerance * max(float(truth.abs().max()), 1e-3)
                print("norm", torch.allclose(result.double(), truth, rtol=tolerance, atol=bound))
"""


def lines_of(script):
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(
    version(triton) < (3, 7) and version(numpy) >= (2, 4),
    reason="Triton 3.6's interpreter cannot loop to a run-time bound with NumPy 2.4",
)
def test_distances():
    lines = lines_of(FAR + SEARCH)
    assert len(lines) == 15 * 4 + 4 + 1 + 8
    assert [line for line in lines if not line.endswith("True")] == []


def test_noising_and_norm():
    lines = lines_of(FAR + IMAGES)
    assert len(lines) == 3 * 3 * 16 + 1 + 3 + 3 * 2 * 4 * 6
    assert [line for line in lines if not line.endswith("True")] == []
