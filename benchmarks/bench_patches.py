"""A training step of Patch Diffusion at each of its sizes beside a plain one: the same network, batch and threads.

A row is a whole step, from the batch to the moving average; `images` and `pixels` (of a full step) of a row are in its
extra info. Divide by them: the smaller sizes have 2 and 4 times the images in 1/2 and 1/4 of the pixels.

    pytest benchmarks/bench_patches.py --benchmark-columns=min,median

On a machine that is not quiet, compare CPU time: OMP_NUM_THREADS=1 and --benchmark-timer=time.process_time.
"""

from typing import Any

import numpy as np
import pytest

from prunefast.data import from_arrays
from prunefast.train import TrainConfig
from prunefast.train.loop import _Run
from prunefast.train.setup import build_parts, make_plan, open_inputs

SETTINGS = [("unet-small", 16), ("unet-cifar10", 4)]  # network, images of a plain step, at 32 pixels


def make_run(folder: Any, model: str, batch_size: int, patch_p: float | None) -> _Run:
    generator = np.random.Generator(np.random.Philox(key=0))
    images = generator.integers(0, 256, (2_000, 32, 32, 3), dtype=np.uint8)
    data = from_arrays(images, np.arange(2_000) % 10)
    config = TrainConfig(
        out=str(folder), images=10**9, model=model, batch_size=batch_size, device="cpu", patch_p=patch_p
    )
    plan = make_plan(config, *open_inputs(config, data, None))
    return _Run(plan, build_parts(plan), folder, None)


@pytest.mark.parametrize("size", [None, 32, 16, 8], ids=["plain", "R", "R/2", "R/4"])
@pytest.mark.parametrize(("model", "batch_size"), SETTINGS)
def test_step(benchmark, tmp_path, model, batch_size, size):
    benchmark.group = f"training step, {model} at 32 px, batch {batch_size}"
    run = make_run(tmp_path, model, batch_size, None if size is None else 0.5)
    if size is not None:
        patches = run.plan.patches
        assert patches is not None
        chosen = next(patch for patch in patches.patches if patch.size == size)
        object.__setattr__(patches, "at", lambda _: chosen)  # every step is of this size
        benchmark.extra_info["images"] = batch_size * chosen.multiplier
        benchmark.extra_info["pixels"] = chosen.multiplier * (size / 32) ** 2
    batches = iter(run.parts.loader)
    benchmark.pedantic(lambda: run._one_step(next(batches)), rounds=6, warmup_rounds=1)
