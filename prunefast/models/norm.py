"""GroupNorm followed by SiLU, the pair a UNet is made of."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunefast.ops.group_norm_silu import can_fuse, fused_group_norm

# A group of fewer channels than this has too few numbers for its statistics where the image is small.
CHANNELS_PER_GROUP = 4
GROUPS = 32


def group_count(channels: int) -> int:
    """32 where they fit, otherwise the most groups of one size that hold `CHANNELS_PER_GROUP` channels each."""
    most = min(GROUPS, max(channels // CHANNELS_PER_GROUP, 1))
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)


class GroupNormSiLU(nn.Module):
    """silu(group_norm(x)) with a learned scale and shift a channel; keeps channels_last.

    `scale` and `shift` [B, C], of the embedding, go over them: silu(group_norm(x) * (1 + scale) + shift).

    `activation=False` leaves the SiLU out (the norm before an attention). On a CPU, channels_last images go through the
    fused kernel of `prunefast.ops`; everything else through torch's own group_norm.
    """

    def __init__(self, channels: int, eps: float = 1e-6, activation: bool = True):
        super().__init__()
        self.groups = group_count(channels)
        self.eps = eps
        self.activation = activation
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        if can_fuse(x, self.weight, self.bias, scale, shift):
            return fused_group_norm(x, self.groups, self.weight, self.bias, scale, shift, self.eps, self.activation)
        x = F.group_norm(x, self.groups, self.weight, self.bias, self.eps)
        if scale is not None and shift is not None:
            x = torch.addcmul(shift[:, :, None, None], x, 1 + scale[:, :, None, None])
        return F.silu(x) if self.activation else x

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, groups={self.groups}, eps={self.eps}, activation={self.activation}"
