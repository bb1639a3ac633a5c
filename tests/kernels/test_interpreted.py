"""The Triton kernels, run by Triton's interpreter on a CPU: words bit for bit, the rest against the float64 reference.

The interpreter is chosen by an environment variable that is read when Triton is imported, so the checks run in a
process of their own; each prints one line, and the tests here read them.
"""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

SCRIPT = """
import numpy as np, torch
from prunefast import ops
from prunefast.kernels import denoising_loss, philox
from prunefast.ops import reference

position = torch.tensor([0, 5, 2**40 + 1, -3])
CASES = ((0, 0, (4, 7)), (2**63 + 17, 2**31 + 5, (4, 3, 7, 11)), (1, 1, (4, 1)), (2**64 - 1, 3, (4, 1025)))
for seed, stream, shape in CASES:
    words = torch.empty(shape, dtype=torch.int64)
    philox.fill(words, seed, position, stream, "words")
    size = words[0].numel()
    worst = 0.0
    uniform, normal = torch.empty(shape), torch.empty(shape)
    philox.fill(uniform, seed, position, stream, "uniform")
    philox.fill(normal, seed, position, stream, "normal")
    same = True
    for i, place in enumerate(position.tolist()):
        for quad in range(min(3, (size + 3) // 4)):
            place64 = place % 2**64
            counter = (quad, stream, place64 & 0xFFFFFFFF, place64 >> 32)
            expected = reference.philox_words(counter, (seed & 0xFFFFFFFF, seed >> 32))
            got = words[i].flatten()[4 * quad : 4 * quad + 4].tolist()
            same &= got == expected[: len(got)]
        same &= (uniform[i].flatten().double().numpy() == reference.philox_uniform(size, seed, place, stream)).all()
        error = normal[i].flatten().double().numpy() - reference.philox_normal(size, seed, place, stream)
        worst = max(worst, np.abs(error).max())
    print("philox", bool(same), worst < 2e-6)

generator = torch.Generator().manual_seed(0)
for index, (shape, image) in enumerate((((2, 3, 8, 8), (8, 8)), ((3, 2, 5, 7), (9, 8)), ((2, 1, 1, 1030), (1, 1030)))):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for options in range(8):
            random, cut, last = options & 1, options & 2 or image != shape[2:], options & 4
            form = torch.channels_last if last else torch.contiguous_format
            pred = torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=form)
            x0 = torch.randint(0, 256, (*shape[:2], *image), generator=generator, dtype=torch.uint8)
            noise = torch.randn(shape, generator=generator)
            a, b, scale = torch.randn(3, shape[0], generator=generator)
            limits = (image[0] - shape[2] + 1, image[1] - shape[3] + 1)
            corner = torch.stack([torch.randint(0, limit, shape[:1], generator=generator) for limit in limits], 1)
            flip = torch.arange(shape[0]) % 2 == 0
            place = torch.arange(shape[0]) + 3
            gradient = torch.empty_like(pred)
            crop = (corner, flip) if cut else (None, None)
            source = (None, 7, place) if random else (noise, 0, None)
            per_sample = denoising_loss.per_sample_loss(pred, x0, *source, a, b, *crop, gradient, scale)
            if random:
                samples = [reference.philox_normal(noise[0].numel(), 7, int(p), 0) for p in place]
                noise = torch.from_numpy(np.stack(samples)).reshape(shape)
            clean = reference.mirror_and_cut(x0.numpy(), corner.numpy(), shape[2:], flip.numpy()) if cut else x0.numpy()
            arrays = (pred.double().numpy(), clean, noise.numpy(), a.numpy(), b.numpy())
            _, expected, slope = reference.denoising_loss(*arrays)
            slope = slope * pred.numel() / 2 * scale.double().numpy().reshape(-1, 1, 1, 1)
            value = np.allclose(per_sample.numpy(), expected, rtol=1e-5)
            tolerance = 4 * torch.finfo(dtype).eps
            right = np.allclose(gradient.double().numpy(), slope, rtol=tolerance, atol=1e-5)
            print("loss", bool(value), bool(right))
"""


@pytest.fixture(scope="module")
def lines():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


def test_philox(lines):
    results = [line[1:] for line in lines if line[0] == "philox"]
    assert results == [["True", "True"]] * 4


def test_denoising_loss(lines):
    results = [line[1:] for line in lines if line[0] == "loss"]
    assert results == [["True", "True"]] * 72
