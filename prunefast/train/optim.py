"""The optimizer step: warm-up, clipping, the guard against non-finite numbers, fused AdamW; and its state by name.

On the fused path nothing is read back from the device: the norm of the gradient, the clipping factor and the decision
to skip the step are device scalars that `torch.optim.AdamW(fused=True)` takes into its one kernel (`grad_scale` and
`found_inf`, the hooks `torch.amp.GradScaler` uses), so clipping costs no pass over the gradients of its own and a
skipped step changes neither weights nor moments nor the step count.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunefast.errors import InputError, MissingDependencyError
from prunefast.train.config import TrainConfig


def learning_rate(config: TrainConfig, images: int, count: int | None = None) -> float:
    """Of the step that starts at `images` and has `count` (None: a batch): rises linearly over `warmup_images` (never
    0), then constant.

    A constant rate makes a run extensible: its past does not depend on how long it will be.
    """
    end = images + (config.batch_size if count is None else count)
    return config.lr * min(end / max(config.warmup_images, 1), 1.0)


def _apex_adamw(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    try:
        from apex.optimizers import FusedAdam
    except ImportError as error:
        raise MissingDependencyError(
            "optimizer='apex': NVIDIA's apex is not importable here (it is built from its source; the PyPI package of "
            f'that name is another project); use optimizer="adamw" [{error}]'
        ) from None
    return FusedAdam(groups, lr=config.lr, betas=config.betas, adam_w_mode=True)


class Updater:
    """One optimizer over the parameters of a network.

    Args:
        model: not compiled, on its device; float32 parameters.
        config: `optimizer`, `lr`, `warmup_images`, `weight_decay`, `betas`, `grad_clip`, `batch_size`.

    Raises `MissingDependencyError` for ``optimizer="apex"`` without NVIDIA's apex.
    """

    def __init__(self, model: nn.Module, config: TrainConfig):
        self._config = config
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        decayed = [p for p in self._parameters.values() if p.ndim >= 2]
        others = [p for p in self._parameters.values() if p.ndim < 2]
        groups = [
            {"params": params, "weight_decay": decay}
            for params, decay in ((decayed, config.weight_decay), (others, 0.0))
            if params
        ]
        self._fused = config.optimizer == "adamw"
        if self._fused:
            self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
                groups, lr=config.lr, betas=config.betas, fused=True
            )
        else:
            self.optimizer = _apex_adamw(groups, config)

    @torch.no_grad()
    def step(self, loss: Tensor, images: int, count: int | None = None) -> tuple[Tensor, Tensor]:
        """Apply the gradients of the step that starts at `images` and has `count` (None: a batch), and drop them.

        Returns (norm of the gradient before clipping, bad): float32 device scalars; bad is 1 where the loss or the
        gradient was not finite and the step was skipped, else 0.
        """
        lr = learning_rate(self._config, images, count)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        norm = self._norm(gradients)
        bad = (~(torch.isfinite(norm) & torch.isfinite(loss.detach()))).float()
        clip = self._config.grad_clip
        # gradients are divided by the scale: max(norm / clip, 1) is clipping
        scale = (norm / clip).clamp(min=1.0) if clip > 0 else None
        if self._fused:
            self.optimizer.grad_scale, self.optimizer.found_inf = scale, bad  # type: ignore[attr-defined]
            self.optimizer.step()
        elif not bad.item():  # apex takes no such scalars outside its capturable mode: one synchronisation a step
            if scale is not None:
                torch._foreach_div_(gradients, scale)
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm, bad

    def _norm(self, gradients: list[Tensor]) -> Tensor:
        return torch.nn.utils.get_total_norm(gradients)

    def tensors(self) -> dict[str, Tensor]:
        """Moments and step counts as ``PARAMETER.KEY``, those a group holds (apex) as ``group.NUMBER.KEY``."""
        state = {
            f"{name}.{key}": value
            for name, parameter in self._parameters.items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }
        for number, group in enumerate(self.optimizer.param_groups):
            if "step" in group:
                state[f"group.{number}.step"] = torch.as_tensor(group["step"])
        return state

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave. The kernels walk parameters and moments linearly, so each moment gets the
        memory format of its parameter, whatever it was saved in."""
        rest = dict(tensors)
        for number, group in enumerate(self.optimizer.param_groups):
            step = rest.pop(f"group.{number}.step", None)
            if step is not None:
                group["step"] = int(step.item())
        states: dict[str, dict[str, Tensor]] = {name: {} for name in self._parameters}
        for full_name, value in rest.items():
            name, _, key = full_name.rpartition(".")
            if name not in states:
                raise InputError(f"optimizer.safetensors: is of another network ({full_name} is not in this one)")
            parameter = self._parameters[name]
            if value.shape == parameter.shape:
                states[name][key] = torch.empty_like(parameter).copy_(value)
            elif value.ndim == 0:
                states[name][key] = value.to(parameter.device)
            else:
                raise InputError(
                    f"optimizer.safetensors: is of another network ({full_name} is {tuple(value.shape)}, "
                    f"not {tuple(parameter.shape)})"
                )
        for name, parameter in self._parameters.items():
            if states[name]:
                self.optimizer.state[parameter] = states[name]
