"""Dynamic pruning in the training loop: exact resume, fewer images an epoch, and its options."""

import json

import pytest
import torch
from safetensors.torch import load_file

from prunefast.errors import InputError
from prunefast.train import TrainConfig, find_checkpoint, train
from prunefast.train.state import BrokenCheckpoint, read_state


def files(folder) -> dict[str, dict[str, torch.Tensor]]:
    path = find_checkpoint(folder)[0]
    return {file.name: load_file(file) for file in sorted(path.glob("*.safetensors"))}


@pytest.mark.parametrize("placement", ["memory", "disk"])
def test_a_stopped_run_ends_with_the_same_bits(make_config, data, tmp_path, placement) -> None:
    options = {"dynamic_prune": 0.6, "dynamic_prune_until": 200, "images": 240, "placement": placement, "threads": 1}
    straight = make_config(out=str(tmp_path / "a"), **options)
    train(straight, data)
    for images in (56, 104, 240):  # 40 images an epoch: stops in the middle of pruned ones
        train(make_config(out=str(tmp_path / "b"), **{**options, "images": images}), data)
    ours, other = files(tmp_path / "a"), files(tmp_path / "b")
    assert "pruning.safetensors" in ours
    for name, tensors in ours.items():
        assert all(torch.equal(tensors[key], other[name][key]) for key in tensors), name
    summary = json.loads((tmp_path / "a" / "train" / "summary.json").read_text())
    assert 0 < summary["left_out"] < 240


def test_it_is_part_of_the_recipe(make_config, data, tmp_path) -> None:
    config = make_config(dynamic_prune=0.5, images=96)
    train(config, data)
    assert find_checkpoint(config.out)[1]["recipe"]["dynamic_prune_until"] == 84
    with pytest.raises(InputError, match="dynamic_prune_until"):
        train(config.replace(images=192), data)  # the last epochs would have been others
    with pytest.raises(InputError, match="dynamic_prune"):
        train(config.replace(dynamic_prune=None), data)
    plain = make_config(out=str(tmp_path / "plain"))
    train(plain, data)
    assert "pruning.safetensors" not in files(plain.out)


def test_its_state_is_under_a_digest(make_config, data) -> None:
    config = make_config(dynamic_prune=0.5)
    path = train(config, data).checkpoint
    file = path / "pruning.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(BrokenCheckpoint, match="pruning"):
        read_state(path)
    file.unlink()
    with pytest.raises(BrokenCheckpoint, match="pruning"):
        read_state(path)


def test_options(make_config) -> None:
    for wrong in (0.0, 1.0, -0.5, float("nan"), "half", True):
        with pytest.raises((InputError, TypeError), match="dynamic_prune"):
            make_config(dynamic_prune=wrong)
    with pytest.raises(InputError, match="dynamic_prune_until"):
        make_config(dynamic_prune=0.5, images=None, max_seconds=1.0)
    config = make_config(dynamic_prune=0.5, dynamic_prune_until=7)
    assert TrainConfig.from_dict(config.to_dict()) == config
