"""Latents that something else has computed, against float64 formulas and the safetensors library."""

import contextlib
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from prunefast.data import open_dataset
from prunefast.errors import InputError
from prunefast.select import select
from prunefast.stream import CoresetLoader
from prunefast.train import TrainConfig, train

LATENTS = torch.randn(24, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 5 + 1
LABELS = torch.arange(24) % 3
SCALE = {"scaling_factor": 0.2, "shift_factor": 0.5}


def write(path, values=LATENTS, record=SCALE, **tensors):
    if path.suffix == ".npy":
        np.save(path, values.numpy())
    else:
        save_file({"latents": values.contiguous(), **tensors}, path)
    if record is not None:
        path.with_suffix(".json").write_text(json.dumps(record))
    return path


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("x.npy", torch.float32),
        ("x.npy", torch.float16),
        ("x.safetensors", torch.float32),
        ("x.safetensors", torch.float16),
        ("x.safetensors", torch.bfloat16),
    ],
)
@pytest.mark.parametrize("placement", ["disk", "memory"])
def test_the_loader_gives_normalised_latents(tmp_path, name, kind, placement):
    values = LATENTS.to(kind)
    data = open_dataset(write(tmp_path / name, values))
    assert (len(data), data.image_size, data.latents.channels, data.latents.pixels) == (24, 8, 4, 64)
    coreset = select(data, method="random", keep=0.5)
    want = (values.double() - 0.5) * 0.2
    for batch in CoresetLoader(data, coreset, batch_size=5, epochs=1, placement=placement):
        assert batch.images.shape[1:] == (8, 8, 8)
        torch.testing.assert_close(batch.images[:, :4].double(), want[batch.index], rtol=1e-6, atol=1e-6)
        assert (batch.images[:, 4:] == 0).all()
    again = open_dataset(tmp_path / name)
    assert again.fingerprint == data.fingerprint
    write(tmp_path / name, (values.float() + 1).to(kind))
    assert open_dataset(tmp_path / name).fingerprint != data.fingerprint


@pytest.mark.parametrize("posterior", ["std", "logvar"])
def test_posteriors_and_numbers_a_channel(tmp_path, posterior):
    record = {"posterior": posterior, "latents_mean": [0.0, 1.0], "latents_std": [2.0, 4.0], "pixels": 32}
    data = open_dataset(write(tmp_path / "x.safetensors", record=record, labels=LABELS))
    assert (data.latents.channels, data.latents.pixels, data.labels.tolist()) == (2, 32, LABELS.tolist())
    got = torch.from_numpy(data.images(range(24))).double().permute(0, 3, 1, 2)
    std = torch.tensor([2.0, 4.0])[:, None, None]
    spread = LATENTS[:, 2:].double() if posterior == "std" else torch.exp(LATENTS[:, 2:].double().clamp(max=20) / 2)
    torch.testing.assert_close(got[:, :2], (LATENTS[:, :2].double() - torch.tensor([0.0, 1.0])[:, None, None]) / std)
    torch.testing.assert_close(got[:, 2:], spread / std, rtol=1e-6, atol=1e-6)


def test_the_record_may_stand_in_the_file(tmp_path):
    values = {"latents": LATENTS, "label": LABELS}
    save_file(
        values, tmp_path / "x.safetensors", {"scaling_factor": "0.2", "shift_factor": "0.5", "classes": '["a","b","c"]'}
    )
    data = open_dataset(tmp_path / "x.safetensors")
    assert data.classes == ["a", "b", "c"]
    assert data.images([0])[0, 0, 0, 0] == pytest.approx((float(LATENTS[0, 0, 0, 0]) - 0.5) * 0.2)


def test_they_train_and_go_on(tmp_path):
    np.save(tmp_path / "y.npy", LABELS.numpy())
    path = write(tmp_path / "x.npy", record={**SCALE, "labels": "y.npy"})
    network = {"width": 8, "channel_multipliers": [1, 2], "blocks": 1, "attention_levels": []}
    options = {"data": str(path), "batch_size": 8, "model": "unet-tiny", "model_options": network, "device": "cpu"}
    options |= {"precision": "fp32", "warmup_images": 8, "status_every_images": 16}
    first = train(TrainConfig(out=str(tmp_path / "run"), images=16, **options))
    assert np.isfinite(first.loss)
    assert train(TrainConfig(out=str(tmp_path / "run"), images=32, **options)).images == 32
    path.with_suffix(".json").write_text(json.dumps({"scaling_factor": 0.1, "labels": "y.npy"}))
    with pytest.raises(InputError, match="latents"):  # another scale is another recipe
        train(TrainConfig(out=str(tmp_path / "run"), images=48, **options))


BAD = {
    "no scale": ({"record": {}}, "nothing says how"),
    "zero scale": ({"record": {"scaling_factor": 0}}, "no number, not above 0"),
    "text scale": ({"record": {"scaling_factor": "big"}}, "no number"),
    "means of other channels": (
        {"record": {"latents_mean": [0, 0], "latents_std": [1, 1]}},
        "one for each of 4 channels",
    ),
    "posterior": ({"record": {**SCALE, "posterior": "variance"}}, "posterior='variance'"),
    "odd channels": ({"values": LATENTS[:, :3], "record": {**SCALE, "posterior": "std"}}, "has 3 channels"),
    "not square": ({"values": LATENTS[:, :, :4]}, r"shape \[24, 4, 4, 8\]"),
    "three dimensions": ({"values": LATENTS[0]}, "which tensor holds the latents"),
    "whole numbers": ({"values": LATENTS.int()}, "dtype int32"),
    "a NaN": ({"values": torch.where(LATENTS[7, 0, 0, 0] == LATENTS, torch.nan, LATENTS)}, "item 7 has a NaN"),
    "too few labels": ({"record": {**SCALE, "labels": [0, 1]}}, "labels: of shape"),
    "no such labels": ({"record": {**SCALE, "labels": "gone.npy"}}, "gone.npy: cannot be read"),
    "pixels": ({"record": {**SCALE, "pixels": 4}}, "pixels=4"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_meant(tmp_path, case):
    arguments, message = BAD[case]
    for name in ("x.npy", "x.safetensors"):
        with pytest.raises(InputError, match=message) as caught:
            open_dataset(write(tmp_path / name, **arguments))
        assert "\n" not in str(caught.value)


def test_broken_records_and_options(tmp_path):
    path = write(tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="has no splits"):
        open_dataset(path, split="train")
    with pytest.raises(InputError, match="holds latents of 64 pixel images"):
        open_dataset(path, image_size=17)
    with pytest.raises(InputError, match="holds latents, not images"):
        open_dataset(path).image(0)
    for text, message in (("{", "not readable JSON"), ("[]", "no record")):
        path.with_suffix(".json").write_text(text)
        with pytest.raises(InputError, match=message):
            open_dataset(path)


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_damaged_files_are_refused(data):
    folder = Path(tempfile.mkdtemp())
    try:
        path = write(folder / data.draw(st.sampled_from(["x.npy", "x.safetensors"])), LATENTS[:2])
        raw = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.one_of(st.integers(0, min(300, len(raw) - 1)), st.integers(0, len(raw) - 1)))
            raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        path.write_bytes(raw[: data.draw(st.one_of(st.just(len(raw)), st.integers(0, len(raw))))])
        with contextlib.suppress(InputError):
            opened = open_dataset(path, cache_dir=folder / "cache")
            assert np.isfinite(opened.images(range(len(opened)))).all()
    finally:
        shutil.rmtree(folder)
