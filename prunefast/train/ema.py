"""Exponential moving average of the weights, in float32, in one pass over memory."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunefast.errors import InputError


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent floating-point buffers by their names in the uncompiled module, shared ones once.

    `torch.compile` wraps a module and prefixes every name with ``_orig_mod.``; weights saved under such names load
    nowhere else, and averages looked up by them silently stay at their start. The wrapper is looked through here.
    """
    model = getattr(model, "_orig_mod", model)
    weights: dict[str, Tensor] = {name: parameter.detach() for name, parameter in model.named_parameters()}
    persistent = model.state_dict()
    for name, buffer in model.named_buffers():
        if name in persistent:
            weights[name] = buffer.detach()
    return weights


class Ema:
    """Shadow weights: ``shadow = beta shadow + (1 - beta) weight`` after every step.

    beta = 0.5 ** (batch / half-life), with the half-life capped at `ramp_up` of the images trained so far (Karras et
    al. 2022, training of EDM), so that the average of a short run has forgotten its random start.

    Args:
        model: its weights are read at every update; they are float32.
        half_life_images: images after which a weight counts half. 0: no averaging, the shadow is the weights.
        ramp_up: share of the images trained so far.
    """

    def __init__(self, model: nn.Module, half_life_images: float, ramp_up: float = 0.05):
        self.half_life_images = half_life_images
        self.ramp_up = ramp_up
        weights = named_weights(model)
        self._names = list(weights)
        self._live = list(weights.values())
        self._shadow = [weight.clone() for weight in self._live]  # keeps the memory format: the lerp runs linearly
        self._floating = [i for i, weight in enumerate(self._live) if weight.is_floating_point()]
        self._other = [i for i, weight in enumerate(self._live) if not weight.is_floating_point()]
        self._lerp_shadow = [self._shadow[i] for i in self._floating]
        self._lerp_live = [self._live[i] for i in self._floating]

    def beta(self, images: int, batch_size: int) -> float:
        """The share of the old average that stays, for the step from `images` to `images` + `batch_size`."""
        half_life = min(self.half_life_images, images * self.ramp_up)
        return 0.5 ** (batch_size / half_life) if half_life > 0 else 0.0

    @torch.no_grad()
    def update(self, images: int, batch_size: int) -> None:
        """After the optimizer step that began at `images`."""
        torch._foreach_lerp_(self._lerp_shadow, self._lerp_live, 1.0 - self.beta(images, batch_size))
        for i in self._other:  # counters of a norm layer and the like have no average
            self._shadow[i].copy_(self._live[i])

    def tensors(self) -> dict[str, Tensor]:
        """The averages by name (views, not copies)."""
        return dict(zip(self._names, self._shadow, strict=True))

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        copy_tensors(self.tensors(), tensors, "ema.safetensors")


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
