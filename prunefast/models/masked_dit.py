"""A DiT that trains on a part of its tokens (Zheng et al. 2023, "Fast Training of Diffusion Models with Masked
Transformers", MaskDiT; He et al. 2022, MAE, for the asymmetric design).

The encoder, a DiT, sees the visible tokens alone, so half the tokens masked is half its work. A small decoder gets its
outputs, a learned mask token in every gap and the positions of all, and predicts the whole image: what lies under the
mask from what is around it. Without a mask (sampling, fine-tuning after masked training) every token is visible.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunefast.errors import InputError, InputTypeError
from prunefast.models.dit import NORM_EPS, DiT, DiTBlock, modulated_norm, position_table
from prunefast.models.embedding import check_condition


class MaskedDiT(DiT):
    """x [B, channels, R, R], time float32 [B], labels int64 [B] or None -> [B, channels, R, R].

    forward(..., visible=int64 [B, K]): the numbers of the tokens that the encoder sees, row by row; None: all.

    Args:
        decoder_depth, decoder_width, decoder_heads: of the blocks after the encoder; 8, 512, 16 in the paper.
        Others as in `DiT`; no coordinates.
    """

    decoder_positions: Tensor

    def __init__(
        self,
        *,
        decoder_depth: int = 8,
        decoder_width: int = 512,
        decoder_heads: int = 16,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        **options: Any,
    ):
        super().__init__(mlp_ratio=mlp_ratio, dropout=dropout, **options)
        if decoder_depth < 1:
            raise InputError(f"decoder_depth must be at least 1, not {decoder_depth}")
        if decoder_width % 4 or decoder_heads < 1 or decoder_width % decoder_heads:
            raise InputError(
                f"decoder_width must be a multiple of 4 and of decoder_heads {decoder_heads}, not {decoder_width}"
            )
        width = self.patch.out_channels
        self.to_decoder = nn.Linear(width, decoder_width)
        self.decoder_condition = nn.Linear(width, decoder_width)
        for layer in (self.to_decoder, self.decoder_condition):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_width))
        nn.init.normal_(self.mask_token, std=0.02)
        self.decoder_blocks = nn.ModuleList(
            DiTBlock(decoder_width, decoder_heads, mlp_ratio, dropout) for _ in range(decoder_depth)
        )
        # the head of a DiT, at the decoder's width
        self.final_modulation = nn.Linear(decoder_width, 2 * decoder_width)
        self.final = nn.Linear(decoder_width, self.patch_size**2 * self.outputs)
        for layer in (self.final_modulation, self.final):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        table = position_table(self.image_size // self.patch_size, decoder_width)
        self.register_buffer("decoder_positions", table, persistent=False)

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None, visible: Tensor | None = None) -> Tensor:
        check_condition(x, time, labels, self.inputs, self.num_classes)
        self._check_size(x)
        condition = self._condition(time, labels)
        tokens = self._tokens(x)
        count = tokens.shape[1]
        if visible is not None:
            check_visible(visible, len(x), count)
            tokens = tokens.gather(1, visible[:, :, None].expand(-1, -1, tokens.shape[2]))
        for block in self.blocks:
            tokens = block(tokens, condition)
        tokens = self.to_decoder(F.layer_norm(tokens, (tokens.shape[2],), eps=NORM_EPS))
        if visible is not None:
            gaps = self.mask_token.to(tokens.dtype).expand(len(x), count, -1)
            tokens = gaps.scatter(1, visible[:, :, None].expand_as(tokens), tokens)
        tokens = tokens + self.decoder_positions.to(tokens.dtype)
        condition = F.silu(self.decoder_condition(condition))
        for block in self.decoder_blocks:
            tokens = block(tokens, condition)
        shift, scale = self.final_modulation(condition).chunk(2, dim=1)
        return self._unpatch(self.final(modulated_norm(tokens, shift, scale)), *x.shape[-2:])


def check_visible(visible: Tensor, samples: int, tokens: int) -> None:
    """Shape and dtype; values on the CPU only (no synchronisation)."""
    if visible.dtype != torch.int64:
        raise InputTypeError(f"visible must be int64 numbers of tokens, not {visible.dtype}")
    if visible.ndim != 2 or len(visible) != samples or not 1 <= visible.shape[1] <= tokens:
        raise InputError(f"visible must be [{samples}, 1 ... {tokens}], not {tuple(visible.shape)}")
    if visible.device.type == "cpu" and visible.numel() and not torch.compiler.is_compiling():
        low, high = int(visible.min()), int(visible.max())
        if low < 0 or high >= tokens:
            raise InputError(f"visible must lie in 0 ... {tokens - 1}; found {low} ... {high}")
