"""The masked diffusion transformer with its side interpolater (Gao et al. 2023, "Masked Diffusion Transformer is a
Strong Image Synthesizer", MDT).

A DiT whose last few blocks are a decoder. In training the other blocks, the encoder, see a part of the tokens; a side
interpolater of one block fills the gaps from what they made of them and a learned mask token, and the decoder predicts
the whole image. Without a mask the encoder's outputs go straight to the decoder: sampling is that of a DiT, and the
side interpolater costs nothing in it. It trains on both, `prunefast.diffusion.TokenMasking(side=True)`.

Positions are learned, at the inputs of encoder and decoder, and every attention has a learned bias for each difference
of two tokens' places.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from prunefast.errors import InputError
from prunefast.models.dit import DiT, DiTBlock, modulated_norm
from prunefast.models.embedding import check_condition
from prunefast.models.masked_dit import check_visible


class PlacedBlock(DiTBlock):
    """A block of DiT with a learned bias for each of `offsets` differences of two tokens' places."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, dropout: float, offsets: int):
        super().__init__(width, heads, mlp_ratio, dropout)
        self.place_bias = nn.Parameter(torch.zeros(heads, offsets))

    def at(self, x: Tensor, activated_condition: Tensor, offset: Tensor) -> Tensor:
        """offset int64 [1 or B, T, T]: the number of the difference between each two tokens."""
        return self(x, activated_condition, self.place_bias[:, offset].transpose(0, 1))


class SideInterpolater(PlacedBlock):
    """What fills the gaps. A class of its own, because no sampling runs it: there is nothing to prune."""


class MDT(DiT):
    """x [B, channels, R, R], time float32 [B], labels int64 [B] or None -> [B, channels, R, R].

    forward(..., visible=int64 [B, K]): the numbers of the tokens that the encoder sees, row by row; None: all.

    Args:
        decoder_depth: how many of the `depth` blocks decode; 2 in the paper.
        Others as in `DiT`; no coordinates.
    """

    offsets: Tensor

    def __init__(self, *, decoder_depth: int = 2, mlp_ratio: float = 4.0, dropout: float = 0.0, **options: Any):
        super().__init__(mlp_ratio=mlp_ratio, dropout=dropout, **options)
        if not 1 <= decoder_depth < len(self.blocks):
            raise InputError(f"decoder_depth must be from 1 to {len(self.blocks) - 1} (depth - 1), not {decoder_depth}")
        self.decoder_depth = decoder_depth
        width, block = self.patch.out_channels, cast(PlacedBlock, self.blocks[0])
        self.side_interpolater = SideInterpolater(width, block.heads, mlp_ratio, dropout, block.place_bias.shape[1])
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        nn.init.normal_(self.mask_token, std=0.02)
        self.positions = nn.Parameter(self.positions)
        self.decoder_positions = nn.Parameter(self.positions.detach().clone())
        grid = self.image_size // self.patch_size
        row, column = torch.arange(grid**2) // grid, torch.arange(grid**2) % grid
        rows, columns = (at[:, None] - at[None, :] + grid - 1 for at in (row, column))
        self.register_buffer("offsets", rows * (2 * grid - 1) + columns, persistent=False)

    def _block(self, width: int, heads: int, mlp_ratio: float, dropout: float) -> DiTBlock:
        return PlacedBlock(width, heads, mlp_ratio, dropout, (2 * (self.image_size // self.patch_size) - 1) ** 2)

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None, visible: Tensor | None = None) -> Tensor:
        check_condition(x, time, labels, self.inputs, self.num_classes)
        self._check_size(x)
        condition = self._condition(time, labels)
        tokens = self._tokens(x)
        everywhere = self.offsets[None]
        offset = everywhere
        if visible is not None:
            check_visible(visible, len(x), tokens.shape[1])
            tokens = tokens.gather(1, visible[:, :, None].expand(-1, -1, tokens.shape[2]))
            offset = self.offsets[visible[:, :, None], visible[:, None, :]]
        blocks = cast(list[PlacedBlock], list(self.blocks))
        encoder, decoder = blocks[: -self.decoder_depth], blocks[-self.decoder_depth :]
        for block in encoder:
            tokens = block.at(tokens, condition, offset)
        positions = self.decoder_positions.to(tokens.dtype)
        if visible is None:
            tokens = tokens + positions
        else:
            gaps = self.mask_token.to(tokens.dtype).expand(len(x), len(self.offsets), -1)
            tokens = gaps.scatter(1, visible[:, :, None].expand_as(tokens), tokens) + positions
            seen = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=x.device).scatter_(1, visible, True)
            filled = self.side_interpolater.at(tokens, condition, everywhere)
            tokens = torch.where(seen[:, :, None], tokens, filled)
        for block in decoder:
            tokens = block.at(tokens, condition, everywhere)
        shift, scale = self.final_modulation(condition).chunk(2, dim=1)
        return self._unpatch(self.final(modulated_norm(tokens, shift, scale)), *x.shape[-2:])
