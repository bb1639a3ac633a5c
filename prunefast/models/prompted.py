"""A network that is told texts, in the place of one that is told classes: loop and samplers drive it as they are."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class PromptedNetwork(nn.Module):
    """network(x, time, text=embeddings of the texts with these numbers).

    Args:
        network: forward(x, time, labels=None, text=[B, tokens, width]).
        embeddings: numbers int64 [B] -> [B, tokens, width] on the device of x.
        null: the number of the text that guidance compares with, and that labels=None means.
    """

    def __init__(self, network: nn.Module, embeddings: Callable[[Tensor], Tensor], null: int):
        super().__init__()
        self.network, self.embeddings, self.null = network, embeddings, null
        self.config: dict[str, Any] = {**network.config, "num_classes": null}  # type: ignore[dict-item]

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None, **told: Tensor) -> Tensor:
        if labels is None:
            labels = torch.full((len(x),), self.null, device=x.device)
        return self.network(x, time, text=self.embeddings(labels), **told)
