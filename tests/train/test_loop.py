import dataclasses
import functools
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from prunefast.data import from_arrays, open_dataset
from prunefast.errors import InputError, InputTypeError, MachineError
from prunefast.files import lock_folder
from prunefast.select import Coreset
from prunefast.train import TIMING_KEYS, TrainConfig, TrainingStopped, read_metrics, sample, train
from prunefast.train import loop as loop_module
from prunefast.train import state as checkpoints
from prunefast.train import step as step_module
from prunefast.train.state import find_checkpoint, list_checkpoints, read_state
from prunefast.train.step import TrainingStep


class Injected(Exception):
    """A failure that training knows nothing of."""


def tensors_of(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    path, _ = find_checkpoint(folder)
    return {name: checkpoints.load_tensors(path / name) for name in checkpoints.WEIGHT_FILES}


def lines_of(folder: Path) -> list[dict]:
    return [
        {key: value for key, value in record.items() if key not in TIMING_KEYS}
        for record in read_metrics(folder / "train" / "metrics.jsonl")
    ]


def assert_same_run(one: str | Path, other: str | Path) -> None:
    one, other = Path(one), Path(other)
    assert lines_of(one) == lines_of(other)
    a, b = tensors_of(one), tensors_of(other)
    for name in a:
        assert a[name].keys() == b[name].keys()
        for key in a[name]:
            assert torch.equal(a[name][key], b[name][key]), f"{name}: {key}"
    states = [find_checkpoint(folder)[1] for folder in (one, other)]
    for key in ("images", "steps", "meter", "metrics_offset", "loader", "recipe"):
        if key != "metrics_offset":  # timings have different lengths in the text
            assert states[0][key] == states[1][key], key
    summaries = [json.loads((folder / "train" / "summary.json").read_text()) for folder in (one, other)]
    for key in ("images", "steps", "loss", "parameters", "finished"):
        assert summaries[0][key] == summaries[1][key], key


def fail_before_step(monkeypatch, number: int) -> None:
    """The n-th step of the next run raises, after the loader has handed out its batch."""
    original, calls = loop_module._Run._one_step, [0]

    def one_step(self, batch):
        calls[0] += 1
        if calls[0] == number:
            raise Injected
        original(self, batch)

    monkeypatch.setattr(loop_module._Run, "_one_step", one_step)


def test_a_run_from_begin_to_end(data, make_config, tmp_path):
    result = train(make_config(images=100), data)  # 100 images are 13 batches of 8
    folder = tmp_path / "run" / "train"
    assert (result.images, result.steps, result.repeated) == (104, 13, False)
    assert result.folder == folder
    assert result.checkpoint == folder / "checkpoint-000000104"
    records = read_metrics(folder / "metrics.jsonl")
    assert [record["images"] for record in records] == [24, 48, 72, 96, 104]
    assert [record["steps"] for record in records] == [3, 6, 9, 12, 13]
    assert set(records[0]) == {"images", "steps", "pixels", "loss", "lr", "grad_norm", "skipped", *TIMING_KEYS}
    assert records[0]["lr"] == pytest.approx(1e-3 * 24 / 32)
    assert records[-1]["lr"] == 1e-3
    assert 0.5 < records[0]["loss"] < 1.5  # eps prediction starts near E noise^2 = 1
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["finished"] is True
    assert (
        summary["loss"] == result.loss == pytest.approx((3 * records[-2]["loss"] + records[-1]["loss"]) / 4, rel=1e-6)
    )
    assert summary["images_per_second"] == pytest.approx(12 * 8 / summary["seconds"], rel=0.05)
    assert TrainConfig.load(folder / "config.toml") == make_config(images=100)
    assert not [path for path in folder.rglob("*") if "tmp" in path.name]
    assert "104 images" in str(result)


def test_it_learns(make_config):
    """One image: what is predicted is the noise, and it can be computed from x_t."""
    image = np.full((1, 8, 8, 3), 200, np.uint8)
    config = make_config(images=800, flip=False, lr=5e-3, status_every_images=80, dropout=0.0)
    train(config, from_arrays(image))
    losses = [line["loss"] for line in lines_of(Path(config.out))]
    assert losses[-1] < 0.35 * losses[0]


@pytest.mark.parametrize("conditional", [True, False])
def test_bits_after_interruptions(conditional, make_config, monkeypatch, tmp_path, make_data):
    """Failures at every kind of place: before the first checkpoint, at one, between two, between two metrics lines."""
    data = make_data(classes=3 if conditional else None)
    options = {"images": 160, "checkpoint_every_images": 32, "weighting": "min_snr"}
    straight = make_config(**options, out=str(tmp_path / "straight"))
    train(straight, data)
    stopped = make_config(**options, out=str(tmp_path / "stopped"))
    for number in (1, 3, 9, 8, 5, 2):
        with monkeypatch.context() as patch:
            fail_before_step(patch, number)
            with pytest.raises(Injected):
                train(stopped, data)
    train(stopped, data)
    assert_same_run(straight.out, stopped.out)
    assert len(lines_of(Path(straight.out))) == 7  # 24, 48, ... 144, 160


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_bits_after_a_request_to_stop(precision, data, make_config, monkeypatch, tmp_path):
    """With a coreset, class weights and dropout; the checkpoints fall in the middle of a metrics interval."""
    coreset = Coreset.from_indices(data, np.arange(0, 40, 2), np.linspace(0.5, 1.5, 20))
    options = {"images": 120, "class_weights": (0.2, 0.3, 0.5), "process": "flow", "precision": precision}
    straight = make_config(**options, out=str(tmp_path / "straight"))
    train(straight, data, coreset)

    stopped = make_config(**options, out=str(tmp_path / "stopped"))
    original, calls = loop_module._Run._one_step, [0]

    def one_step(self, batch):
        original(self, batch)
        calls[0] += 1
        if calls[0] in (2, 7):
            os.kill(os.getpid(), signal.SIGTERM if calls[0] == 2 else signal.SIGINT)

    monkeypatch.setattr(loop_module._Run, "_one_step", one_step)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    for name, images in (("SIGTERM", 16), ("SIGINT", 56)):
        with pytest.raises(TrainingStopped, match=f"{name}: stopped after {images} images.*the same command goes on"):
            train(stopped, data, coreset)
        assert find_checkpoint(stopped.out)[1]["images"] == images
        assert json.loads((Path(stopped.out) / "train" / "summary.json").read_text())["finished"] is False
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert train(stopped, data, coreset).images == 120
    assert_same_run(straight.out, stopped.out)


def test_a_request_in_the_last_step_is_not_forgotten(data, make_config, monkeypatch):
    original = loop_module._Run._finish

    def finish(self):
        os.kill(os.getpid(), signal.SIGINT)
        original(self)

    monkeypatch.setattr(loop_module._Run, "_finish", finish)
    with pytest.raises(TrainingStopped, match="SIGINT: stopped after 96 images"):
        train(make_config(), data)
    assert train(make_config(), data).repeated


def test_bits_after_an_extension(data, make_config, tmp_path):
    """100 images end in the middle of a metrics interval; the line written there gives way to the whole interval's."""
    straight = make_config(images=200, out=str(tmp_path / "straight"))
    train(straight, data)
    extended = make_config(images=100, out=str(tmp_path / "extended"))
    train(extended, data)
    assert lines_of(Path(extended.out))[-1]["images"] == 104
    assert train(extended.replace(images=200), data).repeated is False
    assert_same_run(straight.out, extended.out)


def test_the_global_generators_are_left_alone(data, make_config):
    torch.manual_seed(11)
    np.random.seed(11)  # noqa: NPY002  the global generator is what is tested
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    train(make_config(), data)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002


def test_the_global_generators_do_not_matter(data, make_config, tmp_path):
    for name in ("a", "b"):
        torch.manual_seed(ord(name))
        train(make_config(out=str(tmp_path / name)), data)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    train(make_config(out=str(tmp_path / "c"), seed=1), data)
    assert lines_of(tmp_path / "c") != lines_of(tmp_path / "a")


def test_a_finished_run_is_not_touched(data, make_config, tmp_path):
    config = make_config()
    train(config, data)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.name != ".lock"}
    result = train(config, data)
    assert result.repeated
    assert "already trained" in str(result)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert train(config.replace(images=8), data).repeated  # fewer than there are: nothing to do either


@pytest.mark.parametrize("place", ["_write_line", "_write_summary"])
def test_killed_between_the_last_checkpoint_and_the_summary(place, data, make_config, monkeypatch, tmp_path):
    straight = make_config(images=100, out=str(tmp_path / "straight"))
    train(straight, data)
    config = make_config(images=100)
    original = getattr(loop_module._Run, place)

    def fail(self, *arguments, **options):
        if self.images >= 100 and options.get("finished", True):
            raise Injected
        return original(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop_module._Run, place, fail)
        with pytest.raises(Injected):
            train(config, data)
    result = train(config, data)
    assert not result.repeated
    assert_same_run(straight.out, config.out)
    assert train(config, data).repeated


def test_a_damaged_checkpoint_costs_its_images_only(data, make_config, tmp_path):
    straight = make_config(images=160, checkpoint_every_images=48, out=str(tmp_path / "straight"))
    train(straight, data)
    config = straight.replace(out=str(tmp_path / "damaged"), images=144)
    train(config, data)
    newest, before = list_checkpoints(tmp_path / "damaged" / "train")
    assert read_state(before)["images"] == 96
    content = bytearray((newest / "optimizer.safetensors").read_bytes())
    content[-5] ^= 1
    (newest / "optimizer.safetensors").write_bytes(content)
    with pytest.warns(UserWarning, match=r"checkpoint-000000144.*the checkpoint before it is used"):
        result = train(config.replace(images=160), data)
    assert result.images == 160
    assert_same_run(straight.out, config.out)


def test_all_checkpoints_damaged(data, make_config, tmp_path):
    config = make_config()
    train(config, data)
    for path in list_checkpoints(tmp_path / "run" / "train"):
        (path / "state.json").write_text("{}")
    with pytest.warns(UserWarning, match="is damaged"), pytest.raises(InputError, match="delete the folder"):
        train(config, data)


def test_another_recipe_is_refused(data, make_config, make_data):
    config = make_config(max_seconds=1e6)
    train(config, data)
    with pytest.raises(InputError) as raised:
        train(config.replace(batch_size=4, lr=5e-4, model_options={**config.model_options, "width": 16}), data)
    for part in ("batch_size (8, now 4)", "lr (0.001, now 0.0005)", "model_options", "choose another out"):
        assert part in str(raised.value)
    with pytest.raises(InputError, match=r"other options: data \("):
        train(config, make_data(seed=1))
    with pytest.raises(InputError, match=r"other options: coreset \("):
        train(config, data, Coreset.from_indices(data, np.arange(5)))
    with pytest.raises(InputError, match=r"num_classes \(3, now null\)"):
        train(config.replace(class_conditional=False), data)
    with pytest.raises(InputError, match="precision"):
        train(config.replace(precision="bf16"), data)
    # how it is computed and where it is written is not what is computed
    other = config.replace(
        keep_checkpoints=5, checkpoint_every_seconds=9.0, threads=1, placement="disk", precision="auto"
    )
    assert train(other, data).repeated


def test_auto_precision_stays_what_it_was(data, make_config, monkeypatch, tmp_path):
    config = make_config(precision="auto", images=16)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    train(config, data)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(step_module, "CPU_BF16_PARAMETERS", 0)
    train(config.replace(images=32, out=str(tmp_path / "new")), data)
    assert find_checkpoint(tmp_path / "new")[1]["recipe"]["precision"] == "bf16"
    train(config.replace(images=32), data)
    assert find_checkpoint(config.out)[1]["recipe"]["precision"] == "fp32"


def test_a_time_limit(data, make_config, monkeypatch):
    """A clock that only steps move, a second each: the first step of a process is not timed, checkpoints are not."""
    clock = [0.0]
    original, original_save = loop_module._Run._one_step, loop_module.write_checkpoint

    def one_step(self, batch):
        original(self, batch)
        clock[0] += 1.0

    def save(*arguments):
        clock[0] += 1_000.0
        original_save(*arguments)

    monkeypatch.setattr(loop_module._Run, "_one_step", one_step)
    monkeypatch.setattr(loop_module, "write_checkpoint", save)
    monkeypatch.setattr(loop_module.time, "perf_counter", lambda: clock[0])
    config = make_config(images=None, max_seconds=10.0, checkpoint_every_images=24)
    result = train(config, data)
    assert (result.steps, result.images, result.seconds) == (11, 88, 10.0)
    assert result.images_per_second == pytest.approx(8.0)
    assert train(config, data).repeated
    result = train(config.replace(max_seconds=15.0), data)
    assert (result.steps, result.seconds) == (11 + 6, 15.0)
    result = train(config.replace(max_seconds=1e9, images=152), data)  # whichever comes first
    assert result.images == 152


def test_steps_that_are_not_finite_are_skipped_and_counted(data, make_config, monkeypatch):
    config = make_config(images=96, grad_clip=0.0)
    original = TrainingStep.__call__

    def spoilt(self, batch, *rest, **options):
        loss = original(self, batch, *rest, **options)
        return loss * (torch.nan if batch.position[0] in (24, 40) else 1.0)

    monkeypatch.setattr(TrainingStep, "__call__", spoilt)
    train(config, data)
    lines = lines_of(Path(config.out))
    assert [line["skipped"] for line in lines] == [0, 2, 0, 0]
    assert all(np.isfinite(line["loss"]) and np.isfinite(line["grad_norm"]) for line in lines)
    for tensors in tensors_of(Path(config.out)).values():
        assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    steps = {
        float(t) for name, t in tensors_of(Path(config.out))["optimizer.safetensors"].items() if name.endswith(".step")
    }
    assert steps == {10.0}


def test_training_that_diverges_stops(data, make_config, monkeypatch):
    config = make_config(images=400, max_bad_steps=4, checkpoint_every_images=16)
    original = TrainingStep.__call__

    def spoilt(self, batch, *rest, **options):
        return original(self, batch, *rest, **options) * (torch.inf if batch.position[0] >= 80 else 1)

    monkeypatch.setattr(TrainingStep, "__call__", spoilt)
    with pytest.raises(InputError, match=r"diverged: 4 steps in a row .*before image 112; try a lower lr"):
        train(config, data)
    state = find_checkpoint(config.out)[1]
    assert state["images"] < 112
    for tensors in tensors_of(Path(config.out)).values():
        assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    # seen again when the run is continued, and not before its time
    with pytest.raises(InputError, match="before image 112"):
        train(config, data)


def test_a_full_disk(data, make_config, monkeypatch, tmp_path):
    config = make_config(checkpoint_every_images=32)
    original, calls = checkpoints.save_file, [0]

    def save_file(*arguments):
        calls[0] += 1
        if calls[0] > 4:
            raise OSError(28, "No space left on device")
        original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", save_file)
        with pytest.raises(MachineError, match="no space left"):
            train(config, data)
    assert find_checkpoint(config.out)[1]["images"] == 32
    assert not list((tmp_path / "run" / "train").glob(".prunefast-tmp*"))
    assert train(config, data).images == 96


def test_checkpoints_by_time_and_number(data, make_config, monkeypatch, tmp_path):
    saved = []
    original = loop_module.write_checkpoint

    def save(path, images, *rest):
        saved.append(images)
        original(path, images, *rest)

    monkeypatch.setattr(loop_module, "write_checkpoint", save)
    train(make_config(checkpoint_every_images=40, keep_checkpoints=2), data)
    assert saved == [40, 80, 96]
    assert [path.name[-2:] for path in list_checkpoints(tmp_path / "run" / "train")] == ["96", "80"]
    saved.clear()
    train(make_config(checkpoint_every_seconds=1e-9, out=str(tmp_path / "often")), data)
    assert saved == list(range(8, 97, 8))


def test_conditional_or_not(make_config, tmp_path, make_data):
    def classes(data, **values):
        config = make_config(images=8, out=str(tmp_path / str(len(list(tmp_path.iterdir())))), **values)
        train(config, data)
        return find_checkpoint(config.out)[1]["model"]["num_classes"]

    labelled, plain = make_data(classes=3), make_data(classes=None)
    assert classes(labelled) == 3
    assert classes(labelled, class_conditional=True) == 3
    assert classes(labelled, class_conditional=False) is None
    assert classes(plain) is None
    with pytest.raises(InputError, match="class_conditional: the data has no classes"):
        classes(plain, class_conditional=True)
    with pytest.raises(InputError, match="class_weights: the data has no classes"):
        classes(plain, class_weights=(1.0,))
    # class weights need labels, not a conditional network
    assert classes(labelled, class_conditional=False, class_weights=(0.2, 0.2, 0.6)) is None


def test_weights_change_the_training(data, make_config, tmp_path):
    lines = {}
    arms = {
        "plain": ({}, None),
        "balanced": ({"class_weights": (14 / 40, 13 / 40, 13 / 40)}, None),  # the frequencies: factors of 1
        "classes": ({"class_weights": (0.8, 0.1, 0.1)}, None),
        "images": ({}, Coreset.from_indices(data, np.arange(40), np.linspace(0.1, 1.9, 40))),
        "double": ({}, Coreset.from_indices(data, np.arange(40), np.full(40, 2.0))),
    }
    for name, (options, coreset) in arms.items():
        train(make_config(**options, images=24, out=str(tmp_path / name)), data, coreset)
        lines[name] = lines_of(tmp_path / name)[0]["loss"]
    assert lines["balanced"] == pytest.approx(lines["plain"], rel=1e-5)
    assert lines["classes"] != pytest.approx(lines["plain"], rel=1e-3)
    assert lines["images"] != pytest.approx(lines["plain"], rel=1e-3)
    assert lines["double"] > 1.5 * lines["plain"]


def test_the_first_weights_are_those_of_the_seed(data, make_config, tmp_path):
    """Model, EMA and optimizer after one step with lr 0: the initial weights, whatever ran before in the process."""
    initial = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.rand(3)
        train(make_config(images=8, lr=0.0, seed=seed, out=str(tmp_path / name)), data)
        tensors = tensors_of(tmp_path / name)
        initial.append(tensors["model.safetensors"]["head.weight"])
        assert torch.equal(tensors["ema.safetensors"]["head.weight"], initial[-1])
    assert torch.equal(initial[0], initial[1])
    assert not torch.equal(initial[0], initial[2])


def test_configurations_that_open_everything_themselves(tmp_path, make_config):
    generator = np.random.Generator(np.random.Philox(key=1))
    np.savez(
        tmp_path / "images.npz",
        images=generator.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8),
        labels=np.arange(20) % 2,
    )
    data = open_dataset(tmp_path / "images.npz")
    Coreset.from_indices(data, np.arange(0, 20, 3)).save(tmp_path / "coreset.parquet")
    config = make_config(data=str(tmp_path / "images.npz"), coreset=str(tmp_path / "coreset.parquet"), images=32)
    assert train(config).images == 32
    state = find_checkpoint(config.out)[1]
    assert state["recipe"]["data"] == data.fingerprint
    assert state["model"]["num_classes"] == 2
    smaller = train(config.replace(image_size=4, out=str(tmp_path / "small"), images=8))
    assert find_checkpoint(smaller.folder)[1]["model"]["image_size"] == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": None}, "data: name the images"),
        ({"data": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"coreset": "/nowhere/coreset.parquet"}, "/nowhere/coreset.parquet"),
        ({"model": "resnet"}, "model 'resnet'"),
        ({"model_options": {"size": 3}}, "no argument 'size'"),
        ({"model_options": {"image_size": 16}}, "model_options.image_size: follows from the data"),
        ({"model_options": {"num_classes": 7}}, "model_options.num_classes: follows from the data"),
        ({"process": "brownian"}, "process 'brownian'"),
        ({"prediction": "flow"}, "prediction 'flow' does not go with process 'ddpm-linear'"),
        ({"weighting": "heavy"}, "weighting 'heavy'"),
        ({"class_weights": (0.5, 0.5)}, "class_weights: has 2 weights, the data has 3 classes"),
        ({"device": "cuda:7"}, "device 'cuda:7'"),
        ({"patch_levels": 2}, "patch_levels: means nothing without patch_p"),
        ({"mask_reconstruction": 0.1}, "mask_reconstruction: means nothing without mask_ratio"),
        ({"dynamic_prune_until": 8}, "dynamic_prune_until: means nothing without dynamic_prune"),
        ({"class_weights_in": "sampler"}, "class_weights_in: means nothing without class_weights"),
        (
            {"dynamic_prune": 0.5, "class_weights": (0.2, 0.3, 0.5), "class_weights_in": "sampler"},
            "dynamic_prune: chooses the images itself",
        ),
    ],
)
def test_bad_options_leave_nothing_behind(options, message, data, make_config, tmp_path):
    config = make_config(**options)
    with pytest.raises(InputError, match=message):
        train(config, None if "data" in options else data)
    assert not (tmp_path / "run").exists()


def test_data_that_cannot_be_trained_on(data, make_config, tmp_path, make_data):
    with pytest.raises(InputError, match="coreset: it keeps no image"):
        train(make_config(), data, Coreset.from_indices(data, []))
    with pytest.raises(InputError, match="coreset: it was selected from another data set"):
        train(make_config(), data, Coreset.full(make_data(seed=3)))
    with pytest.raises(InputTypeError, match="config is a dict"):
        train({"images": 5}, data)
    assert not (tmp_path / "run").exists()


def test_an_out_that_is_a_file(data, make_config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        train(make_config(out=str(tmp_path / "file")), data)


def test_leftovers_of_a_killed_process_are_removed(data, make_config, tmp_path):
    folder = tmp_path / "run" / "train"
    (folder / ".prunefast-tmp-dead").mkdir(parents=True)
    (folder / ".prunefast-tmp-dead" / "model.safetensors").write_bytes(b"half")
    train(make_config(), data)
    assert not list(folder.glob(".prunefast-tmp*"))


def test_two_trainings_in_one_folder(data, make_config, tmp_path):
    folder = tmp_path / "run" / "train"
    folder.mkdir(parents=True)
    with lock_folder(folder, "training"), pytest.raises(InputError, match="another process is training"):
        train(make_config(), data)


def test_the_result_is_a_value(data, make_config):
    result = train(make_config(images=8), data)
    assert result.images_per_second is None  # one step, and the first is not timed
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.images = 0


def test_a_compiled_network_is_the_same_run(data, make_config, monkeypatch, tmp_path):
    """The wrapper of torch.compile changes no name and stops no average. (Traced, but run by torch's own operators:
    building C++ for it takes minutes and tests torch.)"""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    for name, options in (("eager", {}), ("compiled", {"compile": True})):
        train(make_config(**options, images=32, out=str(tmp_path / name), dropout=0.0), data)
    eager, compiled = tensors_of(tmp_path / "eager"), tensors_of(tmp_path / "compiled")
    for name in ("model.safetensors", "ema.safetensors"):
        assert eager[name].keys() == compiled[name].keys()
        for key in eager[name]:
            torch.testing.assert_close(eager[name][key], compiled[name][key], rtol=1e-3, atol=1e-5)
    assert any(
        not torch.equal(tensor, compiled["model.safetensors"][key])
        for key, tensor in compiled["ema.safetensors"].items()
    )


def test_learned_variance(data, make_config, monkeypatch, tmp_path):
    """Trains twice the channels, stops and goes on, samples with the variance it learned."""
    options = {"images": 96, "learn_sigma": True, "process": "ddpm-cosine", "checkpoint_every_images": 32}
    straight = make_config(**options, out=str(tmp_path / "straight"))
    train(straight, data)
    stopped = make_config(**options, out=str(tmp_path / "stopped"))
    with monkeypatch.context() as patch:
        fail_before_step(patch, 6)
        with pytest.raises(Injected):
            train(stopped, data)
    train(stopped, data)
    assert_same_run(straight.out, stopped.out)
    assert tensors_of(Path(straight.out))["model.safetensors"]["tail.weight"].shape[0] == 6
    images = sample(straight.out, 2, sampler="ddpm", steps=3, out=tmp_path / "images")
    assert images.shape == (2, 8, 8, 3)
    assert json.loads((tmp_path / "images" / "samples.json").read_text())["protocol"]["variance"] == "learned"
    with pytest.raises(InputError, match="a learned variance needs a process of steps"):
        train(make_config(learn_sigma=True, process="flow", out=str(tmp_path / "flow")), data)


def test_class_weights_in_the_loss_and_in_the_sampler(make_config, tmp_path):
    """Unbalanced classes of very different loss, no step away from the first weights: the same mean loss."""
    labels = np.arange(40) % 3
    pixels = np.array([128, 160, 255], np.uint8)[labels][:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    data = from_arrays(pixels, labels, classes=["grey", "light", "white"])
    coreset = Coreset.from_indices(data, np.flatnonzero((data.labels != 2) | (np.arange(40) < 12)))
    counts = np.bincount(data.labels[coreset.indices], minlength=3)
    assert counts[2] * 3 < counts[0]
    means = {}
    for place in ("loss", "sampler", "nowhere"):
        weights = None if place == "nowhere" else (0.1, 0.2, 0.7)
        options = {"class_weights": weights, "class_weights_in": "loss" if place == "nowhere" else place}
        config = make_config(
            **options, out=str(tmp_path / place), images=2400, batch_size=100, lr=0.0, dropout=0.0, process="flow"
        )
        train(config, data, coreset)
        lines = lines_of(tmp_path / place)
        means[place] = np.mean([line["loss"] for line in lines])
    assert means["sampler"] == pytest.approx(means["loss"], rel=0.02)
    assert means["nowhere"] < 0.8 * means["loss"]
    recorded = [read_state(list_checkpoints(tmp_path / place / "train")[0])["recipe"] for place in means]
    assert [r.get("class_weights_in") for r in recorded] == [None, "sampler", None]
    moved = make_config(
        class_weights=(0.1, 0.2, 0.7), out=str(tmp_path / "sampler"), images=2400, batch_size=100, process="flow"
    )
    with pytest.raises(InputError, match=r"holds a run with other options: .*class_weights_in"):
        train(moved, data, coreset)
