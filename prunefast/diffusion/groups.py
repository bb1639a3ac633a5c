"""Timestep groups: the times of a process cut into contiguous parts, each with a network of its own.

Li et al. 2023, "Adaptive Training Meets Progressive Scaling" (TDC, arXiv 2312.13307). Groups are numbered as there:
1 has the most noise and N the least (the highest SNR, t near 0). Edges are kept as shares of the process' training
times, 0 the least noise, which mean the same for whole and for continuous times.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunefast.diffusion.process import RATIO_MAX, RATIO_MIN, Process
from prunefast.diffusion.samplers import SAMPLERS, Denoiser, heun_times
from prunefast.errors import InputError


@dataclasses.dataclass(frozen=True)
class TimestepGroups:
    """N contiguous groups of the times of a process.

    Args:
        process: whose times they are.
        edges: N + 1 shares of the training times, rising from 0 to 1.
    """

    process: Process
    edges: tuple[float, ...]

    def __post_init__(self) -> None:
        edges = tuple(float(edge) for edge in self.edges)
        object.__setattr__(self, "edges", edges)
        if len(edges) < 2 or edges[0] != 0 or edges[-1] != 1 or not all(a < b for a, b in itertools.pairwise(edges)):
            raise InputError(f"edges: must rise from 0 to 1, not {', '.join(f'{edge:g}' for edge in edges)}")
        times = self.process.sample_time(torch.tensor(edges[1:-1], dtype=torch.float64)).tolist()
        if any(a >= b for a, b in itertools.pairwise(times)):
            raise InputError(f"edges: two groups share the time {times}; take fewer groups")
        object.__setattr__(self, "_times", times)

    def __len__(self) -> int:
        return len(self.edges) - 1

    def shares(self, group: int) -> tuple[float, float]:
        """Between which shares of the training times group 1 ... N lies: `TrainConfig.timesteps` of its network."""
        place = len(self) - group
        return self.edges[place], self.edges[place + 1]

    def group_of(self, t: float) -> int:
        """The group of time `t`; a time on an edge belongs to the noisier side."""
        return len(self) - sum(edge <= t for edge in self._times)  # type: ignore[attr-defined]


def equal_times(process: Process, n: int) -> TimestepGroups:
    """Groups with the same share of the training times: equal in t for DDPM and flow matching, and of the log-normal
    for EDM, whose t has no natural unit."""
    return groups_from_shares(process, [place / n for place in range(1, check_groups(n))])


def equal_snr(process: Process, n: int) -> TimestepGroups:
    """Groups of equal width in SNR dB, 20 log10(alpha / sigma), within sigma / alpha of 0.002 ... 80 and of what the
    process was trained on."""
    low, high = process.ratio_range()
    low, high = max(low, RATIO_MIN), min(high, RATIO_MAX)
    ratios = torch.tensor([low * (high / low) ** (place / n) for place in range(1, check_groups(n))])
    return groups_from_shares(process, [_share_of(process, t) for t in process.time_of_ratio(ratios.double()).tolist()])


def check_groups(n: int) -> int:
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise InputError(f"groups is {n!r}; give a whole number of at least 1")
    return n


def groups_from_shares(process: Process, inner: Sequence[float]) -> TimestepGroups:
    """Short decimal numbers; where times are whole, moved onto the border between two of them."""
    if not process.discrete:
        return TimestepGroups(process, (0.0, *(round(share, 9) for share in inner), 1.0))
    edges = []
    for share in inner:
        time = process.sample_time(torch.tensor([share + 1e-9], dtype=torch.float64))
        exact = _share_of(process, time.item())
        short = round(exact, 9)
        same = bool(process.sample_time(torch.tensor([short], dtype=torch.float64)) == time)
        edges.append(short if same else exact)
    if len({0.0, *edges, 1.0}) < len(edges) + 2:
        raise InputError(f"groups is {len(edges) + 1}: there are not times enough for so many; take fewer groups")
    return TimestepGroups(process, (0.0, *edges, 1.0))


def _share_of(process: Process, t: float) -> float:
    """The least share of the training times that reaches `t`; times rise with it."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if process.sample_time(torch.tensor([middle], dtype=torch.float64)).item() >= t:
            high = middle
        else:
            low = middle
    return high


def budgets(n: int, k: float, reverse: bool = False) -> tuple[float, ...]:
    """What part of the base network's FLOPs groups 1 ... N get: i/N + (N - i)/N k (TDC). Their mean is
    ((N + 1) + (N - 1) k) / (2 N): 0.8 for N = 5, k = 0.5. reverse: the noisiest group gets the whole network."""
    if not 0 < k <= 1:
        raise InputError(f"k is {k:g}; it must be above 0 and at most 1")
    parts = [(i + (n - i) * k) / n for i in range(1, check_groups(n) + 1)]
    return tuple(reversed(parts) if reverse else parts)


class GroupedDenoiser:
    """A `Denoiser` that sends every call to the network of its time's group.

    Any sampler may drive it: a second-order step whose two evaluations lie on two sides of an edge asks two networks.

    Args:
        denoisers: of groups 1 ... N, on one device, with one guidance.
    """

    def __init__(self, groups: TimestepGroups, denoisers: Sequence[Denoiser]):
        if len(denoisers) != len(groups):
            raise InputError(f"denoisers: {len(denoisers)} for {len(groups)} groups")
        self.groups, self.denoisers = groups, tuple(denoisers)
        self.process, self.prediction = groups.process, denoisers[0].prediction
        self.guidance, self.device = denoisers[0].guidance, denoisers[0].device
        self.model = nn.ModuleList(d.model for d in denoisers if isinstance(d.model, nn.Module))

    def __call__(self, x: Tensor, t: float, labels: Tensor | None = None) -> Tensor:
        """t: one time for all images."""
        return self._of(t)(x, t, labels)

    def with_share(self, x: Tensor, t: float, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `Denoiser.with_share`: the share of a learned variance, from the same network."""
        return self._of(t).with_share(x, t, labels)

    def _of(self, t: float) -> Denoiser:
        return self.denoisers[self.groups.group_of(float(t)) - 1]


def evaluation_times(process: Process, sampler: str, steps: int) -> list[float]:
    """The times at which a sampler asks the network, in order: found by letting it run on one pixel."""
    if sampler not in SAMPLERS:
        raise InputError(f"sampler '{sampler}' is not one of {', '.join(SAMPLERS)}")
    asked: list[float] = []

    def denoise(x: Tensor, t: float) -> Tensor:
        asked.append(float(t))
        return x

    times = heun_times(process, steps) if sampler == "heun" else process.sampling_times(steps)
    pixel = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    more: dict[str, Any] = {} if sampler == "euler" else {"noise": lambda step: pixel}
    SAMPLERS[sampler][0](denoise, process, pixel, times, **more)
    return asked
