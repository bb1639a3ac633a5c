"""Calls with CUDA tensors never wait for the device, so they fit into CUDA graphs.

Fake tensors say they are on a GPU and hold no data: reading a value of one raises. The kernels' own side is read from
their sources: nothing there allocates, copies to the host or synchronises.
"""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from prunefast import ops

CUDA_SOURCES = Path(__file__).parents[2] / "csrc/cuda"


@pytest.fixture
def device():
    """A GPU in name: what runs is everything but the kernels, whose fakes give shapes."""
    with FakeTensorMode():
        yield torch.device("cuda", 0)


def test_a_read_raises(device):
    """The test of the test; torch without CUDA and torch with it say it in their own words."""
    with pytest.raises(RuntimeError):
        float(torch.empty((), device=device))
    with pytest.raises(RuntimeError):
        ops.fit_gaussian(torch.empty(3, 2, device=device))  # features are checked for NaN, which reads them


class Context:
    """What autograd hands to a Function. Autograd itself cannot run on a GPU in name: the Functions are called."""

    def save_for_backward(self, *tensors):
        self.saved_tensors = tensors

    def mark_non_differentiable(self, *_):
        pass

    def set_materialize_grads(self, _):
        pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("philox", [False, True])
@pytest.mark.parametrize("crop", [False, True])
def test_loss_and_noising(device, dtype, philox, crop):
    shape, image = (4, 3, 8, 8), (4, 3, 11, 12) if crop else (4, 3, 8, 8)
    pred = torch.empty(shape, dtype=dtype, device=device)
    x0 = torch.empty(image, dtype=torch.uint8, device=device)
    position = torch.empty(4, dtype=torch.int64, device=device)
    noise = (5, position) if philox else torch.empty(shape, device=device)
    a, b, weight, reference = torch.empty(4, 4, device=device).unbind()
    boxes = ops.Boxes(torch.empty(4, 2, dtype=torch.int64, device=device), 8, 8) if crop else None
    flip = torch.empty(4, dtype=torch.bool, device=device) if crop else None
    rest = {"labels": position, "num_classes": 3, "reference_per_sample": reference, "boxes": boxes, "flip": flip}
    loss, per_sample, excess, count = ops.denoising_loss(pred, x0, noise, a, b, weight, **rest)
    assert (loss.shape, per_sample.shape, excess.shape, count.shape) == ((), (4,), (3,), (3,))
    noisy = ops.add_noise(x0, a, b, noise, boxes=boxes, flip=flip, coordinates=True, dtype=dtype)
    assert noisy.shape == (4, 5, 8, 8)
    function, context = sys.modules["prunefast.ops.denoising_loss"]._DenoisingLoss, Context()
    source = (None, 5, position) if philox else (noise, 0, None)
    corner = None if boxes is None else boxes.corner
    function.forward(context, pred, x0, *source, a, b, weight, position, 3, reference, corner, flip)
    gradient = function.backward(context, loss, per_sample, None, None)[0]
    assert (gradient.shape, gradient.dtype, gradient.device.type) == (shape, dtype, "cuda")


def test_random_numbers(device):
    position = torch.empty(4, dtype=torch.int64, device=device)
    for draw in (ops.randn_philox, ops.uniform_philox):
        assert draw((4, 3), 1, position, device=device).device.type == "cuda"


@pytest.mark.parametrize("modulated", [False, True])
def test_norm(device, modulated):
    x = torch.empty(2, 16, 4, 4, device=device, memory_format=torch.channels_last)
    weight, bias = torch.empty(2, 16, device=device).unbind()
    extra = torch.empty(2, 2, 16, device=device).unbind() if modulated else (None, None)
    assert ops.group_norm_silu(x, 4, weight, bias, *extra).shape == x.shape
    function, context = sys.modules["prunefast.ops.group_norm_silu"]._GroupNormSiLU, Context()
    y = function.forward(context, x, 4, weight, bias, *extra, 1e-5, True)
    gradients = function.backward(context, torch.empty_like(y))
    shapes = [g.shape for g in gradients if g is not None]
    assert shapes == [t.shape for t in (x, weight, bias, *extra) if t is not None]


def test_the_cuda_kernels_only_enqueue():
    code = {path.name: path.read_text() for path in [*CUDA_SOURCES.glob("*.cu"), *CUDA_SOURCES.glob("*.h")]}
    calls = {name: set(re.findall(r"\bcuda[A-Z]\w+(?=\()", text)) for name, text in code.items()}
    assert "cudaGetLastError" in calls["device.h"]
    waiting = re.compile("Synchronize|Memcpy|Malloc|Free|Memset|Event")
    assert not [call for found in calls.values() for call in found if waiting.search(call)]
