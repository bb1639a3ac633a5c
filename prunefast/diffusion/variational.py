"""Learned variance and the hybrid loss (Nichol & Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models").

A network of 2 C channels predicts the usual target in the first C and, in the others, a number o a pixel that places
the variance of p(x_{t-1} | x_t) between the two that are right in the limits (their eq. 15):

    log variance = s log beta_t + (1 - s) log beta~_t,    s = (o + 1) / 2

    beta~_t = beta_t (1 - abar_{t-1}) / (1 - abar_t), that of q(x_{t-1} | x_t, x0); at t = 0 the one of t = 1

and is trained by the simple loss on the first C channels plus lambda times the variational bound, in which the mean is
held constant so that the bound trains the variance alone (their eq. 16).

Everything hangs on the error of the posterior's mean. The mean is a x0-estimate times beta_t sqrt(abar_{t-1}) /
(1 - abar_t) plus a multiple of x_t, and an error e of the prediction is an error sigma / (a sigma - b alpha) e of x0
(`parameterisation`). Written so, nothing cancels, and x_t itself is not needed.
"""

import math
from typing import Any

import torch
from torch import Tensor

from prunefast.diffusion.loss import DenoisingLoss
from prunefast.diffusion.parameterisation import target_coefficients
from prunefast.diffusion.process import DDPM
from prunefast.diffusion.weighting import signal_and_noise_share
from prunefast.errors import InputError
from prunefast.ops.crop import Boxes, crop_flip, to_unit
from prunefast.ops.noise import noise_tensor

HALF_BIN = 1 / 255  # half a grey level of 8-bit images in [-1, 1]
EDGE = 0.999  # beyond it the first and the last grey level, whose bins reach to infinity
BOUND_WEIGHT = 0.001  # lambda of the paper, section 3.1


def learned_log_variance(share: Tensor, small: "Tensor | float", large: "Tensor | float") -> Tensor:
    """Between the logarithms of two variances; `share` is the network's output, -1 for the small and 1 for the large
    one."""
    return small + (share + 1) * 0.5 * (large - small)


class HybridLoss(DenoisingLoss):
    """L_simple + bound_weight * T * (the bound's term at t, in bits a dimension); pred has 2 C channels.

        loss = HybridLoss("ddpm-cosine")
        loss(model(x_t, t.float(), labels), x0, noise, t).backward()              # model with learn_sigma=True

    The weights of classes and images apply to both parts, that of the noise levels to the first. Only for "ddpm-*"
    processes. Other arguments as in `DenoisingLoss`; `per_sample` is the simple loss.

    bound_weight: lambda. T times one term estimates the sum over all times, as times are drawn uniformly.
    """

    def __init__(self, process: Any = "ddpm-cosine", *args: Any, bound_weight: float = BOUND_WEIGHT, **options: Any):
        super().__init__(process, *args, **options)
        if not isinstance(self.process, DDPM):
            raise InputError(f"a learned variance needs a process of steps (ddpm-linear, ddpm-cosine), not {process!r}")
        if not (math.isfinite(bound_weight) and bound_weight >= 0):
            raise InputError(f"bound_weight must be finite and not negative, not {bound_weight}")
        self.bound_weight = bound_weight
        # beta~ is 0 at t = 0, where its logarithm is never used but by the variance between the two
        betas = self.process.betas()
        log_abar = torch.log1p(-betas).cumsum(0)
        before = torch.cat((torch.zeros(1, dtype=torch.float64), log_abar[:-1]))
        small = betas * torch.expm1(before) / torch.expm1(log_abar)
        small[0] = small[1]
        mean = betas * torch.exp(0.5 * before) / -torch.expm1(log_abar)
        tables = torch.stack((small.log(), betas.log(), mean))
        self.register_buffer("tables", tables, persistent=False)

    tables: Tensor  # float64 [3, T]: log beta~, log beta, weight of x0 in the posterior's mean

    def forward(
        self,
        pred: Tensor,
        x0: Tensor,
        noise: "Tensor | tuple[int, Tensor]",
        t: Tensor,
        labels: Tensor | None = None,
        sample_weight: Tensor | None = None,
        *,
        flip: Tensor | None = None,
        boxes: Boxes | None = None,
    ) -> Tensor:
        mean, share = self._split(pred, x0)
        simple = super().forward(mean, x0, noise, t, labels, sample_weight, flip=flip, boxes=boxes)
        bound = self._bound(mean.detach(), share, x0, noise, t, flip, boxes)
        weight = self._class_and_sample_weights(t, labels, sample_weight)
        if weight is not None:
            bound = bound * weight
        return simple + self.bound_weight * self.process.steps * bound.mean()  # type: ignore[attr-defined]

    def per_sample(self, pred: Tensor, x0: Tensor, *args: Any, **options: Any) -> Tensor:
        return super().per_sample(self._split(pred, x0)[0], x0, *args, **options)

    def bound(
        self,
        pred: Tensor,
        x0: Tensor,
        noise: "Tensor | tuple[int, Tensor]",
        t: Tensor,
        *,
        flip: Tensor | None = None,
        boxes: Boxes | None = None,
    ) -> Tensor:
        """The bound's term at t, bits a dimension [B]: a divergence of Gaussians, at t = 0 the negative log-likelihood
        of the 8-bit image. Differentiable in the variance only."""
        mean, share = self._split(pred, x0)
        return self._bound(mean.detach(), share, x0, noise, t, flip, boxes)

    def _split(self, pred: Tensor, x0: Tensor) -> tuple[Tensor, Tensor]:
        channels = x0.shape[1]
        if pred.ndim != 4 or pred.shape[1] != 2 * channels:
            raise InputError(
                f"pred must have {2 * channels} channels for a learned variance (a model with learn_sigma=True), "
                f"not {tuple(pred.shape)}"
            )
        form = torch.channels_last if pred.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        return pred[:, :channels].contiguous(memory_format=form), pred[:, channels:]

    def _class_and_sample_weights(
        self, t: Tensor, labels: Tensor | None, sample_weight: Tensor | None
    ) -> Tensor | None:
        weight = sample_weight
        if self.class_factor is not None:
            of_class = self.class_factor.index_select(0, self._checked_labels(labels, len(t)))
            weight = of_class if weight is None else weight * of_class
        return weight

    def _bound(
        self,
        mean: Tensor,
        share: Tensor,
        x0: Tensor,
        noise: "Tensor | tuple[int, Tensor]",
        t: Tensor,
        flip: Tensor | None,
        boxes: Boxes | None,
    ) -> Tensor:
        wide = torch.float64 if mean.dtype == torch.float64 else torch.float32

        def spread(value: Tensor) -> Tensor:
            return value.to(wide)[:, None, None, None]

        corner, height, width = (None, *x0.shape[2:]) if boxes is None else boxes
        clean = to_unit(crop_flip(x0, corner, height, width, flip), wide)
        if isinstance(noise, Tensor):
            drawn = noise.to(wide)
        else:
            drawn = noise_tensor(None, noise[0], noise[1], clean.shape).to(wide)
        alpha, sigma = self.process.alpha_sigma(t, torch.float64)
        a, b = target_coefficients(self.prediction, alpha, sigma)
        small, large, x0_weight = self.tables.index_select(1, t)
        # |sigma / (a sigma - b alpha)|: only the square of the error counts, but at t = 0, where the bins are symmetric
        error_scale = x0_weight * signal_and_noise_share(self.prediction, alpha, sigma)[1].sqrt()
        error = (mean.to(wide) - spread(a) * clean - spread(b) * drawn) * spread(error_scale)
        sign = torch.where(a * sigma - b * alpha < 0, -1.0, 1.0)
        log_variance = learned_log_variance(share.to(wide), spread(small), spread(large))
        divergence = 0.5 * (
            log_variance
            - spread(small)
            - 1
            + torch.exp(spread(small) - log_variance)
            + error.square() * torch.exp(-log_variance)
        )
        last = spread(t == 0) > 0
        # the other branch gets harmless numbers: what `where` drops must have no infinite gradient
        surprise = _negative_log_likelihood(
            clean, torch.where(last, error * spread(sign), 0.0), torch.where(last, log_variance, spread(large))
        )
        bits = torch.where(last, surprise, divergence) / math.log(2)
        return bits.flatten(1).mean(1)


def _negative_log_likelihood(x0: Tensor, error: Tensor, log_variance: Tensor) -> Tensor:
    """-log of the probability of the grey level x0 under a normal with mean x0 + error, in nats."""
    inverse_std = torch.exp(-0.5 * log_variance)
    upper, lower = (HALF_BIN - error) * inverse_std, (-HALF_BIN - error) * inverse_std
    above, below = torch.special.log_ndtr(upper), torch.special.log_ndtr(-lower)
    # log(Phi(u) - Phi(l)) from the tail that both lie in, where the difference keeps its digits
    mirrored = upper + lower > 0
    high = torch.special.log_ndtr(torch.where(mirrored, -lower, upper))
    low = torch.special.log_ndtr(torch.where(mirrored, -upper, lower))
    inside = high + torch.log(-torch.expm1(low - high))
    return -torch.where(x0 < -EDGE, above, torch.where(x0 > EDGE, below, inside))
