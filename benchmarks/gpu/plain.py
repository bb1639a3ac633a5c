"""Training loops without prunefast's: what a careful user writes with PyTorch alone, and diffusers' example.

Same networks, batch, learning rate, EMA, label drop and mirrors as prunefast's loop, so that only the loop differs.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional


def schedule(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha and sigma of DDPM's linear schedule, float32 [1000]."""
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    bar = torch.cumprod(1 - beta, 0)
    return bar.sqrt().float().to(device), (1 - bar).sqrt().float().to(device)


def batches(count: int, batch: int, device: torch.device) -> Iterator[torch.Tensor]:
    """Indices, a new order each epoch."""
    while True:
        order = torch.randperm(count, device=device)
        yield from order[: count - count % batch].split(batch)


class PlainLoop:
    """bf16 autocast, channels_last, torch.compile, fused AdamW, images and everything random on the device."""

    def __init__(
        self,
        model: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        num_classes: int,
        *,
        batch: int,
        lr: float,
        warmup_images: int,
        half_life_images: float,
        compile: bool,
        label_drop: float = 0.1,
    ):
        self.model, self.images, self.labels = model.train(), images, labels
        self.num_classes, self.batch, self.lr, self.warmup = num_classes, batch, lr, warmup_images
        self.half_life, self.label_drop = half_life_images, label_drop
        self.device = images.device
        self.network: Callable = torch.compile(model) if compile else model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0, fused=True)
        self.average = [p.detach().clone() for p in model.parameters()]
        self.alpha, self.sigma = schedule(self.device)
        self.order = batches(len(images), batch, self.device)
        self.trained = 0

    def step(self) -> torch.Tensor:
        index = next(self.order)
        x0 = self.images[index].float().div_(127.5).sub_(1)
        x0 = torch.where(torch.rand(self.batch, 1, 1, 1, device=self.device) < 0.5, x0.flip(3), x0)
        x0 = x0.contiguous(memory_format=torch.channels_last)
        time = torch.randint(0, 1000, (self.batch,), device=self.device)
        noise = torch.randn_like(x0)
        noisy = self.alpha[time][:, None, None, None] * x0 + self.sigma[time][:, None, None, None] * noise
        dropped = torch.rand(self.batch, device=self.device) < self.label_drop
        label = torch.where(dropped, self.num_classes, self.labels[index])
        with torch.autocast(self.device.type, torch.bfloat16):
            predicted = self.network(noisy, time.float(), label)
        loss = functional.mse_loss(predicted.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * min((self.trained + self.batch) / max(self.warmup, 1), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        half_life = min(self.half_life, 0.05 * self.trained)
        keep = 0.5 ** (self.batch / half_life) if half_life > 0 else 0.0
        with torch.no_grad():
            torch._foreach_lerp_(self.average, list(self.model.parameters()), 1 - keep)
        self.trained += self.batch
        return loss.detach()

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "trained": self.trained,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for mine, other in zip(self.average, state["average"], strict=True):
            mine.copy_(other)
        self.trained = state["trained"]


def diffusers_step(images: torch.Tensor, batch: int, small: bool) -> Callable[[], None]:
    """A step of diffusers' train_unconditional.py with bf16 autocast and its EMA; google/ddpm-cifar10-32's network."""
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.training_utils import EMAModel

    device = images.device
    widths = (32, 32) if small else (128, 256, 256, 256)
    down = ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D")[: len(widths)]
    up = ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D")[-len(widths) :]
    model = UNet2DModel(
        sample_size=images.shape[-1],
        block_out_channels=widths,
        layers_per_block=2,
        down_block_types=down,
        up_block_types=up,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
    ).to(device)
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, betas=(0.95, 0.999), weight_decay=1e-6)
    average = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True)
    order = batches(len(images), batch, device)

    def step() -> None:
        x0 = images[next(order)].float() / 127.5 - 1
        noise = torch.randn_like(x0)
        time = torch.randint(0, 1000, (batch,), device=device)
        noisy = scheduler.add_noise(x0, noise, time)
        with torch.autocast(device.type, torch.bfloat16):
            predicted = model(noisy, time).sample
        loss = functional.mse_loss(predicted.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(model.parameters())

    return step
