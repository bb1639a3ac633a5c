"""The UNet of DDPM (Ho, Jain & Abbeel 2020, appendix B), with an optional class embedding.

Levels of halving resolution, `blocks` residual blocks a level on the way down and one more on the way up,
self-attention on the chosen levels and in the middle. Everything runs on channels_last tensors without a copy: give x
and the module `memory_format=torch.channels_last` and no layer turns them back.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunefast.errors import InputError
from prunefast.models.attention import attend
from prunefast.models.conv import Conv3x3
from prunefast.models.dropout import Dropout
from prunefast.models.embedding import LabelEmbedding, check_condition, sinusoids
from prunefast.models.norm import GroupNormSiLU
from prunefast.ops.add_noise import COORDINATE_CHANNELS

# Gain of the last layer of every residual branch and of the network: each starts as the identity, the output as 0
# (nearly: exactly 0 would give the layer before it no gradient in the first step).
SMALL_GAIN = 1e-5


def _initialise(layer: nn.Conv2d | nn.Linear, gain: float = 1.0) -> None:
    """Xavier-uniform over (fan in + fan out) / 2 and zero bias, as DDPM's variance scaling "fan_avg"."""
    nn.init.xavier_uniform_(layer.weight, gain=gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _conv(inputs: int, outputs: int, kernel: int, gain: float = 1.0, stride: int = 1, padding: int = 0) -> nn.Conv2d:
    plain = (kernel, stride, padding) == (3, 1, 1)
    layer = Conv3x3(inputs, outputs) if plain else nn.Conv2d(inputs, outputs, kernel, stride, padding)
    _initialise(layer, gain)
    return layer


def _linear(inputs: int, outputs: int, gain: float = 1.0) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    _initialise(layer, gain)
    return layer


class ResidualBlock(nn.Module):
    """norm - SiLU - conv - add embedding - norm - SiLU - dropout - conv, plus the input."""

    def __init__(self, inputs: int, outputs: int, embedding_width: int, dropout: float, norm_eps: float):
        super().__init__()
        self.norm1 = GroupNormSiLU(inputs, norm_eps)
        self.conv1 = _conv(inputs, outputs, 3, padding=1)
        self.embedding = _linear(embedding_width, outputs)
        self.norm2 = GroupNormSiLU(outputs, norm_eps)
        self.dropout = Dropout(dropout)
        self.conv2 = _conv(outputs, outputs, 3, padding=1, gain=SMALL_GAIN)
        self.shortcut = _conv(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor, activated_embedding: Tensor) -> Tensor:
        h = self.conv1(self.norm1(x)) + self.embedding(activated_embedding)[:, :, None, None]
        h = self.conv2(self.dropout(self.norm2(h)))
        return h + (x if self.shortcut is None else self.shortcut(x))


class AttentionBlock(nn.Module):
    """Self-attention over the pixels, plus the input."""

    def __init__(self, channels: int, heads: int, norm_eps: float):
        super().__init__()
        self.heads = heads
        self.norm = GroupNormSiLU(channels, norm_eps, activation=False)
        # one matrix product for the three; each third is initialised as a layer of its own
        self.query_key_value = nn.Linear(channels, 3 * channels)
        for third in self.query_key_value.weight.chunk(3):
            nn.init.xavier_uniform_(third)
        nn.init.zeros_(self.query_key_value.bias)
        self.project = _linear(channels, channels, gain=SMALL_GAIN)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        pixels = self.norm(x).permute(0, 2, 3, 1).reshape(batch, height * width, channels)  # a view of channels_last
        inner = self.project.in_features  # `channels`, or less of a pruned network
        split = self.query_key_value(pixels).view(batch, height * width, 3, self.heads, inner // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = attend(query, key, value)
        mixed = self.project(mixed.transpose(1, 2).reshape(batch, height * width, inner))
        return x + mixed.view(batch, height, width, channels).permute(0, 3, 1, 2)


class Downsample(nn.Module):
    """Stride-2 convolution. asymmetric: pads right and bottom only, as TensorFlow does and so the published DDPM
    weights."""

    def __init__(self, channels: int, asymmetric: bool):
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = _conv(channels, channels, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)


class Upsample(nn.Module):
    """Nearest-neighbour doubling and a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = _conv(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last):
            return _double_and_convolve(x, self.conv.weight, self.conv.bias)
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _halves(filters: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """What three taps on doubled pixels are on the two pixels they lie on, for an even and an odd output."""
    first, middle, last = filters.unbind(axis)
    return torch.stack((first, middle + last), axis), torch.stack((first + middle, last), axis)


def _double_and_convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """conv(doubled x) with 16/36 of its products: each of the four outputs of a pixel sees 2 x 2 pixels of x, with sums
    of the filter's rows and columns. channels_last in and out.

    On one Zen 4 core 0.72 of the time, forward and backward, 256 channels from 16 to 32 pixels in bf16.
    """
    filters = torch.cat([half for rows in _halves(weight, 2) for half in _halves(rows, 3)])
    batch, _, height, width = x.shape
    outputs = len(weight)
    # of every 2 x 2 window, those that reach over the border included
    seen = F.conv2d(x, filters, None if bias is None else bias.repeat(4), padding=1)
    seen = seen.permute(0, 2, 3, 1).unflatten(3, (2, 2, outputs))
    rows = [torch.stack([seen[:, r : r + height, c : c + width, r, c] for c in range(2)], dim=3) for r in range(2)]
    pixels = torch.stack(rows, dim=2)  # [B, height, 2, width, 2, O]
    return pixels.view(batch, 2 * height, 2 * width, outputs).permute(0, 3, 1, 2)


class UNet(nn.Module):
    """x [B, channels, R, R], time float32 [B], labels int64 [B] or None -> [B, channels, R, R].

    R may be any multiple of 2^(levels - 1); the network is convolutional, so it need not be the size it was built for.

    Args:
        channels: of the images.
        num_classes: None: unconditional. Otherwise label `num_classes` is the null class, and labels=None means it.
        width: channels of the first level; `channel_multipliers` has one factor a level.
        blocks: residual blocks a level on the way down (one more on the way up).
        attention_levels: indices of the levels that attend, 0 being the full resolution.
        heads: of every attention; must divide its channels.
        asymmetric_downsample: see `Downsample`.
        norm_eps: added to the variance in every norm; 1e-6 as in DDPM's own code.
        learn_sigma: doubles the output channels, for a learned variance (`prunefast.diffusion.HybridLoss`).
        coordinates: x has two more channels, the coordinates of `ops.add_noise`, for training on patches.
    """

    config: dict[str, Any]  # what `build_model` made it from

    def __init__(
        self,
        *,
        channels: int = 3,
        num_classes: int | None = None,
        width: int = 128,
        channel_multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 2,
        attention_levels: Sequence[int] = (1,),
        heads: int = 1,
        dropout: float = 0.1,
        asymmetric_downsample: bool = False,
        norm_eps: float = 1e-6,
        learn_sigma: bool = False,
        coordinates: bool = False,
    ):
        super().__init__()
        levels = len(channel_multipliers)
        if width < 4 or width % 2:
            raise InputError(f"width must be even and at least 4, not {width}")
        if not levels or min(channel_multipliers) < 1:
            raise InputError(f"channel_multipliers must be positive integers, one a level, not {channel_multipliers}")
        if blocks < 1:
            raise InputError(f"blocks must be at least 1, not {blocks}")
        if any(not 0 <= level < levels for level in attention_levels):
            raise InputError(f"attention_levels must lie in 0 ... {levels - 1}, not {tuple(attention_levels)}")
        self.channels = channels
        self.inputs = channels + COORDINATE_CHANNELS * coordinates
        self.num_classes = num_classes
        self.width = width
        self.size_multiple = 2 ** (levels - 1)
        level_widths = [width * multiplier for multiplier in channel_multipliers]
        for level_width in (*(level_widths[level] for level in attention_levels), level_widths[-1]):
            if heads < 1 or level_width % heads:
                raise InputError(
                    f"heads must divide the channels of every attention; {heads} does not divide {level_width}"
                )
        embedding_width = 4 * width
        self.time1 = _linear(width, embedding_width)
        self.time2 = _linear(embedding_width, embedding_width)
        self.label_embedding = None if num_classes is None else LabelEmbedding(num_classes, embedding_width)

        def block(inputs: int, outputs: int) -> ResidualBlock:
            return ResidualBlock(inputs, outputs, embedding_width, dropout, norm_eps)

        def attention(level: int) -> nn.Module:
            return AttentionBlock(level_widths[level], heads, norm_eps) if level in attention_levels else nn.Identity()

        self.head = _conv(self.inputs, width, 3, padding=1)
        self.down_blocks, self.down_attentions, self.downsamples = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        skips = [width]  # channels of what the way up will be given, last first
        current = width
        for level, level_width in enumerate(level_widths):
            for _ in range(blocks):
                self.down_blocks.append(block(current, level_width))
                self.down_attentions.append(attention(level))
                current = level_width
                skips.append(current)
            if level + 1 < levels:
                self.downsamples.append(Downsample(current, asymmetric_downsample))
                skips.append(current)

        self.middle1 = block(current, current)
        self.middle_attention = AttentionBlock(current, heads, norm_eps)
        self.middle2 = block(current, current)

        self.up_blocks, self.up_attentions, self.upsamples = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(levels)):
            for _ in range(blocks + 1):
                self.up_blocks.append(block(current + skips.pop(), level_widths[level]))
                self.up_attentions.append(attention(level))
                current = level_widths[level]
            if level:
                self.upsamples.append(Upsample(current))
        self.tail_norm = GroupNormSiLU(current, norm_eps)
        self.tail = _conv(current, channels * (2 if learn_sigma else 1), 3, padding=1, gain=SMALL_GAIN)

        self.levels, self.blocks = levels, blocks

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        check_condition(x, time, labels, self.inputs, self.num_classes)
        check_size(x.shape[-2], self.size_multiple)
        check_size(x.shape[-1], self.size_multiple)
        embedding = sinusoids(time, self.width, endpoint=True, cosine_first=False).to(self.time1.weight.dtype)
        embedding = self.time2(F.silu(self.time1(embedding)))
        if self.label_embedding is not None:
            embedding = embedding + self.label_embedding(labels, len(x))
        embedding = F.silu(embedding)  # every block begins with it

        h = self.head(x)
        skips = [h]
        for level in range(self.levels):
            for index in range(level * self.blocks, (level + 1) * self.blocks):
                h = self.down_attentions[index](self.down_blocks[index](h, embedding))
                skips.append(h)
            if level + 1 < self.levels:
                h = self.downsamples[level](h)
                skips.append(h)

        h = self.middle2(self.middle_attention(self.middle1(h, embedding)), embedding)

        for step in range(self.levels):
            for index in range(step * (self.blocks + 1), (step + 1) * (self.blocks + 1)):
                h = self.up_attentions[index](self.up_blocks[index](torch.cat((h, skips.pop()), dim=1), embedding))
            if step + 1 < self.levels:
                h = self.upsamples[step](h)
        return self.tail(self.tail_norm(h))


def check_size(image_size: int, multiple: int) -> None:
    if image_size < multiple or image_size % multiple:
        raise InputError(
            f"image_size must be a multiple of {multiple} for this model, not {image_size}: "
            "resize the images, or take fewer levels or a smaller patch"
        )
