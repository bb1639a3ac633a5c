"""EDM's two UNets: the published parameter counts, the formulas of a block, and what training asks of them."""

import math

import pytest
import torch
from torch.nn import functional as F

from prunefast.errors import InputError
from prunefast.models import build_model, count_parameters
from prunefast.models.edm_unet import STYLES, EDMBlock

SMALL = {"width": 16, "channel_multipliers": [1, 2], "blocks": 1, "attention_levels": [1], "dropout": 0.0}


def small(name: str, **options):
    torch.manual_seed(0)
    return build_model(name, image_size=8, **{**SMALL, **options})


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("edm-ddpmpp", {"image_size": 32}, 55_733_891),  # CIFAR-10
        ("edm-ddpmpp", {"image_size": 32, "num_classes": 10}, 55_735_299),
        # FFHQ at 64 pixels: 61.8 M
        ("edm-ddpmpp", {"image_size": 64, "channel_multipliers": [1, 2, 2, 2], "attention_levels": [2]}, 61_805_571),
        ("edm-adm", {"image_size": 64, "num_classes": 1000}, 295_899_267),  # ImageNet at 64 pixels
    ],
)
def test_published_numbers_of_parameters(name, options, count):
    with torch.device("meta"):
        assert count_parameters(build_model(name, **options)) == count


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("resample", [None, "down", "up"])
def test_a_block_is_its_formula(style, resample):
    torch.manual_seed(1)
    block = EDMBlock(8, 64, 12, 0.0, STYLES[style], resample=resample, attention=True).double()
    for parameter in block.parameters():  # the last layers start at 0, which would hide the rest
        torch.nn.init.normal_(parameter, std=0.3)
    x, e = torch.randn(2, 8, 4, 4, dtype=torch.float64), torch.randn(2, 12, dtype=torch.float64)

    def resampled(y):
        if resample == "down":
            return (y[:, :, ::2, ::2] + y[:, :, 1::2, ::2] + y[:, :, ::2, 1::2] + y[:, :, 1::2, 1::2]) / 4
        return y.repeat_interleave(2, 2).repeat_interleave(2, 3) if resample == "up" else y

    def norm(y, layer):
        eps = {"ddpmpp": 1e-6, "adm": 1e-5}[style]
        groups = y.reshape(len(y), y.shape[1] // 4, -1)
        groups = (groups - groups.mean(2, keepdim=True)) / (groups.var(2, unbiased=False, keepdim=True) + eps).sqrt()
        return groups.reshape(y.shape) * layer.weight[:, None, None] + layer.bias[:, None, None]

    def silu(y):
        return y / (1 + torch.exp(-y))

    h = F.conv2d(resampled(silu(norm(x, block.norm1))), block.conv1.weight, block.conv1.bias, padding=1)
    embedding = (e @ block.embedding.weight.T + block.embedding.bias)[:, :, None, None]
    if style == "adm":
        h = silu(norm(h, block.norm2) * (1 + embedding[:, :64]) + embedding[:, 64:])
    else:
        h = silu(norm(h + embedding, block.norm2))
    h = F.conv2d(h, block.conv2.weight, block.conv2.bias, padding=1)
    skip = F.conv2d(resampled(x), block.shortcut.weight, block.shortcut.bias)
    scale = math.sqrt(0.5) if style == "ddpmpp" else 1.0
    h = (h + skip) * scale
    tokens = norm(h, block.attention.norm).flatten(2).transpose(1, 2)
    query, key, value = (
        tokens @ block.attention.query_key_value.weight.T + block.attention.query_key_value.bias
    ).chunk(3, 2)
    weights = torch.softmax(query @ key.transpose(1, 2) / math.sqrt(64), dim=2)
    mixed = weights @ value @ block.attention.project.weight.T + block.attention.project.bias
    expected = (h + mixed.transpose(1, 2).reshape(h.shape)) * scale
    torch.testing.assert_close(block(x, e), expected)


@pytest.mark.parametrize("name", ["edm-ddpmpp", "edm-adm"])
def test_training_and_shapes(name):
    """bf16 autocast, channels_last, crops with coordinates; every parameter gets a gradient."""
    model = small(name, num_classes=3, coordinates=True, augment_labels=2).to(memory_format=torch.channels_last)
    x = torch.randn(2, 5, 4, 4).to(memory_format=torch.channels_last)
    time, labels = torch.tensor([0.1, -0.7]), torch.tensor([0, 3])
    start = model(x, time, labels)
    assert start.shape == (2, 3, 4, 4)
    assert start.abs().max() < 1e-2  # starts at 0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x, time, labels, augment=torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert out.is_contiguous(memory_format=torch.channels_last)
    out.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert not torch.equal(model(x, time, labels), model(x, time, labels.flip(0)))


@pytest.mark.parametrize("name", ["edm-ddpmpp", "edm-adm"])
def test_no_label_is_the_null_class(name):
    model = small(name, num_classes=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    x, time = torch.randn(2, 3, 8, 8), torch.zeros(2)
    torch.testing.assert_close(model(x, time), model(x, time, torch.tensor([3, 3])))
    if name == "edm-ddpmpp":
        none = torch.zeros(2, 9)
        torch.testing.assert_close(model(x, time), model(x, time, augment=none))


def test_scale_of_the_residual_sums_keeps_variance():
    """ddpmpp: sqrt(1/2) after each sum of two parts of equal variance."""
    torch.manual_seed(0)
    block = EDMBlock(64, 64, 16, 0.0, STYLES["ddpmpp"])
    x = torch.randn(4, 64, 8, 8)
    assert block(x, torch.zeros(4, 16)).std().item() == pytest.approx(math.sqrt(0.5), rel=0.02)  # the branch is 0 yet
    adm = EDMBlock(64, 64, 16, 0.0, STYLES["adm"])
    assert torch.equal(adm(x, torch.zeros(4, 16)), x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"style": "ncsnpp"}, "style 'ncsnpp' is not one of ddpmpp, adm"),
        ({"width": 18}, "width must be a multiple of 4"),
        ({"channel_multipliers": []}, "channel_multipliers"),
        ({"blocks": 0}, "blocks must be at least 1"),
        ({"attention_levels": [2]}, r"attention_levels must lie in 0 ... 1"),
        ({"augment_labels": -1}, "augment_labels must not be negative"),
        ({"heads": 2}, "has no argument 'heads'"),
    ],
)
def test_arguments_that_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        small("edm-ddpmpp", **options)
    with pytest.raises(InputError, match="a multiple of 2 for this model, not 7"):
        build_model("edm-adm", **{**SMALL, "image_size": 7})
    with pytest.raises(InputError, match="augment was given to a model without augment_labels"):
        small("edm-adm")(torch.zeros(1, 3, 8, 8), torch.zeros(1), augment=torch.zeros(1, 9))
