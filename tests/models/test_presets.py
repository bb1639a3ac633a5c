"""build_model: parameter counts by hand, configs that rebuild, every argument checked."""

import json

import pytest
import torch

from prunefast.errors import InputError
from prunefast.models import PRESETS, DiT, UNet, build_model, count_parameters


def on_meta(name, **arguments):
    with torch.device("meta"):
        return build_model(name, **arguments)


def linear(inputs, outputs):
    return inputs * outputs + outputs


def conv(inputs, outputs, kernel):
    return inputs * outputs * kernel * kernel + outputs


def unet_parameters(width, multipliers, blocks, attention_levels, channels=3, num_classes=None):
    """DDPM's UNet, counted layer by layer."""
    embedding = 4 * width

    def residual(inputs, outputs):
        count = 2 * inputs + conv(inputs, outputs, 3) + linear(embedding, outputs) + 2 * outputs
        return count + conv(outputs, outputs, 3) + (conv(inputs, outputs, 1) if inputs != outputs else 0)

    def attention(level_width):
        return 2 * level_width + 4 * conv(level_width, level_width, 1)

    total = linear(width, embedding) + linear(embedding, embedding) + conv(channels, width, 3)
    total += 0 if num_classes is None else (num_classes + 1) * embedding
    widths, skips, current = [width * m for m in multipliers], [width], width
    for level, level_width in enumerate(widths):
        for _ in range(blocks):
            total += residual(current, level_width) + (attention(level_width) if level in attention_levels else 0)
            current = level_width
            skips.append(current)
        if level < len(widths) - 1:
            total += conv(current, current, 3)
            skips.append(current)
    total += 2 * residual(current, current) + attention(current)
    for level in range(len(widths) - 1, -1, -1):
        for _ in range(blocks + 1):
            total += residual(current + skips.pop(), widths[level])
            total += attention(widths[level]) if level in attention_levels else 0
            current = widths[level]
        total += conv(current, current, 3) if level else 0
    return total + 2 * current + conv(current, channels, 3)


def dit_parameters(patch, depth, width, channels, outputs, num_classes):
    block = linear(width, 3 * width) + linear(width, width) + linear(width, 4 * width) + linear(4 * width, width)
    block += linear(width, 6 * width)
    total = conv(channels, width, patch) + linear(256, width) + linear(width, width) + depth * block
    total += 0 if num_classes is None else (num_classes + 1) * width
    return total + linear(width, 2 * width) + linear(width, patch * patch * outputs)


def test_cifar10_unet_has_the_published_number_of_parameters():
    assert count_parameters(on_meta("unet-cifar10", image_size=32)) == 35_746_307
    assert unet_parameters(128, (1, 2, 2, 2), 2, (1,)) == 35_746_307


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("unet")])
@pytest.mark.parametrize("num_classes", [None, 10])
def test_unet_counts(name, num_classes):
    model = on_meta(name, image_size=32, num_classes=num_classes, channels=1)
    c = model.config
    arguments = (c["width"], c["channel_multipliers"], c["blocks"], c["attention_levels"], 1, num_classes)
    assert count_parameters(model) == unet_parameters(*arguments)


def test_small_presets_are_small():
    assert 2e6 < count_parameters(on_meta("unet-small", image_size=32)) < 4e6
    assert 0.3e6 < count_parameters(on_meta("unet-tiny", image_size=16)) < 0.8e6
    assert 1e6 < count_parameters(on_meta("dit-tiny/2", image_size=32)) < 2.5e6


# the paper counts the fixed positions too: 4 latent channels at 32 x 32, 1,000 classes, learned sigma
@pytest.mark.parametrize(("size", "millions"), [("s", 33.0), ("b", 130.5), ("l", 458.1), ("xl", 675.1)])
def test_dit_counts_are_the_papers(size, millions):
    model = on_meta(f"dit-{size}/2", image_size=32, channels=4, num_classes=1000, learn_sigma=True)
    assert round((count_parameters(model) + model.positions.numel()) / 1e6, 1) == millions


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("dit")])
@pytest.mark.parametrize("num_classes", [None, 10])
@pytest.mark.parametrize("learn_sigma", [False, True])
def test_dit_counts(name, num_classes, learn_sigma):
    model = on_meta(name, image_size=32, channels=4, num_classes=num_classes, learn_sigma=learn_sigma)
    c = model.config
    expected = dit_parameters(c["patch_size"], c["depth"], c["width"], 4, 8 if learn_sigma else 4, num_classes)
    assert count_parameters(model) == expected


@pytest.mark.parametrize("name", PRESETS)
def test_config_is_json_and_rebuilds(name):
    model = on_meta(name, image_size=64, channels=4, num_classes=3, dropout=0.25)
    config = json.loads(json.dumps(model.config))
    assert (config["name"], config["image_size"], config["dropout"]) == (name, 64, 0.25)
    again = on_meta(**config)
    assert again.config == model.config
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in again.state_dict().items()} == shapes


def test_config_stores_overrides_and_does_not_depend_on_the_preset(monkeypatch):
    model = build_model("unet-tiny", image_size=8, width=8, channel_multipliers=(1, 2), attention_levels=())
    assert model.config["channel_multipliers"] == [1, 2]
    monkeypatch.setitem(PRESETS, "unet-tiny", ("unet", {**PRESETS["unet-tiny"][1], "width": 64}))
    again = build_model(**model.config)
    again.load_state_dict(model.state_dict())
    assert again.width == 8


def test_presets_build_the_right_class():
    assert isinstance(on_meta("unet-tiny", image_size=8), UNet)
    assert isinstance(on_meta("dit-s/8", image_size=32), DiT)


def test_weights_come_from_the_global_generator_only():
    torch.manual_seed(3)
    first = build_model("unet-tiny", image_size=8)
    torch.manual_seed(3)
    second = build_model("unet-tiny", image_size=8)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"name": "unet-huge", "image_size": 32}, "unet-huge"),
        ({"name": "unet-cifar10", "image_size": 30}, "image_size"),
        ({"name": "unet-tiny", "image_size": 9}, "image_size"),
        ({"name": "unet-tiny", "image_size": 0}, "image_size"),
        ({"name": "dit-s/2", "image_size": 31}, "image_size"),
        ({"name": "dit-s/8", "image_size": 4}, "image_size"),
        ({"name": "unet-tiny", "image_size": 8, "channels": 0}, "channels"),
        ({"name": "unet-tiny", "image_size": 8, "num_classes": 0}, "num_classes"),
        ({"name": "unet-tiny", "image_size": 8, "dropout": 1.0}, "dropout"),
        ({"name": "unet-tiny", "image_size": 8, "dropout": float("nan")}, "dropout"),
        ({"name": "unet-tiny", "image_size": 8, "patch_size": 2}, "patch_size"),
        ({"name": "unet-tiny", "image_size": 8, "width": 3}, "width"),
        ({"name": "unet-tiny", "image_size": 8, "blocks": 0}, "blocks"),
        ({"name": "unet-tiny", "image_size": 8, "attention_levels": [3]}, "attention_levels"),
        ({"name": "unet-tiny", "image_size": 8, "channel_multipliers": []}, "channel_multipliers"),
        ({"name": "unet-tiny", "image_size": 8, "heads": 3}, "heads"),
        ({"name": "dit-tiny/2", "image_size": 8, "heads": 3}, "heads"),
        ({"name": "dit-tiny/2", "image_size": 8, "depth": 0}, "depth"),
        ({"name": "dit-tiny/2", "image_size": 8, "patch_size": 0}, "patch_size"),
    ],
)
def test_bad_arguments_are_named(arguments, word):
    with pytest.raises(InputError, match=word) as caught:
        build_model(**arguments)
    assert "\n" not in str(caught.value)
