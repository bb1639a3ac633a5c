"""Embeddings of the time and of the class."""

import math

import torch
from torch import Tensor, nn

from prunefast.errors import InputError, InputTypeError

MAX_PERIOD = 10_000.0  # the slowest sinusoid turns once in 2 pi * 10,000 units of time (Vaswani et al. 2017)


def sinusoids(time: Tensor, width: int, *, endpoint: bool, cosine_first: bool) -> Tensor:
    """float32 [B, width]: sines and cosines of time * MAX_PERIOD^(-i / n), i = 0 ... width / 2 - 1.

    endpoint: n = width / 2 - 1, so that the slowest one is reached (DDPM's UNet); otherwise n = width / 2 (DiT).
    """
    half = width // 2
    index = torch.arange(half, dtype=torch.float32, device=time.device)
    frequency = torch.exp(index * (-math.log(MAX_PERIOD) / (half - 1 if endpoint else half)))
    angle = time.float()[:, None] * frequency
    parts = (angle.cos(), angle.sin()) if cosine_first else (angle.sin(), angle.cos())
    return torch.cat(parts, dim=1)


class LabelEmbedding(nn.Module):
    """A table of num_classes + 1 rows; the last one is the null class of classifier-free guidance."""

    def __init__(self, num_classes: int, width: int):
        super().__init__()
        self.num_classes = num_classes
        self.weight = nn.Parameter(torch.empty(num_classes + 1, width))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, labels: Tensor | None, batch: int) -> Tensor:
        """[B, width]; labels None: the null class for all."""
        if labels is None:
            return self.weight[self.num_classes].expand(batch, -1)
        return self.weight.index_select(0, labels)


def check_condition(x: Tensor, time: Tensor, labels: Tensor | None, channels: int, num_classes: int | None) -> None:
    """Shapes and dtypes of a network's arguments; label values on the CPU only (no synchronisation)."""
    if x.ndim != 4 or x.shape[1] != channels:
        raise InputError(f"x must be [B, {channels}, H, W], not {tuple(x.shape)}")
    if time.shape != (len(x),):
        raise InputError(f"time must be [{len(x)}], one number an image, not {tuple(time.shape)}")
    if labels is None:
        return
    if num_classes is None:
        raise InputError("labels were given to a model without classes: build it with num_classes, or pass labels=None")
    if labels.shape != (len(x),):
        raise InputError(f"labels must be [{len(x)}], one class an image, not {tuple(labels.shape)}")
    if labels.dtype != torch.int64:
        raise InputTypeError(f"labels must be int64, not {labels.dtype}")
    # a compiled graph and torch.func have no values to look at
    traced = torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None
    if labels.device.type == "cpu" and len(x) and not traced:
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high > num_classes:
            raise InputError(
                f"labels must lie in 0 ... {num_classes} ({num_classes} is the null class); found {low} ... {high}"
            )
