"""Structural pruning of a network to given inner widths, through torch-pruning.

torch-pruning traces each block, finds which layers hold a channel together, scores it and cuts it out of all of them.
What is ours is what it cannot know: that whole norm groups and whole heads go (`prunefast.models.widths`), the norm's
own layer, and the scale of a narrower attention.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunefast.errors import MissingDependencyError
from prunefast.models.norm import GroupNormSiLU
from prunefast.models.unet import AttentionBlock, ResidualBlock
from prunefast.models.widths import InnerWidth, inner_widths, note_width
from prunefast.tdc.propose import keyed_generator


def import_torch_pruning() -> Any:
    try:
        import torch_pruning
    except ImportError as error:
        raise MissingDependencyError(f'pruning needs torch-pruning: pip install "prunefast[tdc]" [{error}]') from None
    return torch_pruning


def channel_order(model: nn.Module, importance: str, seed: int = 0) -> dict[str, Tensor]:
    """For each inner width the groups of `step` channels that go together, most important first: int64 [width / step].

    Args:
        importance: "magnitude", sum of squared weights of a channel in every layer that has it (Li et al. 2017 with
            the L2 norm, over the group of layers); "taylor", |weight x gradient| (Molchanov et al. 2019), for which
            the parameters must have a .grad; "random".
    """
    tp = import_torch_pruning()
    if importance == "magnitude":
        score = tp.importance.GroupMagnitudeImportance(p=2, group_reduction="sum", normalizer=None)
    else:
        score = tp.importance.GroupTaylorImportance(group_reduction="sum", normalizer=None)
    model = _plain_copy(model)
    order = {}
    for number, (name, entry) in enumerate(inner_widths(model).items()):
        count = entry.width // entry.step
        if importance == "random":
            order[name] = torch.from_numpy(keyed_generator(seed, number).permutation(count))
            continue
        group = _dependencies(tp, model.get_submodule(entry.block), entry, list(range(entry.width)))
        channels = score(group).detach().double()
        steps = channels.view(count, entry.step).sum(1)
        order[name] = torch.sort(steps, descending=True, stable=True).indices
    return order


def prune(model: nn.Module, widths: Mapping[str, int], order: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `model` with these inner widths, holding the first groups of `order` of each; `model.config` says so.

    It computes what `model` computes with the channels that went masked at the end of their block.
    """
    tp = import_torch_pruning()
    pruned = _plain_copy(model)
    pruned.zero_grad(set_to_none=True)
    for name, entry in inner_widths(pruned).items():
        width = widths.get(name, entry.width)
        if entry.check(width) == entry.width:
            continue
        block = pruned.get_submodule(entry.block)
        gone = order[name][width // entry.step :]
        channels = (gone[:, None] * entry.step + torch.arange(entry.step)).flatten().sort().values
        _dependencies(tp, block, entry, channels.tolist()).prune()
        note_width(block, entry, width)
        if isinstance(block, AttentionBlock) and not entry.head:
            # attention divides by the root of its width, which was the wide one's in training
            with torch.no_grad():
                factor = (width / entry.width) ** 0.5
                block.query_key_value.weight[:width] *= factor
                block.query_key_value.bias[:width] *= factor
    config: dict[str, Any] = model.config  # type: ignore[assignment]
    pruned.config = {**config, "widths": {**config.get("widths", {}), **widths}}  # type: ignore[assignment]
    return pruned


def _plain_copy(model: nn.Module) -> nn.Module:
    """On the CPU and not channels_last, where every layer is one that torch-pruning can trace; gradients come along."""
    plain = copy.deepcopy(model).cpu()
    for ours, theirs in zip(plain.parameters(), model.parameters(), strict=True):
        ours.data = ours.data.contiguous()
        ours.grad = None if theirs.grad is None else theirs.grad.cpu().contiguous()
    return plain


def _dependencies(tp: Any, block: nn.Module, entry: InnerWidth, channels: list[int]) -> Any:
    """torch-pruning's group of `channels`: every layer of the block that has them, and where in it they are."""
    with torch.enable_grad():
        graph = tp.DependencyGraph().build_dependency(
            block, _example(block), customized_pruners={GroupNormSiLU: _norm_pruner(tp)}, verbose=False
        )
    layer_name, side = entry.layers[0]
    layer = block.get_submodule(layer_name)
    kind = "conv" if isinstance(layer, nn.Conv2d) else "linear"
    function = getattr(tp, f"prune_{kind}_{'in' if side else 'out'}_channels")
    return graph.get_pruning_group(layer, function, channels)


def _example(block: Any) -> tuple[Tensor, ...]:
    """Inputs for tracing a block."""
    if isinstance(block, ResidualBlock):
        return torch.zeros(1, block.conv1.in_channels, 4, 4), torch.zeros(1, block.embedding.in_features)
    if isinstance(block, AttentionBlock):
        return (torch.zeros(1, block.project.out_features, 4, 4),)
    width = block.project.out_features
    return torch.zeros(1, 4, width), torch.zeros(1, width)


def _norm_pruner(tp: Any) -> Any:
    class NormPruner(tp.pruner.BasePruningFunc):
        """Channels of a norm: its scale and shift. How many groups are left is noted by `note_width`."""

        TARGET_MODULES = GroupNormSiLU

        def prune_out_channels(self, layer: GroupNormSiLU, idxs: list[int]) -> GroupNormSiLU:
            keep = torch.ones(len(layer.weight), dtype=torch.bool)
            keep[idxs] = False
            layer.weight = nn.Parameter(layer.weight.detach()[keep])
            layer.bias = nn.Parameter(layer.bias.detach()[keep])
            return layer

        prune_in_channels = prune_out_channels

        def get_out_channels(self, layer: GroupNormSiLU) -> int:
            return len(layer.weight)

        get_in_channels = get_out_channels

    return NormPruner()
