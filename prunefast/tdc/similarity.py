"""Timestep groups by what training at each time asks of the weights: times with similar gradients go together."""

import torch
from torch import Tensor, nn

from prunefast.data import ImageDataset
from prunefast.diffusion import TimestepGroups
from prunefast.diffusion.groups import check_groups, groups_from_shares
from prunefast.diffusion.process import Process
from prunefast.errors import InputError
from prunefast.select import Coreset
from prunefast.tdc.search import Proxy
from prunefast.train.config import TrainConfig

BINS = 20  # parts of equal share that the times are measured in
NUMBERS = 1_000_000  # entries of the gradient that are compared at most, evenly spaced over all parameters


def similar_gradients(
    model: nn.Module, config: TrainConfig, data: ImageDataset, coreset: Coreset, n: int, *, images: int, seed: int
) -> TimestepGroups:
    """N contiguous groups that minimise the spread of unit gradients within a group.

    The gradient of the loss is measured in 20 bins of equal share, each on the same images and noise. The edges are
    those of the contiguous partition with the least sum over groups of sum ||g_b - mean||^2, found exactly by dynamic
    programming. Costs 20 x `images` forward and backward passes.
    """
    if check_groups(n) > BINS:
        raise InputError(f"groups is {n}; by gradients there are at most {BINS}")
    rows = []
    for place in range(BINS):
        part = config.replace(timesteps=(place / BINS, (place + 1) / BINS))
        proxy = Proxy(part, data, coreset, images=images, steps=0, lr=0.0, seed=seed)
        proxy.accumulate_gradients(model.to(proxy.plan.device))
        process = proxy.plan.loss.process
        rows.append(_sampled_gradient(model))
        model.zero_grad(set_to_none=True)
    unit = torch.nn.functional.normalize(torch.stack(rows), dim=1)
    return contiguous_groups(process, unit @ unit.T, n)


def _sampled_gradient(model: nn.Module) -> Tensor:
    gradients = [p.grad.detach().flatten() for p in model.parameters() if p.grad is not None]
    stride = -(-sum(len(g) for g in gradients) // NUMBERS)
    return torch.cat([g[::stride] for g in gradients]).double().cpu()


def contiguous_groups(process: Process, similarity: Tensor, n: int) -> TimestepGroups:
    """The best contiguous partition of bins of equal share, by their cosine similarity [bins, bins]."""
    bins = len(similarity)
    distance = 1 - similarity  # ||a - b||^2 / 2 of unit vectors

    def spread(begin: int, end: int) -> float:
        # sum over members of ||g - mean||^2 = sum over pairs of ||a - b||^2 / (2 size)
        return float(distance[begin:end, begin:end].sum()) / (end - begin)

    # cost[m][e]: least spread of the first e bins in m groups; cut[m][e]: where the last of them begins
    cost = [[float("inf")] * (bins + 1) for _ in range(n + 1)]
    cut = [[0] * (bins + 1) for _ in range(n + 1)]
    cost[0][0] = 0.0
    for m in range(1, n + 1):
        for end in range(m, bins + 1):
            options = [(cost[m - 1][begin] + spread(begin, end), begin) for begin in range(m - 1, end)]
            cost[m][end], cut[m][end] = min(options)
    inner, end = [], bins
    for m in range(n, 1, -1):
        end = cut[m][end]
        inner.append(end / bins)
    return groups_from_shares(process, sorted(inner))
