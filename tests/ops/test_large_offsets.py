"""Offsets past 2^31 elements; the kernels for GPUs have theirs in tests/kernels."""

import pytest
import torch

from prunefast import ops
from prunefast.ops import native

SAMPLES = 3


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def test_rows(far):
    x, others = random(SAMPLES, 40), random(50, 40)
    labels = torch.tensor([0, 1, 1])
    for near, apart in zip(ops.topk(x, others, 3), ops.topk(far(x), others, 3), strict=True):
        assert torch.equal(near, apart)
    assert torch.equal(ops.nearest(others, far(x))[0], ops.nearest(others, x)[0])
    assert torch.equal(native.class_sums(far(x), labels, 2)[0], native.class_sums(x, labels, 2)[0])
    fit = ops.fit_gaussian(x)
    assert torch.equal(ops.fit_gaussian(far(x)).covariance, fit.covariance)
    assert torch.equal(ops.gaussian_log_likelihood(far(x), fit), ops.gaussian_log_likelihood(x, fit))


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
@pytest.mark.parametrize("crop", [False, True])
def test_images(far, dtype, crop):
    pred, noise = random(SAMPLES, 3, 5, 7).bfloat16(), random(SAMPLES, 3, 5, 7)
    x0 = (random(SAMPLES, 3, 8, 9) if crop else random(SAMPLES, 3, 5, 7)).mul(40).to(dtype)
    boxes = ops.Boxes(torch.tensor([[0, 0], [3, 2], [1, 1]]), 5, 7) if crop else None
    a, b = torch.rand(2, SAMPLES)
    results = []
    for place in (lambda values: values, far):
        source = place(pred).requires_grad_()
        outputs = ops.denoising_loss(source, place(x0), place(noise), a, b, boxes=boxes)
        gradient = torch.autograd.grad(outputs[0], source)[0]
        noisy = ops.add_noise(place(x0), a, b, place(noise), boxes=boxes)
        results.append((*outputs, gradient, noisy))
    for near, apart in zip(*results, strict=True):
        assert torch.equal(near, apart)
