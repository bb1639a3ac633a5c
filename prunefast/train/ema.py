"""Moving averages of the weights, in float32: exponential ones by half-life, power-function ones by relative width.

All averages of a run are updated together, by one foreach call, and no more often than their widths can tell: see
`RESOLUTION`. `prunefast.train.posthoc` makes a power-function average of any width of those of two.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from prunefast.errors import InputError

# An average is brought up to date when the images since the last time are this share of its width. A pass over an
# average moves 12 bytes a weight, AdamW's 28: at every step they would cost 1.3 and 1.9 (three averages) times the
# optimizer alone. What is averaged then is the weights at every n-th step, each counted for the images since the one
# before, which moves the centre of the average by half of this share of its width at most. Of a random walk the average
# comes out within 0.4 % of what it moved in the width of the one over every step (0.2 % at 0.01, 1.3 % at 0.05); a
# half-life of 5 % of the images is brought up to date at every step of the first 1,000, and less and less often after.
RESOLUTION = 0.02

# sigma_rel of a uniform average; wider ones would weigh early weights more than late ones.
WIDEST = 1 / math.sqrt(12)


def local_part(weight: Tensor) -> Tensor:
    """What this rank has of a weight, in the same memory: all of it, unless the module is sharded."""
    return weight.to_local() if hasattr(weight, "to_local") else weight  # a DTensor


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent floating-point buffers by their names in the uncompiled module, shared ones once.

    `torch.compile` wraps a module and prefixes every name with ``_orig_mod.``; weights saved under such names load
    nowhere else, and averages looked up by them silently stay at their start. The wrapper is looked through here.
    Of a sharded module (FSDP2) they are this rank's parts.
    """
    model = getattr(model, "_orig_mod", model)
    weights = {name: local_part(parameter.detach()) for name, parameter in model.named_parameters()}
    persistent = model.state_dict()
    for name, buffer in model.named_buffers():
        if name in persistent:
            weights[name] = buffer.detach()
    return weights


class Average(Protocol):
    """How much of an average stays."""

    @property
    def name(self) -> str:
        """Of the average in files."""

    def width(self, images: int) -> float:
        """Over how many images it averages after so many: what `RESOLUTION` is a share of."""

    def beta(self, images: int, count: int) -> float:
        """The share of the old average that stays, for the step from `images` to `images` + `count`."""


@dataclasses.dataclass(frozen=True)
class HalfLife:
    """beta = 0.5 ** (count / half-life), with the half-life capped at `ramp_up` of the images trained so far (Karras et
    al. 2022, training of EDM), so that the average of a short run has forgotten its random start.

    half_life_images: images after which a weight counts half. 0: no averaging, the average is the weights.
    """

    half_life_images: float
    ramp_up: float = 0.05

    @property
    def name(self) -> str:
        return f"half-life-{self.half_life_images:.12g}"

    def width(self, images: int) -> float:
        return min(self.half_life_images, images * self.ramp_up)

    def beta(self, images: int, count: int) -> float:
        half_life = self.width(images)
        return 0.5 ** (count / half_life) if half_life > 0 else 0.0


@dataclasses.dataclass(frozen=True)
class PowerFunction:
    """After t images a weight of image s counts in proportion to s ** gamma (Karras et al. 2024, EDM2, section 3), with
    beta = (images / (images + count)) ** (gamma + 1): nothing of the random start stays.

    sigma_rel: standard deviation of that profile as a share of t; it keeps its shape however long the run is.
    """

    sigma_rel: float

    @property
    def name(self) -> str:
        return f"sigma-rel-{self.sigma_rel:.12g}"

    @property
    def gamma(self) -> float:
        return gamma_of(self.sigma_rel)

    def width(self, images: int) -> float:
        return self.sigma_rel * images

    def beta(self, images: int, count: int) -> float:
        return (images / (images + count)) ** (self.gamma + 1.0)


def gamma_of(sigma_rel: float) -> float:
    """The exponent of a power function of that relative width: the largest root of (EDM2, appendix C)
    g^3 + 7 g^2 + (16 - 1 / sigma_rel^2) g + (12 - 1 / sigma_rel^2) = 0."""
    inverse = sigma_rel**-2
    return float(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max())


class Ema:
    """Averages of a network's weights: ``average = beta average + (1 - beta) weight``.

    Args:
        model: its weights are read at every update; they are float32.
        half_life_images: of the first average, which `tensors` gives, or of several.
        ramp_up: share of the images trained so far that no half-life is longer than.
        sigma_rel: relative widths of power-function averages besides.
    """

    def __init__(
        self,
        model: nn.Module,
        half_life_images: float | Sequence[float],
        ramp_up: float = 0.05,
        sigma_rel: Sequence[float] = (),
    ):
        lives = half_life_images if isinstance(half_life_images, Sequence) else (half_life_images,)
        self.averages: list[Average] = [HalfLife(life, ramp_up) for life in lives]
        self.averages += [PowerFunction(width) for width in sigma_rel]
        weights = named_weights(model)
        self._names = list(weights)
        self._live = list(weights.values())
        # cloned, they keep the memory format: the lerp runs linearly
        self._shadows = [[weight.clone() for weight in self._live] for _ in self.averages]
        floating = [i for i, weight in enumerate(self._live) if weight.is_floating_point()]
        self._other = [i for i, weight in enumerate(self._live) if not weight.is_floating_point()]
        # the averages of one weight side by side: it is read from memory once
        self._lerp_shadows = [shadow[i] for i in floating for shadow in self._shadows]
        self._lerp_live = [self._live[i] for i in floating for _ in self.averages]
        self._repeats = len(floating)
        self.pending = 0  # images since the last update
        self.last_count = 0  # images between the last two

    def beta(self, images: int, batch_size: int) -> float:
        """Of the first average, for the step from `images` to `images` + `batch_size`."""
        return self.averages[0].beta(images, batch_size)

    @torch.no_grad()
    def update(self, images: int, batch_size: int) -> bool:
        """After the optimizer step that began at `images`. False: not due yet, nothing was done."""
        self.pending += batch_size
        end, count = images + batch_size, self.pending
        if count < RESOLUTION * min(average.width(end) for average in self.averages):
            return False
        self.pending, self.last_count = 0, count
        shares = [1.0 - average.beta(end - count, count) for average in self.averages]
        torch._foreach_lerp_(self._lerp_shadows, self._lerp_live, shares * self._repeats)
        for i in self._other:  # counters of a norm layer and the like have no average
            for shadow in self._shadows:
                shadow[i].copy_(self._live[i])
        return True

    def tensors(self) -> dict[str, Tensor]:
        """The first average by name (views, not copies)."""
        return dict(zip(self._names, self._shadows[0], strict=True))

    def more_tensors(self) -> dict[str, Tensor]:
        """The other averages, as ``AVERAGE/NAME``."""
        others = zip(self.averages[1:], self._shadows[1:], strict=True)
        return {
            f"{average.name}/{name}": tensor
            for average, shadow in others
            for name, tensor in zip(self._names, shadow, strict=True)
        }

    def state(self) -> dict[str, Any]:
        """JSON-able, what a checkpoint holds besides the tensors."""
        return {"averages": [average.name for average in self.averages], "pending": self.pending}

    @torch.no_grad()
    def load(
        self,
        tensors: Mapping[str, Tensor],
        more: Mapping[str, Tensor] | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """Put back what `tensors`, `more_tensors` and `state` gave; those of a run from before there were several
        averages are the first alone."""
        copy_tensors(self.tensors(), tensors, "ema.safetensors")
        copy_tensors(self.more_tensors(), more or {}, "averages.safetensors")
        self.pending = 0 if state is None else state["pending"]


@torch.no_grad()
def copy_tensors(target: Mapping[str, Tensor], source: Mapping[str, Tensor], file_name: str) -> None:
    """Copy by name into existing tensors (their device and memory format stay); names and shapes must agree."""
    if target.keys() != source.keys():
        odd = sorted(target.keys() ^ source.keys())
        raise InputError(f"{file_name}: is of another network ({len(odd)} names differ, among them {odd[0]})")
    for name, tensor in target.items():
        if tensor.shape != source[name].shape:
            raise InputError(
                f"{file_name}: is of another network ({name} is {tuple(source[name].shape)}, not {tuple(tensor.shape)})"
            )
        tensor.copy_(source[name])
