"""Weights of the noise levels, in one currency: the weight lambda_x0 on the squared error of x0.

A network is trained on the error of its own prediction, and an error of the prediction is an error of x0 times a known
factor (`parameterisation`), so that

    lambda_prediction = lambda_x0 * sigma^2 / (a sigma - b alpha)^2.

A weighting is written down once, as lambda_x0, and holds for every prediction. (Published implementations of min-SNR
write it per prediction and get it wrong, mostly for v: huggingface/diffusers#5654.) With SNR = alpha^2 / sigma^2:

=========  ==================  ==================  ==============================  =====================
weighting  lambda_x0 = on x0   on eps              on v (alpha^2 + sigma^2 = 1)    on EDM's F (r = sigma)
=========  ==================  ==================  ==============================  =====================
uniform    1 on the prediction itself, whatever it is
min_snr    min(SNR, g)         min(SNR, g) / SNR   min(SNR, g) / (SNR + 1)         min(1, g r^2) sd^2 / (r^2 + sd^2)
edm        SNR + 1 / sd^2      1 + 1 / (sd^2 SNR)  (SNR + 1 / sd^2) / (SNR + 1)    1
p2         SNR / (k + SNR)^g   1 / (k + SNR)^g     SNR / (SNR + 1) / (k + SNR)^g   sd^2 / (r^2 + sd^2) / (k + SNR)^g
=========  ==================  ==================  ==============================  =====================

At the borders: SNR = 0 (alpha = 0, zero terminal SNR) gives min_snr 1 on eps and 0 on v, flow and x0; p2 k^-g on eps
and 0 on the others; edm infinity on eps (an eps error says nothing of x0 there), 1/sd^2 on x0, v and flow. sigma = 0
gives min_snr 0 on eps, v, flow, and g on x0; edm and p2 (g < 1) are infinite on x0.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from prunefast.diffusion.parameterisation import check_prediction
from prunefast.errors import InputError, InputTypeError


def signal_and_noise_share(
    prediction: str, alpha: Tensor, sigma: Tensor, sigma_data: float = 0.5
) -> tuple[Tensor, Tensor]:
    """(alpha^2, sigma^2) / (a sigma - b alpha)^2 in closed form; the second is lambda_prediction / lambda_x0.

    Their quotient is the SNR. Written as a pair because at each border one of them stays finite while SNR does not.
    """
    check_prediction(prediction)
    alpha2, sigma2 = alpha * alpha, sigma * sigma
    if prediction == "eps":
        return torch.ones_like(alpha), sigma2 / alpha2
    if prediction == "x0":
        return alpha2 / sigma2, torch.ones_like(alpha)
    if prediction == "v":
        total = (alpha2 + sigma2) ** 2
    elif prediction == "flow":
        total = (alpha + sigma) ** 2
    else:
        total = (sigma2 + sigma_data**2) / sigma_data**2  # 1 / c_out^2 = total / sigma^2
    return alpha2 / total, sigma2 / total


class Weighting(ABC):
    """A weighting of noise levels: `weight` gives lambda_prediction, shaped as alpha."""

    name: str

    @abstractmethod
    def weight(self, prediction: str, alpha: Tensor, sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
        """alpha and sigma of any one shape, float64 from `DenoisingLoss`."""


@dataclass(frozen=True)
class Uniform(Weighting):
    """Weight 1 on the prediction itself: "L_simple" of Ho et al. 2020 for eps; lambda_x0 then depends on the
    prediction."""

    name = "uniform"

    def weight(self, prediction: str, alpha: Tensor, sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
        check_prediction(prediction)
        return torch.ones_like(alpha)


@dataclass(frozen=True)
class MinSNR(Weighting):
    """lambda_x0 = min(SNR, gamma) (Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy", eq.
    6)."""

    gamma: float = 5.0
    name = "min_snr"

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise InputError(f"gamma must be positive, not {self.gamma}")

    def weight(self, prediction: str, alpha: Tensor, sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
        signal, noise = signal_and_noise_share(prediction, alpha, sigma, sigma_data)
        return torch.minimum(signal, self.gamma * noise)


@dataclass(frozen=True)
class EDMWeighting(Weighting):
    """lambda_x0 = (r^2 + sd^2) / (r sd)^2 = SNR + 1 / sd^2 with r = sigma / alpha (Karras et al. 2022, table 1):
    weight 1 on the raw network output F."""

    name = "edm"

    def weight(self, prediction: str, alpha: Tensor, sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
        signal, noise = signal_and_noise_share(prediction, alpha, sigma, sigma_data)
        return signal + noise / sigma_data**2


@dataclass(frozen=True)
class P2(Weighting):
    """1 / (k + SNR)^gamma on the error of eps (Choi et al. 2022, "Perception Prioritized Training", eq. 8)."""

    k: float = 1.0
    gamma: float = 1.0
    name = "p2"

    def __post_init__(self) -> None:
        if not self.k > 0:
            raise InputError(f"k must be positive, not {self.k}")
        if not self.gamma >= 0:
            raise InputError(f"gamma must not be negative, not {self.gamma}")

    def weight(self, prediction: str, alpha: Tensor, sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
        signal, _ = signal_and_noise_share(prediction, alpha, sigma, sigma_data)
        alpha2, sigma2 = alpha * alpha, sigma * sigma
        total = self.k * sigma2 + alpha2
        if prediction == "x0":  # SNR / (k + SNR)^gamma without the quotient of two infinities at sigma = 0
            return alpha2 * sigma2 ** (self.gamma - 1) / total**self.gamma
        return signal * (sigma2 / total) ** self.gamma


@dataclass(frozen=True)
class CustomWeighting(Weighting):
    """A weighting of the caller's: function(alpha [B], sigma [B]) -> lambda_x0 [B], float64."""

    function: Callable[[Tensor, Tensor], Tensor]
    name = "custom"

    def weight(self, prediction: str, alpha: Tensor, sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
        return self.function(alpha, sigma) * signal_and_noise_share(prediction, alpha, sigma, sigma_data)[1]


WEIGHTINGS: dict[str, type[Weighting]] = {kind.name: kind for kind in (Uniform, MinSNR, EDMWeighting, P2)}


def make_weighting(weighting: str | Weighting | Callable[[Tensor, Tensor], Tensor]) -> Weighting:
    """The weighting of that name with its defaults; a Weighting as it is; a function (alpha, sigma) -> lambda_x0,
    wrapped."""
    if isinstance(weighting, Weighting):
        return weighting
    if isinstance(weighting, str):
        if weighting not in WEIGHTINGS:
            raise InputError(f"weighting '{weighting}' is not one of {', '.join(WEIGHTINGS)}")
        return WEIGHTINGS[weighting]()
    if callable(weighting):
        return CustomWeighting(weighting)
    raise InputTypeError(f"weighting must be a name, a Weighting or a function, not {type(weighting).__name__}")
