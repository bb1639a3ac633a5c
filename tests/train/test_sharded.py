"""FSDP2: parts of a network on every rank train as the whole on one, and come together again in any world."""

import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from prunefast.train import find_checkpoint, sample, train
from prunefast.train.state import BrokenCheckpoint, is_sharded, list_checkpoints, read_state

HERE = Path(__file__).parent
WORK = HERE / "rank_work.py"
rank_work = SimpleNamespace(**runpy.run_path(str(WORK)))
compared = SimpleNamespace(**runpy.run_path(str(HERE / "test_ranks.py")))

SETTINGS: dict[str, Any] = {"grad_clip": 0.5, "ema_sigma_rel": (0.05, 0.1), "holdout": 0.1}

SCRIPT = """
import json, runpy, sys, os, warnings
from pathlib import Path
import torch
torch.set_num_threads(1)
from prunefast.distributed import world
from prunefast.train import loop
from prunefast.train.state import list_checkpoints
work = runpy.run_path(sys.argv[1])
folder, size = Path(sys.argv[2]), world().size
config, data, train = work["make_config"], work["build_data"](), work["train"]
fsdp = {"parallel": "fsdp", "batch_device": 3, "grad_clip": 0.5, "ema_sigma_rel": (0.05, 0.1), "holdout": 0.1}
found = {}
with work["recorded"]() as seen, warnings.catch_warnings(record=True) as noted:
    warnings.simplefilter("always")
    train(config(folder / f"whole-{size}", images=208, **fsdp), data)
found["seen"] = seen
found["notes"] = [str(note.message) for note in noted if "view" in str(note.message)]

class Stop(Exception): pass
original = loop._Run._one_step
def stop_at(images):
    def one_step(self, batch):
        if self.images >= images:
            raise Stop
        original(self, batch)
    loop._Run._one_step = one_step
def stopped(out, images, **values):
    stop_at(images)
    try:
        train(config(out, images=144, checkpoint_every_images=16, **{**fsdp, **values}), data)
    except Stop:
        pass
    loop._Run._one_step = original
if size == 2:
    stopped(folder / "stopped", 48)
else:  # from the shards of two
    stopped(folder / "stopped-4", 80)
if size == 2:
    for name, options in work["NETWORKS"].items():
        train(config(folder / name, images=32, model=name, **{**fsdp, **options, "holdout": None}), data)
found["left"] = [p.name for p in list_checkpoints(folder / ("stopped" if size == 2 else "stopped-4") / "train")]
found["error"] = work["failure"](lambda: train(config(folder / "compiled", images=32, compile=True, **fsdp), data))
step = work["TrainingStep"].__call__
def short(self, *arguments, **options):
    if world().rank == 1:
        raise torch.OutOfMemoryError("CUDA out of memory.")
    return step(self, *arguments, **options)
work["TrainingStep"].__call__ = short
found["short"] = work["failure"](lambda: train(config(folder / f"short-{size}", images=32, **fsdp), data))
print(json.dumps(found), flush=True)
os._exit(0)  # the others wait inside the network
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    for name, images in (("whole", 208), ("longer", 144)):
        train(rank_work.make_config(folder / name, images=images, **SETTINGS), rank_work.build_data())
    return folder


@pytest.fixture(scope="module")
def two(run_ranks, tmp_path_factory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("sharded")
    return folder, run_ranks(SCRIPT, 2, WORK, folder)


def finish_alone(folder: Path) -> None:
    train(rank_work.make_config(folder, images=144, **SETTINGS), rank_work.build_data())


def test_two_processes_end_with_the_files_of_one(alone, two):
    folder, found = two
    with rank_work.recorded() as seen:
        train(rank_work.make_config(folder / "again", images=208, holdout=0.1), rank_work.build_data())
    assert compared.together([rank["seen"] for rank in found]) == seen
    run = folder / "whole-2"
    compared.assert_close(alone / "whole", run, 2 * compared.WEIGHT_TOLERANCE)
    compared.assert_same_lines(alone / "whole", run)
    ours, theirs = (sorted(p.name for p in find_checkpoint(r)[0].iterdir()) for r in (run, alone / "whole"))
    assert ours == theirs
    for averages in ("averages.safetensors", *(f"averages/{p.name}" for p in (run / "train" / "averages").iterdir())):
        folders = (run / "train", alone / "whole" / "train")
        ours, theirs = (load_file((f if "/" in averages else list_checkpoints(f)[0]) / averages) for f in folders)
        assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
        for key in ours:
            if not key.endswith("query_key_value.bias"):
                torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=2 * compared.WEIGHT_TOLERANCE)
    moments = [load_file(find_checkpoint(r)[0] / "optimizer.safetensors") for r in (run, alone / "whole")]
    assert {k: v.shape for k, v in moments[0].items()} == {k: v.shape for k, v in moments[1].items()}
    assert not list((run / "train").glob(".prunefast-tmp*"))


def test_shards_are_read_by_one_process(alone, two, tmp_path):
    """A run of two that was stopped goes on in one; its weights are sampled from as they lie."""
    folder, found = two
    assert found[0]["left"] == ["checkpoint-000000048", "checkpoint-000000032"]
    newest = list_checkpoints(folder / "stopped" / "train")[0]
    assert is_sharded(newest)
    files = sorted(str(p.relative_to(newest)) for p in newest.rglob("*.safetensors"))
    assert {file.split("/")[0] for file in files} == {"model", "ema", "averages", "optimizer"}
    for name in (
        "model",
        "ema",
        "averages",
        "optimizer",
    ):
        sizes = [file.stat().st_size for file in (newest / name).iterdir()]
        assert max(sizes) < 0.6 * sum(sizes)
    shutil.copytree(folder / "stopped", tmp_path / "stopped")
    assert sample(tmp_path / "stopped", 2, steps=2, device="cpu").shape[0] == 2
    finish_alone(tmp_path / "stopped")
    compared.assert_close(alone / "longer", tmp_path / "stopped", 2 * compared.WEIGHT_TOLERANCE)
    compared.assert_same_lines(alone / "longer", tmp_path / "stopped")


@pytest.mark.slow
def test_shards_of_two_are_read_by_four_and_then_by_one(alone, two, run_ranks, tmp_path):
    shutil.copytree(two[0] / "stopped", tmp_path / "stopped-4")
    found = run_ranks(SCRIPT, 4, WORK, tmp_path)
    assert found[0]["left"] == ["checkpoint-000000080", "checkpoint-000000064"]
    assert len(list((list_checkpoints(tmp_path / "stopped-4" / "train")[0] / "model").iterdir())) == 4
    finish_alone(tmp_path / "stopped-4")
    compared.assert_close(alone / "longer", tmp_path / "stopped-4", 2 * compared.WEIGHT_TOLERANCE)
    compared.assert_same_lines(alone / "longer", tmp_path / "stopped-4")
    compared.assert_close(alone / "whole", tmp_path / "whole-4", 2 * compared.WEIGHT_TOLERANCE)


def test_a_shard_torn_at_any_byte_is_noticed(two, tmp_path):
    """The checkpoint before it is used."""
    shutil.copytree(two[0] / "stopped", tmp_path / "torn")
    newest, before = list_checkpoints(tmp_path / "torn" / "train")
    generator = np.random.Generator(np.random.Philox(key=1))
    for file in sorted(p for p in newest.rglob("*") if p.is_file()):
        content = file.read_bytes()
        for place in generator.integers(0, len(content), 3).tolist():
            file.write_bytes(content[:place])
            with pytest.raises(BrokenCheckpoint):
                read_state(newest)
            file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            with pytest.raises(BrokenCheckpoint):
                read_state(newest)
        file.unlink()
        with pytest.raises(BrokenCheckpoint):
            read_state(newest)
        file.write_bytes(content)
    read_state(newest)
    shutil.rmtree(newest / "ema")
    with pytest.warns(UserWarning, match="the checkpoint before it is used"):
        assert find_checkpoint(tmp_path / "torn")[0] == before


def test_every_family_of_networks_can_be_cut(two):
    for name in rank_work.NETWORKS:
        path, state = find_checkpoint(two[0] / name)
        assert state["images"] == 32
        assert not is_sharded(path)


def test_what_does_not_go_with_it(two):
    assert all(rank["error"].startswith("InputError: compile: does not go with parallel") for rank in two[1])


def test_in_one_process_nothing_is_cut(tmp_path, alone):
    train(rank_work.make_config(tmp_path / "run", images=208, parallel="fsdp", **SETTINGS), rank_work.build_data())
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        one, other = (find_checkpoint(run)[0] / name for run in (tmp_path / "run", alone / "whole"))
        assert one.read_bytes() == other.read_bytes()


def test_memory_that_is_short_names_what_to_go_on_with(two):
    """And no rank notes that a layer of ours gives views."""
    said = [rank["short"] for rank in two[1]]
    fix = "batch_device: 3 images at a time do not fit into the memory of cpu; start again with batch_device=1"
    assert said[1].startswith(f"MachineError: {fix} (--batch-device 1)")
    assert said[0].startswith(f"LostRank: rank 1 of 2 ended: {fix}")
    assert [rank["notes"] for rank in two[1]] == [[], []]
