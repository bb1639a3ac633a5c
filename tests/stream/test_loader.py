"""CoresetLoader: exactly the coreset's images, in every placement, resumed anywhere."""

import gc
import itertools
import json
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from prunefast.data import from_arrays, open_dataset
from prunefast.errors import InputError
from prunefast.stream import Batch, CoresetLoader, epoch_order
from prunefast.stream import placement as placing

PLACEMENTS = ["device", "memory", "pack", "disk"]


def collect(loader, count=None):
    batches = list(itertools.islice(loader, count))
    return {name: torch.cat([getattr(batch, name) for batch in batches]).numpy() for name in Batch.__slots__}, batches


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("batch_size", [1, 8, 37, 64, 200])
def test_finite_passes(data, coreset, placement, batch_size):
    loader = CoresetLoader(data, coreset, batch_size=batch_size, epochs=3, seed=2, placement=placement)
    everything, batches = collect(loader)
    expected = np.concatenate([coreset.indices[epoch_order(37, 2, epoch)] for epoch in range(3)])
    np.testing.assert_array_equal(everything["index"], expected)
    np.testing.assert_array_equal(everything["position"], np.arange(111))
    np.testing.assert_array_equal(everything["images"], data.images(expected).transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(everything["labels"], expected % 7)
    np.testing.assert_array_equal(everything["weight"], np.searchsorted(coreset.indices, expected).astype(np.float32))
    assert [len(batch) for batch in batches] == [batch_size] * (111 // batch_size) + [111 % batch_size] * (
        111 % batch_size > 0
    )
    assert len(loader) == len(batches)
    assert loader.placement == placement
    for batch in batches:
        assert batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert [batch.labels.dtype, batch.index.dtype, batch.position.dtype] == [torch.int64] * 3
        assert batch.weight.dtype == torch.float32


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("batch_size", [10, 100])
def test_infinite_streams_run_over_the_border_of_epochs(data, coreset, placement, batch_size):
    loader = CoresetLoader(data, coreset, batch_size=batch_size, placement=placement)
    everything, batches = collect(loader, 20)
    assert all(len(batch) == batch_size for batch in batches)
    count = 20 * batch_size
    whole = np.concatenate([coreset.indices[epoch_order(37, 0, epoch)] for epoch in range(count // 37 + 1)])
    np.testing.assert_array_equal(everything["index"], whole[:count])
    with pytest.raises(TypeError):
        len(loader)


def test_one_image(data, make_coreset):
    everything, _ = collect(CoresetLoader(data, make_coreset([42]), batch_size=3), 4)
    assert everything["index"].tolist() == [42] * 12
    everything, _ = collect(CoresetLoader(data, make_coreset([42]), batch_size=3, epochs=5))
    assert everything["position"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("placement", ["memory", "disk"])
@pytest.mark.parametrize(("world_size", "per_rank"), [(1, 8), (2, 4), (4, 2)])
def test_world_sizes_see_the_same_global_batches(data, coreset, placement, world_size, per_rank):
    reference = [
        batch.index.tolist() for batch in CoresetLoader(data, coreset, batch_size=8, epochs=2, placement="memory")
    ]
    loaders = [
        CoresetLoader(data, coreset, batch_size=per_rank, epochs=2, rank=r, world_size=world_size, placement=placement)
        for r in range(world_size)
    ]
    ranks = [list(loader) for loader in loaders]
    assert [len(loader) for loader in loaders] == [len(batches) for batches in ranks]
    for step, expected in enumerate(reference):
        parts = [batches[step] for batches in ranks if step < len(batches)]
        positions = np.concatenate([part.position.numpy() for part in parts])
        index = np.concatenate([part.index.numpy() for part in parts])
        assert index[np.argsort(positions)].tolist() == expected
        assert positions.min() == step * 8
    assert {loader.position for loader in loaders} == {74}


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("stop", [0, 1, 3, 4, 11])
def test_resume_goes_on_with_the_very_next_image(data, coreset, placement, stop):
    def make():
        return CoresetLoader(data, coreset, batch_size=10, seed=5, placement=placement)

    whole, _ = collect(make(), 15)
    first = make()
    head = [batch.index for batch in itertools.islice(first, stop)]  # others are decoded ahead and must not count
    text = json.dumps(first.state_dict())
    assert len(text) < 100
    second = make()
    second.load_state_dict(json.loads(text))
    rest, _ = collect(second, 15 - stop)
    np.testing.assert_array_equal(np.concatenate([*(part.numpy() for part in head), rest["index"]]), whole["index"])
    np.testing.assert_array_equal(rest["images"], whole["images"][stop * 10 :])
    third = CoresetLoader(data, coreset, batch_size=10, seed=5, start=first.position)
    np.testing.assert_array_equal(next(iter(third)).index.numpy(), whole["index"][stop * 10 : stop * 10 + 10])


def test_the_state_counts_what_the_loop_was_given(data, coreset):
    loader = CoresetLoader(data, coreset, batch_size=10, epochs=1, placement="disk")
    seen = [(loader.position, loader.state_dict()["position"], int(batch.position[-1]) + 1) for batch in loader]
    assert seen == [(10, 10, 10), (20, 20, 20), (30, 30, 30), (37, 37, 37)]
    assert next(iter(loader)).position[0] == 37  # the next pass is the next epoch


def test_resume_with_another_number_of_ranks(data, coreset):
    """Two ranks stop after three steps; four ranks go on: no image twice, none left out."""
    two = [CoresetLoader(data, coreset, batch_size=6, rank=r, world_size=2) for r in range(2)]
    seen = [batch.position for loader in two for batch in itertools.islice(loader, 3)]
    four = [CoresetLoader(data, coreset, batch_size=3, rank=r, world_size=4) for r in range(4)]
    for loader in four:
        loader.load_state_dict(two[1].state_dict())
        seen += [batch.position for batch in itertools.islice(loader, 2)]
    assert sorted(torch.cat(seen).tolist()) == list(range(60))


def test_foreign_states_and_coresets(data, coreset, make_coreset):
    loader = CoresetLoader(data, coreset, batch_size=4)
    with pytest.raises(InputError, match="another coreset"):
        CoresetLoader(data, make_coreset([1], fingerprint="beef"), batch_size=4).load_state_dict(loader.state_dict())
    with pytest.raises(InputError, match="seed"):
        CoresetLoader(data, coreset, batch_size=4, seed=9).load_state_dict(loader.state_dict())
    with pytest.raises(InputError, match="another data set"):
        CoresetLoader(data, make_coreset([1], data_fingerprint="beef"), batch_size=4)
    CoresetLoader(data, make_coreset([1], data_fingerprint=data.fingerprint), batch_size=4)
    with pytest.raises(InputError, match="100 images"):
        CoresetLoader(data, make_coreset([100]), batch_size=4)
    with pytest.raises(InputError, match="empty"):
        CoresetLoader(data, make_coreset([]), batch_size=4)
    with pytest.raises(InputError, match="weights"):
        CoresetLoader(data, make_coreset([1, 2], weights=np.ones(3)), batch_size=4)


@pytest.mark.parametrize(
    "arguments",
    [
        {"batch_size": 0},
        {"batch_size": 1.5},
        {"seed": -1},
        {"epochs": 0},
        {"start": -1},
        {"rank": 1},
        {"world_size": 0},
        {"threads": 0},
        {"device": "toaster"},
        {"placement": "cloud"},
        {"memory_budget_bytes": -1},
    ],
)
def test_bad_arguments(data, coreset, arguments):
    with pytest.raises(InputError, match=next(iter(arguments))):
        CoresetLoader(data, coreset, **({"batch_size": 4} | arguments))


def test_without_labels_and_weights(coreset):
    class Bare:
        indices, fingerprint = [3, 1], "a"

    bare = from_arrays(np.zeros((5, 4, 4), np.uint8))
    batch = next(iter(CoresetLoader(bare, Bare(), batch_size=2)))
    assert batch.labels.tolist() == [-1, -1]
    assert batch.weight.tolist() == [1, 1]
    assert sorted(batch.index.tolist()) == [1, 3]


def test_images_of_different_shapes_need_a_size(write_images, make_coreset):
    root = write_images([(8, 8), (12, 10)])
    with pytest.raises(InputError, match="image_size"):
        CoresetLoader(open_dataset(root), make_coreset([0, 1]), batch_size=2)
    batch = next(iter(CoresetLoader(open_dataset(root, image_size=6), make_coreset([0, 1]), batch_size=2)))
    assert batch.images.shape == (2, 3, 6, 6)


def test_placement_by_size(data, coreset, monkeypatch):
    needed = 37 * 8 * 8 * 3

    def chosen(**options):
        loader = CoresetLoader(data, coreset, batch_size=4, **options)
        return loader.placement, loader.placement_reason

    assert chosen(memory_budget_bytes=needed)[0] == "memory"
    assert chosen(memory_budget_bytes=needed - 1)[0] == "disk"
    assert "budget" in chosen(memory_budget_bytes=0)[1]
    assert chosen(placement="disk") == ("disk", "asked for; the coreset's pixels are 0.0 MB")
    monkeypatch.setattr(placing, "free_memory_bytes", lambda: 2 * needed)
    assert chosen()[0] == "memory"
    monkeypatch.setattr(placing, "free_memory_bytes", lambda: 2 * needed - 2)
    assert chosen()[0] == "disk"
    # a GPU: its own share first, then main memory
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    cuda = torch.device("cuda")
    assert placing.choose_placement("auto", 200, cuda)[0] == "device"
    assert placing.choose_placement("auto", 201, cuda)[0] == "memory"
    assert placing.choose_placement("auto", needed, cuda)[0] == "disk"


def test_free_memory_is_that_of_this_machine():
    with open("/proc/meminfo") as file:
        total = int(file.readline().split()[1]) * 1024
    assert 0 < placing.free_memory_bytes() <= total


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_broken_image_reaches_the_loop_with_its_name(write_images, make_coreset, placement):
    root = write_images([(16, 16)] * 40)
    (root / "033.jpg").write_bytes((root / "033.jpg").read_bytes()[:-200])
    loader = CoresetLoader(
        open_dataset(root), make_coreset(np.arange(40)), batch_size=4, shuffle=False, placement=placement
    )
    seen = []

    def consume():
        for batch in loader:
            seen.extend(batch.index.tolist())

    with pytest.raises(InputError, match=r"033\.jpg.*on_error='skip'"):
        consume()
    assert seen == (list(range(32)) if placement == "disk" else [])  # good batches before it are delivered
    assert loader.position == len(seen)
    healed = CoresetLoader(
        open_dataset(root, on_error="skip"), make_coreset(np.arange(39)), batch_size=4, epochs=1, placement=placement
    )
    assert sum(len(batch) for batch in healed) == 39


def test_breaking_off_leaves_no_threads(write_images, make_coreset):
    data = open_dataset(write_images([(16, 16)] * 30))
    before = threading.active_count()
    for _ in range(5):
        loader = CoresetLoader(data, make_coreset(np.arange(30)), batch_size=2, placement="disk")
        for _ in loader:
            break
        del loader
    gc.collect()
    for thread in threading.enumerate():
        if thread.name.startswith("prunefast-decode"):
            thread.join(10)
    assert threading.active_count() <= before


SCRIPT = """
import sys, numpy as np
from prunefast.data import open_dataset
from prunefast.stream import CoresetLoader
class C: indices, fingerprint = np.arange(40), "a"
loader = CoresetLoader(open_dataset(sys.argv[1], cache_dir=sys.argv[2]), C, batch_size=2, placement="disk")
{body}
"""


@pytest.mark.parametrize(
    ("body", "code", "err"),
    [
        ("iterator = iter(loader); next(iterator); print('left')", 0, ""),
        ("for batch in loader: raise KeyboardInterrupt", -2, "KeyboardInterrupt"),
    ],
)
def test_leaving_the_interpreter(tmp_path, write_images, body, code, err):
    """In mid-iteration, by Ctrl-C, by exit: no hang, no message from a dying thread."""
    root = write_images([(16, 16)] * 40)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(body=body), str(root), str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code
    assert done.stderr.strip().splitlines()[-1:] == ([err] if err else [])
    assert "thread" not in done.stderr.lower()


def test_the_order_does_not_depend_on_threads(write_images, make_coreset):
    data = open_dataset(write_images([(16, 16)] * 64))
    coreset = make_coreset(np.arange(64))
    one, _ = collect(CoresetLoader(data, coreset, batch_size=48, epochs=2, placement="disk", threads=1))
    four, _ = collect(CoresetLoader(data, coreset, batch_size=48, epochs=2, placement="disk", threads=4))
    memory, _ = collect(CoresetLoader(data, coreset, batch_size=48, epochs=2, placement="memory"))
    for name in one:
        np.testing.assert_array_equal(one[name], four[name])
        np.testing.assert_array_equal(one[name], memory[name])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("placement", [*PLACEMENTS, "auto"])
def test_on_a_gpu(data, coreset, placement):
    cpu, _ = collect(CoresetLoader(data, coreset, batch_size=10, epochs=2))
    loader = CoresetLoader(data, coreset, batch_size=10, epochs=2, device="cuda", placement=placement)
    batches = list(loader)
    assert all(batch.images.device.type == "cuda" for batch in batches)
    np.testing.assert_array_equal(torch.cat([batch.images for batch in batches]).cpu().numpy(), cpu["images"])
    assert placement != "auto" or loader.placement == "device"
