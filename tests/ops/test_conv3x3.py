"""The 3 x 3 convolution by Winograd's method against the float64 formula, and beside torch's bfloat16 convolution."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from prunefast import ops
from prunefast.errors import InputError, InputTypeError
from prunefast.ops import reference

module = sys.modules["prunefast.ops.conv3x3"]  # the package exports the function of that name
fast = pytest.mark.skipif(not module._available, reason="this processor, or PRUNEFAST_ISA, has no AVX512-BF16")

LAST = torch.channels_last


def case(samples, inputs, outputs, height, width, mean=0.0, seed=0):
    """x and an upstream gradient in bfloat16, weight and bias in float32."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    x = (normal(samples, inputs, height, width) + mean).bfloat16().contiguous(memory_format=LAST)
    weight = (normal(outputs, inputs, 3, 3) / (3 * inputs**0.5)).contiguous(memory_format=LAST)
    upstream = normal(samples, outputs, height, width).bfloat16().contiguous(memory_format=LAST)
    return x, weight, normal(outputs), upstream


def with_gradients(convolve, x, weight, bias, upstream):
    """y and the gradients of x, weight and bias."""
    arguments = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, weight, bias)]
    y = convolve(*arguments)
    return [y.detach(), *torch.autograd.grad(y, arguments, upstream.to(y.dtype))]


def torchs(x, weight, bias):
    return F.conv2d(x, weight.to(x.dtype), bias.to(x.dtype), padding=1)


def error(mine, truth):
    return float((mine.double() - truth).norm() / truth.norm())


# Of ours by torch's, both against float64 and the same inputs: the weights torch rounds once, the tiles Winograd does.
WORSE = {"y": 2.0, "x": 2.0, "weight": 4.0, "bias": 1.0}


@fast
@pytest.mark.parametrize("mean", [0.0, 3.0, 30.0])
@pytest.mark.parametrize("shape", [(2, 64, 96, 8, 8), (3, 32, 32, 5, 7), (1, 160, 64, 4, 4), (8, 128, 128, 16, 16)])
def test_error_beside_torchs(shape, mean):
    inputs = case(*shape, mean=mean)
    assert module.can_speed_up(*inputs[:3])
    truth = with_gradients(torchs, *(t.double() for t in inputs))
    ours, theirs = with_gradients(ops.conv3x3, *inputs), with_gradients(torchs, *inputs)
    for name, mine, peers, right in zip(("y", "x", "weight", "bias"), ours, theirs, truth, strict=True):
        assert mine.shape == right.shape
        assert mine.dtype == peers.dtype
        assert error(mine, right) <= WORSE[name] * error(peers, right) + 1e-6, name
    assert ours[0].is_contiguous(memory_format=LAST)
    assert ours[1].is_contiguous(memory_format=LAST)


def test_formula_of_the_fallback():
    x, weight, bias, _ = case(2, 5, 3, 6, 4)
    result = ops.conv3x3(x.double(), weight, bias)
    np.testing.assert_allclose(result, reference.conv3x3(x.double(), weight, bias), rtol=1e-12, atol=1e-12)


@fast
def test_values():
    x, weight, bias, _ = case(2, 32, 64, 6, 5)
    result = ops.conv3x3(x, weight, bias)
    expected = reference.conv3x3(x.double(), weight, bias)
    np.testing.assert_allclose(result.double(), expected, atol=0.03 * float(np.abs(expected).max()))
    bare = ops.conv3x3(x, weight)
    np.testing.assert_allclose(bare.double(), expected - bias.double().numpy()[:, None, None], atol=0.1)


@fast
@settings(deadline=None, max_examples=12)
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(4, 9), st.integers(4, 9), st.integers(0, 99)
)
def test_small_integers_are_exact(samples, inputs, outputs, height, width, seed):
    """Integers this small lose nothing: every transformed number fits bfloat16, every sum float32."""
    generator = torch.Generator().manual_seed(seed)

    def integers(limit, *shape):
        return torch.randint(-limit, limit + 1, shape, generator=generator).float()

    x = integers(3, samples, 32 * inputs, height, width).bfloat16().contiguous(memory_format=LAST)
    weight = 4 * integers(1, 32 * outputs, 32 * inputs, 3, 3)
    upstream = integers(3, samples, 32 * outputs, height, width)
    bias = integers(5, 32 * outputs)
    ours = with_gradients(ops.conv3x3, x, weight, bias, upstream)
    truth = with_gradients(torchs, *(t.double() for t in (x, weight, bias, upstream)))
    for mine, right in zip(ours, truth, strict=True):
        assert torch.equal(mine, right.to(mine.dtype))


@fast
def test_the_same_bits_for_threads_batches_and_repetitions():
    x, weight, bias, upstream = case(5, 96, 64, 12, 10)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 7, 1):
            torch.set_num_threads(threads)
            results.append(with_gradients(ops.conv3x3, x, weight, bias, upstream)[:3])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))
    for cut in (1, 2, 3):  # what an image becomes does not depend on its batch
        parts = [ops.conv3x3(part.contiguous(memory_format=LAST), weight, bias) for part in x.split(cut)]
        assert torch.equal(torch.cat(parts), results[0][0])


@pytest.mark.parametrize(
    "change",
    [
        lambda x, w, b: (x.float(), w, b),
        lambda x, w, b: (x.contiguous(), w, b),
        lambda x, w, b: (x, w.bfloat16(), b),
        lambda x, w, b: (x[:, :16].contiguous(memory_format=LAST), w[:, :16], b),
        lambda x, w, b: (x, w[:48], b[:48]),
        lambda x, w, b: (x[:, :, :3].contiguous(memory_format=LAST), w, b),
        lambda x, w, b: (x[:0], w, b),
    ],
    ids=["float32", "NCHW", "narrow weights", "16 channels", "48 outputs", "3 rows", "no images"],
)
def test_falls_back(change):
    x, weight, bias = change(*case(2, 32, 64, 6, 6)[:3])
    assert not module.can_speed_up(x, weight, bias)
    result = ops.conv3x3(x, weight, bias)
    assert torch.equal(result, torchs(x, weight, bias))


def test_empty_and_mixed_gradients():
    x, weight, bias, upstream = case(2, 32, 32, 6, 6)
    weight.requires_grad_()
    ops.conv3x3(x, weight, bias).backward(upstream)
    alone = weight.grad
    everything = with_gradients(ops.conv3x3, x, weight, bias, upstream)
    assert torch.equal(alone, everything[2])


@fast
def test_weights_in_either_layout():
    x, weight, bias, upstream = case(2, 32, 64, 6, 6)
    results = [with_gradients(ops.conv3x3, x, w, bias, upstream) for w in (weight, weight.contiguous())]
    assert all(map(torch.equal, *results))


@fast
def test_compiles_into_one_graph():
    x, weight, bias, upstream = case(2, 32, 64, 6, 6)
    compiled = torch.compile(ops.conv3x3, fullgraph=True, backend="aot_eager")
    for mine, right in zip(
        with_gradients(compiled, x, weight, bias, upstream),
        with_gradients(ops.conv3x3, x, weight, bias, upstream),
        strict=True,
    ):
        assert torch.equal(mine, right)


@fast
def test_registration():
    x, weight, bias, upstream = case(2, 32, 64, 6, 6)
    tests = ("test_schema", "test_faketensor")
    for operator, arguments in (
        (torch.ops.prunefast.conv3x3.default, (x, weight, bias)),
        (torch.ops.prunefast.conv3x3_gradient_x.default, (upstream, weight)),
        (torch.ops.prunefast.conv3x3_gradient_weight.default, (upstream, x)),
    ):
        torch.library.opcheck(operator, arguments, test_utils=tests)


def test_portable_code_is_the_same_convolution():
    x, weight, bias, upstream = case(2, 32, 64, 6, 6)
    truth = with_gradients(torchs, *(t.double() for t in (x, weight, bias, upstream)))
    mine = (
        module._portable(x, weight, bias),
        module._portable_gradient_x(upstream, weight),
        module._portable_gradient_weight(upstream, x),
    )
    for result, right in zip(mine, truth, strict=False):
        assert error(result, right) < 0.01


def test_bad_arguments():
    x, weight, bias, _ = case(2, 32, 64, 6, 6)
    with pytest.raises(InputTypeError, match="x:"):
        ops.conv3x3(x.int(), weight, bias)
    with pytest.raises(InputError, match="x:"):
        ops.conv3x3(x[0], weight, bias)
    with pytest.raises(InputError, match="weight:"):
        ops.conv3x3(x, weight[:, :16], bias)
    with pytest.raises(InputError, match="weight:"):
        ops.conv3x3(x, weight[..., :2], bias)
    with pytest.raises(InputError, match="bias:"):
        ops.conv3x3(x, weight, bias[:32])


@pytest.mark.parametrize("variable", ["PRUNEFAST_WINOGRAD=0", "PRUNEFAST_ISA=avx512"])
def test_switches(variable):
    name, value = variable.split("=")
    code = "from prunefast.ops.conv3x3 import switched_on; raise SystemExit(int(switched_on()))"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, name: value}).returncode == 0
