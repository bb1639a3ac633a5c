"""kill -9 at random moments: the run that comes out has the bits of one that was never stopped."""

import dataclasses
import json
import multiprocessing
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess as Process

import numpy as np
import pytest

from prunefast.train import TIMING_KEYS, TrainConfig, read_metrics, train
from prunefast.train.state import WEIGHT_FILES, find_checkpoint

KILLS = 20


@pytest.fixture
def start(monkeypatch) -> Callable[[TrainConfig], Process]:
    """Training in a process of its own, which takes its imports, most of a short run, from one that has made them."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["prunefast.train.loop"])

    def run(config: TrainConfig) -> Process:
        process = context.Process(target=train, args=(config,))
        process.start()
        return process

    return run


def finish(process: Process) -> None:
    process.join(300)
    assert process.exitcode == 0


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path, start):
    generator = np.random.Generator(np.random.Philox(key=int(time.time())))  # other moments every time
    np.save(tmp_path / "images.npy", generator.integers(0, 256, (30, 8, 8, 3), dtype=np.uint8))
    configs = {}
    for name in ("straight", "killed"):
        configs[name] = TrainConfig(
            data=str(tmp_path / "images.npy"),
            out=str(tmp_path / name),
            images=960,
            batch_size=8,
            model="unet-tiny",
            model_options={"width": 8, "channel_multipliers": [1, 2], "blocks": 1, "attention_levels": [1]},
            dropout=0.2,
            status_every_images=24,
            checkpoint_every_images=40,  # writes are a good part of the time: many kills fall into one
            device="cpu",
            precision="fp32",
        )

    finish(start(dataclasses.replace(configs["straight"], images=8, out=str(tmp_path / "first"))))  # imports
    began = time.monotonic()
    finish(start(configs["straight"]))
    whole = time.monotonic() - began

    landed = []
    for _ in range(KILLS):
        process = start(configs["killed"])
        time.sleep(generator.uniform(0.2, 0.6) * whole)
        process.kill()
        process.join()
        landed.append(process.exitcode)
    assert -signal.SIGKILL in landed
    finish(start(configs["killed"]))

    runs = [tmp_path / "straight", tmp_path / "killed"]
    lines = [
        [
            {k: v for k, v in record.items() if k not in TIMING_KEYS}
            for record in read_metrics(run / "train" / "metrics.jsonl")
        ]
        for run in runs
    ]
    assert lines[0] == lines[1]
    assert lines[0][-1]["images"] == 960
    for name in WEIGHT_FILES:
        contents = [(find_checkpoint(run)[0] / name).read_bytes() for run in runs]
        assert contents[0] == contents[1], name
    assert json.loads((runs[1] / "train" / "summary.json").read_text())["finished"] is True
    assert not list((runs[1] / "train").glob(".prunefast-tmp*"))
