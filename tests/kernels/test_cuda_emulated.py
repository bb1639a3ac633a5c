"""The CUDA kernels compiled as plain C++ and run on the CPU, whole calls against the float64 reference.

What this shows: arithmetic, indexing, launch sizes, the order of sums. What it cannot show: races, the rounding of the
device's own instructions, speed (csrc/cuda/emulation.h).
"""

import importlib.util
import itertools
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pybind11
import pytest
import torch

from prunefast.ops import cuda, native, reference

SOURCE = Path(__file__).parents[2] / "csrc"
compiler = shutil.which("g++")
pytestmark = pytest.mark.skipif(compiler is None, reason="needs g++")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


def build(folder, compiler):
    includes = [SOURCE / name for name in ("include", "common", "cpu", "cuda", "bindings")]
    flags = ["-std=c++17", "-O1", "-g0", "-fPIC", "-ffp-contract=off", "-fvisibility=hidden", "-Wno-unknown-pragmas"]
    flags += [f"-I{path}" for path in (*includes, pybind11.get_include(), sysconfig.get_paths()["include"])]
    sources = [*sorted((SOURCE / "cuda").glob("*.cu")), SOURCE / "cuda/emulation.cpp", SOURCE / "bindings/cuda.cpp"]
    objects = [folder / f"{source.name}.o" for source in sources]

    def compile_one(job):
        source, target = job
        command = [compiler, *flags, "-x", "c++", "-c", str(source), "-o", str(target)]
        return subprocess.run(command, capture_output=True, text=True)

    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(compile_one, zip(sources, objects, strict=True)):
            assert done.returncode == 0, done.stderr
    module = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run([compiler, "-shared", "-o", str(module), *map(str, objects)], check=True)
    spec = importlib.util.spec_from_file_location("_cuda", module)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    return build(tmp_path_factory.mktemp("emulated"), compiler)


@pytest.fixture(autouse=True)
def on_cpu(module, monkeypatch):
    monkeypatch.setattr(cuda, "kernels", lambda: module)
    monkeypatch.setattr(cuda, "place", lambda tensor: (0, 0))


def test_philox_is_the_cores_bits():
    position = torch.tensor([0, 5, 2**40 + 1, -3])
    for seed, stream, size in ((0, 0, 28), (2**63 + 17, 2**31 + 5, 924), (1, 1, 1), (2**64 - 1, 3, 9001)):
        for kind in (native.UNIFORM, native.NORMAL):
            for dtype in (torch.float32, torch.bfloat16, torch.float16)[: 1 if kind == native.UNIFORM else 3]:
                mine, core = torch.full((2, 4, size), torch.nan, dtype=dtype)
                cuda.philox(kind, mine, seed, position, stream)
                native.philox(kind, core, seed, position, stream)
                assert torch.equal(mine, core)
        words = torch.zeros(4, size, dtype=torch.int32)
        cuda.philox(native.WORDS, words, seed, position, stream)
        for row, place in zip(words, position.tolist(), strict=True):
            counter = (0, stream, place & 0xFFFFFFFF, place >> 32 & 0xFFFFFFFF)
            expected = reference.philox_words(counter, (seed & 0xFFFFFFFF, seed >> 32))
            assert [int(w) & 0xFFFFFFFF for w in row[:4]] == expected[: len(row)]


def images(shape, image, dtype, x0_dtype, last, seed=0):
    generator = torch.Generator().manual_seed(seed)
    form = torch.channels_last if last else torch.contiguous_format
    pred = torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=form)
    if x0_dtype == torch.uint8:
        x0 = torch.randint(0, 256, (*shape[:2], *image), generator=generator, dtype=torch.uint8)
    else:
        x0 = torch.randn((*shape[:2], *image), generator=generator).to(x0_dtype)
    noise = torch.randn(shape, generator=generator)
    numbers = torch.randn(5, shape[0], generator=generator)
    limits = (image[0] - shape[2] + 1, image[1] - shape[3] + 1)
    corner = torch.stack([torch.randint(0, limit, shape[:1], generator=generator) for limit in limits], 1)
    flip = torch.arange(shape[0]) % 2 == 0
    return pred, x0.contiguous(memory_format=form), noise.contiguous(memory_format=form), numbers, corner, flip


SHAPES = [
    ((2, 3, 8, 8), (8, 8)),  # whole groups
    ((3, 2, 5, 7), (9, 8)),  # nothing divides
    ((2, 4, 4, 12), (6, 13)),
    ((2, 1, 1, 1030), (1, 1030)),
    ((1, 3, 64, 60), (64, 60)),  # more than one block
    ((2, 5, 1, 1), (3, 2)),
]
CHOICES = list(itertools.product([torch.float32, torch.bfloat16, torch.float16], [False, True], [False, True]))


@pytest.mark.parametrize(("shape", "image"), SHAPES)
@pytest.mark.parametrize(("dtype", "random", "last"), CHOICES)
def test_denoising_loss(shape, image, dtype, random, last):
    for x0_dtype, noise_dtype in (
        (torch.uint8, torch.float32),
        (torch.float32, torch.float16),
        (dtype, torch.bfloat16),
    ):
        pred, x0, noise, (a, b, scale, weight, limit), corner, flip = images(shape, image, dtype, x0_dtype, last)
        noise = noise.to(noise_dtype)
        cut = tuple(image) != shape[2:] or x0_dtype == torch.float32
        place = torch.arange(shape[0]) + 3
        labels = torch.arange(shape[0]) % 3
        source = (None, 7, place) if random else (noise, 0, None)
        crop = (corner, flip) if cut else (None, None)
        loss, per_sample, gradient, excess, count = cuda.denoising_loss(
            pred, x0, *source, a, b, weight, labels, 11, limit, *crop, scale
        )
        if random:
            samples = [reference.philox_normal(noise[0].numel(), 7, int(p), 0) for p in place]
            noise = torch.from_numpy(np.stack(samples)).reshape(shape)
        clean = x0 if x0.dtype == torch.uint8 else x0.double()
        clean = reference.mirror_and_cut(clean.numpy(), corner.numpy(), shape[2:], flip.numpy()) if cut else clean
        arrays = (pred.double(), clean, noise.double(), a, b, weight)
        total, expected, slope = reference.denoising_loss(*map(np.asarray, arrays))
        residual = slope * pred.numel() / 2 / weight.double().numpy().reshape(-1, 1, 1, 1)
        np.testing.assert_allclose(per_sample, expected, rtol=1e-5)
        np.testing.assert_allclose(loss, total, rtol=1e-5, atol=1e-6)
        wanted = residual * scale.double().numpy().reshape(-1, 1, 1, 1)
        np.testing.assert_allclose(gradient.double(), wanted, rtol=TOLERANCE[dtype], atol=1e-5)
        wanted = reference.class_excess(expected, labels.tolist(), 11, limit.double().numpy())
        np.testing.assert_allclose(excess, wanted[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(count, wanted[1])
        assert gradient.stride() == pred.stride()
        without = cuda.denoising_loss(pred, x0, *source, a, b, None, None, 0, None, *crop, None)
        assert torch.equal(without[1], per_sample)
        assert without[2].numel() == 0


def test_loss_of_operands_without_a_common_order():
    pred, x0, noise, (a, b, scale, *_), *_ = images((3, 4, 8, 8), (8, 8), torch.float32, torch.float32, False)
    plain = cuda.denoising_loss(pred, x0, noise, 0, None, a, b, None, None, 0, None, None, None, scale)
    wide = torch.zeros(3, 4, 8, 17)[..., 1::2]
    wide.copy_(x0)  # every second value, not aligned
    form = torch.channels_last
    other = cuda.denoising_loss(
        pred, wide, noise.contiguous(memory_format=form), 0, None, a, b, None, None, 0, None, None, None, scale
    )
    for first, second in zip(plain, other, strict=True):
        assert torch.equal(first, second)
    one = cuda.denoising_loss(pred, x0[:1].expand_as(x0), noise, 0, None, a, b, None, None, 0, None, None, None, None)
    assert one[1][0] == plain[1][0]


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_offsets_past_2_to_the_31(far, cut, last):
    pred, x0, noise, (a, b, scale, *_), corner, flip = images(
        (3, 2, 5, 7), (9, 8) if cut else (5, 7), torch.float32, torch.float32, last
    )
    crop = (corner, flip) if cut else (None, None)
    results = []
    for place in (lambda values: values, far):
        loss = (place(pred), place(x0), place(noise), 0, None, a, b, None, None, 0, None, *crop, scale)
        mixed = (place(x0), a, b, place(noise), 0, None, crop[0], 5, 7, crop[1], False, torch.float32, last)
        results.append((*cuda.denoising_loss(*loss), cuda.add_noise(*mixed)))
    for near, apart in zip(*results, strict=True):
        assert torch.equal(near, apart)


def test_class_sums_past_2_to_the_31(far):
    x, labels = torch.randn(3, 65, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 0, 1])
    assert torch.equal(cuda.class_sums(far(x), labels, 2)[0], cuda.class_sums(x, labels, 2)[0])


def test_boxes_outside_are_moved_inside():
    pred, x0, noise, (a, b, *_), corner, _ = images((3, 2, 5, 7), (9, 8), torch.float32, torch.uint8, False)
    corner[:] = torch.tensor([[-4, 0], [100, 1], [2, 2**40]])
    inside = torch.tensor([[0, 0], [4, 1], [2, 1]])
    wrong, right = (
        cuda.denoising_loss(pred, x0, noise, 0, None, a, b, None, None, 0, None, c, None, None)[1]
        for c in (corner, inside)
    )
    assert torch.equal(wrong, right)


def test_nan_passes_and_wrong_labels_count_nowhere():
    pred, x0, noise, (a, b, *_), *_ = images((4, 3, 8, 8), (8, 8), torch.float32, torch.uint8, False)
    pred[1, 0, 0, 0] = torch.nan
    labels = torch.tensor([0, 1, 2, 99])
    loss, per_sample, _, excess, count = cuda.denoising_loss(
        pred, x0, noise, 0, None, a, b, None, labels, 3, None, None, None, None
    )
    assert loss.isnan()
    assert per_sample.isnan().tolist() == [False, True, False, False]
    assert excess.isnan().tolist() == [False, True, False]
    assert count.tolist() == [1, 1, 1]


@pytest.mark.parametrize(("shape", "image"), SHAPES)
@pytest.mark.parametrize(("dtype", "random", "last"), CHOICES)
def test_add_noise(shape, image, dtype, random, last):
    for x0_dtype, coordinates in itertools.product((torch.uint8, torch.float32), (False, True)):
        _, x0, noise, (alpha, sigma, *_), corner, flip = images(shape, image, dtype, x0_dtype, last)
        cut = tuple(image) != shape[2:] or x0_dtype == torch.uint8
        place = torch.arange(shape[0]) + 3
        source = (None, 7, place) if random else (noise, 0, None)
        crop = (corner, *shape[2:], flip) if cut else (None, *shape[2:], None)
        mixed = (x0, alpha, sigma, *source, *crop, coordinates, dtype, last)
        result, core = cuda.add_noise(*mixed), native.add_noise(*mixed)
        assert result.stride() == core.stride()
        assert torch.equal(result, core)  # the CPU's bits, which its own tests compare with float64


@pytest.mark.parametrize(
    ("rows", "columns", "classes"), [(0, 3, 2), (1, 1, 1), (300, 65, 7), (1000, 128, 3), (64, 132, 200)]
)
def test_class_sums(rows, columns, classes):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, columns + 4, generator=generator)[:, 4:]
    labels = torch.randint(0, classes, (rows,), generator=generator)
    sums, counts = cuda.class_sums(x, labels, classes)
    expected, number = native.class_sums(x, labels, classes)
    np.testing.assert_allclose(sums, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(counts, number)


def norm_reference(x, groups, weight, bias, scale, shift, eps, silu):
    y = torch.nn.functional.group_norm(x, groups, weight, bias, eps)
    if scale is not None:
        y = y * (1 + scale[..., None, None]) + shift[..., None, None]
    return torch.nn.functional.silu(y) if silu else y


@pytest.mark.parametrize("shape", [(3, 16, 5, 4), (2, 64, 16, 17), (1, 2304, 2, 3), (2, 24, 1, 1), (2, 8, 40, 41)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("silu", [False, True])
def test_group_norm_silu(shape, dtype, modulated, silu):
    generator = torch.Generator().manual_seed(0)
    form = torch.channels_last
    x, gradient = (
        (torch.randn(shape, generator=generator) * 2 + 1).to(dtype).contiguous(memory_format=form) for _ in "ab"
    )
    weight, bias = torch.randn(2, shape[1], generator=generator)
    scale, shift = torch.randn(shape[0], 2 * shape[1], generator=generator).to(dtype).chunk(2, 1)
    modulation = (scale, shift) if modulated else (None, None)
    for groups in (1, 4, 8):
        y, mean, rstd = cuda.group_norm_silu(x, groups, weight, bias, *modulation, 1e-5, silu)
        leaves = [None if t is None else t.double().requires_grad_() for t in (x, weight, bias, *modulation)]
        expected = norm_reference(leaves[0], groups, *leaves[1:], 1e-5, silu)
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(y.double(), expected.detach(), rtol=tolerance, atol=tolerance)
        grouped = x.double().reshape(shape[0], groups, -1)
        torch.testing.assert_close(mean.double(), grouped.mean(2), rtol=1e-6, atol=1e-6)
        results = cuda.group_norm_silu_backward(gradient, x, mean, rstd, groups, weight, bias, *modulation, silu)
        expected.backward(gradient.double())
        for name, result, leaf in zip(("x", "weight", "bias", "scale", "shift"), results, leaves, strict=True):
            if leaf is None:
                assert result.numel() == 0
                continue
            slack = tolerance if name == "x" else 2e-5
            bound = slack * float(leaf.grad.abs().max())
            torch.testing.assert_close(result.double(), leaf.grad, rtol=slack, atol=max(bound, 1e-5), msg=name)


def test_a_large_offset_costs_the_norm_no_digits():
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(2, 8, 16, 16, generator=generator) + 1000).contiguous(memory_format=torch.channels_last)
    ones, zeros = torch.ones(8), torch.zeros(8)
    y, *_ = cuda.group_norm_silu(x, 2, ones, zeros, None, None, 1e-5, False)
    expected = torch.nn.functional.group_norm(x.double(), 2)
    assert float((y.double() - expected).abs().max()) < 2e-4  # the float32 offset of the multiply-add: 1000 ulp
