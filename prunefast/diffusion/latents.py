"""Latents of an autoencoder as a diffusion model sees them: a draw from the posterior, at unit variance."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prunefast import ops
from prunefast.ops.philox import Stream

if TYPE_CHECKING:
    from prunefast.data.latents import LatentScale


def draw_latents(moments: Tensor, latents: "LatentScale", seed: int, position: Tensor) -> Tensor:
    """Means and standard deviations [B, 2 C, R, R] -> [B, C, R, R], each image's draw keyed by (seed, position)."""
    mean, std = moments.chunk(2, dim=1)
    drawn = ops.randn_philox(mean.shape, seed, position, Stream.LATENT)
    return (torch.addcmul(mean, std, drawn) - latents.shift) * latents.scale
