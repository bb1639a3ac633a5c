"""Samplers: small functions from noise to images.

Each takes `denoise(x, t) -> x0`, the process, x at the first of `times`, and the times from the most noise to the
least; each ends at the clean image. They keep the dtype of x: `sample_images` gives them float64, which costs nothing
beside the network and lets hundreds of steps add up without rounding. `noise(step)` hands out a standard normal shaped
as x: step 0 is the initial state's, step i + 1 belongs to the step that starts at times[i].

    denoise = Denoiser(model, "ddpm-linear", guidance=2.0)
    images = sample_images(denoise, 16, image_size=32, labels=torch.arange(16) % 10)     # [16, 3, 32, 32] in [-1, 1]

=========  ======================================================================  =====  =============
sampler    what                                                                    order  network calls
=========  ======================================================================  =====  =============
``ddim``   Song et al. 2020 (DDIM), eq. 12; eta = 0 the ODE, eta = 1 ancestral     1      steps
``ddpm``   Ho et al. 2020, eq. 6-7, over any subset of the times                   -      steps
``heun``   Karras et al. 2022, algorithm 2 (1 without churn), any process          2      2 steps - 1
``euler``  ODE by Euler's rule: straight steps of the flow, of sigma for EDM       1      steps
=========  ======================================================================  =====  =============
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from prunefast import ops
from prunefast.diffusion.parameterisation import check_prediction, to_x0
from prunefast.diffusion.patches import full_coordinates
from prunefast.diffusion.process import RATIO_MAX, RATIO_MIN, Process, make_process, ratio_grid
from prunefast.diffusion.variational import learned_log_variance
from prunefast.errors import InputError, InputTypeError
from prunefast.ops.philox import Stream
from prunefast.progress import progress as show_progress

if TYPE_CHECKING:
    from prunefast.diffusion.groups import GroupedDenoiser

Denoise = Callable[[Tensor, float], Tensor]
Noise = Callable[[int], Tensor]


class Denoiser:
    """The network's estimate of the clean image: denoiser(x_t, t, labels) -> x0, shaped and typed as x_t.

    Args:
        model: forward(x, time, labels) as of `prunefast.models`; run as it is (autocast is the caller's), in its own
            dtype. Channels after those of x (a learned variance) are for `with_share`.
        process, prediction: what it was trained with.
        guidance: classifier-free guidance (Ho & Salimans 2022), uncond + guidance * (cond - uncond) on the prediction:
            1 is the conditional network alone and 0 the unconditional one, each at one call; other values evaluate both
            in one batch of twice the size.
        null_label: the label that means "no class"; None: num_classes of `model.config`.
        coordinates: give the model the coordinates of the whole image in two more channels, after the preconditioning,
            as it was trained with patches; None: what `model.config` says.
    """

    def __init__(
        self,
        model: Callable[..., Tensor],
        process: str | Process = "ddpm-linear",
        prediction: str | None = None,
        guidance: float = 1.0,
        null_label: int | None = None,
        coordinates: bool | None = None,
    ):
        self.model = model
        self.process = make_process(process)
        self.prediction = prediction or self.process.default_prediction
        check_prediction(self.prediction)
        if self.prediction not in self.process.predictions:
            raise InputError(
                f"prediction '{self.prediction}' does not go with process '{self.process.name}'; "
                f"it takes {', '.join(self.process.predictions)}"
            )
        if not math.isfinite(guidance):
            raise InputError(f"guidance must be finite, not {guidance}")
        self.guidance = float(guidance)
        config = getattr(model, "config", None) or {}
        if null_label is None:
            null_label = config.get("num_classes")
        self.coordinates = bool(config.get("coordinates", False)) if coordinates is None else coordinates
        if null_label is None and self.guidance != 1:
            raise InputError(f"guidance={guidance} needs a model with classes (or null_label)")
        self.null_label = null_label
        parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        self.dtype = torch.float32 if parameter is None else parameter.dtype
        self.device = torch.device("cpu") if parameter is None else parameter.device

    def __call__(self, x: Tensor, t: "float | Tensor", labels: Tensor | None = None) -> Tensor:
        """t: one time for all images, a number, or [B]."""
        return self.with_share(x, t, labels)[0]

    def with_share(self, x: Tensor, t: "float | Tensor", labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(x0, what the network's further channels say: the share of a learned variance, or nothing), shaped as x.
        Under guidance the share is the conditional one's."""
        time = torch.as_tensor(t)
        if time.ndim == 0:
            time = time[None]
        if time.is_floating_point() or not self.process.discrete:
            time = time.double()
        time = time.to(x.device)
        alpha, sigma = (
            value.to(x.dtype)[:, None, None, None] for value in self.process.alpha_sigma(time, torch.float64)
        )
        network_input = (x * self.process.input_scale(time).to(x.dtype)[:, None, None, None]).to(self.dtype)
        if self.coordinates:
            grid = full_coordinates(x.shape[-1], x.device, self.dtype).expand(len(x), -1, -1, -1)
            network_input = torch.cat((network_input, grid), dim=1)
        output = self._predict(
            network_input, self.process.network_time(time).expand(len(x)), labels, x.dtype, x.shape[1]
        )
        output, share = output.to(x.dtype).split((x.shape[1], output.shape[1] - x.shape[1]), dim=1)
        return to_x0(self.prediction, output, x, alpha, sigma, self.process.sigma_data), share

    def _predict(self, x: Tensor, time: Tensor, labels: Tensor | None, dtype: torch.dtype, channels: int) -> Tensor:
        if self.guidance == 1:
            return self.model(x, time, labels)
        if labels is None:
            raise InputError(f"labels are needed with guidance={self.guidance}")
        null = torch.full_like(labels, self.null_label)  # type: ignore[arg-type]
        if self.guidance == 0:
            return self.model(x, time, null)
        both = self.model(torch.cat((x, x)), torch.cat((time, time)), torch.cat((labels, null)))
        conditional, unconditional = both.to(dtype).chunk(2)  # a guidance of 5 magnifies what bfloat16 would round off
        guided = torch.lerp(unconditional, conditional, self.guidance)
        return torch.cat((guided[:, :channels], conditional[:, channels:]), dim=1)


def _levels(process: Process, times: Tensor) -> list[tuple[float, float]]:
    """(alpha, sigma) of every time, then of the clean image, as Python numbers: the loops read no device."""
    alpha, sigma = process.alpha_sigma(times, torch.float64)
    return [*zip(alpha.tolist(), sigma.tolist(), strict=True), (1.0, 0.0)]


def ddim(
    denoise: Denoise,
    process: Process,
    x: Tensor,
    times: Tensor,
    *,
    eta: float = 0.0,
    noise: Noise | None = None,
    clip: bool = True,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """x_s = alpha_s x0 + sqrt(sigma_s^2 - v^2) noise_hat + v fresh noise, where v is eta times the ancestral std.

    clip: x0 is clamped to [-1, 1] first and noise_hat recomputed from it, so the two always describe x_t.
    """
    levels = _levels(process, times)
    for step, t in enumerate(times.tolist()):
        (alpha, sigma), (next_alpha, next_sigma) = levels[step], levels[step + 1]
        x0 = denoise(x, t)
        if clip:
            x0 = x0.clamp(-1, 1)
        added = eta * _ancestral_std(alpha, sigma, next_alpha, next_sigma)
        kept = math.sqrt(max(next_sigma**2 - added**2, 0.0)) / sigma
        x = kept * x + (next_alpha - kept * alpha) * x0
        if added > 0:
            x = x + added * _drawn(noise, step)
        if on_step is not None:
            on_step(step)
    return x


def ddpm(
    denoise: Denoise,
    process: Process,
    x: Tensor,
    times: Tensor,
    *,
    noise: Noise | None = None,
    variance: str = "fixedsmall",
    clip: bool = True,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """A draw from the posterior q(x_s | x_t, x0) at every step; the last step takes its mean, which is x0.

    variance: "fixedsmall", the posterior's own; or "fixedlarge", that of q(x_t | x_s), which is right when every time
        is visited (steps = T, as the published CIFAR-10 samples were made) and far too large when few are; or
        "learned", between the two as the network says (Nichol & Dhariwal 2021, eq. 15): denoise then gives (x0, share
        in [-1, 1]), as `Denoiser.with_share`.
    clip: x0 is clamped to [-1, 1] before the posterior's mean is formed.
    """
    if variance not in ("fixedsmall", "fixedlarge", "learned"):
        raise InputError(f"variance '{variance}' is not one of fixedsmall, fixedlarge, learned")
    levels = _levels(process, times)
    for step, t in enumerate(times.tolist()):
        (alpha, sigma), (next_alpha, next_sigma) = levels[step], levels[step + 1]
        told: Any = denoise(x, t)
        x0, share = told if variance == "learned" else (told, None)
        if share is not None and share.shape != x0.shape:
            raise InputError("variance 'learned' needs a network that predicts it (learn_sigma=True)")
        if clip:
            x0 = x0.clamp(-1, 1)
        # q(x_t | x_s) = N(shrink x_s, forward_variance)
        shrink = alpha / next_alpha
        forward_variance = _forward_variance(alpha, sigma, next_alpha, next_sigma)
        x = (shrink * next_sigma**2 / sigma**2) * x + (next_alpha * forward_variance / sigma**2) * x0
        if next_sigma > 0:
            small = _ancestral_std(alpha, sigma, next_alpha, next_sigma)
            if share is not None:
                log_variance = learned_log_variance(share, 2 * math.log(small), math.log(forward_variance))
                x = x + torch.exp(0.5 * log_variance) * _drawn(noise, step)
            else:
                x = x + (small if variance == "fixedsmall" else math.sqrt(forward_variance)) * _drawn(noise, step)
        if on_step is not None:
            on_step(step)
    return x


def heun(
    denoise: Denoise,
    process: Process,
    x: Tensor,
    times: Tensor,
    *,
    noise: Noise | None = None,
    churn: float = 0.0,
    churn_range: tuple[float, float] = (0.0, math.inf),
    churn_noise: float = 1.0,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Heun's rule for d(x / alpha) / d ratio = (x / alpha - x0) / ratio, ratio = sigma / alpha; Euler in the last step.

    Any process is solved in these coordinates, so the result depends on its times only. churn, churn_range and
    churn_noise are S_churn, (S_min, S_max) and S_noise of the paper; the range is of ratios.
    """
    ratios = [*process.ratio(times).tolist(), 0.0]
    if not math.isfinite(ratios[0]):
        raise InputError("heun cannot start where alpha is 0; begin at a finite sigma / alpha (times of `heun_times`)")
    steps = len(ratios) - 1
    growth_limit = math.sqrt(2) - 1

    def slope(y: Tensor, ratio: float) -> Tensor:
        time = process.time_of_ratio(torch.tensor([ratio], dtype=torch.float64))
        alpha = float(process.alpha_sigma(time, torch.float64)[0])
        return (y - denoise(alpha * y, float(time))) / ratio

    y = x / process.alpha_sigma(times[:1], torch.float64)[0].item()
    for step in range(steps):
        ratio, next_ratio = ratios[step], ratios[step + 1]
        if churn > 0 and churn_range[0] <= ratio <= churn_range[1]:
            grown = ratio * (1 + min(churn / steps, growth_limit))
            # never above the first level, the largest one the network was asked about
            grown = max(min(grown, ratios[0]), ratio)
            if grown > ratio:
                y = y + math.sqrt(grown**2 - ratio**2) * churn_noise * _drawn(noise, step)
                ratio = grown
        first = slope(y, ratio)
        predicted = y + (next_ratio - ratio) * first
        if next_ratio > 0:
            second = slope(predicted, next_ratio)
            predicted = y + (next_ratio - ratio) * 0.5 * (first + second)
        y = predicted
        if on_step is not None:
            on_step(step)
    return y


def heun_times(process: Process, steps: int, rho: float = 7.0) -> Tensor:
    """Times for `heun`, float64 on the CPU: ratios even in ratio^(1 / rho), within both 0.002 ... 80 and what the
    process was trained on."""
    low, high = process.ratio_range()
    return process.time_of_ratio(ratio_grid(steps, max(low, RATIO_MIN), min(high, RATIO_MAX), rho))


def euler(
    denoise: Denoise,
    process: Process,
    x: Tensor,
    times: Tensor,
    *,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Straight steps along the ODE. For the flow this is x + (s - t) * velocity and for EDM x + (s - t) * d x / d
    sigma; both are `ddim` with eta = 0 and nothing clipped, which is the same step written with x0."""
    return ddim(denoise, process, x, times, eta=0.0, clip=False, on_step=on_step)


def _forward_variance(alpha: float, sigma: float, next_alpha: float, next_sigma: float) -> float:
    """Variance of q(x_t | x_s), t the noisier: sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2."""
    return max(sigma**2 - (alpha / next_alpha) ** 2 * next_sigma**2, 0.0)


def _ancestral_std(alpha: float, sigma: float, next_alpha: float, next_sigma: float) -> float:
    """Std of q(x_s | x_t, x0)."""
    return next_sigma / sigma * math.sqrt(_forward_variance(alpha, sigma, next_alpha, next_sigma))


def _drawn(noise: Noise | None, step: int) -> Tensor:
    if noise is None:
        raise InputError("noise is needed: this sampler draws fresh noise at every step")
    return noise(step + 1)


# name -> (function, the options of its own that `sample_images` passes on)
SAMPLERS: dict[str, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    "ddim": (ddim, ("eta", "clip")),
    "ddpm": (ddpm, ("variance", "clip")),
    "heun": (heun, ("churn", "churn_range", "churn_noise")),
    "euler": (euler, ()),
}


def sample_images(
    denoiser: "Denoiser | GroupedDenoiser",
    positions: Any,
    *,
    image_size: int,
    channels: int = 3,
    labels: Any = None,
    sampler: str = "ddim",
    steps: int = 50,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = False,
    clamp: bool = True,
    **options: Any,
) -> Tensor:
    """Images float32 [n, channels, image_size, image_size] in [-1, 1], on the CPU.

    Image k draws all its noise from (seed, its position, the step), so it is the same alone, in any batch and in any
    order, up to the last digits of torch's own convolutions and matrix products.

    Args:
        denoiser: with a model that lies on the device to be used; it is put into eval mode meanwhile.
        positions: the image numbers, int64 [n]; or n, meaning 0 ... n - 1.
        labels: int64 [n], the class of each; None for unconditional models (or the null class of conditional ones).
        sampler, steps: see the table of this module; options: `eta`, `clip` (ddim); `variance`, `clip` (ddpm);
            `churn`, `churn_range`, `churn_noise` (heun).
        batch_size: images a network call; twice that with guidance.
        clamp: to [-1, 1], the result and, where the sampler has `clip`, every x0; False: for latents.
    """
    if sampler not in SAMPLERS:
        raise InputError(f"sampler '{sampler}' is not one of {', '.join(SAMPLERS)}")
    function, allowed = SAMPLERS[sampler]
    for option in options:
        if option not in allowed:
            raise InputError(f"sampler '{sampler}' has no option '{option}'; it has {', '.join(allowed) or 'none'}")
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}")
    numbers = _image_numbers(positions)
    classes = None if labels is None else _labels(labels, len(numbers))
    if classes is None and denoiser.guidance != 1:
        raise InputError(f"labels are needed with guidance={denoiser.guidance}")
    process, device = denoiser.process, denoiser.device
    times = heun_times(process, steps) if sampler == "heun" else process.sampling_times(steps)
    first_sigma = process.alpha_sigma(times[:1], torch.float64)[1].item()

    images = torch.empty(len(numbers), channels, image_size, image_size)
    with (
        torch.no_grad(),
        _evaluating(denoiser.model),
        show_progress("sample", len(numbers), silent=not progress) as bar,
    ):
        for begin in range(0, len(numbers), batch_size):
            batch = slice(begin, begin + batch_size)
            position = numbers[batch].to(device)
            label = None if classes is None else classes[batch].to(device)
            shape = (len(position), channels, image_size, image_size)

            def noise(step: int, shape: Any = shape, position: Tensor = position) -> Tensor:
                stream = int(Stream.SAMPLER) + step
                return ops.randn_philox(shape, seed, position, stream, device=device).double()

            ask: Callable[..., Any] = denoiser.with_share if options.get("variance") == "learned" else denoiser

            def denoise(x: Tensor, t: float, ask: Any = ask, label: Tensor | None = label) -> Any:
                return ask(x, t, label)

            arguments = dict(options) if sampler == "euler" else {"noise": noise, **options}
            if not clamp and "clip" in allowed:
                arguments.setdefault("clip", False)
            x = function(denoise, process, first_sigma * noise(0), times, **arguments)
            images[batch] = (x.clamp(-1, 1) if clamp else x).float().cpu()
            bar.advance(len(position))
    return images


def _image_numbers(positions: Any) -> Tensor:
    if isinstance(positions, (int, np.integer)):
        if positions < 1:
            raise InputError(f"positions must be at least one image, not {positions}")
        return torch.arange(int(positions))
    numbers = torch.as_tensor(positions)
    if numbers.dtype not in (torch.int64, torch.int32):
        raise InputTypeError(f"positions must be a number of images or integers, not {numbers.dtype}")
    if numbers.ndim != 1 or not len(numbers):
        raise InputError(f"positions must be [n], not {tuple(numbers.shape)}")
    if int(numbers.min()) < 0:
        raise InputError("positions must not be negative")
    return numbers.long().cpu()


def _labels(labels: Any, count: int) -> Tensor:
    classes = torch.as_tensor(labels)
    if classes.is_floating_point() or classes.is_complex():
        raise InputTypeError(f"labels must be integers, not {classes.dtype}")
    if classes.shape != (count,):
        raise InputError(f"labels must be [{count}], one class an image, not {tuple(classes.shape)}")
    return classes.long().cpu()


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Dropout off, and back as it was."""
    if not isinstance(model, nn.Module):
        yield
        return
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
