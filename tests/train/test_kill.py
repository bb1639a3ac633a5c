"""kill -9 at random moments: the run that comes out has the bits of one that was never stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from prunefast.train import TIMING_KEYS, TrainConfig, read_metrics
from prunefast.train.state import WEIGHT_FILES, find_checkpoint

KILLS = 3

SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from prunefast.train import TrainConfig, train
print("begin", flush=True)
train(TrainConfig.load(sys.argv[1]))
"""


def start(config_file: Path) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(config_file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )


def finish(process: subprocess.Popen) -> None:
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error.decode()


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    generator = np.random.Generator(np.random.Philox(key=int(time.time())))  # other moments every time
    np.save(tmp_path / "images.npy", generator.integers(0, 256, (30, 8, 8, 3), dtype=np.uint8))
    configs = {}
    for name in ("straight", "killed"):
        config = TrainConfig(
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
        configs[name] = tmp_path / f"{name}.toml"
        config.dump(configs[name])

    began = time.monotonic()
    process = start(configs["straight"])
    assert process.stdout.readline() == b"begin\n"
    began = time.monotonic()
    finish(process)
    whole = time.monotonic() - began

    landed = []
    for _ in range(KILLS):
        process = start(configs["killed"])
        assert process.stdout.readline() == b"begin\n"
        time.sleep(generator.uniform(0.2, 0.6) * whole)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        landed.append(process.returncode)
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
