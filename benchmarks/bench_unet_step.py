"""A training step of the CIFAR-10 UNet beside diffusers' UNet2DModel of the same size, layers and precision.

    pytest benchmarks/bench_unet_step.py --benchmark-group-by=group

A step is forward, mean squared error, backward; both sides get channels_last inputs and weights. A step of the other
side runs before every timed one, so that a machine that slows down does so for both. PRUNEFAST_BENCH_BATCH (default 8)
is the batch, the threads are torch's (OMP_NUM_THREADS).
"""

import os
import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn

from prunefast.models import build_model, count_parameters

BATCH = int(os.environ.get("PRUNEFAST_BENCH_BATCH", "8"))
ROUNDS = 8
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def our_unet() -> nn.Module:
    return build_model("unet-cifar10", image_size=32)


def diffusers_unet() -> nn.Module:
    try:
        import torchvision  # noqa: F401
    except Exception:  # one that does not match torch fails inside diffusers; without it diffusers is content
        sys.modules["torchvision"] = None  # type: ignore[assignment]
    diffusers = pytest.importorskip("diffusers")
    return diffusers.UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        attention_head_dim=None,
        norm_eps=1e-6,
        dropout=0.1,
    )


def training_step(model: nn.Module, precision: str, batch: int = BATCH) -> Callable[[], float]:
    """A function that does one step and waits for it."""
    torch.manual_seed(0)
    assert count_parameters(model) == 35_746_307
    model = model.to(DEVICE).to(memory_format=torch.channels_last).train()
    x, noise = (torch.randn(batch, 3, 32, 32, device=DEVICE).to(memory_format=torch.channels_last) for _ in range(2))
    time = torch.rand(batch, device=DEVICE) * 999
    autocast = torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "bfloat16")

    def step() -> float:
        for parameter in model.parameters():
            parameter.grad = None
        with autocast:
            output = model(x, time)
        output = getattr(output, "sample", output)
        loss = (output.float() - noise).square().mean()
        loss.backward()
        return loss.item()  # waits for the device

    return step


@pytest.mark.benchmark(group="unet-cifar10 step")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("side", ["prunefast", "diffusers"])
def test_unet_step(benchmark, side: str, precision: str) -> None:
    benchmark.group = f"unet-cifar10 step, {precision}, batch {BATCH}, {DEVICE}"
    steps = {"prunefast": training_step(our_unet(), precision), "diffusers": training_step(diffusers_unet(), precision)}
    step = steps.pop(side)
    (other,) = steps.values()

    def run_the_other() -> None:
        other()

    benchmark.pedantic(step, setup=run_the_other, rounds=ROUNDS, warmup_rounds=1)
