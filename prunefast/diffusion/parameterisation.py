"""What a network predicts, and how that gives the clean image and the noise.

Every prediction is a linear target a * x0 + b * noise with two numbers an image. With x_t = alpha * x0 + sigma * noise,

    x0    = (sigma * target - b * x_t) / (a * sigma - b * alpha)
    noise = (a * x_t - alpha * target) / (a * sigma - b * alpha)

but each is written here in its closed form, which cancels what can be cancelled and so keeps its digits at the borders:

==========  =======================  =============================  ===============================  ============
prediction  (a, b)                   x0                             noise                            undefined
==========  =======================  =============================  ===============================  ============
``eps``     (0, 1)                   (x_t - sigma p) / alpha        p                                x0, alpha 0
``x0``      (1, 0)                   p                              (x_t - alpha p) / sigma          noise, sigma 0
``v``       (-sigma, alpha)          (alpha x_t - sigma p) / m2     (sigma x_t + alpha p) / m2       never
``flow``    (-1, 1)                  (x_t - sigma p) / m1           (x_t + alpha p) / m1             never
``edm``     (sigma / (sd s), -sd/s)  (sd/s)^2 x_t + sigma (sd/s) p  sigma / s^2 x_t - (sd / s) p     never
==========  =======================  =============================  ===============================  ============

with m2 = alpha^2 + sigma^2 (1 when the variance is preserved), m1 = alpha + sigma (1 for flow), sd = sigma_data and
s = sqrt(sigma^2 + sd^2); ``edm`` is the raw network output F of Karras et al. 2022 (eq. 7), defined for alpha = 1.
Where a value is undefined the division gives inf or nan: nothing is clamped in silence.
"""

import torch
from torch import Tensor

from prunefast.errors import InputError

PREDICTIONS = ("eps", "x0", "v", "flow", "edm")


def check_prediction(prediction: str) -> None:
    if prediction not in PREDICTIONS:
        raise InputError(f"prediction '{prediction}' is not one of {', '.join(PREDICTIONS)}")


def target_coefficients(
    prediction: str, alpha: Tensor, sigma: Tensor, sigma_data: float = 0.5
) -> tuple[Tensor, Tensor]:
    """(a, b), shaped as alpha: the target of `prediction` is a * x0 + b * noise."""
    check_prediction(prediction)
    if prediction == "eps":
        return torch.zeros_like(alpha), torch.ones_like(alpha)
    if prediction == "x0":
        return torch.ones_like(alpha), torch.zeros_like(alpha)
    if prediction == "v":
        return -sigma, alpha
    if prediction == "flow":
        return -torch.ones_like(alpha), torch.ones_like(alpha)
    # 1 - c_skip = sigma^2 / s^2, divided by c_out = sigma sd / s: no difference of nearly equal numbers is left
    inverse_s = torch.rsqrt(sigma * sigma + sigma_data**2)
    return sigma / sigma_data * inverse_s, -sigma_data * inverse_s


def to_x0(
    prediction: str, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor, sigma_data: float = 0.5
) -> Tensor:
    """The clean image that `output`, a network's prediction for x_t, stands for. alpha and sigma broadcast against
    x_t."""
    check_prediction(prediction)
    if prediction == "eps":
        return (x_t - sigma * output) / alpha
    if prediction == "x0":
        return output
    if prediction == "v":
        return (alpha * x_t - sigma * output) / (alpha * alpha + sigma * sigma)
    if prediction == "flow":
        return (x_t - sigma * output) / (alpha + sigma)
    scale = sigma_data * torch.rsqrt(sigma * sigma + sigma_data**2)
    return scale * scale * x_t + sigma * scale * output


def to_noise(
    prediction: str, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor, sigma_data: float = 0.5
) -> Tensor:
    """The noise that `output`, a network's prediction for x_t, stands for. alpha and sigma broadcast against x_t."""
    check_prediction(prediction)
    if prediction == "eps":
        return output
    if prediction == "x0":
        return (x_t - alpha * output) / sigma
    if prediction == "v":
        return (sigma * x_t + alpha * output) / (alpha * alpha + sigma * sigma)
    if prediction == "flow":
        return (x_t + alpha * output) / (alpha + sigma)
    inverse_s = torch.rsqrt(sigma * sigma + sigma_data**2)
    return sigma * inverse_s * inverse_s * x_t - sigma_data * inverse_s * output
