"""What is left of a pruned network computes what the dense one does with the rest masked, and can be built again."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from prunefast.errors import InputError, InputTypeError
from prunefast.models import build_model
from prunefast.models.flops import WidthCosts, model_flops
from prunefast.models.widths import inner_widths, set_widths

pytest.importorskip("torch_pruning")

from prunefast.tdc.prune import channel_order, prune

NETWORKS = {
    "unet": {"name": "unet-tiny", "num_classes": 3, "width": 16, "channel_multipliers": [1, 2]},
    "unet heads": {"name": "unet-tiny", "width": 16, "channel_multipliers": [1, 2], "heads": 2},
    "iddpm": {
        "name": "unet-tiny",
        "width": 16,
        "channel_multipliers": [1, 2],
        "learn_sigma": True,
        "coordinates": True,
    },
    "dit": {"name": "dit-tiny/2", "num_classes": 3, "depth": 2, "width": 64, "heads": 4},
}


def build(kind: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(image_size=8, **NETWORKS[kind]).eval()
        for parameter in model.parameters():  # no zeros of initialisation, or every output would be zero
            nn.init.normal_(parameter, std=0.2)
    return model


def half(model: nn.Module) -> dict[str, int]:
    return {name: max(e.width // e.step // 2, 1) * e.step for name, e in inner_widths(model).items()}


def masked(model: nn.Module, widths: dict[str, int], order: dict[str, torch.Tensor]) -> nn.Module:
    """The dense network in which nothing reads the channels that went, written per block and without our table."""
    dense = copy.deepcopy(model)
    for name, width in widths.items():
        entry = inner_widths(model)[name]
        kept = set(order[name][: width // entry.step].tolist())
        gone = [c for c in range(entry.width) if c // entry.step not in kept]
        block = dense.get_submodule(entry.block)
        with torch.no_grad():
            if name.endswith(".mlp"):
                block.mlp2.weight[:, gone] = 0
            elif hasattr(block, "conv2"):
                block.conv2.weight[:, gone] = 0
            else:
                block.project.weight[:, gone] = 0
                if block.heads == 1:  # otherwise whole heads go, and what they attend to is not read
                    for third in (0, 1):
                        block.query_key_value.weight[[third * entry.width + c for c in gone]] = 0
                        block.query_key_value.bias[[third * entry.width + c for c in gone]] = 0
    return dense


def inputs(model: nn.Module) -> tuple:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, model.inputs, 8, 8, generator=generator)
    labels = None if model.config["num_classes"] is None else torch.tensor([0, 2])
    return x, torch.tensor([3.0, 700.0]), labels


@pytest.mark.parametrize("importance", ["magnitude", "random", "taylor"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_pruned_network_equals_the_masked_dense_one(kind: str, importance: str) -> None:
    model = build(kind)
    if importance == "taylor":
        model(*inputs(model)).square().mean().backward()
    order = channel_order(model, importance, seed=3)
    widths = half(model)
    model = model.to(memory_format=torch.channels_last)  # as training leaves it
    pruned = prune(model, widths, order)
    with torch.no_grad():
        expected = masked(model, widths, order)(*inputs(model))
        actual = pruned(*inputs(model))
        dense = model(*inputs(model))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert (actual - dense).abs().max() > 0.01 * dense.abs().max()
    assert {n: e.width for n, e in inner_widths(pruned).items()} == widths


@pytest.mark.parametrize("kind", NETWORKS)
def test_pruned_network_is_a_configuration_and_weights(kind: str) -> None:
    model = build(kind)
    pruned = prune(model, half(model), channel_order(model, "magnitude"))
    again = build_model(**pruned.config).eval()
    again.load_state_dict(pruned.state_dict())
    with torch.no_grad():
        assert torch.equal(again(*inputs(model)), pruned(*inputs(model)))
    assert again.config == pruned.config


@pytest.mark.parametrize("kind", NETWORKS)
def test_flops_are_those_of_torchs_counter(kind: str) -> None:
    model = build(kind)
    costs = WidthCosts.of(model)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        widths = {
            name: int(torch.randint(1, e.width // e.step + 1, (), generator=generator)) * e.step
            for name, e in costs.widths.items()
        }
        with torch.device("meta"):
            narrow = build_model(**{**model.config, "widths": widths})
            labels = None if model.config["num_classes"] is None else torch.zeros(1, dtype=torch.int64)
            with FlopCounterMode(display=False) as counter:
                narrow(torch.zeros(1, model.inputs, 8, 8), torch.zeros(1), labels)
        assert costs.flops(widths) == counter.get_total_flops() == model_flops(narrow)
    assert costs.full == model_flops(model)
    assert costs.least == costs.flops({name: e.step for name, e in costs.widths.items()})


def test_importance_by_hand() -> None:
    """Magnitude: squared weights of every layer that has the channel, summed over the norm group."""
    model = build("unet")
    block = model.middle1
    squares = block.conv1.weight.square().sum((1, 2, 3)) + block.embedding.weight.square().sum(1)
    squares += block.conv2.weight.square().sum((0, 2, 3))
    steps = squares.view(block.norm2.groups, -1).sum(1)
    assert channel_order(model, "magnitude")["middle1"].tolist() == steps.argsort(descending=True).tolist()


def test_widths_that_cannot_be_are_refused() -> None:
    model = build("unet")
    for widths, message in (
        ({"middle1": 3}, "multiple of 4"),
        ({"middle1": 0}, "from 4 to 32"),
        ({"middle1": 64}, "from 4 to 32"),
        ({"middle9": 4}, "no block 'middle9'"),
    ):
        with pytest.raises(InputError, match=message):
            set_widths(model, widths)
    with pytest.raises(InputTypeError, match="whole number"):
        build_model("unet-tiny", image_size=8, widths={"middle1": 4.0})
