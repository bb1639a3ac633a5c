"""A pack holds the same pixels, is made once, and never half."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from prunefast.data import open_dataset
from prunefast.data.cache import CacheEntry
from prunefast.errors import InputError, MachineError
from prunefast.stream import CoresetLoader
from prunefast.stream import pack as pack_module
from prunefast.stream.pack import pack


@pytest.fixture
def data(write_images):
    return open_dataset(write_images([(20, 16)] * 30), image_size=12)


def packs(data) -> list:
    return sorted(CacheEntry(data.path, None).folder.glob("pack-*"))


def test_the_pixels_labels_and_order_of_the_source(data):
    indices = np.array([3, 29, 0, 17, 4])
    packed = pack(data, indices)
    np.testing.assert_array_equal(packed.images(range(5)), data.images(indices))
    np.testing.assert_array_equal(packed.images([4, 0]), data.images(indices[[4, 0]]))
    corners = [(1, 2), (0, 0), (4, 4), (3, 0), (2, 2)]
    np.testing.assert_array_equal(packed.windows(range(5), corners, 8), data.windows(indices, corners, 8))


def test_the_safetensors_library_reads_it(data):
    indices = np.array([3, 29, 0])
    pack(data, indices)
    (path,) = packs(data)
    tensors = safetensors.numpy.load_file(path)
    np.testing.assert_array_equal(tensors["images"], data.images(indices))
    np.testing.assert_array_equal(tensors["source_index"], indices)
    expected = -np.ones(3) if data.labels is None else data.labels[indices]
    np.testing.assert_array_equal(tensors["label"], expected)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        begin = json.loads(file.read(length))["images"]["data_offsets"][0]
    assert (8 + length + begin) % 4096 == 0


def test_made_once_and_by_what_it_holds(data, monkeypatch):
    pack(data, np.arange(5))
    monkeypatch.setattr(pack_module, "_write", lambda *_: pytest.fail("made again"))
    pack(data, np.arange(5))
    with pytest.raises(pytest.fail.Exception):
        pack(data, np.arange(6))
    with pytest.raises(pytest.fail.Exception):
        pack(data.with_image_size(13), np.arange(5))


def _build(path: str, out: multiprocessing.Queue) -> None:
    made = []
    real = pack_module._write
    pack_module._write = lambda *a: (made.append(1), real(*a))
    out.put((pack(open_dataset(path, image_size=12), np.arange(30)).images(range(30)).sum(), len(made)))


def test_two_processes_at_once(data):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_build, args=(data.path, queue)) for _ in range(3)]
    for worker in workers:
        worker.start()
    found = [queue.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(60)
    assert {int(total) for total, _ in found} == {int(data.images(range(30)).sum())}
    assert sum(made for _, made in found) == 1


def test_a_killed_process_leaves_no_pack(data, tmp_path):
    script = (
        "import sys, time, numpy as np\n"
        "from prunefast.data import open_dataset, dataset\n"
        "from prunefast.stream.pack import pack\n"
        "data = open_dataset(sys.argv[1], image_size=12)\n"
        "real = data.decode_ahead\n"
        "def slow(*a, **k):\n"
        "    for item in real(*a, **k):\n"
        "        print('begun', flush=True); time.sleep(60); yield item\n"
        "data.decode_ahead = slow\n"
        "pack(data, np.arange(30))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, data.path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGKILL)
    process.wait(20)
    assert not packs(data)
    np.testing.assert_array_equal(pack(data, np.arange(30)).images(range(30)), data.images(range(30)))
    assert [name for name in os.listdir(packs(data)[0].parent) if name.startswith(".prunefast-tmp")] == []


def test_damage_is_noticed(data):
    indices = np.arange(6)
    pack(data, indices)
    (path,) = packs(data)
    whole = path.read_bytes()
    head = 8 + int.from_bytes(whole[:8], "little")
    middle = head + 2 * 12 * 12 * 3 + 5
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :])
    damaged = pack(data, indices)
    np.testing.assert_array_equal(damaged.images([0, 1, 3, 4, 5]), data.images([0, 1, 3, 4, 5]))
    with pytest.raises(InputError, match="checksum differs"):
        damaged.images([2])
    for rubbish in (whole[:-1], whole + b"x", b"", b"\xff" * len(whole)):
        path.write_bytes(rubbish)
        with pytest.raises(InputError, match=r"pack-.*delete it"):
            pack(data, indices)


def test_a_full_disk_is_told_before_any_work(data, monkeypatch):
    monkeypatch.setattr(pack_module.shutil, "disk_usage", lambda _: type("", (), {"free": 1000})())
    with pytest.raises(MachineError, match=r"needs .* MB"):
        pack(data, np.arange(5))
    assert not packs(data)


def test_the_loader_gives_the_same_batches(data, make_coreset):
    coreset = make_coreset(np.array([2, 3, 5, 7, 11, 13, 17, 19, 23, 29]))
    kinds = {}
    for placement in ("pack", "disk", "memory"):
        loader = CoresetLoader(data, coreset, batch_size=4, epochs=3, seed=1, placement=placement)
        batches = list(loader)
        kinds[placement] = [(b.images.numpy(), b.index.numpy(), b.labels.numpy()) for b in batches]
        assert placement in (loader.placement, "memory")
    for mine, theirs in zip(kinds["pack"], kinds["disk"], strict=True):
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(a, b)
    for mine, theirs in zip(kinds["pack"], kinds["memory"], strict=True):
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


def test_batches_stay_what_they_were(data, make_coreset):
    """Buffers are used again, but none that a batch still holds."""
    loader = CoresetLoader(data, make_coreset(np.arange(30)), batch_size=4, epochs=6, placement="pack")
    kept = [(batch, batch.images.clone()) for batch in loader]
    for batch, copy in kept:
        assert batch.images.equal(copy)
