"""What the networks compute another way on a CPU: attention written out, the convolution of a doubled image, 3 x 3
convolutions with fewer products."""

import pytest
import torch
from torch.nn import functional as F

from prunefast.models import build_model
from prunefast.models.attention import attend
from prunefast.models.conv import Conv3x3
from prunefast.models.flops import count_flops
from prunefast.models.unet import Upsample
from prunefast.ops.conv3x3 import conv3x3, switched_on


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


needs_winograd = pytest.mark.skipif(not switched_on(), reason="needs AVX512-BF16 and no PRUNEFAST_WINOGRAD=0")


def _gradients(layer, x, autocast):
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = layer(x)
    return y, *torch.autograd.grad(y, (x, *layer.parameters()), torch.ones_like(y))


@needs_winograd
def test_3x3_convolution_under_autocast_is_the_operators():
    torch.manual_seed(0)
    layer = Conv3x3(32, 64).to(memory_format=torch.channels_last)
    x = torch.randn(2, 32, 8, 8).to(memory_format=torch.channels_last)
    y, *gradients = _gradients(layer, x, True)
    assert type(y.grad_fn).__name__ == "_Conv3x3Backward"
    assert torch.equal(y, conv3x3(x.bfloat16(), layer.weight, layer.bias))
    assert [g.dtype for g in gradients] == [torch.float32] * 3
    for mine, plain in zip((y, *gradients), _gradients(layer, x, False), strict=True):
        torch.testing.assert_close(mine.float(), plain, atol=0.02 * float(plain.detach().abs().max()), rtol=0)


def test_products_are_counted_by_the_definition_either_way():
    layer = Conv3x3(32, 64).to(memory_format=torch.channels_last)
    x = torch.randn(2, 32, 8, 8).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        assert count_flops(layer, x) == 2 * 9 * 32 * 64 * 2 * 8 * 8


@pytest.mark.parametrize("switch", ["0", "1"])
def test_3x3_convolution_elsewhere_is_torchs(switch, monkeypatch):
    torch.manual_seed(0)
    layer = Conv3x3(32, 32)
    plain = torch.nn.Conv2d(32, 32, 3, padding=1)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 32, 8, 8)
    if switch == "0":  # it would be taken by its layout and under autocast, but is switched off
        monkeypatch.setenv("PRUNEFAST_WINOGRAD", "0")
        x = x.to(memory_format=torch.channels_last)
    for mine, theirs in zip(_gradients(layer, x, switch == "0"), _gradients(plain, x, switch == "0"), strict=True):
        assert torch.equal(mine, theirs)


@needs_winograd
def test_a_step_of_a_unet_is_as_close_to_float32_as_with_torchs_convolutions(monkeypatch):
    """Loss and gradient; dropout is off."""
    torch.manual_seed(0)
    model = build_model("unet-tiny", image_size=16, width=32, dropout=0.0).to(memory_format=torch.channels_last)
    for parameter in model.parameters():  # the last layers start near 0, which would hide the rest
        torch.nn.init.normal_(parameter, std=0.05 if parameter.ndim > 1 else 0.5)
    x, noise = torch.randn(2, 4, 3, 16, 16).to(torch.float32)
    x = x.to(memory_format=torch.channels_last)

    def step(bf16):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = model(x, torch.tensor([3.0, 200.0, 500.0, 900.0]))
        (y.float() - noise).square().mean().backward()
        return torch.cat([y.detach().flatten(), *(p.grad.flatten() for p in model.parameters())])

    truth, ours = step(False), step(True)
    monkeypatch.setenv("PRUNEFAST_WINOGRAD", "0")
    theirs = step(True)
    assert not torch.equal(ours, theirs)
    assert (ours - truth).norm() <= 2 * (theirs - truth).norm()
