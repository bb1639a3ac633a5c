"""DiT, the diffusion transformer with adaLN-Zero (Peebles & Xie 2023, "Scalable Diffusion Models with Transformers").

Patches become tokens; every block is an attention and an MLP whose norms are shifted, scaled and gated by what the time
and the class say. The gates start at zero, so the network starts as the identity and its output as zero.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunefast.errors import InputError
from prunefast.models.attention import attend
from prunefast.models.dropout import Dropout
from prunefast.models.embedding import MAX_PERIOD, LabelEmbedding, check_condition, sinusoids
from prunefast.ops.add_noise import COORDINATE_CHANNELS

TIME_FREQUENCIES = 256  # sines and cosines the time is given as, before its MLP
NORM_EPS = 1e-6


def axis_table(positions: Tensor, width: int) -> Tensor:
    """float32 [n, width / 2]: sines then cosines of position * 10,000^(-i / (width / 4)), for float64 positions [n]."""
    frequency = MAX_PERIOD ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = positions[:, None] * frequency
    return torch.cat((angle.sin(), angle.cos()), dim=1).float()


def join_axes(column: Tensor, row: Tensor) -> Tensor:
    """[..., w, width / 2] and [..., h, width / 2] -> [..., h * w, width], tokens in row-major order: the first half
    encodes the column, the second the row."""
    *batch, w, half = column.shape
    h = row.shape[-2]
    columns = column[..., None, :, :].expand(*batch, h, w, half)
    rows = row[..., :, None, :].expand(*batch, h, w, half)
    return torch.cat((columns, rows), dim=-1).reshape(*batch, h * w, 2 * half)


def position_table(grid: int, width: int) -> Tensor:
    """float32 [grid^2, width]: the positions of a whole image's tokens."""
    axis = axis_table(torch.arange(grid, dtype=torch.float64), width)
    return join_axes(axis, axis)


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    normed = F.layer_norm(x, (x.shape[-1],), eps=NORM_EPS)
    return torch.addcmul(shift[:, None], normed, 1 + scale[:, None])


class DiTBlock(nn.Module):
    """x + gate * attention(modulated norm x), then the same with an MLP."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, dropout: float):
        super().__init__()
        self.heads = heads
        hidden = int(width * mlp_ratio)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.mlp1 = nn.Linear(width, hidden)
        self.mlp2 = nn.Linear(hidden, width)
        self.modulation = nn.Linear(width, 6 * width)
        self.dropout = Dropout(dropout)
        for layer in (self.query_key_value, self.project, self.mlp1, self.mlp2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, activated_condition: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [B, T, width]; bias: added to the attention's scores, broadcast to [B, heads, T, T]."""
        parts = self.modulation(activated_condition).chunk(6, dim=1)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        x = torch.addcmul(x, gate1[:, None], self.dropout(self._attention(modulated_norm(x, shift1, scale1), bias)))
        hidden = F.gelu(self.mlp1(modulated_norm(x, shift2, scale2)), approximate="tanh")
        return torch.addcmul(x, gate2[:, None], self.dropout(self.mlp2(hidden)))

    def _attention(self, x: Tensor, bias: Tensor | None) -> Tensor:
        batch, tokens, _ = x.shape
        inner = self.project.in_features  # the width of x, or less of a pruned network
        split = self.query_key_value(x).view(batch, tokens, 3, self.heads, inner // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = attend(query, key, value, bias)
        return self.project(mixed.transpose(1, 2).reshape(batch, tokens, inner))


class DiT(nn.Module):
    """x [B, channels, R, R], time float32 [B], labels int64 [B] or None -> [B, channels, R, R].

    Args:
        image_size: R, a multiple of patch_size; fixed, because the positions are, unless there are coordinates.
        channels: of the images or latents.
        num_classes: None: unconditional. Otherwise label `num_classes` is the null class, and labels=None means it.
        patch_size, depth, width, heads, mlp_ratio: width must be a multiple of 4 and of heads.
        learn_sigma: doubles the output channels, for a learned variance (`prunefast.diffusion.HybridLoss`).
        dropout: after the attention and after the MLP; 0 in the paper.
        coordinates: x has two more channels, the coordinates of `ops.add_noise`. x may then be any crop of an R x R
            image (sides a multiple of patch_size), and a token's position is that of its first pixel in the full image.
    """

    positions: Tensor
    config: dict[str, Any]  # what `build_model` made it from

    def __init__(
        self,
        *,
        image_size: int,
        channels: int = 3,
        num_classes: int | None = None,
        patch_size: int = 2,
        depth: int = 12,
        width: int = 384,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        learn_sigma: bool = False,
        dropout: float = 0.0,
        coordinates: bool = False,
    ):
        super().__init__()
        if patch_size < 1 or image_size < patch_size or image_size % patch_size:
            raise InputError(
                f"image_size must be a multiple of patch_size {patch_size}, not {image_size}: "
                "resize the images or take a smaller patch"
            )
        if width % 4 or heads < 1 or width % heads:
            raise InputError(f"width must be a multiple of 4 and of heads {heads}, not {width}")
        if depth < 1:
            raise InputError(f"depth must be at least 1, not {depth}")
        self.image_size = image_size
        self.channels = channels
        self.inputs = channels + COORDINATE_CHANNELS * coordinates
        self.num_classes = num_classes
        self.patch_size = self.size_multiple = patch_size
        self.outputs = channels * (2 if learn_sigma else 1)

        self.patch = nn.Conv2d(self.inputs, width, patch_size, stride=patch_size)
        self.time1 = nn.Linear(TIME_FREQUENCIES, width)
        self.time2 = nn.Linear(width, width)
        self.label_embedding = None if num_classes is None else LabelEmbedding(num_classes, width)
        self.blocks = nn.ModuleList(self._block(width, heads, mlp_ratio, dropout) for _ in range(depth))
        self.final_modulation = nn.Linear(width, 2 * width)
        self.final = nn.Linear(width, patch_size * patch_size * self.outputs)
        self.coordinates = coordinates
        # with coordinates: of each pixel of an axis, in tokens; crops need not begin where a token of the image does
        pixels = torch.arange(image_size, dtype=torch.float64) / patch_size
        table = axis_table(pixels, width) if coordinates else position_table(image_size // patch_size, width)
        self.register_buffer("positions", table, persistent=False)

        nn.init.xavier_uniform_(self.patch.weight.view(width, -1))  # as the linear layer on patches that it is
        nn.init.zeros_(self.patch.bias)  # type: ignore[arg-type]
        for layer in (self.time1, self.time2):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        for layer in (self.final_modulation, self.final):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        check_condition(x, time, labels, self.inputs, self.num_classes)
        self._check_size(x)
        condition = self._condition(time, labels)
        tokens = self._tokens(x)
        for block in self.blocks:
            tokens = block(tokens, condition)
        shift, scale = self.final_modulation(condition).chunk(2, dim=1)
        return self._unpatch(self.final(modulated_norm(tokens, shift, scale)), *x.shape[-2:])

    def _block(self, width: int, heads: int, mlp_ratio: float, dropout: float) -> DiTBlock:
        return DiTBlock(width, heads, mlp_ratio, dropout)

    def _condition(self, time: Tensor, labels: Tensor | None) -> Tensor:
        """[B, width], activated: every modulation begins with it."""
        condition = sinusoids(time, TIME_FREQUENCIES, endpoint=False, cosine_first=True).to(self.time1.weight.dtype)
        condition = self.time2(F.silu(self.time1(condition)))
        if self.label_embedding is not None:
            condition = condition + self.label_embedding(labels, len(time))
        return F.silu(condition)

    def _tokens(self, x: Tensor) -> Tensor:
        """[B, tokens, width], row by row."""
        return self.patch(x).flatten(2).transpose(1, 2) + self._positions(x).to(self.patch.weight.dtype)

    def _check_size(self, x: Tensor) -> None:
        height, width = x.shape[-2:]
        if self.coordinates:
            if any(side > self.image_size or side < 1 or side % self.patch_size for side in (height, width)):
                raise InputError(
                    f"x must be a crop of {self.image_size} x {self.image_size} pixels with sides that are multiples "
                    f"of {self.patch_size}, not {height} x {width}"
                )
        elif (height, width) != (self.image_size, self.image_size):
            raise InputError(f"x must be {self.image_size} x {self.image_size} for this DiT, not {(height, width)}")

    def _positions(self, x: Tensor) -> Tensor:
        """[grid^2, width], or [B, tokens, width] read off the coordinates (bfloat16 tells the pixels of a side of 256
        apart)."""
        if not self.coordinates:
            return self.positions

        def axis(coordinate: Tensor) -> Tensor:
            pixel = ((coordinate.float() + 1) * ((self.image_size - 1) / 2)).round().long()
            return self.positions[pixel.clamp(0, self.image_size - 1)]

        step = self.patch_size
        return join_axes(axis(x[:, self.channels, 0, ::step]), axis(x[:, self.channels + 1, ::step, 0]))

    def _unpatch(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """[B, h * w, p * p * C] -> [B, C, height, width]; a token holds its patch as (row, column, channel)."""
        patch = self.patch_size
        pixels = tokens.view(len(tokens), height // patch, width // patch, patch, patch, self.outputs)
        return pixels.permute(0, 5, 1, 3, 2, 4).reshape(len(tokens), self.outputs, height, width)
