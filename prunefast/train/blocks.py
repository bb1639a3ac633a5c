"""The blocks of a network, one after the other: what is compiled, and gathered from the ranks, at a time."""

import inspect

import torch
from torch import nn

from prunefast.models.adapter import ModuleNetwork

# Before torch gives up on a network: a UNet has a score of different blocks, each at up to three patch sizes.
_MOST_GRAPHS = 256


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """What stands in the module lists of `model` and has weights. None of a module of the user's, which may use parts
    of its blocks without calling them.
    """
    if isinstance(model, ModuleNetwork):
        return []
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return [block for blocks in lists for block in blocks if any(True for _ in block.parameters())]


def compile_network(model: nn.Module) -> nn.Module:
    """What is called in the place of `model`: `model` itself with its blocks compiled in place, of which those that are
    alike share a graph, so that of a DiT one block is compiled; or all of it in one graph, where it has no blocks or
    torch cannot be told how many graphs to keep.

    Each patch size has its own graphs, compiled when it first comes: dynamic shapes would give slower ones for all.
    """
    blocks = blocks_of(model)
    if not blocks or "recompile_limit" not in inspect.signature(torch.compile).parameters:
        return torch.compile(model, dynamic=False)  # type: ignore[return-value]
    for block in blocks:
        block.compile(dynamic=False, recompile_limit=_MOST_GRAPHS)
    return model
