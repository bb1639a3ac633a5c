"""Which tokens a masked transformer sees, and the loss on what it says (Zheng et al. 2023, MaskDiT, section 3; Gao et
al. 2023, MDT, section 3.2).

The denoising loss counts over the visible tokens, a mean over them in place of one over all pixels. Where wanted, a
second term asks the decoder for the network's own noisy input under the mask, which it was not shown. MaskDiT asks its
denoiser's output for x0 + sigma noise; here it is the raw output for the scaled input, which has the same scale for
every prediction and noise level.

MDT's network has a loss of its own: the plain one on all pixels, once with the mask and once without.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from prunefast import ops
from prunefast.diffusion.loss import DenoisingLoss
from prunefast.diffusion.parameterisation import target_coefficients
from prunefast.errors import InputError
from prunefast.ops.crop import crop_flip, to_unit
from prunefast.ops.noise import noise_tensor
from prunefast.ops.philox import Stream


@dataclass(frozen=True)
class TokenMasking:
    """Masks keyed by image position.

        masking = TokenMasking(image_size=32, patch_size=2, ratio=0.5, reconstruction=0.1)
        visible = masking.visible(batch.position)                       # int64 [B, 128]
        predicted = network(x_t, time, labels, visible=visible)         # prunefast.models.MaskedDiT
        loss = masking.loss(loss_of, predicted, visible, x_t, images, noise, t)

    Args:
        image_size, patch_size: of the network.
        ratio: share of the tokens that are masked, in [0, 1); at least one is visible.
        reconstruction: weight of the second term; 0.1 in the paper, 0: none.
        side: MDT's loss in place of MaskDiT's (`prunefast.models.MDT`).
        seed: of the masks.
    """

    image_size: int
    patch_size: int
    ratio: float = 0.5
    reconstruction: float = 0.0
    seed: int = 0
    side: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise InputError(f"ratio must lie in [0, 1), not {self.ratio}")
        if not self.reconstruction >= 0:
            raise InputError(f"reconstruction must not be negative, not {self.reconstruction}")
        if self.side and self.reconstruction > 0:
            raise InputError("reconstruction is MaskDiT's; it does not go with side=True")
        if self.image_size % self.patch_size:
            raise InputError(f"image_size must be a multiple of patch_size {self.patch_size}, not {self.image_size}")

    @property
    def tokens(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def kept(self) -> int:
        """Visible tokens an image: n of T, rounded half up."""
        return max(int(self.tokens * (1 - self.ratio) + 0.5), 1)

    def visible(self, position: Tensor) -> Tensor:
        """The visible tokens of each image, int64 [B, kept], ascending: every choice is equally likely."""
        u = ops.uniform_philox((len(position), self.tokens), self.seed, position, Stream.TOKEN_MASK)
        return u.argsort(dim=1, stable=True)[:, : self.kept].sort(dim=1).values

    def pixels(self, visible: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """[B, 1, R, R]: 1 on the pixels of visible tokens, 0 elsewhere."""
        side = self.image_size // self.patch_size
        shown = torch.zeros(len(visible), self.tokens, dtype=dtype, device=visible.device).scatter_(1, visible, 1.0)
        return F.interpolate(shown.view(-1, 1, side, side), scale_factor=float(self.patch_size), mode="nearest")

    def loss(
        self,
        loss: DenoisingLoss,
        pred: Tensor,
        visible: Tensor,
        network_input: Tensor,
        x0: Tensor,
        noise: "Tensor | tuple[int, Tensor]",
        t: Tensor,
        labels: Tensor | None = None,
        sample_weight: Tensor | None = None,
        *,
        flip: Tensor | None = None,
    ) -> Tensor:
        """Mean over images of weight x (mean squared error over visible pixels), plus `reconstruction` x the mean
        squared error of pred as the network's input over the others. Weights as in `DenoisingLoss`."""
        wide = torch.float64 if pred.dtype == torch.float64 else torch.float32
        clean = to_unit(crop_flip(x0, None, x0.shape[2], x0.shape[3], flip), wide)
        drawn = noise if isinstance(noise, Tensor) else noise_tensor(None, noise[0], noise[1], clean.shape)
        alpha, sigma = loss.process.alpha_sigma(t, torch.float64)
        a, b = (v.to(wide)[:, None, None, None] for v in target_coefficients(loss.prediction, alpha, sigma))
        shown = self.pixels(visible, wide)
        error = (pred.to(wide) - a * clean - b * drawn.to(wide)).square() * shown
        per_sample = error.flatten(1).sum(1) / (shown.flatten(1).sum(1) * pred.shape[1])
        total = (loss.sample_weights(t, labels, sample_weight) * per_sample).mean()
        if self.reconstruction > 0 and self.kept < self.tokens:
            hidden = 1 - shown
            miss = (pred.to(wide) - network_input.to(wide)).square() * hidden
            per_sample = miss.flatten(1).sum(1) / (hidden.flatten(1).sum(1) * pred.shape[1])
            weight = sample_weight if sample_weight is not None else torch.ones_like(per_sample)
            total = total + self.reconstruction * (weight * per_sample).mean()
        return total
