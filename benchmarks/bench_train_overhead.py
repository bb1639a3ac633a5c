"""What a training step costs beside the network: loader, noise, bookkeeping.

Three rows of one group, for the same network, batch and thread count:

    step                  everything the loop does for a step, from the batch to the moving average and the sums of the
                          log
    network               what any trainer must do: forward, squared error, backward, fused AdamW, on a batch that is
                          there
    beside the network    the step with a network that only scales its input and without AdamW: loader, times, flips,
                          noise, noising, loss, norm of the gradient, average, sums, seeding. The aim: under 3 % of the
                          first row.

    pytest benchmarks/bench_train_overhead.py --benchmark-columns=min,median

On a machine that is not quiet, compare CPU time: OMP_NUM_THREADS=1 and --benchmark-timer=time.process_time.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from prunefast.data import from_arrays
from prunefast.models import build_model
from prunefast.train import TrainConfig
from prunefast.train.loop import _Run
from prunefast.train.setup import build_parts, make_plan, open_inputs

SETTINGS = [("unet-small", 32, 16), ("unet-tiny", 16, 32)]  # network, pixels, images a step


class Scale(nn.Module):
    """The least network: one number, and the gradient of it."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor, time: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        return self.gain * x


def make_run(folder: Any, model: str, image_size: int, batch_size: int) -> _Run:
    generator = np.random.Generator(np.random.Philox(key=0))
    images = generator.integers(0, 256, (2_000, image_size, image_size, 3), dtype=np.uint8)
    data = from_arrays(images, np.arange(2_000) % 10)
    config = TrainConfig(out=str(folder), images=10**9, model=model, batch_size=batch_size, device="cpu", dropout=0.1)
    plan = make_plan(config, *open_inputs(config, data, None))
    return _Run(plan, build_parts(plan), folder, None)


@pytest.mark.parametrize(("model", "image_size", "batch_size"), SETTINGS)
class TestStep:
    def test_step(self, benchmark, tmp_path, model, image_size, batch_size):
        benchmark.group = f"training step, {model} at {image_size} px, batch {batch_size}"
        run = make_run(tmp_path, model, image_size, batch_size)
        batches = iter(run.parts.loader)
        benchmark.pedantic(lambda: run._one_step(next(batches)), rounds=12, warmup_rounds=2)

    def test_network(self, benchmark, tmp_path, model, image_size, batch_size):
        benchmark.group = f"training step, {model} at {image_size} px, batch {batch_size}"
        run = make_run(tmp_path, model, image_size, batch_size)
        network, precision = run.parts.model, run.plan.recipe["precision"]
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
        x = torch.randn(batch_size, 3, image_size, image_size).to(memory_format=torch.channels_last)
        noise, time, labels = torch.randn_like(x), torch.rand(batch_size) * 999, torch.arange(batch_size) % 10

        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                prediction = network(x, time, labels)
            nn.functional.mse_loss(prediction.float(), noise).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        benchmark.pedantic(step, rounds=12, warmup_rounds=2)

    def test_beside_the_network(self, benchmark, tmp_path, model, image_size, batch_size):
        benchmark.group = f"training step, {model} at {image_size} px, batch {batch_size}"
        run = make_run(tmp_path, model, image_size, batch_size)
        run.parts.step.network = Scale()
        run.parts.updater.optimizer.step = lambda: None
        gradients = {name: torch.zeros_like(p) for name, p in build_model(**run.parts.model.config).named_parameters()}
        batches = iter(run.parts.loader)

        def step() -> None:
            # gradients of the real network, so that norm and average pass over as much memory as they do in training
            for name, parameter in run.parts.model.named_parameters():
                parameter.grad = gradients[name]
            run._one_step(next(batches))

        benchmark.pedantic(step, rounds=30, warmup_rounds=3)
