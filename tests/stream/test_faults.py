"""What goes wrong around a loader: killed processes, full disks, forks, Ctrl-C, users' code, coresets of one image."""

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time

import numpy as np
import pytest
from PIL import Image

from prunefast.data import open_dataset
from prunefast.errors import InputError
from prunefast.stream import CoresetLoader
from prunefast.stream.pack import pack

PLACEMENTS = ["memory", "pack", "disk"]


def png(number, side=16):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    for k in range(60):
        (root / f"{k:02}.png").write_bytes(png(k))
    return root


def run(code, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


# --- the cache while it is made ---

KILLED_IN = {
    "the measuring": "table._header = stop",
    "the sums": "table._sums = stop",
    "the writing": "table.pq.write_table = lambda t, path, **k: (open(path, 'wb').write(b'PAR1half'), stop())",
}


@pytest.mark.parametrize("where", KILLED_IN)
def test_a_process_killed_while_the_table_is_made(folder, tmp_path, where):
    code = (
        "import sys, time\n"
        "from prunefast.data import open_dataset, table\n"
        "def stop(*_, **__): print('begun', flush=True); time.sleep(60)\n"
        f"{KILLED_IN[where]}\n"
        "open_dataset(sys.argv[1], cache_dir=sys.argv[2])\n"
    )
    process = run(code, folder, tmp_path / "cache")
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    assert not list((tmp_path / "cache").rglob("items-*.parquet"))
    again = open_dataset(folder, cache_dir=tmp_path / "cache")
    assert len(again.images(range(60))) == 60
    left = [file.name for file in (tmp_path / "cache").rglob("*") if file.is_file()]
    assert sorted(name.partition("-")[0] for name in left) == ["items", "lock"]  # and not the other's half


FULL = """
import resource, signal, sys, warnings, numpy as np
from prunefast.data import open_dataset
from prunefast.errors import PrunefastError
from prunefast.stream.pack import pack
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
warnings.simplefilter("always")
try:
    data = open_dataset(sys.argv[1], cache_dir=sys.argv[2])
    print(len(data.images(range(len(data)))))
    pack(data, np.arange(60), sys.argv[2])
except PrunefastError as error:
    print(type(error).__name__, error)
"""


def test_a_disk_that_is_full(folder, tmp_path):
    """A table that cannot be kept is a warning; a pack is an error; neither leaves half a file."""
    cache = tmp_path / "cache"
    out, err = run(FULL, folder, cache, 3000).communicate(timeout=120)
    assert "the item table is not kept" in err
    count, message = out.splitlines()
    assert count == "60"
    assert message.startswith(("MachineError", "InputError"))
    assert "pack-" in message
    assert [file.name for file in cache.rglob("*") if file.is_file()] == ["lock"]
    data = open_dataset(folder, cache_dir=cache)
    assert len(pack(data, np.arange(60), cache).images(range(60))) == 60  # with room again


def test_a_disk_that_is_full_while_an_archive_is_expanded(folder, tmp_path):
    path, cache = tmp_path / "a.tar.xz", tmp_path / "cache"
    with tarfile.open(path, "w:xz") as archive:
        archive.add(folder, "images")
    out, _ = run(FULL, path, cache, 20_000).communicate(timeout=120)
    assert out.startswith(("MachineError", "InputError"))
    assert len(out.splitlines()) == 1
    assert str(cache) in out
    assert [file.name for file in cache.rglob("*") if file.is_file()] == ["lock"]
    assert len(open_dataset(path, cache_dir=cache)) == 60


def open_at_once(arguments):
    path, cache, barrier = arguments
    barrier.wait()
    data = open_dataset(path, cache_dir=cache)
    return data.fingerprint, data.images(range(len(data))).tobytes()


def test_two_processes_that_make_one_table(folder, tmp_path):
    context = multiprocessing.get_context("fork")
    with context.Manager() as manager, context.Pool(2) as pool:
        barrier = manager.Barrier(2)
        one, two = pool.map(open_at_once, [(folder, tmp_path / "cache", barrier)] * 2, chunksize=1)
    assert one == two
    assert len(list((tmp_path / "cache").rglob("*.parquet"))) == 1


# --- processes ---


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_fork_after_threads_have_started(folder, make_coreset, placement):
    """The child reads on, from its own threads, what the parent would have; the parent does not notice."""
    data = open_dataset(folder)
    options = {"batch_size": 8, "seed": 3, "placement": placement, "threads": 2}
    loader = CoresetLoader(data, make_coreset(np.arange(60)), **options)
    iterator = iter(loader)
    next(iterator)
    state = loader.state_dict()
    expected = CoresetLoader(data, make_coreset(np.arange(60)), **options)
    expected.load_state_dict(state)
    want = next(iter(expected)).images
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        ended = 1
        try:
            signal.alarm(60)
            mine = CoresetLoader(data, make_coreset(np.arange(60)), **options)
            mine.load_state_dict(state)
            os.write(writer, next(iter(mine)).images.contiguous().numpy().tobytes())
            ended = 0
        finally:
            os._exit(ended)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        got = file.read()
    assert os.waitpid(child, 0)[1] == 0
    assert got == want.contiguous().numpy().tobytes()
    assert (next(iterator).images == want).all()


LARGE = """
import sys, numpy as np
from PIL import Image
from prunefast.data import open_dataset
Image.fromarray(np.random.default_rng(0).integers(0, 256, (3000, 4000, 3), dtype=np.uint8)).save(sys.argv[1] + "/0.jpg")
data = open_dataset(sys.argv[1], image_size=64)
print("begun", flush=True)
if sys.argv[2] == "images": data.images([0] * 1000)
for _ in data.batches([0] * 1000, 256, threads=2): pass
"""


@pytest.mark.parametrize("way", ["images", "batches"])
def test_ctrl_c_does_not_wait_for_many_large_images(tmp_path, way):
    process = run(LARGE, tmp_path, way)
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.3)
    pressed = time.perf_counter()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    waited = time.perf_counter() - pressed
    assert process.returncode == -signal.SIGINT
    assert err.splitlines()[-1] == "KeyboardInterrupt"
    assert waited < 1.5 * max(os.getloadavg()[0] / (os.cpu_count() or 1), 1.0)


INTERRUPTED = """
import sys, time, numpy as np
from prunefast.data import open_dataset
from prunefast.stream import CoresetLoader
class C: indices, fingerprint = np.arange(60), "a"
data = open_dataset(sys.argv[1], cache_dir=sys.argv[2])
loader = CoresetLoader(data, C, batch_size=16, threads=4, placement=sys.argv[3])
for number, batch in enumerate(loader):
    if number == 3: print("begun", flush=True)
"""


def interrupt(process):
    """A Ctrl-C once the process has begun: what it says at its end, and the seconds that takes, on an idle machine."""
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.1)
    pressed = time.perf_counter()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    waited = time.perf_counter() - pressed
    assert process.returncode == -signal.SIGINT
    assert err.splitlines()[-1] == "KeyboardInterrupt"
    return err, waited / max(os.getloadavg()[0] / (os.cpu_count() or 1), 1.0)


@pytest.mark.parametrize("placement", ["memory", "disk"])
def test_ctrl_c_ends_within_a_second(folder, tmp_path, placement):
    process = run(
        INTERRUPTED, folder, tmp_path / "cache", placement, env={**os.environ, "PRUNEFAST_CACHE": str(tmp_path)}
    )
    err, waited = interrupt(process)
    assert "Exception in thread" not in err
    assert "Exception ignored" not in err
    assert waited < 1.0


# --- code of users ---

BLOCKED = """
import sys, time, io, numpy as np
from PIL import Image
from prunefast.data import open_dataset
from prunefast.stream import CoresetLoader
class Hangs:
    keys, signature = [str(k) for k in range(60)], ""
    waits = False
    def read(self, item):
        if self.waits and item == 50: print("begun", flush=True); time.sleep(1000)
        return blob
class C: indices, fingerprint = np.arange(60), "a"
file = io.BytesIO()
Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file, "PNG")
blob = file.getvalue()
source = Hangs()
if sys.argv[1] == "opening": source.waits = True
data = open_dataset(source)
source.waits = True
loader = CoresetLoader(data, C, batch_size=16, threads=2, placement=sys.argv[1], shuffle=False)
for batch in loader: pass
"""


@pytest.mark.parametrize("where", ["opening", "memory", "disk"])
def test_ctrl_c_does_not_wait_for_a_source_that_hangs(tmp_path, where):
    err, waited = interrupt(run(BLOCKED, where))
    assert "Exception" not in err
    assert waited < 1.0


def test_an_iteration_is_closed_while_a_source_hangs(make_coreset):
    """And goes on with the next image, when the source answers again."""
    source, hangs = Own(), threading.Event()
    data = open_dataset(source)
    read = source.read
    source.read = lambda item: (hangs.wait(60) if item == 30 else None, read(item))[1]
    loader = CoresetLoader(data, make_coreset(np.arange(40)), batch_size=8, placement="disk", threads=1, shuffle=False)
    iterator = iter(loader)
    next(iterator)
    began = time.perf_counter()
    iterator.close()
    assert time.perf_counter() - began < 5
    assert loader.position == 8
    hangs.set()
    assert next(iter(loader)).index.tolist() == list(range(8, 16))


class Own:
    """Images of a user, one of which makes his code fail, in the 100th reading and later."""

    def __init__(self, fails=None):
        self.keys = [f"picture {k}" for k in range(40)]
        self.fails, self.open = fails, False

    def read(self, item):
        if self.open and item == self.fails:
            return {}["transform"]
        return png(item)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_an_exception_in_code_of_users_names_the_image_and_the_function(make_coreset, placement):
    source = Own(fails=17)
    data = open_dataset(source)
    source.open = True
    loader = CoresetLoader(data, make_coreset(np.arange(40)), batch_size=4, placement=placement, threads=2, epochs=1)
    began = time.perf_counter()
    with pytest.raises(InputError, match=r"Own: picture 17: .*read.*KeyError: 'transform'") as caught:
        list(loader)
    assert time.perf_counter() - began < 20
    assert isinstance(caught.value.__cause__, KeyError)  # the traceback shows the user's own lines
    source.open = False
    left = 40 - loader.position
    assert sum(len(batch) for batch in loader) == left  # and it goes on


# --- small numbers ---


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_epochs_of_one_image_and_batches_larger_than_the_coreset(folder, make_coreset, placement):
    data = open_dataset(folder)
    one = CoresetLoader(data, make_coreset([7]), batch_size=5, epochs=3, placement=placement)
    assert [batch.index.tolist() for batch in one] == [[7, 7, 7]]
    endless = iter(CoresetLoader(data, make_coreset([7]), batch_size=5, placement=placement))
    assert [next(endless).index.tolist() for _ in range(3)] == [[7] * 5] * 3
    some = CoresetLoader(data, make_coreset([1, 2, 3]), batch_size=64, epochs=1, placement=placement)
    assert [sorted(batch.index.tolist()) for batch in some] == [[1, 2, 3]]
    many = next(iter(CoresetLoader(data, make_coreset([1, 2, 3]), batch_size=64, placement=placement)))
    assert sorted(np.bincount(many.index)[1:]) == [21, 21, 22]
    with pytest.raises(InputError, match="coreset: is empty"):
        CoresetLoader(data, make_coreset([]), batch_size=4, placement=placement)
