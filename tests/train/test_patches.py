"""Patch Diffusion in the loop: counted truly, exact after every stop, plain training where p is 1."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from prunefast.cli import main
from prunefast.diffusion import DenoisingLoss, PatchSchedule
from prunefast.errors import InputError
from prunefast.models import build_model
from prunefast.reweight import reweight
from prunefast.select import Coreset
from prunefast.stream import CoresetLoader
from prunefast.train import TIMING_KEYS, TrainConfig, read_metrics, sample, train
from prunefast.train import loop as training_loop
from prunefast.train.blocks import blocks_of
from prunefast.train.setup import build_parts, make_plan, open_inputs
from prunefast.train.state import WEIGHT_FILES, find_checkpoint, load_tensors
from prunefast.train.step import TrainingStep

NETWORK = {"width": 8, "channel_multipliers": [1, 2], "blocks": 1, "attention_levels": [1]}


def lines_of(folder) -> list[dict]:
    records = read_metrics(Path(folder) / "train" / "metrics.jsonl")
    return [{key: value for key, value in record.items() if key not in TIMING_KEYS} for record in records]


def assert_same_run(one, other) -> None:
    assert lines_of(one) == lines_of(other)
    (a, state_a), (b, state_b) = find_checkpoint(one), find_checkpoint(other)
    for key in ("images", "steps", "pixels", "meter", "loader"):
        assert state_a[key] == state_b[key], key
    for name in WEIGHT_FILES:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def expected_steps(seed: int, side: int, batch: int, images: int, p: float) -> list:
    """(begin, patch) of every step of a run, from the schedule alone."""
    schedule, steps, position = PatchSchedule(side, p=p, seed=seed), [], 0
    while position < images:
        steps.append((position, schedule.at(position)))
        position += batch * steps[-1][1].multiplier
    return steps


def test_images_and_pixels_are_counted(data, make_config, monkeypatch):
    seen = []
    original = TrainingStep.__call__

    def record(self, batch, patch=None, **options):
        seen.append((batch.position.tolist(), patch.size))
        return original(self, batch, patch, **options)

    monkeypatch.setattr(TrainingStep, "__call__", record)
    result = train(make_config(patch_p=0.3, images=400), data)
    steps = expected_steps(0, 8, 8, 400, 0.3)
    assert {patch.size for _, patch in steps} == {8, 4, 2}
    assert result.steps == len(steps) == len(seen)
    assert [size for _, size in seen] == [patch.size for _, patch in steps]
    # every image of the stream comes exactly once, in order
    assert [p for positions, _ in seen for p in positions] == list(range(result.images))
    state = find_checkpoint(result.folder)[1]
    assert state["images"] == result.images == sum(8 * patch.multiplier for _, patch in steps)
    assert state["pixels"] == sum(8 * patch.multiplier * patch.size**2 for _, patch in steps)
    last = lines_of(result.folder.parent)[-1]
    assert (last["images"], last["pixels"]) == (state["images"], state["pixels"])
    assert last["lr"] == 1e-3


def test_full_size_only_is_plain_training_with_coordinates(data, make_config, tmp_path):
    plain = make_config(out=str(tmp_path / "plain"), model_options={**NETWORK, "coordinates": True})
    patches = make_config(out=str(tmp_path / "patches"), patch_p=1.0)
    train(plain, data)
    train(patches, data)
    assert_same_run(plain.out, patches.out)


def test_pixels_of_plain_training(data, make_config):
    train(make_config(), data)
    assert [(line["images"], line["pixels"]) for line in lines_of(make_config().out)] == [
        (images, images * 64) for images in (24, 48, 72, 96)
    ]


@pytest.mark.parametrize("options", [{}, {"patch_schedule": "progressive", "patch_p": 0.4}], ids=str)
def test_bits_after_interruptions(options, data, make_config, monkeypatch, tmp_path):
    options = {"images": 300, "checkpoint_every_images": 60, "patch_p": 0.3, **options}
    straight = make_config(**options, out=str(tmp_path / "straight"))
    train(straight, data)
    stopped = make_config(**options, out=str(tmp_path / "stopped"))
    original = training_loop._Run._one_step
    for number in (1, 4, 7, 3):
        calls = [0]

        def one_step(self, batch, calls=calls, number=number):
            calls[0] += 1
            if calls[0] == number:
                raise RuntimeError("injected")
            original(self, batch)

        with monkeypatch.context() as patch:
            patch.setattr(training_loop._Run, "_one_step", one_step)
            with pytest.raises(RuntimeError, match="injected"):
                train(stopped, data)
    train(stopped, data)
    assert_same_run(straight.out, stopped.out)


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from prunefast.train import TrainConfig, train
print("begin", flush=True)
train(TrainConfig.load(sys.argv[1]))
"""


def test_world_sizes_see_the_same_images_at_the_same_sizes(data):
    schedule = PatchSchedule(8, p=0.3, seed=4)

    def stream(world_size: int, steps: int = 40) -> list[list[int]]:
        """The positions of every global batch."""
        loaders = [
            CoresetLoader(
                data,
                Coreset.full(data),
                batch_size=8 // world_size,
                multiplier=schedule.multiplier,
                rank=rank,
                world_size=world_size,
            )
            for rank in range(world_size)
        ]
        steps_of_all = zip(*(iter(loader) for loader in loaders), strict=True)
        found = []
        for parts in itertools.islice(steps_of_all, steps):
            found.append(sorted(position for part in parts for position in part.position.tolist()))
            begin = found[-1][0]
            assert {loader.position for loader in loaders} == {found[-1][-1] + 1}
            assert len(found[-1]) == 8 * schedule.at(begin).multiplier
        return found

    one = stream(1)
    assert {len(batch) for batch in one} == {8, 16, 32}
    assert stream(2) == one
    assert stream(4) == one
    with pytest.raises(TypeError, match="multiplier has no length"):
        len(CoresetLoader(data, Coreset.full(data), batch_size=8, epochs=1, multiplier=schedule.multiplier))


@pytest.mark.slow
def test_killed_in_the_middle(tmp_path, make_config):
    """kill -9 with the images on disk, where the loader decodes ahead of the loop."""
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8))
    files = {}
    for name in ("straight", "killed"):
        config = make_config(
            out=str(tmp_path / name),
            data=str(tmp_path / "images.npy"),
            images=1200,
            patch_p=0.4,
            placement="disk",
            threads=1,
            checkpoint_every_images=50,
        )
        files[name] = tmp_path / f"{name}.toml"
        config.dump(files[name])
    train(TrainConfig.load(files["straight"]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start() -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", SCRIPT, str(files["killed"])], env=environment)

    process = start()
    deadline = time.monotonic() + 60
    while not list((tmp_path / "killed").glob("train/checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert find_checkpoint(tmp_path / "killed")[1]["images"] < 1200
    assert start().wait(timeout=120) == 0
    assert_same_run(tmp_path / "straight", tmp_path / "killed")


def test_loss_of_the_paper_and_the_mean(data, make_config):
    """The paper's sum over pixels, in units of a full image, is (s / R)^2 times the mean."""
    batch = next(iter(CoresetLoader(data, Coreset.full(data), batch_size=8)))
    torch.manual_seed(0)
    network = build_model("unet-tiny", image_size=8, coordinates=True, dropout=0.0, **NETWORK)
    values = {}
    for loss in ("sum", "mean"):
        patches = PatchSchedule(8, loss=loss, seed=0)
        step = TrainingStep(
            network,
            DenoisingLoss("flow"),
            seed=0,
            num_classes=None,
            label_drop=0.0,
            flip=True,
            precision="fp32",
            coordinates=True,
            patches=patches,
        )
        values[loss] = [step(batch, patch).item() for patch in patches.patches]
    for level in range(3):
        assert values["sum"][level] == pytest.approx(values["mean"][level] * 0.25**level, rel=1e-6)


def test_each_size_is_compiled_once(data, make_config, graphs):
    """Three sizes, three sets of graphs, none of them dynamic, and no fourth when the sizes come again."""
    network = {"width": 4, "channel_multipliers": [1, 1], "blocks": 1, "attention_levels": []}
    config = make_config(patch_p=0.3, compile=True, class_conditional=False, model_options=network)
    plan = make_plan(config, *open_inputs(config, data, None))
    parts = build_parts(plan)
    batch = next(iter(parts.loader))
    counts = []
    for _ in range(3):
        for patch in plan.patches.patches:
            parts.step(batch, patch)
            counts.append(len(graphs))
    assert counts == [counts[0] * min(n, 3) for n in range(1, 10)]
    assert 0 < counts[0] <= len(blocks_of(parts.model))


def test_sampling_is_told_the_coordinates(data, make_config):
    result = train(make_config(patch_p=0.5), data)
    images = sample(result.folder, 3, steps=2)
    assert images.shape == (3, 8, 8, 3)
    model = find_checkpoint(result.folder)[1]["model"]
    assert model["coordinates"] is True
    assert load_tensors(find_checkpoint(result.folder)[0] / "model.safetensors")["head.weight"].shape[1] == 5


def test_dit_on_patches(data, make_config):
    config = make_config(
        model="dit-tiny/2", model_options={"depth": 1, "width": 16, "heads": 2}, patch_p=0.3, images=200, dropout=None
    )
    result = train(config, data)
    assert sample(result.folder, 2, steps=2).shape == (2, 8, 8, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_p": 1.1}, "patch_p is 1.1; it must be at least 0 and at most 1"),
        ({"patch_p": 5}, "patch_p is 5"),
        ({"patch_p": 0.5, "patch_schedule": "slow"}, "patch_schedule is 'slow'"),
        (
            {"patch_p": 0.5, "model_options": {**NETWORK, "channel_multipliers": [1, 1, 1], "attention_levels": []}},
            "crops of 2 pixels do not go through unet-tiny, which takes multiples of 4; give patch_levels = 2",
        ),
        (
            {"patch_p": 0.5, "patch_schedule": "progressive", "images": None, "max_seconds": 1.0},
            "images: patch_schedule",
        ),
    ],
)
def test_options_that_cannot_be(options, message, data, make_config, tmp_path):
    with pytest.raises(InputError, match=message):
        train(make_config(**options), data)
    assert not (tmp_path / "run").exists()


def test_another_schedule_is_another_recipe(data, make_config):
    train(make_config(patch_p=0.5), data)
    with pytest.raises(InputError, match=r"patch_p \(0.5, now 0.6\)"):
        train(make_config(patch_p=0.6), data)
    progressive = make_config(patch_p=0.5, patch_schedule="progressive", out=make_config().out + "2")
    train(progressive, data)
    with pytest.raises(InputError, match=r"patch_images \(96, now 200\)"):
        train(progressive.replace(images=200), data)


def test_the_command_line(tmp_path, capsys):
    np.savez(tmp_path / "images.npz", images=np.zeros((4, 32, 32, 3), np.uint8))
    words = ["train", "--data", str(tmp_path / "images.npz"), "-o", str(tmp_path / "run"), "--device", "cpu"]
    for more, p, p_schedule in (
        (["--patch-p"], 0.5, "stochastic"),
        (["--patch-p", "0.25", "--set", "patch_schedule=progressive"], 0.25, "progressive"),
        ([], None, "stochastic"),
    ):
        assert main([*words, *more, "--dry-run", "--json"]) == 0
        config = json.loads(capsys.readouterr().out.splitlines()[-1])["config"]
        assert (config.get("patch_p"), config["patch_schedule"]) == (p, p_schedule)
    assert main([*words, "--patch-p", "1.5"]) == 2
    assert "--patch-p is 1.5; it must be at least 0 and at most 1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("key", "value"), [("patch_p", 0.0), ("mask_ratio", 0.5), ("learn_sigma", True)])
def test_the_search_for_class_weights_refuses_other_losses(key, value, data, make_config, tmp_path):
    with pytest.raises(InputError, match=f"{key}: the proxy's losses are of whole images"):
        reweight(make_config(**{key: value}), data, reference=tmp_path / "nowhere")
