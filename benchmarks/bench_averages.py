"""What moving averages cost beside the optimizer: the weights of unet-cifar10 (35.7 million), two threads by default.

One round is 16 optimizer steps, with the averages as training updates them (`Ema.update`, which passes over memory when
2 % of an average's width has gone by) after so many images of batch 128. Peer: diffusers' EMAModel, as its training
script calls it (every step), and with its foreach.

    pytest benchmarks/bench_averages.py --benchmark-columns=min,median
"""

import os
import sys

import pytest
import torch

from prunefast.models import build_model
from prunefast.train.ema import Ema

STEPS, BATCH = 16, 128
HALF_LIFE = 887_000.0  # of the preset cifar10


@pytest.fixture(scope="module")
def parts():
    before = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    model = build_model("unet-cifar10", image_size=32).to(memory_format=torch.channels_last)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-3
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    optimizer.step()
    yield model, optimizer
    torch.set_num_threads(before)


def run(benchmark, parts, after):
    benchmark.group = f"{STEPS} steps of AdamW and averages, unet-cifar10"

    def steps() -> None:
        for step in range(STEPS):
            parts[1].step()
            after(step)

    benchmark.pedantic(steps, rounds=4, warmup_rounds=1)


def test_adamw_alone(benchmark, parts):
    run(benchmark, parts, lambda step: None)


@pytest.mark.parametrize("images", [100_000, 1_000_000, 10_000_000])
@pytest.mark.parametrize("sigma_rel", [(), (0.05, 0.1)], ids=["one", "and two power functions"])
def test_averages(benchmark, parts, images, sigma_rel):
    ema = Ema(parts[0], HALF_LIFE, sigma_rel=sigma_rel)
    run(benchmark, parts, lambda step: ema.update(images + step * BATCH, BATCH))


@pytest.mark.parametrize("foreach", [False, True], ids=["loop", "foreach"])
def test_diffusers_ema_model(benchmark, parts, foreach):
    try:
        import torchvision  # noqa: F401
    except Exception:  # one that does not match torch fails inside diffusers; without it diffusers is content
        sys.modules["torchvision"] = None  # type: ignore[assignment]
    training_utils = pytest.importorskip("diffusers.training_utils")
    ema = training_utils.EMAModel(parts[0].parameters(), decay=0.9999, foreach=foreach)
    run(benchmark, parts, lambda step: ema.step(parts[0].parameters()))
