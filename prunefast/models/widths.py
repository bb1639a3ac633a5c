"""The inner widths of a network's blocks: what structural pruning may change, as data.

A block's inputs and outputs stay, so nothing outside it changes; what lies between them has a width of its own:

======================  ============================  ================================================
block                   its inner width               channels that go together (`step`)
======================  ============================  ================================================
UNet residual block     channels between its convs    one group of the norm between them
attention, one head     channels of query, key, value  as many as a norm group of that width has
attention, many heads   the same                      one head
MLP of DiT and MDT      hidden units                  up to 16, which matrix units multiply at once
======================  ============================  ================================================

Whole norm groups and whole heads go, so what is left of the network computes exactly what the dense one does with the
others masked. `build_model(..., widths={"down_blocks.0": 8})` builds the network of those widths; a pruned network is
therefore a configuration and a file of weights like any other.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from prunefast.errors import InputError, InputTypeError
from prunefast.models.dit import DiTBlock
from prunefast.models.mdt import PlacedBlock, SideInterpolater
from prunefast.models.norm import GroupNormSiLU, group_count
from prunefast.models.unet import AttentionBlock, ResidualBlock

MLP_STEP = 16  # hidden units: what a bf16 tile of AMX and of tensor cores takes


@dataclasses.dataclass(frozen=True)
class InnerWidth:
    """One inner width of a network. `layers` are those that have it, as (layer of the block, side): side 0 its outputs,
    1 its inputs; the first is where pruning begins."""

    name: str  # the block's, or BLOCK.attention and BLOCK.mlp in a DiT
    block: str
    layers: tuple[tuple[str, int], ...]
    width: int
    step: int
    head: int = 0  # channels of a head where whole heads go, else 0

    def check(self, width: Any) -> int:
        """`width` as an int, or an error."""
        if isinstance(width, bool) or not isinstance(width, int):
            raise InputTypeError(f"widths: {self.name} is {width!r}; give a whole number")
        if not self.step <= width <= self.width or width % self.step:
            raise InputError(
                f"widths: {self.name} is {width}; it must be a multiple of {self.step} from {self.step} to {self.width}"
            )
        return width


def inner_widths(model: nn.Module) -> dict[str, InnerWidth]:
    """Every inner width of a network by name, in the order of its modules, at its present size."""
    found = {}
    for name, module in model.named_modules():
        for width in _widths_of(name, module):
            found[width.name] = width
    return found


def _widths_of(name: str, block: nn.Module) -> list[InnerWidth]:
    if isinstance(block, ResidualBlock):
        hidden = block.conv1.out_channels
        layers = (("conv1", 0), ("embedding", 0), ("norm2", 0), ("conv2", 1))
        return [InnerWidth(name, name, layers, hidden, hidden // block.norm2.groups)]
    if isinstance(block, AttentionBlock):
        return [_attention_width(name, name, block)]
    if isinstance(block, DiTBlock) and not isinstance(block, SideInterpolater):
        hidden = block.mlp1.out_features
        mlp = InnerWidth(f"{name}.mlp", name, (("mlp1", 0), ("mlp2", 1)), hidden, math.gcd(hidden, MLP_STEP))
        if isinstance(block, PlacedBlock):  # whose heads have a bias of their own each
            return [mlp]
        return [_attention_width(f"{name}.attention", name, block), mlp]
    return []


def _attention_width(name: str, block_name: str, block: AttentionBlock | DiTBlock) -> InnerWidth:
    inner = block.project.in_features
    layers = (("project", 1), ("query_key_value", 0))
    if block.heads > 1:
        head = inner // block.heads
        return InnerWidth(name, block_name, layers, inner, head, head)
    return InnerWidth(name, block_name, layers, inner, inner // group_count(inner))


def set_widths(model: nn.Module, widths: Mapping[str, int]) -> None:
    """Give the blocks named in `widths` their inner width, in place, by keeping the first channels of each.

    For building a network whose weights are loaded next; which channels are worth keeping is the pruner's question.
    """
    known = inner_widths(model)
    for name in widths:
        if name not in known:
            raise InputError(f"widths: there is no block '{name}'; there are {', '.join(known) or 'none'}")
    for name, width in widths.items():
        entry = known[name]
        entry.check(width)
        block = model.get_submodule(entry.block)
        for layer_name, side in entry.layers:
            _keep_first(block.get_submodule(layer_name), side, entry.width, width)
        note_width(block, entry, width)


def note_width(block: nn.Module, entry: InnerWidth, width: int) -> None:
    """Tell a block whose layers now have that width what follows from it."""
    if isinstance(block, ResidualBlock):
        block.norm2.groups = width // entry.step
    elif entry.head and isinstance(block, AttentionBlock | DiTBlock):
        block.heads = width // entry.head


@torch.no_grad()
def _keep_first(layer: nn.Module, side: int, full: int, width: int) -> None:
    for name, parameter in list(layer.named_parameters(recurse=False)):
        if name == "bias" and side == 1:
            continue
        axis = 0 if parameter.ndim == 1 else side
        copies = parameter.shape[axis] // full  # query, key and value lie one after the other
        split = parameter.unflatten(axis, (copies, full)).narrow(axis + 1, 0, width).flatten(axis, axis + 1)
        setattr(layer, name, nn.Parameter(split.clone()))
    if isinstance(layer, nn.Conv2d):
        layer.out_channels, layer.in_channels = layer.weight.shape[:2]
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    else:
        assert isinstance(layer, GroupNormSiLU)
