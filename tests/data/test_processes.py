"""Decoding in processes: the pixels of Pillow and the words of threads, and what becomes of processes."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from prunefast.data import decode, native, open_dataset, processes
from prunefast.data.dataset import Windows
from prunefast.errors import InputError, MachineError
from prunefast.stream import CoresetLoader

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="processes share memory by memfd_create")


@pytest.fixture(autouse=True)
def in_processes(monkeypatch):
    monkeypatch.setenv(native.DECODE_VARIABLE, "processes")
    yield
    processes._shared.end()


@pytest.fixture
def blobs(make_picture, encode):
    """36 images of 20 x 16: of every kind that JPEG has for Pillow and simplejpeg, and PNG."""
    out = {}
    for k in range(36):
        wide, file = make_picture(k, 20, 16), io.BytesIO()
        image = Image.fromarray(wide)
        if k % 6 == 0:
            image.save(file, "PNG")
        elif k % 6 == 1:
            image.convert("CMYK").save(file, "JPEG")
        elif k % 6 == 2:
            image.convert("L").save(file, "JPEG")
        else:
            image.save(file, "JPEG", quality=60 + k, subsampling=k % 3, progressive=k % 2 == 0)
        out[f"{k:02}.{'png' if k % 6 == 0 else 'jpg'}"] = file.getvalue()
    return out


class Own:
    """Of a user; no process could be sent it."""

    def __init__(self, blobs, fails=None):
        self.keys, self.blobs, self.lock, self.fails = list(blobs), list(blobs.values()), threading.Lock(), fails

    def read(self, item):
        with self.lock:
            return {}["theirs"] if item == self.fails else self.blobs[item]


def opened(kind, blobs, tmp_path, write_folder, **options):
    path = tmp_path / "source"
    if kind == "source":
        return open_dataset(Own(blobs), **options)
    if kind == "folder":
        path = write_folder(blobs)
    elif kind == "tar":
        with tarfile.open(path, "w") as archive:
            for name, blob in blobs.items():
                info = tarfile.TarInfo(name)
                info.size = len(blob)
                archive.addfile(info, io.BytesIO(blob))
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if kind == "deflated zip" else 0) as archive:
            for name, blob in blobs.items():
                archive.writestr(name, blob)
    return open_dataset(path, **options)


def batches(data, parts, threads=2, **options):
    return np.concatenate([images.copy() for _, images in data.decode_ahead(iter(parts), threads, **options)])


def of_pillow(blob, side):
    image = Image.open(io.BytesIO(blob)).convert("RGB")
    square = min(image.size)
    left, top = (image.width - square) // 2, (image.height - square) // 2
    image = image.crop((left, top, left + square, top + square))
    filter_ = Image.Resampling.BOX if square > side else Image.Resampling.BICUBIC
    return np.asarray(image if square == side else image.resize((side, side), filter_))


@pytest.mark.parametrize("kind", ["folder", "tar", "zip", "deflated zip", "source"])
def test_the_pixels_of_pillow_from_every_format(kind, blobs, tmp_path, write_folder, monkeypatch):
    data = opened(kind, blobs, tmp_path, write_folder, image_size=12)
    order = np.random.default_rng(0).permutation(36)
    went, real = [], processes.DecodeProcesses.decode

    def noticed(self, storage, items, *rest):
        went.extend(items)
        return real(self, storage, items, *rest)

    monkeypatch.setattr(processes.DecodeProcesses, "decode", noticed)
    got = batches(data, np.array_split(order, 3))
    assert sorted(went) == list(range(36))
    truth = np.stack([of_pillow(blob, 12) for blob in blobs.values()])
    np.testing.assert_array_equal(got, truth[order])
    corners = np.random.default_rng(1).integers(0, 5, (36, 2)).astype(np.int32)
    cut = batches(data, [Windows(order, corners, 8)])
    np.testing.assert_array_equal(
        cut, np.stack([truth[k][y : y + 8, x : x + 8] for k, (y, x) in zip(order, corners, strict=True)])
    )
    for way in ("threads", ""):
        monkeypatch.setenv(native.DECODE_VARIABLE, way)
        np.testing.assert_array_equal(batches(data, np.array_split(order, 3)), got)


def test_batches_of_growing_size(blobs, tmp_path, write_folder):
    """The memory that a process shares grows with what it is asked for."""
    data = opened("folder", blobs, tmp_path, write_folder, image_size=16)
    for side, count in ((16, 4), (16, 36), (64, 36), (8, 36)):
        items = np.arange(count)
        got = batches(data.with_image_size(side), [items], threads=1)
        np.testing.assert_array_equal(got, np.stack([of_pillow(list(blobs.values())[k], side) for k in items]))


def message(read):
    with pytest.raises((InputError, MachineError)) as caught:
        read()
    return type(caught.value), str(caught.value)


@pytest.mark.parametrize("fault", ["a flipped bit", "cut short", "gone", "no image", "source"])
def test_errors_have_the_words_that_threads_have(fault, blobs, tmp_path, write_folder, monkeypatch):
    if fault == "source":
        source = Own(blobs)
        data = open_dataset(source, image_size=12)
        source.fails = 7
    else:
        data = opened("folder", blobs, tmp_path, write_folder, image_size=12, verify=fault != "no image")
        file = tmp_path / "folder/07.jpg"
        blob = file.read_bytes()
        if fault == "gone":
            file.unlink()
        else:
            middle = len(blob) // 2
            file.write_bytes(
                {
                    "a flipped bit": blob[:middle] + bytes([blob[middle] ^ 1]) + blob[middle + 1 :],
                    "cut short": blob[:-5],
                    "no image": bytes(len(blob)),
                }[fault]
            )
    parts = np.array_split(np.arange(36), 2)
    ours = message(lambda: batches(data, parts))
    monkeypatch.setenv(native.DECODE_VARIABLE, "threads")
    assert ours == message(lambda: batches(data, parts))
    assert "07.jpg" in ours[1]
    monkeypatch.setenv(native.DECODE_VARIABLE, "processes")
    left = np.delete(np.arange(36), 7)
    assert len(batches(data, [left])) == 35  # the rest is not lost, and no process was


def test_replacements_are_those_of_the_native_loader(blobs, tmp_path, write_folder, monkeypatch):
    data = opened("folder", blobs, tmp_path, write_folder, image_size=12)
    (tmp_path / "folder/04.jpg").write_bytes(b"rubbish")
    seen = []
    for way in ("processes", ""):
        monkeypatch.setenv(native.DECODE_VARIABLE, way)
        loader = CoresetLoader(
            data, StandIn(), batch_size=8, epochs=1, placement="disk", threads=2, on_error="replace", seed=1
        )
        with pytest.warns(UserWarning, match="shown in its place"):
            images = [batch.images.clone() for batch in loader]
        seen.append((loader.replaced, images))
    assert seen[0][0] == seen[1][0]
    assert all((one == two).all() for one, two in zip(seen[0][1], seen[1][1], strict=True))


class StandIn:
    indices, weights, fingerprint = np.arange(36), np.ones(36, np.float32), "f"


def test_a_loader_goes_on_where_another_stopped(blobs, tmp_path, write_folder, monkeypatch):
    data = opened("tar", blobs, tmp_path, write_folder, image_size=12)
    options = {"batch_size": 8, "placement": "disk", "threads": 2, "seed": 3}
    loader = CoresetLoader(data, StandIn(), **options)
    iterator = iter(loader)
    for _ in range(3):
        next(iterator)
    state = loader.state_dict()
    monkeypatch.setenv(native.DECODE_VARIABLE, "")
    other = CoresetLoader(data, StandIn(), **options)
    other.load_state_dict(state)
    again = iter(other)
    for _ in range(6):
        one, two = next(iterator), next(again)
        assert (one.position == two.position).all()
        assert (one.images == two.images).all()


def running():
    return [process._process.pid for process in processes._shared._all]


def test_a_killed_process_is_one_error_and_the_next_iteration_works(blobs, tmp_path, write_folder):
    data = opened("folder", blobs, tmp_path, write_folder, image_size=12)
    want = batches(data, [np.arange(36)])
    for pid in running():
        os.kill(pid, signal.SIGKILL)
    kind, text = message(lambda: batches(data, [np.arange(36)]))
    assert kind is MachineError
    assert text.startswith("decoding: a process was killed by signal 9")
    assert native.DECODE_VARIABLE in text
    with contextlib.suppress(MachineError):  # of another that was killed
        batches(data, [np.arange(36)])
    np.testing.assert_array_equal(batches(data, [np.arange(36)]), want)


def test_processes_start_when_they_are_needed_and_stay(blobs, tmp_path, write_folder, encode, make_picture):
    data = opened("folder", blobs, tmp_path, write_folder, image_size=12)
    data.images([0, 1, 2])
    assert running() == []
    batches(data, [np.arange(36)])
    first = set(running())
    batches(data, np.array_split(np.arange(36), 4))
    assert first <= set(running())
    assert 1 <= len(running()) <= 2


@pytest.mark.skipif(not native.decodes_jpeg(), reason="built without libjpeg-turbo")
def test_jpegs_that_are_decoded_natively_need_none(tmp_path, write_folder, make_picture, encode, monkeypatch):
    monkeypatch.setenv(native.DECODE_VARIABLE, "")
    data = open_dataset(write_folder({f"{k}.jpg": encode(make_picture(k, 8, 8)) for k in range(20)}))
    batches(data, [np.arange(20)])
    assert running() == []


SCRIPT = """
import os, sys, time
import numpy as np
from prunefast.data import open_dataset, processes
print("imported", flush=True)
data = open_dataset(sys.argv[1], image_size=12)
total = 0
for number, (_, images) in enumerate(data.decode_ahead(np.array_split(np.arange(36), 4) * int(sys.argv[2]), 2)):
    total += len(images)
    if number == 3: print(*[p._process.pid for p in processes.shared()._all], flush=True)
print(total, flush=True)
"""


def script(tmp_path, rounds):
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PRUNEFAST_CACHE": str(tmp_path / "cache")}
    return subprocess.Popen(
        [sys.executable, tmp_path / "script.py", tmp_path / "folder", str(rounds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def gone(pids, seconds=10.0):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not any(alive(pid) for pid in pids):
            return True
        time.sleep(0.02)
    return False


def alive(pid):
    with contextlib.suppress(OSError):
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "Z"
    return False


def test_a_script_without_a_main_guard_runs_once_and_leaves_no_process(blobs, tmp_path, write_folder):
    write_folder(blobs)
    out, err = script(tmp_path, 1).communicate(timeout=60)
    lines = out.splitlines()
    assert (lines[0], lines[2], err) == ("imported", "36", "")
    assert gone(map(int, lines[1].split()))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_processes_end_with_the_one_that_started_them(how, blobs, tmp_path, write_folder):
    write_folder(blobs)
    process = script(tmp_path, 1_000_000)
    process.stdout.readline()
    pids = list(map(int, process.stdout.readline().split()))
    assert pids
    assert all(alive(pid) for pid in pids)
    pressed = time.monotonic()
    process.send_signal(how)
    _, err = process.communicate(timeout=30)
    busy = max(os.getloadavg()[0] / (os.cpu_count() or 1), 1.0)
    assert time.monotonic() - pressed < busy
    assert process.returncode == -how
    if how == signal.SIGINT:
        assert err.splitlines()[-1] == "KeyboardInterrupt"
        assert err.count("Traceback") == 1
    else:
        assert err == ""
    assert gone(pids)


def test_a_child_by_fork_has_processes_of_its_own(blobs, tmp_path, write_folder):
    data = opened("folder", blobs, tmp_path, write_folder, image_size=12)
    want = batches(data, [np.arange(36)])
    before = running()
    child = os.fork()
    if not child:
        ended = 1
        try:
            signal.alarm(60)
            same = (batches(data, [np.arange(36)]) == want).all() and not set(running()) & set(before)
            processes._shared.end()
            ended = 0 if same else 2
        finally:
            os._exit(ended)
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_array_equal(batches(data, [np.arange(36)]), want)
    assert set(before) <= set(running())


def test_a_busy_main_thread_does_not_stop_them(blobs, tmp_path, write_folder):
    """The interpreter is asked a few times a batch, not once an image: 3,600 of these would take 18 s."""
    data = opened("folder", blobs, tmp_path, write_folder, image_size=12)
    items = np.tile(np.arange(36), 100)
    done = threading.Event()
    thread = threading.Thread(target=lambda: (batches(data, np.array_split(items, 10)), done.set()))
    start = time.perf_counter()
    thread.start()
    while not done.is_set() and time.perf_counter() - start < 12:
        sum(range(1000))
    assert done.is_set()
    thread.join()


def test_no_descriptor_is_left(blobs, tmp_path, write_folder):
    data = opened("folder", blobs, tmp_path, write_folder, image_size=12)
    counts = []
    for _ in range(3):
        batches(data, [np.arange(36)])
        processes._shared.end()
        counts.append(len(os.listdir("/proc/self/fd")))
    assert counts[1] == counts[2]


def test_what_cannot_start_says_so(blobs, tmp_path, write_folder, monkeypatch):
    data = opened("folder", blobs, tmp_path, write_folder, image_size=12)
    monkeypatch.setattr(processes.spawn, "get_executable", lambda: str(tmp_path / "no-python"))
    with pytest.raises(MachineError, match=r"decoding: no process can be started .*PRUNEFAST_DECODE=threads"):
        batches(data, [np.arange(36)])
    monkeypatch.setattr(processes.spawn, "get_executable", lambda: "/bin/false")
    with pytest.raises(MachineError, match=r"decoding: a process ended with status 1; .*PRUNEFAST_DECODE=threads"):
        batches(data, [np.arange(36)])


def test_the_variable_is_checked(blobs, tmp_path, write_folder, monkeypatch):
    data = opened("folder", blobs, tmp_path, write_folder, image_size=12)
    monkeypatch.setenv(native.DECODE_VARIABLE, "gpu")
    with pytest.raises(InputError, match="PRUNEFAST_DECODE=gpu: set it to processes or threads"):
        data.images([0])


def test_without_simplejpeg_pillow_decodes(blobs, monkeypatch):
    jpegs = [blob for name, blob in blobs.items() if name.endswith("jpg")]
    corners = np.tile(np.array([[2, 1]], dtype=np.int32), (len(jpegs), 1))
    fast, slow = (np.empty((len(jpegs), 8, 8, 3), np.uint8) for _ in range(2))
    assert decode.decode_windows(jpegs, 12, fast, corners) is None
    monkeypatch.setattr(decode, "simplejpeg", None)
    assert decode.decode_windows(jpegs, 12, slow, corners) is None
    np.testing.assert_array_equal(fast, slow)
    np.testing.assert_array_equal(fast, np.stack([of_pillow(blob, 12)[2:10, 1:9] for blob in jpegs]))
