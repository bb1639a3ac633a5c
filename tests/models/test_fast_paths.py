"""What the networks compute another way on a CPU: attention written out, the convolution of a doubled image."""

import pytest
import torch
from torch.nn import functional as F

from prunefast.models.attention import attend
from prunefast.models.unet import Upsample


@pytest.mark.parametrize("bias", [False, True])
def test_attention_written_out_is_torchs(bias):
    torch.manual_seed(0)
    parts = [torch.randn(2, 3, 40, 16, dtype=torch.bfloat16) for _ in range(3)]
    added = torch.randn(1, 3, 40, 40, dtype=torch.bfloat16) if bias else None
    exact = [part.double().requires_grad_() for part in parts]
    expected = F.scaled_dot_product_attention(*exact, attn_mask=None if added is None else added.double())
    theirs = [part.clone().requires_grad_() for part in parts]
    peer = F.scaled_dot_product_attention(*theirs, attn_mask=added)
    ours = [part.clone().requires_grad_() for part in parts]
    mixed = attend(*ours, added)
    assert "Attention" not in type(mixed.grad_fn).__name__  # the products, not torch's own

    def worst(a, b):
        return (a.double() - b).abs().max().item()

    assert worst(mixed, expected) <= 2 * worst(peer, expected) + 1e-2
    weight = torch.randn(2, 3, 40, 16)
    for output, kind in ((expected, torch.float64), (peer, torch.bfloat16), (mixed, torch.bfloat16)):
        output.backward(weight.to(kind))
    for mine, peers, truth in zip(ours, theirs, exact, strict=True):
        assert worst(mine.grad, truth.grad) <= 2 * worst(peers.grad, truth.grad) + 2e-2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 8)])
def test_doubling_and_convolving_is_both_in_turn(dtype, size):
    torch.manual_seed(0)
    layer = Upsample(6).double()
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    expected = F.conv2d(F.interpolate(x, scale_factor=2.0), layer.conv.weight, layer.conv.bias, padding=1)
    x = x.to(dtype).to(memory_format=torch.channels_last).requires_grad_()
    layer = layer.to(dtype).to(memory_format=torch.channels_last)
    with torch.no_grad():
        layer.conv.bias.copy_(torch.arange(6))
        expected = expected + torch.arange(6)[:, None, None]
    y = layer(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    bound = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]
    torch.testing.assert_close(y.double(), expected, atol=bound, rtol=bound)
    y.sum().backward()
    plain = F.conv2d(
        F.interpolate(x.detach().double().requires_grad_(), scale_factor=2.0), layer.conv.weight.double(), padding=1
    )
    assert plain.shape == y.shape
    ones = torch.ones_like(plain)
    of_x = F.conv_transpose2d(ones, layer.conv.weight.detach().double(), padding=1)
    of_x = F.avg_pool2d(of_x, 2) * 4  # each pixel of x is four of the doubled image
    torch.testing.assert_close(x.grad.double(), of_x, atol=20 * bound, rtol=20 * bound)
