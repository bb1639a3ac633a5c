"""Reading by index: in threads, forks and spawned workers, in any order."""

import gc
import multiprocessing
import pickle
import subprocess
import sys
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from prunefast.data import open_dataset
from prunefast.data.table import Keys
from prunefast.errors import InputError, InputTypeError


@pytest.fixture(params=["folder", "tar", "zip"])
def many(request, tmp_path, write_folder, make_picture, encode):
    """200 images in a folder, tar or deflated zip, with their truth."""
    import io

    from PIL import Image

    members = {f"c{k % 3}/{k:03}.jpg": encode(make_picture(k, 12, 12)) for k in range(200)}
    root = write_folder(members)
    path = root
    if request.param == "tar":
        path = tmp_path / "x.tar"
        with tarfile.open(path, "w") as archive:
            archive.add(root, "")
    elif request.param == "zip":
        path = tmp_path / "x.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
    truth = np.stack([np.asarray(Image.open(io.BytesIO(members[name]))) for name in sorted(members)])
    return open_dataset(path), truth


def test_any_order(many):
    data, truth = many
    rng = np.random.default_rng(0)
    for indices in (
        rng.permutation(200),
        rng.integers(0, 200, 500),
        [5],
        range(199, -1, -7),
        np.array([], np.int64),
        [],
    ):
        np.testing.assert_array_equal(data.images(indices), truth[np.asarray(indices, dtype=np.int64)])
    for k in (0, 77, 199):
        np.testing.assert_array_equal(data.image(k), truth[k])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 33, 64, 1000])
def test_batches(many, threads, batch_size):
    data, truth = many
    order = np.random.default_rng(1).permutation(200)
    indices, images = zip(*data.batches(order, batch_size, threads), strict=True)
    assert [len(part) for part in indices[:-1]] == [batch_size] * (len(indices) - 1)
    np.testing.assert_array_equal(np.concatenate(indices), order)
    np.testing.assert_array_equal(np.concatenate(images), truth[order])
    assert sum(len(part) for part, _ in data.batches()) == 200


def test_threads_read_at_once(many):
    data, truth = many
    jobs = [np.random.default_rng(k).integers(0, 200, 50) for k in range(40)]
    with ThreadPoolExecutor(8) as pool:
        for indices, images in zip(jobs, pool.map(data.images, jobs), strict=True):
            np.testing.assert_array_equal(images, truth[indices])


def read_in_child(data, indices, queue):
    queue.put(data.images(indices))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_after_fork_and_in_spawned_workers(many, method):
    """An open file shared by forked workers: its offset must not matter."""
    data, truth = many
    data.images([0])  # opens the file before the fork
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    jobs = [np.random.default_rng(k).integers(0, 200, 300) for k in range(3 if method == "fork" else 1)]
    if method == "spawn":  # the child would have to find this test module; the pickle is what matters
        copied = pickle.loads(pickle.dumps(data))
        np.testing.assert_array_equal(copied.images(jobs[0]), truth[jobs[0]])
        return
    workers = [context.Process(target=read_in_child, args=(data, job, queue)) for job in jobs]
    for worker in workers:
        worker.start()
    sums = sorted(int(queue.get(timeout=60).astype(np.int64).sum()) for _ in jobs)
    for worker in workers:
        worker.join(60)
    assert sums == sorted(int(truth[job].astype(np.int64).sum()) for job in jobs)


def test_only_the_bytes_of_what_is_asked_for_are_read(many):
    """Bytes that the process asked the system for, by the system's own count."""

    def asked() -> int:
        try:
            with open("/proc/self/io", encoding="ascii") as file:
                return int(file.readline().removeprefix("rchar: "))
        except OSError:
            pytest.skip("the system does not count bytes")

    data, _ = many
    items = np.arange(0, 200, 20)
    data.images(items)
    before = asked()
    for _ in range(20):
        data.images(items)
    useful = 20 * int(data.table["length"].to_numpy()[items].sum())
    assert useful <= asked() - before <= 1.1 * useful + 1000


def test_breaking_off_ends_the_threads(many):
    data, _ = many
    before = threading.active_count()
    for _ in range(5):
        for _ in data.batches(batch_size=8):
            break
        iterator = data.batches(batch_size=8)
        next(iterator)
        del iterator
    gc.collect()
    for thread in threading.enumerate():
        if thread.name.startswith("prunefast-decode"):
            thread.join(10)
    assert threading.active_count() <= before


def test_leaving_the_interpreter_in_mid_iteration(tmp_path, write_folder, make_picture, encode):
    root = write_folder({f"{k}.jpg": encode(make_picture(k, 12, 12)) for k in range(64)})
    code = (
        "import sys; from prunefast.data import open_dataset\n"
        f"data = open_dataset({str(root)!r}, cache_dir={str(tmp_path / 'cache')!r})\n"
        "iterator = data.batches(list(range(64)) * 50, batch_size=4)\n"
        "next(iterator); print('ok')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


def test_bad_indices(many):
    data, _ = many
    for indices in ([200], [-1], [0, 1, 10**12]):
        with pytest.raises(InputError, match=r"not in 0\.\.199"):
            data.images(indices)
        with pytest.raises(InputError, match=r"not in 0\.\.199"):
            list(data.batches(indices))
    for indices in ([0.5], np.ones(200, bool), ["a"]):
        with pytest.raises(InputTypeError):
            data.images(indices)
    with pytest.raises(InputError, match="one dimension"):
        data.images([[1, 2]])
    with pytest.raises(InputTypeError):
        data.image("3")
    with pytest.raises(InputError):
        data.image(200)
    for options in ({"batch_size": 0}, {"batch_size": 2.0}, {"threads": 0}, {"threads": True}):
        with pytest.raises(InputError):
            data.batches(**options)


def test_keys_are_a_sequence(many):
    data, _ = many
    keys = data.keys
    assert isinstance(keys, Keys)
    plain = list(keys)
    assert plain == sorted(plain)
    assert keys == plain
    assert keys[0] == plain[0]
    assert keys[-1] == plain[-1]
    assert keys[5:50:7] == plain[5:50:7]
    assert plain[3] in keys
    assert "nothing" not in keys
    with pytest.raises(IndexError):
        keys[200]


def test_the_real_archive_and_its_folder(cifar_archive, tmp_path_factory):
    """60,000 real JPEGs, from the compressed tar and from the folder: the same keys, labels and pixels."""
    packed = open_dataset(cifar_archive)
    assert packed.split == "train"
    assert len(packed) == 50_000
    assert packed.image_size == 32
    assert np.bincount(packed.labels).tolist() == [5000] * 10
    assert packed.classes[:3] == ["airplane", "automobile", "bird"]
    assert len(open_dataset(cifar_archive, split="test")) == 10_000
    root = tmp_path_factory.mktemp("unpacked")
    some = {f"{split}/{name}/{k:04}.jpg" for split in ("train", "test") for name in packed.classes for k in range(20)}
    with tarfile.open(packed._storage.containers[0][0]) as archive:
        archive.extractall(root, [member for member in archive if member.name in some], filter="data")
    unpacked = open_dataset(root)
    assert set(unpacked.keys) == {name for name in some if name.startswith("train")}
    place = {key: row for row, key in enumerate(packed.keys)}
    rows = [place[key] for key in unpacked.keys]
    assert unpacked.labels.tolist() == packed.labels[rows].tolist()
    np.testing.assert_array_equal(unpacked.images(range(len(unpacked))), packed.images(rows))
