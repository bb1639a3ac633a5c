"""Records read, summed and decoded natively: the pixels of Pillow, the sums of xxHash, and nothing that the general way
would not say.
"""

import io
import mmap
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
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from prunefast.data import native, open_dataset, table
from prunefast.errors import InputError, MachineError

# The sanity vectors of the xxHash repository for seed 0: of its pseudo-random buffer, by length.
PRIME32, PRIME64 = 2654435761, 11400714785074694797
KNOWN = {
    0: 0x2D06800538D394C2,
    1: 0xC44BDFF4074EECDB,
    6: 0x27B56A84CD2D7325,
    12: 0xA713DAF0DFBB77E7,
    24: 0xA3FE70BF9D3510EB,
    48: 0x397DA259ECBA1F11,
    80: 0xBCDEFBBB2C47C90A,
    195: 0xCD94217EE362EC3A,
    403: 0xCDEB804D65C6DEA4,
    512: 0x617E49599013CB6B,
    2048: 0xDD59E2C3A5F038E0,
    2240: 0x6E73A90539CF2948,
    2367: 0xCB37AEB9E5D361ED,
}

needs_jpeg = pytest.mark.skipif(not native.decodes_jpeg(), reason="built without libjpeg-turbo")


def sanity_buffer(length: int) -> bytes:
    out, state = bytearray(), PRIME32
    for _ in range(length):
        out.append(state >> 56)
        state = state * PRIME64 % 2**64
    return bytes(out)


@pytest.mark.parametrize("length", KNOWN)
def test_xxh3_of_the_published_vectors(length):
    assert native.xxh3(sanity_buffer(length)) == KNOWN[length]


def test_xxh3_of_every_length():
    xxhash = pytest.importorskip("xxhash", reason="the peer is not installed")
    bytes_ = np.random.default_rng(0).bytes(5000)
    for length in [*range(1100), 2047, 2048, 2049, 4999]:
        assert native.xxh3(bytes_[:length]) == xxhash.xxh3_64_intdigest(bytes_[:length])


def noisy_jpeg(rng: np.random.Generator, width: int, height: int, **options) -> bytes:
    coarse = Image.fromarray(rng.integers(0, 256, (height // 4 + 2, width // 4 + 2, 3), dtype=np.uint8))
    image = coarse.resize((width, height), Image.Resampling.BICUBIC)
    if options.pop("grey"):
        image = image.convert("L")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def square_of(blob: bytes, side: int) -> np.ndarray:
    """Centre crop and resize by Pillow alone."""
    image = Image.open(io.BytesIO(blob)).convert("RGB")
    width, height = image.size
    square = min(width, height)
    left, top = (width - square) // 2, (height - square) // 2
    image = image.crop((left, top, left + square, top + square))
    if square != side:
        image = image.resize((side, side), Image.Resampling.BOX if square > side else Image.Resampling.BICUBIC)
    return np.asarray(image)


@needs_jpeg
@settings(deadline=None, max_examples=60)
@given(
    size=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    side=st.integers(1, 160),
    window=st.floats(0, 1),
    place=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    quality=st.integers(5, 100),
    subsampling=st.integers(0, 2),
    progressive=st.booleans(),
    grey=st.booleans(),
    same=st.booleans(),
)
def test_the_pixels_of_pillow(tmp_path_factory, size, side, window, place, same, **options):
    folder = tmp_path_factory.mktemp("images")
    blob = noisy_jpeg(np.random.default_rng(side), *size, **options)
    (folder / "a.jpg").write_bytes(blob)
    side = min(size) if same else side
    data = open_dataset(folder, image_size=side, cache_dir=folder / "cache")
    whole = square_of(blob, side)
    np.testing.assert_array_equal(data.images([0])[0], whole)
    width = max(round(window * side), 1)
    top, left = (int(p * (side - width)) for p in place)
    cut = data.windows([0], [(top, left)], width)[0]
    np.testing.assert_array_equal(cut, whole[top : top + width, left : left + width])


@needs_jpeg
def test_jpegs_are_decoded_natively(monkeypatch, write_folder, make_picture, encode):
    """And nothing but what Pillow alone can do goes its way: rotated, CMYK, other formats, flawed files."""
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = make_picture(1, 24, 16)
    cmyk = io.BytesIO()
    Image.fromarray(wide).convert("CMYK").save(cmyk, "JPEG")
    flawed = encode(wide)[:-2] + b"\0\0\0rubbish\xff\xd9"
    files = {
        "a-plain.jpg": encode(wide),
        "b-rotated.jpg": encode(wide, exif=exif),
        "c-cmyk.jpg": cmyk.getvalue(),
        "d-png.png": encode(wide, "PNG"),
        "e-flawed.jpg": flawed,
        "f-upright.jpg": encode(wide, exif=Image.Exif()),
    }
    data = open_dataset(write_folder(files), image_size=12)
    went = []
    real = data._storage.read_many
    monkeypatch.setattr(data._storage, "read_many", lambda items: went.extend(items.tolist()) or real(items))
    native_way = data.images(range(6))
    assert went == [1, 2, 3, 4]
    monkeypatch.setattr(native, "decodes_jpeg", lambda: False)
    np.testing.assert_array_equal(data.images(range(6)), native_way)


@pytest.fixture(params=["folder", "tar", "zip", "deflated zip", "npy", "cifar"])
def source(request, tmp_path, files, write_folder):
    """A data set in one file or folder, and the function that flips one bit of item 1's record."""
    path = tmp_path / "source"
    if request.param == "folder":
        path = write_folder({name: blob for name, blob in files.items() if name.startswith("train")})
    elif request.param == "tar":
        with tarfile.open(path, "w") as archive:
            for name, blob in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(blob)
                archive.addfile(info, io.BytesIO(blob))
    elif request.param in ("zip", "deflated zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if "deflated" in request.param else 0) as archive:
            for name, blob in files.items():
                archive.writestr(name, blob)
    elif request.param == "npy":
        with path.open("wb") as file:
            np.save(file, np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8))
    else:
        path.mkdir()
        rows = np.random.default_rng(0).integers(0, 10, (4, 3073), dtype=np.uint8)
        for k in range(1, 6):
            (path / f"data_batch_{k}.bin").write_bytes(rows.tobytes())
        (path / "test_batch.bin").write_bytes(rows.tobytes())
    data = open_dataset(path, split="train" if request.param not in ("npy",) else None)

    def damage() -> None:
        row = data.table.slice(1, 1).to_pylist()[0]
        file = row["container"] or os.path.join(path, row["key"] if request.param == "folder" else "")
        if request.param == "folder":
            file = os.path.join(path, "train", row["key"]) if not os.path.exists(file) else file
        status = os.stat(file)
        with open(file, "r+b") as handle:
            handle.seek(row["offset"] + row["length"] // 2)
            byte = handle.read(1)[0]
            handle.seek(-1, os.SEEK_CUR)
            handle.write(bytes([byte ^ 1]))
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # silently: neither size nor time tells

    return data, damage


@pytest.mark.parametrize("way", ["native", "general"])
def test_a_changed_bit_is_noticed_in_every_format(source, way, monkeypatch):
    data, damage = source
    before = data.images(range(len(data)))
    damage()
    if way == "general":
        monkeypatch.setattr(native, "decodes_jpeg", lambda: False)
    with pytest.raises(InputError, match=r"checksum differs.*verify=False"):
        data.images(range(len(data)))
    with pytest.raises(InputError, match="checksum differs"):
        data.read(1)
    others = [0, *range(2, len(data))]
    np.testing.assert_array_equal(data.images(others), before[others])  # the rest is not lost


def test_verify_false_takes_no_sums_and_checks_none(source):
    data, damage = source
    unchecked = open_dataset(data.path, split=data.split if data.split != "all" else None, verify=False)
    damage()
    with pytest.raises(InputError, match="checksum"):
        data.read(1)
    unchecked._storage.read_raw(1)


def test_sums_are_asked_for_or_not(write_folder, files, tmp_path, monkeypatch):
    root, cache = write_folder(files), tmp_path / "cache"
    none = open_dataset(root, cache_dir=cache, verify=False)
    assert none.table["sum"].null_count == len(none)
    assert open_dataset(root, cache_dir=cache).table["sum"].null_count == len(none)  # not worth a second pass
    asked = open_dataset(root, cache_dir=cache, verify=True)
    assert asked.table["sum"].to_pylist() == [native.xxh3(asked.read(k)) for k in range(len(asked))]
    assert open_dataset(root, cache_dir=cache).table["sum"].null_count == 0  # they are kept
    assert none.fingerprint == asked.fingerprint
    monkeypatch.setattr(table, "AUTO_SUM_BYTES", 10)
    large = open_dataset(root, cache_dir=tmp_path / "other")
    assert large.table["sum"].null_count == len(large)
    with pytest.raises(InputError, match="verify='yes'"):
        open_dataset(root, verify="yes")
    monkeypatch.setattr(native, "images", None)
    with pytest.raises(MachineError, match="verify=True"):
        open_dataset(root, verify=True)


def test_a_file_that_shrinks_raises(write_folder, files):
    root = write_folder(files)
    data = open_dataset(root)
    file = root / "train/cat/0.jpg"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"cat/0\.jpg.*changed|cat/0\.jpg.*ends before"):
        data.images([0])
    file.unlink()
    with pytest.raises(InputError, match=r"cat/0\.jpg.*no such file"):
        data.images([0])


def test_windows_refuse_what_leaves_the_image(write_folder, files):
    data = open_dataset(write_folder(files))
    for corners, size in (([(9, 0)], 8), ([(-1, 0)], 8), ([(0, 0)], 17), ([(0, 0)], 0), ([0, 0], 4), ([(0.5, 0)], 4)):
        with pytest.raises(InputError, match=r"corners|size"):
            data.windows([0], corners, size)
    assert data.windows([], np.zeros((0, 2), int), 4).shape == (0, 4, 4, 3)


@pytest.mark.parametrize("kind", ["jpg", "npy"])
def test_a_busy_main_thread_does_not_stop_reading(kind, tmp_path, write_folder, make_picture, encode):
    """The reader needs the interpreter once a batch. Not a timing: a record that needs it waits 5 ms for its turn
    beside a busy thread, so 2,000 records would take 10 s.
    """
    if kind == "jpg":
        if not native.decodes_jpeg():
            pytest.skip("built without libjpeg-turbo")
        path = write_folder({f"{k}.jpg": encode(make_picture(k, 8, 8)) for k in range(50)})
    else:
        path = tmp_path / "a.npy"
        np.save(path, np.zeros((50, 8, 8, 3), dtype=np.uint8))
    data = open_dataset(path)
    items = np.tile(np.arange(50), 40)
    done = threading.Event()
    thread = threading.Thread(target=lambda: (data.images(items), done.set()))
    start = time.perf_counter()
    thread.start()
    while not done.is_set() and time.perf_counter() - start < 8:
        sum(range(1000))
    assert done.is_set()
    thread.join()


def test_a_file_is_mapped_once_by_threads_that_ask_at_once(tmp_path, monkeypatch):
    """A second map took the place of the first, and the first was unmapped under the thread that copied from it."""
    np.save(tmp_path / "a.npy", np.zeros((4, 8, 8, 3), np.uint8))
    storage = open_dataset(tmp_path / "a.npy")._storage
    made = []
    original = mmap.mmap

    def slow(*arguments, **options):
        time.sleep(0.1)  # the others come here meanwhile
        made.append(1)
        return original(*arguments, **options)

    monkeypatch.setattr(mmap, "mmap", slow)
    found = []
    threads = [threading.Thread(target=lambda: found.append(storage.mapped(0))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert all(one is found[0] for one in found)


@pytest.mark.parametrize("handler", ["faulthandler", "none", "own"])
def test_a_mapped_file_that_shrinks_raises(tmp_path, handler):
    """Rows are copied out of a memory map, and what a map does where its file has ended kills a process. In one of its
    own, therefore: with pytest's handler of that signal, none, and one of the program.
    """
    rows = np.random.default_rng(0).integers(0, 256, (64, 64, 64, 3), dtype=np.uint8)
    np.save(tmp_path / "a.npy", rows)
    script = (
        "import faulthandler, os, signal, sys, numpy as np\n"
        "from prunefast.data import open_dataset\n"
        "from prunefast.errors import InputError\n"
        "handler, path = sys.argv[1:]\n"
        "if handler == 'faulthandler': faulthandler.enable()\n"
        "if handler == 'own': signal.signal(signal.SIGBUS, lambda *_: os._exit(3))\n"
        "data = open_dataset(path)\n"
        "before = data.images(range(64))\n"
        "assert data._storage.mapped(0) is not None\n"
        "os.truncate(path, 32 * 12288 + 1000)\n"  # and in mid-page, where a map reads zeros
        "for gone in (63, 32, 31.9):\n"
        "    try:\n"
        "        data.images([int(gone)] if gone != 31.9 else range(20, 40))\n"
        "    except InputError as error: print(str(error).count('cut short'))\n"
        "assert (data.images(range(31)) == before[:31]).all()\n"
        "try: data.images([32])\n"
        "except InputError: print('alive')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, handler, tmp_path / "a.npy"], capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout.split()) == (0, ["1", "1", "1", "alive"]), ended.stderr


def test_a_bus_error_of_somebody_else_is_left_to_them(tmp_path):
    """Not swallowed, not repeated for ever: the process ends as it would have."""
    np.save(tmp_path / "a.npy", np.zeros((4, 64, 64, 3), dtype=np.uint8))
    script = (
        "import mmap, os, sys\n"
        "from prunefast.data import open_dataset\n"
        "open_dataset(sys.argv[1]).images([0])\n"
        "file = open(sys.argv[1], 'r+b')\n"
        "map = mmap.mmap(file.fileno(), 0)\n"
        "os.truncate(sys.argv[1], 100)\n"
        "map[20000]\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, tmp_path / "a.npy"], capture_output=True, timeout=60)
    assert ended.returncode == -signal.SIGBUS
