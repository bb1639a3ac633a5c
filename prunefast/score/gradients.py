"""Per-sample gradients of the denoising loss by torch.func: vmap(grad), a few images at a time.

A gradient is as large as the network, so what is kept of each is a number or two.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from prunefast.score.denoising import DrawOptions, check_whole, noised


@dataclass(frozen=True)
class GradientOptions(DrawOptions):
    """times  draws an image; a backward pass each
    chunk  images whose gradients are held together: memory is 4 chunk bytes a parameter, and the activations
    """

    times: int = 2
    keep_hard: bool = True
    chunk: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("chunk", self.chunk)


Gradients = dict[str, Tensor]  # parameter name -> [B, ...]


class PerSampleGradients:
    """Gradients of the loss of single images with respect to the parameters of a network, which stays as it is."""

    def __init__(self, network: Any):
        self.network = network
        self.parameters = {name: p.detach() for name, p in network.model.named_parameters()}
        self.buffers = dict(network.model.named_buffers())
        axes = (None, 0, 0, 0, None if network.num_classes is None else 0)
        self._function = vmap(grad(self._loss), in_dims=axes)

    def _loss(self, parameters: Gradients, x: Tensor, time: Tensor, target: Tensor, label: Tensor | None) -> Tensor:
        """One image: the plain formula, since the fused kernel gives the gradient of a batch."""
        arguments = (x[None], time[None], None if label is None else label[None])
        with sdpa_kernel(SDPBackend.MATH):  # the fused attentions have no batching rule and would run image by image
            prediction = functional_call(self.network.model, (parameters, self.buffers), arguments)
        return (prediction[0] - target).square().mean()

    def draws(
        self, data: Any, items: np.ndarray, images: np.ndarray, seed: int, times: int, chunk: int
    ) -> Iterator[tuple[slice, int, Gradients]]:
        """(rows of the batch, draw k, their gradients [rows, ...]); the draws of one chunk come one after another."""
        for begin in range(0, len(items), chunk):
            rows = slice(begin, min(begin + chunk, len(items)))
            for k in range(times):
                draw = noised(data, self.network, items[rows], images[rows], seed, k, times)
                target = draw.target(self.network.loss)
                yield rows, k, self._function(self.parameters, draw.x, draw.network_time, target, draw.labels)


def squared_norms(gradients: Gradients) -> np.ndarray:
    """float64 [B]."""
    return sum(g.flatten(1).double().square().sum(1) for g in gradients.values()).cpu().numpy()  # type: ignore[union-attr]


@torch.no_grad()
def inner_products(gradients: Gradients, other: Gradients) -> np.ndarray:
    """float64 [B]: <gradient of each image, other>; other without the batch dimension, float64."""
    return (
        sum(  # type: ignore[union-attr]
            g.flatten(1).double() @ other[name].flatten() for name, g in gradients.items()
        )
        .cpu()
        .numpy()
    )
