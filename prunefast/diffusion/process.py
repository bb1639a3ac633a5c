"""Diffusion processes: how a clean image becomes x_t, and what time means.

Every process is x_t = alpha(t) * x0 + sigma(t) * noise, x0 the data, noise standard normal. They differ in alpha and
sigma, in what t is, and in how training times are drawn. The samplers need one more thing, the noise-to-signal ratio
sigma / alpha and its inverse: in the coordinates (x_t / alpha, ratio) all of them are the same variance-exploding
process (Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", appendix C).

===============  ===================  ==========================  =========================  ====================
name             t                    alpha, sigma                training times             default prediction
===============  ===================  ==========================  =========================  ====================
``ddpm-linear``  int64, 0 ... T - 1   sqrt(abar), sqrt(1 - abar)  uniform                    ``eps``
``ddpm-cosine``  int64, 0 ... T - 1   sqrt(abar), sqrt(1 - abar)  uniform                    ``eps``
``flow``         float in (0, 1)      1 - t, t                    uniform                    ``flow``
``edm``          sigma itself         1, sigma                    ln sigma ~ N(-1.2, 1.2^2)  ``edm``
===============  ===================  ==========================  =========================  ====================
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prunefast.errors import InputError, InputTypeError

# The noise levels between which the ratio samplers integrate when the process goes further (Karras et al. 2022, table
# 1). Below the first an 8-bit image has no noise left (one grey level is 0.008); above the second images of std 0.5 are
# lost in it.
RATIO_MIN, RATIO_MAX = 0.002, 80.0


class Process(ABC):
    """What the losses and samplers ask of a process. Methods take t of shape [B] and keep its device."""

    name: str
    predictions: tuple[str, ...]  # what a network may be trained to predict; the first is the default
    sigma_data: float = 0.5  # std of the data that EDM's preconditioning assumes
    discrete: bool = False  # t is an integer in training

    @property
    def default_prediction(self) -> str:
        return self.predictions[0]

    @abstractmethod
    def sample_time(self, u: Tensor) -> Tensor:
        """Training times from uniforms u in (0, 1), float64 [B]: the inverse of the distribution function, so that
        stratified or counter-based uniforms serve as they are."""

    @abstractmethod
    def ratio(self, t: Tensor) -> Tensor:
        """sigma / alpha at t, float64; increasing in t, infinite where alpha is 0."""

    @abstractmethod
    def time_of_ratio(self, ratio: Tensor) -> Tensor:
        """The inverse of `ratio`: t as float64, not rounded to an integer for the discrete processes."""

    @abstractmethod
    def alpha_sigma(self, t: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """(alpha, sigma), each [B]: x_t = alpha * x0 + sigma * noise. Evaluated in float64 and rounded once to
        `dtype`."""

    def input_scale(self, t: Tensor) -> Tensor:
        """What x_t is multiplied by before it enters the network, float64 [B]: 1 everywhere but for EDM (c_in)."""
        return torch.ones(t.shape, dtype=torch.float64, device=t.device)

    def input_coefficients(self, t: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) times `input_scale`: noising with these makes the network's input in one pass."""
        alpha, sigma = self.alpha_sigma(t, torch.float64)
        scale = self.input_scale(t)
        return (scale * alpha).to(dtype), (scale * sigma).to(dtype)

    @abstractmethod
    def network_time(self, t: Tensor) -> Tensor:
        """The number the network is told, float32 [B]."""

    @abstractmethod
    def ratio_range(self) -> tuple[float, float]:
        """Smallest and largest sigma / alpha that the process was trained on."""

    @abstractmethod
    def sampling_times(self, steps: int) -> Tensor:
        """`steps` times from the most noise to the least, on the CPU; a sampler goes from the last one to the clean
        image."""

    def check_time(self, t: Tensor) -> None:
        """Raise when t cannot be a time of this process. Values are looked at on the CPU only: no synchronisation."""
        if t.ndim != 1:
            raise InputError(f"t must be [B], one time an image; its shape is {tuple(t.shape)}")
        if self.discrete and t.dtype != torch.int64:
            raise InputTypeError(f"t of process '{self.name}' must be int64 (0 ... T - 1), not {t.dtype}")
        if not self.discrete and not t.is_floating_point():
            raise InputTypeError(f"t of process '{self.name}' must be a floating-point tensor, not {t.dtype}")


_SCHEDULES = ("linear", "scaled-linear", "cosine")
DDPM_STEPS = 1000
MAX_STEPS = 1_000_000


@dataclass(frozen=True)
class DDPM(Process):
    """Variance-preserving chain of `steps` discrete times (Ho et al. 2020; cosine: Nichol & Dhariwal 2021, eq. 17).

    A floating-point t is accepted too and interpolates ln(sigma / alpha) linearly between the integers: the
    continuous-time reading that the ratio samplers (`heun`) use.
    """

    schedule: str = "linear"  # "scaled-linear": the roots of the betas are even
    steps: int = DDPM_STEPS
    beta_start: float = 1e-4  # not of cosine; these are the ends of the published CIFAR-10 and ImageNet models
    beta_end: float = 0.02
    discrete = True
    predictions = ("eps", "v", "x0")
    _tables: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.schedule not in _SCHEDULES:
            raise InputError(f"schedule '{self.schedule}' is not one of {', '.join(_SCHEDULES)}")
        if self.steps < 2:
            raise InputError(f"steps must be at least 2, not {self.steps}")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise InputError(f"need 0 < beta_start <= beta_end < 1, not {self.beta_start} and {self.beta_end}")
        # sums of log1p and expm1 keep 1 - abar to full precision at t = 0, where it is only beta_start
        log_alpha_bar = torch.log1p(-self.betas()).cumsum(0)
        alpha = torch.exp(0.5 * log_alpha_bar)
        sigma = torch.sqrt(-torch.expm1(log_alpha_bar))
        self._tables[torch.device("cpu")] = (alpha, sigma, sigma.log() - 0.5 * log_alpha_bar)

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"ddpm-{self.schedule}" + (f":{self.steps}" if self.steps != DDPM_STEPS else "")

    def betas(self) -> Tensor:
        """float64 [T] on the CPU."""
        if self.schedule == "linear":
            return torch.linspace(self.beta_start, self.beta_end, self.steps, dtype=torch.float64)
        if self.schedule == "scaled-linear":
            return torch.linspace(self.beta_start**0.5, self.beta_end**0.5, self.steps, dtype=torch.float64) ** 2
        u = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
        alpha_bar = torch.cos((u + 0.008) / 1.008 * (math.pi / 2)) ** 2
        return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)

    def _table(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """alpha, sigma, ln(sigma / alpha) on the device, moved there once."""
        if device in self._tables:
            return self._tables[device]
        alpha, sigma, log_ratio = self._tables[torch.device("cpu")]
        tables = (alpha.to(device), sigma.to(device), log_ratio.to(device))
        if not torch.compiler.is_compiling():  # a compiled graph owns the memory of what it makes
            self._tables[device] = tables
        return tables

    def sample_time(self, u: Tensor) -> Tensor:
        return (u.double() * self.steps).long().clamp_(0, self.steps - 1)

    def _log_ratio(self, t: Tensor) -> Tensor:
        table = self._table(t.device)[2]
        at = t.double().clamp(0, self.steps - 1)
        below = at.floor().long().clamp(max=self.steps - 2)
        return torch.lerp(table[below], table[below + 1], at - below)

    def ratio(self, t: Tensor) -> Tensor:
        return self._log_ratio(t).exp()

    def time_of_ratio(self, ratio: Tensor) -> Tensor:
        table = self._table(ratio.device)[2]
        log_ratio = ratio.double().log().clamp(table[0], table[-1])
        below = (torch.searchsorted(table, log_ratio, right=True) - 1).clamp(0, self.steps - 2)
        return below + (log_ratio - table[below]) / (table[below + 1] - table[below])

    def alpha_sigma(self, t: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        if t.is_floating_point():
            log_ratio = self._log_ratio(t)  # alpha^2 = 1 / (1 + ratio^2), sigma^2 = ratio^2 / (1 + ratio^2)
            return torch.sigmoid(-2 * log_ratio).sqrt().to(dtype), torch.sigmoid(2 * log_ratio).sqrt().to(dtype)
        alpha, sigma, _ = self._table(t.device)
        return alpha.index_select(0, t).to(dtype), sigma.index_select(0, t).to(dtype)

    def network_time(self, t: Tensor) -> Tensor:
        return t.float()

    def ratio_range(self) -> tuple[float, float]:
        log_ratio = self._tables[torch.device("cpu")][2]
        return math.exp(log_ratio[0]), math.exp(log_ratio[-1])

    def sampling_times(self, steps: int) -> Tensor:
        """Trailing spacing, int64: the first step is the last training time T - 1, without which the sampler starts
        from noise the network was never told of (Lin et al. 2023, "Common Diffusion Noise Schedules ...", section
        3.3)."""
        if not 1 <= steps <= self.steps:
            raise InputError(f"steps must be from 1 to {self.steps} for process '{self.name}', not {steps}")
        return torch.tensor([round(self.steps - i * self.steps / steps) - 1 for i in range(steps)])

    def check_time(self, t: Tensor) -> None:
        super().check_time(t)
        if t.device.type == "cpu" and t.numel() and not torch.compiler.is_compiling():
            low, high = int(t.min()), int(t.max())
            if low < 0 or high >= self.steps:
                raise InputError(
                    f"t of process '{self.name}' must lie in 0 ... {self.steps - 1}; found {low} ... {high}"
                )


@dataclass(frozen=True)
class Flow(Process):
    """Straight lines between data (t = 0) and noise (t = 1): rectified flow, flow matching with the independent
    coupling (Liu et al. 2022; Lipman et al. 2022, who time it the other way round)."""

    time_scale: float = 1000.0  # network_time = t * time_scale: the sinusoidal embeddings are made for 0 ... 1000
    name = "flow"
    predictions = ("flow", "x0")

    def sample_time(self, u: Tensor) -> Tensor:
        # a float64 uniform next to 0 or 1 must not round to them
        return u.double().clamp(2.0**-24, 1 - 2.0**-24).float()

    def ratio(self, t: Tensor) -> Tensor:
        t = t.double()
        return t / (1 - t)

    def time_of_ratio(self, ratio: Tensor) -> Tensor:
        ratio = ratio.double()
        return 1 - 1 / (1 + ratio)  # and not ratio / (1 + ratio), which is nan at infinity

    def alpha_sigma(self, t: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        t = t.double()
        return (1 - t).to(dtype), t.to(dtype)

    def network_time(self, t: Tensor) -> Tensor:
        return (t.double() * self.time_scale).float()

    def ratio_range(self) -> tuple[float, float]:
        return 0.0, math.inf

    def sampling_times(self, steps: int) -> Tensor:
        if steps < 1:
            raise InputError(f"steps must be at least 1, not {steps}")
        return torch.arange(steps, 0, -1, dtype=torch.float64) / steps


@dataclass(frozen=True)
class EDM(Process):
    """Variance exploding with the preconditioning of Karras et al. 2022 (table 1, last column): t is sigma."""

    p_mean: float = -1.2
    p_std: float = 1.2
    sigma_data: float = 0.5
    rho: float = 7.0  # curvature of the sampling grid, their eq. 5
    name = "edm"
    predictions = ("edm", "eps", "x0")

    def __post_init__(self) -> None:
        for argument in ("p_std", "sigma_data", "rho"):
            if not getattr(self, argument) > 0:
                raise InputError(f"{argument} must be positive, not {getattr(self, argument)}")

    def sample_time(self, u: Tensor) -> Tensor:
        return torch.exp(self.p_mean + self.p_std * torch.special.ndtri(u.double())).float()

    def ratio(self, t: Tensor) -> Tensor:
        return t.double()

    def time_of_ratio(self, ratio: Tensor) -> Tensor:
        return ratio.double()

    def alpha_sigma(self, t: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        return torch.ones(t.shape, dtype=dtype, device=t.device), t.to(dtype)

    def input_scale(self, t: Tensor) -> Tensor:
        return torch.rsqrt(t.double() ** 2 + self.sigma_data**2)

    def network_time(self, t: Tensor) -> Tensor:
        return (t.double().log() / 4).float()

    def ratio_range(self) -> tuple[float, float]:
        return RATIO_MIN, RATIO_MAX

    def sampling_times(self, steps: int) -> Tensor:
        return ratio_grid(steps, RATIO_MIN, RATIO_MAX, self.rho)


def ratio_grid(steps: int, low: float, high: float, rho: float = 7.0) -> Tensor:
    """`steps` noise-to-signal ratios from `high` down to `low`, even in ratio^(1 / rho); float64 (Karras et al. 2022,
    eq. 5)."""
    if steps < 1:
        raise InputError(f"steps must be at least 1, not {steps}")
    if not 0 < low < high < math.inf:
        raise InputError(f"need 0 < low < high < infinity, not {low} and {high}")
    if steps == 1:
        return torch.tensor([high], dtype=torch.float64)
    at = torch.arange(steps, dtype=torch.float64) / (steps - 1)
    return (high ** (1 / rho) + at * (low ** (1 / rho) - high ** (1 / rho))) ** rho


def _of_length(name: str, kind: type, entry: dict[str, Any], times: str) -> dict[str, Any]:
    """The options of a process that is named with its number of times."""
    if kind is not DDPM or not times.isascii() or not times.isdigit() or not 10 <= int(times) <= MAX_STEPS:
        raise InputError(
            f"process '{name}': a number of times goes with ddpm-*, as in ddpm-cosine:4000, from 10 to {MAX_STEPS:,}"
        )
    steps = int(times)
    options: dict[str, Any] = {"steps": steps}
    if entry["schedule"] != "cosine":
        for key in ("beta_start", "beta_end"):
            options[key] = min(entry.get(key, getattr(DDPM, key)) * DDPM_STEPS / steps, 0.999)
    return options


PROCESSES: dict[str, dict[str, Any]] = {
    "ddpm-linear": {"process": DDPM, "schedule": "linear"},
    # Stable Diffusion's (Rombach et al. 2022), as its published weights were trained
    "ddpm-scaled-linear": {"process": DDPM, "schedule": "scaled-linear", "beta_start": 0.00085, "beta_end": 0.012},
    "ddpm-cosine": {"process": DDPM, "schedule": "cosine"},
    "flow": {"process": Flow},
    "edm": {"process": EDM},
}


def make_process(name: str | Process, **options: Any) -> Process:
    """The process of that name, one of `PROCESSES`; a Process is handed back as it is.

    "ddpm-cosine:4000" has 4,000 times (Nichol & Dhariwal 2021, section 3.2); with another number of them the betas of
    the linear ones are scaled by 1000 / T, so that the noise ends where it did (their code does the same).

    Options are the fields of the class: `DDPM(steps, beta_start, beta_end)`, `Flow(time_scale)`, `EDM(p_mean, p_std,
    sigma_data, rho)`.
    """
    if isinstance(name, Process):
        if options:
            raise InputError("options go with the name of a process, not with a Process that is already made")
        return name
    base, colon, times = name.partition(":")
    if base not in PROCESSES:
        raise InputError(f"process '{name}' is not one of {', '.join(PROCESSES)}")
    entry = dict(PROCESSES[base])
    kind = entry.pop("process")
    if colon:
        entry |= _of_length(name, kind, entry, times)
    allowed = {f for f in kind.__dataclass_fields__ if not f.startswith("_")} - entry.keys()
    for option in options:
        if option not in allowed:
            raise InputError(f"process '{name}' has no option '{option}'; it has {', '.join(sorted(allowed))}")
    return kind(**entry, **options)
