"""The two UNets of EDM: DDPM++ (Song et al. 2021, "Score-Based Generative Modeling through SDEs", appendix H) and ADM
(Dhariwal & Nichol 2021, "Diffusion Models Beat GANs"), as Karras et al. 2022 train them (appendix F).

Both resample inside a residual block (BigGAN's way) and attend inside a block, after its residual sum. They differ in:

====================  ===============================  ==========================================
\\                     ddpmpp                           adm
====================  ===============================  ==========================================
embedding in a block  added before the second norm     scales and shifts the second norm
skip of a resample    1x1 convolution                  as it is
sums                  times sqrt(1/2)                  plain
attention             one head; last block of the way  64 channels a head; every block of its
                      up only                          levels
norm eps              1e-6                             1e-5
label                 added to the sinusoids           added after the second linear layer
weights               Xavier-uniform; last layers of   uniform +-1 / sqrt(fan in); last layers of
                      branches 1e-5 of it              branches 0
====================  ===============================  ==========================================

They know nothing of noise: EDM's preconditioning is the process "edm" (`prunefast.diffusion.EDM`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunefast.errors import InputError
from prunefast.models.attention import attend
from prunefast.models.conv import Conv3x3
from prunefast.models.dropout import Dropout
from prunefast.models.embedding import check_condition, sinusoids
from prunefast.models.norm import GroupNormSiLU
from prunefast.models.unet import check_size
from prunefast.ops.add_noise import COORDINATE_CHANNELS

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class _Style:
    scale_shift: bool
    project_resampled: bool
    sum_scale: float
    channels_per_head: int | None  # None: one head
    attend_last_only: bool  # of a level on the way up
    norm_eps: float
    endpoint: bool  # of the sinusoids, see `embedding.sinusoids`
    cosine_first: bool
    late_label: bool
    xavier: bool
    last_gain: float  # of the last layer of a branch
    attention_gain: float  # of the layer that makes query, key and value


STYLES = {
    "ddpmpp": _Style(False, True, math.sqrt(0.5), None, True, 1e-6, True, False, False, True, 1e-5, math.sqrt(0.2)),
    "adm": _Style(True, False, 1.0, 64, False, 1e-5, False, True, True, False, 0.0, 1.0),
}


def _initialised(layer: Layer, style: _Style, gain: float = 1.0) -> Layer:
    """torch's own initialisation is adm's: uniform, bound 1 / sqrt(fan in), biases too."""
    if style.xavier:
        nn.init.xavier_uniform_(layer.weight, gain=gain)
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    elif gain != 1:
        with torch.no_grad():
            layer.weight.mul_(gain)
            layer.bias.mul_(gain)  # type: ignore[union-attr]
    return layer


class EDMBlock(nn.Module):
    """norm - SiLU - (resample) conv - embedding - norm - SiLU - dropout - conv, plus the skip; then attention."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding_width: int,
        dropout: float,
        style: _Style,
        *,
        resample: str | None = None,
        attention: bool = False,
    ):
        super().__init__()
        self.style, self.resample = style, resample
        self.norm1 = GroupNormSiLU(inputs, style.norm_eps)
        self.conv1 = _initialised(Conv3x3(inputs, outputs), style)
        self.embedding = _initialised(nn.Linear(embedding_width, outputs * (2 if style.scale_shift else 1)), style)
        self.norm2 = GroupNormSiLU(outputs, style.norm_eps)
        self.dropout = Dropout(dropout)
        self.conv2 = _initialised(Conv3x3(outputs, outputs), style, style.last_gain)
        projected = inputs != outputs or (resample is not None and style.project_resampled)
        self.shortcut = _initialised(nn.Conv2d(inputs, outputs, 1), style) if projected else None
        self.attention = _Attention(outputs, style) if attention else None

    def forward(self, x: Tensor, activated_embedding: Tensor) -> Tensor:
        h = self.conv1(self._resampled(self.norm1(x)))
        embedding = self.embedding(activated_embedding)
        if self.style.scale_shift:
            scale, shift = embedding.chunk(2, dim=1)
            h = self.norm2(h, scale, shift)
        else:
            h = self.norm2(h + embedding[:, :, None, None])
        h = self.conv2(self.dropout(h))
        skip = self._resampled(x)
        h = (h + (skip if self.shortcut is None else self.shortcut(skip))) * self.style.sum_scale
        return h if self.attention is None else self.attention(h)

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.resample == "up" else x


class _Attention(nn.Module):
    """Self-attention over the pixels, plus the input, times the sum's scale."""

    def __init__(self, channels: int, style: _Style):
        super().__init__()
        self.heads = 1 if style.channels_per_head is None else max(channels // style.channels_per_head, 1)
        if channels % self.heads:
            raise InputError(f"width: {self.heads} heads do not divide the {channels} channels of an attention")
        self.sum_scale = style.sum_scale
        self.norm = GroupNormSiLU(channels, style.norm_eps, activation=False)
        self.query_key_value = nn.Linear(channels, 3 * channels)
        _initialised(self.query_key_value, style, style.attention_gain)
        self.project = _initialised(nn.Linear(channels, channels), style, style.last_gain)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        pixels = self.norm(x).permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        split = self.query_key_value(pixels).view(batch, height * width, 3, self.heads, channels // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = attend(query, key, value)
        mixed = self.project(mixed.transpose(1, 2).reshape(batch, height * width, channels))
        return (x + mixed.view(batch, height, width, channels).permute(0, 3, 1, 2)) * self.sum_scale


class EDMUNet(nn.Module):
    """x [B, channels, R, R], time float32 [B], labels int64 [B] or None -> [B, channels, R, R].

    R may be any multiple of 2^(levels - 1).

    Args:
        channels: of the images.
        num_classes: None: unconditional. Otherwise label `num_classes` is the null class, and labels=None means it.
        style: "ddpmpp" or "adm", see the table of this module.
        width, channel_multipliers, blocks: channels of a level are width times its multiplier; `blocks` residual blocks
            a level on the way down, one more on the way up.
        attention_levels: indices of the levels that attend, 0 being the full resolution.
        augment_labels: length of the vector that says how an image was augmented (Karras et al. 2022, appendix F.2), so
            that augmentation does not leak into the samples; 0: none. `forward(..., augment=float [B, n])`; None is no
            augmentation. Our loop gives the mirroring as its first number.
        learn_sigma: doubles the output channels, for a learned variance (`prunefast.diffusion.HybridLoss`).
        coordinates: x has two more channels, the coordinates of `ops.add_noise`, for training on patches.
    """

    config: dict[str, Any]  # what `build_model` made it from

    def __init__(
        self,
        *,
        channels: int = 3,
        num_classes: int | None = None,
        style: str = "ddpmpp",
        width: int = 128,
        channel_multipliers: Sequence[int] = (2, 2, 2),
        blocks: int = 4,
        attention_levels: Sequence[int] = (1,),
        dropout: float = 0.13,
        augment_labels: int = 0,
        learn_sigma: bool = False,
        coordinates: bool = False,
    ):
        super().__init__()
        levels = len(channel_multipliers)
        if style not in STYLES:
            raise InputError(f"style '{style}' is not one of {', '.join(STYLES)}")
        if width < 4 or width % 4:
            raise InputError(f"width must be a multiple of 4, not {width}")
        if not levels or min(channel_multipliers) < 1:
            raise InputError(f"channel_multipliers must be positive integers, one a level, not {channel_multipliers}")
        if blocks < 1:
            raise InputError(f"blocks must be at least 1, not {blocks}")
        if any(not 0 <= level < levels for level in attention_levels):
            raise InputError(f"attention_levels must lie in 0 ... {levels - 1}, not {tuple(attention_levels)}")
        if augment_labels < 0:
            raise InputError(f"augment_labels must not be negative, not {augment_labels}")
        self.style = chosen = STYLES[style]
        self.channels, self.num_classes, self.width = channels, num_classes, width
        self.inputs = channels + COORDINATE_CHANNELS * coordinates
        self.size_multiple = 2 ** (levels - 1)
        widths = [width * multiplier for multiplier in channel_multipliers]
        embedding_width = 4 * width

        self.time1 = _initialised(nn.Linear(width, embedding_width), chosen)
        self.time2 = _initialised(nn.Linear(embedding_width, embedding_width), chosen)
        self.label_table = None if num_classes is None else _label_table(num_classes, width, chosen)
        self.augment = nn.Linear(augment_labels, width, bias=False) if augment_labels else None
        if self.augment is not None:
            nn.init.zeros_(self.augment.weight)

        def block(inputs: int, outputs: int, **options: Any) -> EDMBlock:
            return EDMBlock(inputs, outputs, embedding_width, dropout, chosen, **options)

        # adm's first block widens, ddpmpp's first convolution stays at `width` too
        first = widths[0] if chosen.late_label else width
        self.head = _initialised(Conv3x3(self.inputs, first), chosen)
        self.down = nn.ModuleList()
        current, skips = first, [first]
        for level, level_width in enumerate(widths):
            if level:
                self.down.append(block(current, current, resample="down"))
                skips.append(current)
            for _ in range(blocks):
                self.down.append(block(current, level_width, attention=level in attention_levels))
                current = level_width
                skips.append(current)
        self.middle = nn.ModuleList((block(current, current, attention=True), block(current, current)))
        self.up = nn.ModuleList()
        for level in reversed(range(levels)):
            if level + 1 < levels:
                self.up.append(block(current, current, resample="up"))
            for index in range(blocks + 1):
                attends = level in attention_levels and (index == blocks or not chosen.attend_last_only)
                self.up.append(block(current + skips.pop(), widths[level], attention=attends))
                current = widths[level]
        self.tail_norm = GroupNormSiLU(current, chosen.norm_eps)
        outputs = channels * (2 if learn_sigma else 1)
        self.tail = _initialised(Conv3x3(current, outputs), chosen, chosen.last_gain)

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        check_condition(x, time, labels, self.inputs, self.num_classes)
        check_size(x.shape[-2], self.size_multiple)
        check_size(x.shape[-1], self.size_multiple)
        embedding = self._embedding(time, labels, augment)
        h = self.head(x)
        skips = [h]
        for block in self.down:
            h = block(h, embedding)
            skips.append(h)
        for block in self.middle:
            h = block(h, embedding)
        for block in self.up:
            h = block(h if block.resample else torch.cat((h, skips.pop()), dim=1), embedding)
        return self.tail(self.tail_norm(h))

    def _embedding(self, time: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        """[B, 4 width], activated: every block begins with it."""
        style = self.style
        e = sinusoids(time, self.width, endpoint=style.endpoint, cosine_first=style.cosine_first)
        e = e.to(self.time1.weight.dtype)
        label: Tensor | None = None
        if self.label_table is not None:
            label = self.label_table(labels, len(time))
        if label is not None and not style.late_label:
            e = e + label
        if augment is not None:
            if self.augment is None:
                raise InputError("augment was given to a model without augment_labels")
            e = e + self.augment(augment.to(e.dtype))
        e = self.time2(F.silu(self.time1(e)))
        return F.silu(e + label if label is not None and style.late_label else e)


class _LabelTable(nn.Module):
    """One row a class and, where `learned_null`, one for the null class; otherwise the null class is 0."""

    def __init__(self, num_classes: int, width: int, learned_null: bool):
        super().__init__()
        self.num_classes, self.learned_null = num_classes, learned_null
        self.weight = nn.Parameter(torch.empty(num_classes + learned_null, width))

    def forward(self, labels: Tensor | None, batch: int) -> Tensor | None:
        if labels is None:
            return self.weight[self.num_classes].expand(batch, -1) if self.learned_null else None
        if self.learned_null:
            return self.weight.index_select(0, labels)
        is_class = (labels < self.num_classes)[:, None]
        return self.weight.index_select(0, labels.clamp(max=self.num_classes - 1)) * is_class


def _label_table(num_classes: int, width: int, style: _Style) -> _LabelTable:
    """As a linear layer on one-hot labels of length sqrt(num_classes): with a bias, which is what the null class gets
    (ddpmpp), or without one (adm)."""
    table = _LabelTable(num_classes, 4 * width if style.late_label else width, learned_null=not style.late_label)
    if style.xavier:
        bound = math.sqrt(6 * num_classes / (num_classes + width))
        nn.init.uniform_(table.weight, -bound, bound)
    else:
        nn.init.normal_(table.weight)
    return table
