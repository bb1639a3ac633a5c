import importlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

from prunefast.diffusion import make_process
from prunefast.diffusion.samplers import Denoiser, sample_images
from prunefast.errors import InputError, InputTypeError, MachineError, PrunefastError
from prunefast.files import folder_names, lock_folder
from prunefast.models import build_model
from prunefast.train import sample, train
from prunefast.train.state import find_checkpoint, list_checkpoints, load_weights

module = importlib.import_module("prunefast.train.sample")  # the package has a function of that name

FAST = {"steps": 3, "batch_size": 4}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A conditional and an unconditional model, 48 images old, with two checkpoints each. Read only."""
    from prunefast.data import from_arrays
    from prunefast.train import TrainConfig

    folder = tmp_path_factory.mktemp("runs")
    images = np.random.Generator(np.random.Philox(key=0)).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
    for name in ("conditional", "plain"):
        data = from_arrays(images, np.arange(24) % 3, classes=["ant", "bee", "../cat"])
        config = TrainConfig(
            out=str(folder / name),
            images=48,
            batch_size=8,
            lr=5e-3,
            warmup_images=0,
            model="unet-tiny",
            model_options={"width": 8, "channel_multipliers": [1, 2], "blocks": 1, "attention_levels": [1]},
            class_conditional=name == "conditional",
            checkpoint_every_images=24,
            device="cpu",
            precision="fp32",
        )
        train(config, data)
    return folder


def samples_without_us(run, n, labels, *, ema=True, guidance=1.0, seed=0):
    """Sampled with the parts, and quantised in NumPy."""
    path, state = find_checkpoint(run)
    model = build_model(**state["model"])
    load_weights(path, model, ema=ema)
    denoiser = Denoiser(model, make_process("ddpm-linear"), "eps", guidance)
    labels = None if labels is None else torch.as_tensor(labels)
    made = sample_images(denoiser, n, image_size=8, labels=labels, steps=3, seed=seed, batch_size=4)
    assert made.abs().max() <= 1
    return np.clip(made.numpy().astype(np.float64) * 127.5 + 128, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def assert_close(images, expected):
    """Grey levels next to a border may fall to either side: channels_last products differ in the last digit."""
    assert images.shape == expected.shape
    assert np.abs(images.astype(int) - expected.astype(int)).max() <= 1


def test_images_of_an_unconditional_model(runs):
    images = sample(runs / "plain", 6, **FAST)
    assert (images.dtype, images.shape) == (np.uint8, (6, 8, 8, 3))
    assert_close(images, samples_without_us(runs / "plain", 6, None))
    assert len({image.tobytes() for image in images}) == 6
    assert not np.array_equal(sample(runs / "plain", 6, seed=1, **FAST), images)


def test_conditional_models_are_balanced_by_default(runs):
    images = sample(runs / "conditional", 7, **FAST)
    assert_close(images, samples_without_us(runs / "conditional", 7, [0, 1, 2, 0, 1, 2, 0]))
    assert np.array_equal(sample(runs / "conditional", 7, labels=[0, 1, 2, 0, 1, "bee", "ant"], **FAST)[:5], images[:5])
    assert_close(
        sample(runs / "conditional", 4, labels="bee", **FAST), samples_without_us(runs / "conditional", 4, [1] * 4)
    )


def test_weights_and_guidance(runs):
    run = runs / "conditional"
    averaged = sample(run, 4, **FAST)
    raw = sample(run, 4, ema=False, **FAST)
    assert not np.array_equal(averaged, raw)
    assert_close(raw, samples_without_us(run, 4, [0, 1, 2, 0], ema=False))
    assert_close(sample(run, 4, guidance=3.0, **FAST), samples_without_us(run, 4, [0, 1, 2, 0], guidance=3.0))


def test_quantised_as_edm():
    values = torch.tensor([-1.0, -0.996, 0.0, 0.5, 0.9999, 1.0, 5.0, -5.0])
    images = values[:, None, None, None].expand(-1, 3, 2, 2)
    expected = [int(np.clip(v * 127.5 + 128, 0, 255)) for v in values.double().tolist()]
    assert expected[0] == 0
    assert expected[2] == 128
    assert expected[5] == 255
    assert module.quantise(images)[:, 0, 0, 0].tolist() == expected
    grey = np.arange(256, dtype=np.uint8)  # what the loss makes of a grey level comes back as that level
    back = module.quantise(torch.from_numpy(grey / 127.5 - 1)[:, None, None, None])
    assert np.array_equal(back.numpy().ravel(), grey)


def test_an_image_is_the_same_in_any_number(runs):
    few, many = sample(runs / "plain", 3, **FAST), sample(runs / "plain", 9, **FAST)
    assert_close(many[:3], few)
    assert_close(sample(runs / "plain", 9, steps=3, batch_size=9), many)


def test_folder_with_classes(runs, tmp_path):
    out = tmp_path / "samples"
    images = sample(runs / "conditional", 5, out=out, **FAST)
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*.png"))
    assert files == sorted([
        "_cat/000002.png", "ant/000000.png", "ant/000003.png", "bee/000001.png", "bee/000004.png",
    ])  # fmt: skip
    for path in out.rglob("*.png"):
        assert np.array_equal(np.asarray(Image.open(path)), images[int(path.stem)])
    record = json.loads((out / "samples.json").read_text())
    _, state = find_checkpoint(runs / "conditional")
    assert record["finished"] is True
    protocol = record["protocol"]
    expected = {
        "n": 5, "sampler": "ddim", "steps": 3, "guidance": 1.0, "seed": 0, "labels": "balanced", "ema": True,
        "checkpoint": state["digest"], "images_trained": 48, "prediction": "eps", "process": "ddpm-linear",
    }  # fmt: skip
    assert {key: protocol[key] for key in expected} == expected


def test_a_second_call_makes_what_is_missing(runs, tmp_path, monkeypatch):
    out = tmp_path / "samples"
    images = sample(runs / "plain", 10, out=out, **FAST)
    assert sorted(path.name for path in out.glob("*.png")) == [f"{k:06d}.png" for k in range(10)]
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
    (out / "000005.png").unlink()
    (out / "000006.png").write_bytes((out / "000006.png").read_bytes()[:60])  # torn
    (out / "000009.png").write_bytes(b"")
    made = []
    original = module.sample_images
    monkeypatch.setattr(module, "sample_images", lambda d, p, **o: made.extend(p.tolist()) or original(d, p, **o))
    again = sample(runs / "plain", 10, out=out, **FAST)
    assert made == [4, 5, 6, 7, 8, 9]  # whole batches, so that the bits are those of the first call
    assert np.array_equal(again, images)
    for path, stamp in kept.items():
        assert (path.stat().st_mtime_ns == stamp) == (path.stem not in ("000005", "000006", "000009"))
        assert np.array_equal(np.asarray(Image.open(path)), images[int(path.stem)])
    monkeypatch.setattr(module, "build_model", lambda **options: pytest.fail("nothing is missing"))
    assert np.array_equal(sample(runs / "plain", 10, out=out, **FAST), images)


def test_a_folder_may_grow(runs, tmp_path):
    first = sample(runs / "conditional", 5, out=tmp_path / "s", **FAST)
    more = sample(runs / "conditional", 9, out=tmp_path / "s", **FAST)
    assert np.array_equal(more[:5], first)
    assert len(list((tmp_path / "s").rglob("*.png"))) == 9
    sample(runs / "conditional", 2, out=tmp_path / "l", labels=[1, 1], **FAST)
    sample(runs / "conditional", 4, out=tmp_path / "l", labels=[1, 1, 1, 2], **FAST)
    with pytest.raises(InputError, match="labels"):
        sample(runs / "conditional", 4, out=tmp_path / "l", labels=[1, 2, 1, 2], **FAST)


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"steps": 4}, {"sampler": "ddpm"}, {"guidance": 2.0}, {"ema": False}, {"labels": 1}, {"n": 2}],
)
def test_another_protocol_is_refused(runs, tmp_path, other):
    arguments = {"n": 3, "out": tmp_path / "s", **FAST}
    sample(runs / "conditional", **arguments)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    with pytest.raises(InputError, match=rf"another protocol \({next(iter(other))} "):
        sample(runs / "conditional", **{**arguments, **other})
    assert {path: path.read_bytes() for path in before} == before


def test_another_checkpoint_is_another_protocol(runs, tmp_path):
    newest, older = list_checkpoints(runs / "plain" / "train")
    sample(newest, 2, out=tmp_path / "s", **FAST)
    sample(runs / "plain", 2, out=tmp_path / "s", **FAST)  # the same one
    with pytest.raises(InputError, match="images_trained 48, now 24"):
        sample(older, 2, out=tmp_path / "s", **FAST)


def test_a_folder_of_other_things(runs, tmp_path):
    (tmp_path / "photo.png").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"no samples\.json"):
        sample(runs / "plain", 2, out=tmp_path, **FAST)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]
    (tmp_path / "samples.json").write_text("[]")
    with pytest.raises(InputError, match=r"samples\.json: is no record of samples"):
        sample(runs / "plain", 2, out=tmp_path, **FAST)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        sample(runs / "plain", 2, out=tmp_path / "file", **FAST)


def test_interrupted_and_full_disk(runs, tmp_path, monkeypatch):
    expected = sample(runs / "plain", 8, **FAST)
    original, calls = module.os.replace, [0]

    def replace(source, target):
        if str(target).endswith(".png"):
            calls[0] += 1
            if calls[0] == 6:
                raise OSError(28, "No space left on device")
        original(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "replace", replace)
        with pytest.raises(MachineError, match=r"000005\.png.*no space left"):
            sample(runs / "plain", 8, out=tmp_path / "s", **FAST)
    assert not [path for path in (tmp_path / "s").iterdir() if "tmp" in path.name]
    assert json.loads((tmp_path / "s" / "samples.json").read_text())["finished"] is False
    assert np.array_equal(sample(runs / "plain", 8, out=tmp_path / "s", **FAST), expected)
    assert json.loads((tmp_path / "s" / "samples.json").read_text())["finished"] is True


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"n": 0}, InputError, "n is 0"),
        ({"n": 2.5}, InputTypeError, "n is 2.5"),
        ({"steps": 0}, InputError, "steps is 0"),
        ({"batch_size": 0}, InputError, "batch_size is 0"),
        ({"sampler": "magic"}, InputError, "sampler is 'magic'"),
        ({"labels": "dog"}, InputError, "no class 'dog'; there are: ant, bee"),
        ({"labels": 3}, InputError, r"labels: 3 is not in 0 \.\. 2"),
        ({"labels": [0, 1]}, InputError, "labels: 2 for 3 images"),
        ({"labels": [0, 1, 0.5]}, InputTypeError, "labels: 0.5"),
        ({"device": "cuda:9"}, InputError, "cuda:9"),
    ],
)
def test_bad_arguments(runs, options, kind, message):
    with pytest.raises(kind, match=message):
        sample(runs / "conditional", **{"n": 3, **FAST, **options})


def test_an_unconditional_model_takes_no_classes(runs, tmp_path):
    with pytest.raises(InputError, match="labels: the model has no classes"):
        sample(runs / "plain", 2, labels=0, **FAST)
    with pytest.raises(InputError, match="guidance is 2"):
        sample(runs / "plain", 2, guidance=2.0, out=tmp_path / "s", **FAST)
    assert not (tmp_path / "s").exists()
    with pytest.raises(InputError, match="there is no checkpoint"):
        sample(tmp_path, 2)


def test_generators_and_threads_of_the_caller_are_left_alone(runs):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    sample(runs / "plain", 2, **FAST)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        (["cat", "dog"], ["cat", "dog"]),
        (["a/b", "a\\b", ".."], ["a_b", "a_b-1", "class-2"]),
        (["", "  ", "x\n"], ["class-0", "class-1", "x_"]),
        (["n/../../x", "/etc", "com:1"], ["n_.._.._x", "_etc", "com_1"]),
    ],
)
def test_folder_names_stay_inside(classes, names):
    assert folder_names(classes) == names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed is"),
        ({"steps": 1001}, "steps must be from 1 to 1000"),
        ({"n": 10**15}, "n is 1000000000000000"),
    ],
)
def test_a_failed_first_try_does_not_bind_the_second(runs, tmp_path, options, message):
    with pytest.raises(PrunefastError, match=message):
        sample(runs / "conditional", **{"n": 3, "out": tmp_path / "s", **FAST, **options})
    assert not list(tmp_path.rglob("*.*"))
    sample(runs / "conditional", 3, out=tmp_path / "s", **FAST)


def test_a_try_that_made_no_image_leaves_no_record(runs, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "sample_images", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sample(runs / "conditional", 3, out=tmp_path / "s", **FAST)
    assert not list((tmp_path / "s").iterdir())
    sample(runs / "conditional", 3, out=tmp_path / "s", **{**FAST, "seed": 3})


def test_two_processes_do_not_sample_into_one_folder(runs, tmp_path):
    (tmp_path / "s").mkdir()
    with lock_folder(tmp_path / "s", "sampling"), pytest.raises(InputError, match="another process is sampling"):
        sample(runs / "plain", 2, out=tmp_path / "s", **FAST)
    assert not list((tmp_path / "s").iterdir())


def test_no_class_takes_the_place_of_the_record():
    names = folder_names(["samples.json", "a"], taken=["samples.json"])
    assert names == ["samples.json-0", "a"]
