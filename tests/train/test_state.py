import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from torch import nn

from prunefast.errors import InputError, MachineError
from prunefast.train import TrainConfig
from prunefast.train import state as checkpoints
from prunefast.train.ema import Ema
from prunefast.train.optim import Updater
from prunefast.train.state import BrokenCheckpoint

STATE = {"steps": 7, "seconds": 0.1 + 0.2, "recipe": {"lr": 1e-4}, "classes": ["café", "dog"]}


def make_parts(seed: int = 0, steps: int = 2):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    ema = Ema(model, 10.0)
    updater = Updater(model, TrainConfig(out="run", images=1, batch_size=4))
    for step in range(steps):
        loss = model(torch.randn(4, 3, 5, 5, generator=generator)).square().mean()
        loss.backward()
        updater.step(loss, 4 * step)
        ema.update(4 * step, 4)
    return model, ema, updater


def write(folder: Path, images: int, keep: int = 9, seed: int = 0) -> Path:
    return checkpoints.save_checkpoint(folder, images, STATE, *make_parts(seed), keep)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("whole"), 12_800)


def test_what_is_written_is_read(whole):
    assert whole.name == "checkpoint-000012800"
    assert sorted(path.name for path in whole.iterdir()) == sorted([*checkpoints.WEIGHT_FILES, "state.json"])
    state = checkpoints.read_state(whole)
    assert {key: state[key] for key in STATE} == STATE
    assert state["images"] == 12_800
    assert len(state["digest"]) == 64
    model, ema, updater = make_parts()
    other_model, other_ema, other_updater = make_parts(seed=1, steps=1)
    checkpoints.load_checkpoint(whole, other_model, other_ema, other_updater, state)
    for part, other in ((ema.tensors(), other_ema.tensors()), (updater.tensors(), other_updater.tensors())):
        assert part.keys() == other.keys()
        for name in part:
            assert torch.equal(part[name], other[name]), name
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other_model.state_dict()[name]), name
    assert other_model[0].weight.is_contiguous(memory_format=torch.channels_last)
    checkpoints.load_weights(whole, other_model, ema=True)
    assert torch.equal(other_model[0].weight, ema.tensors()["0.weight"])


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=st.sampled_from([*checkpoints.WEIGHT_FILES, "state.json"]))
def test_any_changed_byte_is_seen(whole, tmp_path_factory, data, name):
    folder = tmp_path_factory.mktemp("changed") / whole.name
    shutil.copytree(whole, folder)
    content = bytearray((folder / name).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "insert"]))
    if kind == "flip":
        content[place] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del content[place:]
    else:
        content.insert(place, data.draw(st.integers(0, 255)))
    (folder / name).write_bytes(content)
    with pytest.raises(BrokenCheckpoint, match=re.escape(name)):
        checkpoints.read_state(folder)
    shutil.rmtree(folder.parent)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary()
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["digest", "format", "files", "images", "x"]), inner, max_size=5)
        ),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode())
)
def test_arbitrary_state_files_are_refused(whole, tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("arbitrary") / whole.name
    shutil.copytree(whole, folder)
    (folder / "state.json").write_bytes(content)
    with pytest.raises(BrokenCheckpoint):
        checkpoints.read_state(folder)
    shutil.rmtree(folder.parent)


@pytest.mark.parametrize("name", [*checkpoints.WEIGHT_FILES, "state.json"])
def test_a_missing_file_is_seen(tmp_path, name):
    path = write(tmp_path, 8)
    (path / name).unlink()
    with pytest.raises(BrokenCheckpoint, match=re.escape(name)):
        checkpoints.read_state(path)


def test_the_one_before_a_broken_one_is_used(tmp_path):
    write(tmp_path, 8)
    newest = write(tmp_path, 16, seed=1)
    assert checkpoints.latest_checkpoint(tmp_path)[1]["images"] == 16
    (newest / "ema.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"checkpoint-000000016.*the checkpoint before it is used"):
        path, state = checkpoints.latest_checkpoint(tmp_path)
    assert (path.name, state["images"]) == ("checkpoint-000000008", 8)


def test_all_broken(tmp_path):
    for images in (8, 16):
        (write(tmp_path, images) / "state.json").write_bytes(b"{}")
    with (
        pytest.warns(UserWarning, match="the checkpoint before"),
        pytest.raises(InputError, match="all checkpoints are damaged"),
    ):
        checkpoints.latest_checkpoint(tmp_path)


def test_none_at_all(tmp_path):
    assert checkpoints.latest_checkpoint(tmp_path) is None
    assert checkpoints.latest_checkpoint(tmp_path / "nowhere") is None
    (tmp_path / "checkpoint-final").mkdir()
    (tmp_path / ".prunefast-tmp-abc").mkdir()
    assert checkpoints.latest_checkpoint(tmp_path) is None
    with pytest.raises(InputError, match="there is no checkpoint"):
        checkpoints.find_checkpoint(tmp_path)


def test_order_is_by_number(tmp_path):
    for images in (999_999_999, 1_000_000_000):
        path = write(tmp_path, images)
    assert checkpoints.latest_checkpoint(tmp_path)[0] == path


def test_a_newer_format_is_said_to_be_one(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "FORMAT_VERSION", 2)
    write(tmp_path, 8)
    monkeypatch.undo()
    with pytest.raises(InputError, match="format 2; update prunefast"):
        checkpoints.latest_checkpoint(tmp_path)


def test_pruning(tmp_path):
    for images in (8, 16, 24):
        write(tmp_path, images, keep=2)
    assert [path.name[-2:] for path in checkpoints.list_checkpoints(tmp_path)] == ["24", "16"]
    # a run that went back to 16 because 24 was broken must not keep 24 in the place of what it writes now
    (tmp_path / "checkpoint-000000024" / "state.json").write_bytes(b"broken")
    write(tmp_path, 20, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000000020"]


def test_written_again_in_its_own_place(tmp_path):
    write(tmp_path, 8, seed=0)
    path = write(tmp_path, 8, seed=1)
    model, _, _ = make_parts(seed=1)
    loaded, _, _ = make_parts(seed=2)
    checkpoints.load_weights(path, loaded, ema=False)
    assert torch.equal(loaded[0].weight, model[0].weight)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "no space left"),
        (SafetensorError("something odd"), "something odd"),
        (OSError(28, "No space left on device"), "no space left"),
    ],
)
def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch, error, text):
    write(tmp_path, 8)

    def fail(tensors, path):
        Path(path).write_bytes(b"half")
        raise error

    monkeypatch.setattr(checkpoints, "save_file", fail)
    with pytest.raises(MachineError, match=f"checkpoint-000000016.*{text}"):
        write(tmp_path, 16)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000000008"]
    assert checkpoints.latest_checkpoint(tmp_path)[1]["images"] == 8


def test_find_checkpoint(tmp_path):
    write(tmp_path / "train", 8)
    newest = write(tmp_path / "train", 16)
    older = tmp_path / "train" / "checkpoint-000000008"
    for path, expected in ((tmp_path, newest), (tmp_path / "train", newest), (older, older), (str(newest), newest)):
        assert checkpoints.find_checkpoint(path)[0] == expected
    moved = tmp_path / "my model"
    shutil.copytree(older, moved)
    assert checkpoints.find_checkpoint(moved)[1]["images"] == 8
    (older / "model.safetensors").write_bytes(b"x")
    with pytest.raises(BrokenCheckpoint, match=r"model\.safetensors"):  # asked for by name: nothing else will do
        checkpoints.find_checkpoint(older)
    with pytest.raises(InputError, match="cannot be read"):
        checkpoints.find_checkpoint(tmp_path / "train" / "checkpoint-000000099")


def test_the_recipe_is_compared_key_by_key(tmp_path):
    old = {"batch_size": 64, "data": "a" * 64, "lr": 1e-4, "gone": 1}
    checkpoints.check_same_recipe(old, dict(old), tmp_path)
    with pytest.raises(InputError) as raised:
        checkpoints.check_same_recipe(old, {"batch_size": 32, "data": "b" * 64, "lr": 1e-4, "new": 2}, tmp_path)
    message = str(raised.value)
    assert "batch_size (64, now 32)" in message
    assert "data (" in message
    assert "gone (1, now null)" in message
    assert "new (null, now 2)" in message
    assert "lr" not in message
    assert "another out" in message
    assert "\n" not in message
