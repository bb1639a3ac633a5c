"""What the encoder does not see does not matter to it, and what it sees does; counts by hand."""

import pytest
import torch

from prunefast.errors import InputError, InputTypeError
from prunefast.models import build_model, count_parameters


def small(**options):
    torch.manual_seed(0)
    arguments = {"image_size": 8, "depth": 2, "width": 16, "heads": 2, "decoder_depth": 1, "decoder_width": 8}
    model = build_model("maskdit-tiny/2", **{**arguments, "decoder_heads": 2, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def test_counts():
    """The DiT without its head, the decoder's two linear layers, mask token, blocks and head."""

    def linear(inputs, outputs):
        return inputs * outputs + outputs

    def block(width):
        return (
            linear(width, 3 * width)
            + linear(width, width)
            + 2 * width * 4 * width
            + 5 * width
            + linear(width, 6 * width)
        )

    for name, depth, width in (("s", 12, 384), ("xl", 28, 1152)):
        with torch.device("meta"):
            model = build_model(f"maskdit-{name}/2", image_size=32, channels=4, num_classes=1000)
        expected = (
            linear(4 * 4, width) + linear(256, width) + linear(width, width) + 1001 * width + depth * block(width)
        )
        expected += 2 * linear(width, 512) + 512 + 8 * block(512) + linear(512, 1024) + linear(512, 16)
        assert count_parameters(model) == expected


def test_masked_pixels_do_not_matter_and_visible_ones_do():
    model = small(num_classes=3)
    x, time, labels = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 700.0]), torch.tensor([0, 3])
    visible = torch.tensor([[0, 5, 10], [1, 2, 15]])
    out = model(x, time, labels, visible=visible)
    assert out.shape == x.shape
    changed = x.clone()
    changed[0, :, 0:2, 2:4] += 5  # token 1 of image 0: masked there
    assert torch.equal(model(changed, time, labels, visible=visible), out)
    changed[0, :, 2:4, 2:4] += 5  # token 5: visible
    difference = (model(changed, time, labels, visible=visible) - out).abs().flatten(1).sum(1)
    assert difference[0] > 0
    assert difference[1] == 0


def test_all_visible_is_no_mask_and_order_does_not_matter():
    model = small()
    x, time = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 700.0])
    full = model(x, time)
    every = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(model(x, time, visible=every), full, atol=1e-5, rtol=1e-5)
    shuffled = torch.stack([torch.randperm(16) for _ in range(2)])
    torch.testing.assert_close(model(x, time, visible=shuffled), full, atol=1e-5, rtol=1e-5)


def test_every_parameter_learns():
    model = small(num_classes=3)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(
            torch.randn(2, 3, 8, 8),
            torch.tensor([3.0, 700.0]),
            torch.tensor([0, 1]),
            visible=torch.tensor([[0, 5], [3, 15]]),
        )
    out.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_what_cannot_be():
    model = small()
    x, time = torch.zeros(2, 3, 8, 8), torch.zeros(2)
    for visible in (
        torch.zeros(1, 3, dtype=torch.int64),
        torch.zeros(2, 17, dtype=torch.int64),
        torch.zeros(2, 0, dtype=torch.int64),
    ):
        with pytest.raises(InputError, match=r"visible must be \[2, 1 ... 16\]"):
            model(x, time, visible=visible)
    with pytest.raises(InputError, match=r"visible must lie in 0 ... 15; found 0 ... 16"):
        model(x, time, visible=torch.tensor([[0, 16], [1, 2]]))
    with pytest.raises(InputTypeError, match="visible must be int64"):
        model(x, time, visible=torch.zeros(2, 3))
    with pytest.raises(InputError, match="decoder_width must be a multiple of 4 and of decoder_heads 3"):
        small(decoder_heads=3)
