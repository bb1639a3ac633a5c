"""What a sparse coreset costs a disk and the memory: cold reads against a memory map, bytes asked for and read, growth
over ten epochs, the first batch of 1,281,167 images; and the loaders of bench_records.py in turn, round by round. Linux
only: it throws files out of the page cache and reads /proc/self/io.

python benchmarks/stream_reads.py [cold] [bytes] [memory] [first] [warm]
"""

import contextlib
import ctypes
import gc
import io
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from prunefast.data import ImageDataset, open_dataset
from prunefast.data.buffers import Buffers
from prunefast.stream import CoresetLoader

ROUNDS, BATCH, PAGE = 5, 256, 4096
COLD_BYTES = 512 << 20  # of each file
IMAGENET = 1_281_167


def forget(path: Path) -> None:
    """Out of the page cache."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def counters() -> dict[str, int]:
    return {name: int(value) for name, value in (line.split(": ") for line in open("/proc/self/io"))}


def load() -> str:
    return f"load {os.getloadavg()[0]:.1f}"


def rows_file(folder: Path, side: int) -> Path:
    path, row = folder / f"{side}.npy", side * side * 3
    count = COLD_BYTES // row
    pixels = np.lib.format.open_memmap(path, "w+", np.uint8, (count, side, side, 3))
    block = np.random.default_rng(side).integers(0, 256, (max(1, (8 << 20) // row), side, side, 3), dtype=np.uint8)
    for start in range(0, count, len(block)):
        pixels[start : start + len(block)] = block[: count - start]
    pixels.flush()
    return path


def batches_of(indices: np.ndarray) -> Iterator[np.ndarray]:
    return iter([indices[k : k + BATCH] for k in range(0, len(indices), BATCH)])


def ours(data: ImageDataset, indices: np.ndarray) -> Callable[[], None]:
    buffers = Buffers()

    def read() -> None:
        for _ in data.decode_ahead(batches_of(indices), 2, buffers):
            pass

    return read


def memmap(path: Path, indices: np.ndarray) -> Callable[[], None]:
    def read() -> None:
        pixels = np.load(path, mmap_mode="r")
        for part in batches_of(indices):
            pixels[part]

    return read


def preads(data: ImageDataset, indices: np.ndarray) -> Callable[[], None]:
    """A call of Python a record."""
    descriptor = data._storage.descriptor(0)
    offset, length = data._storage.offset, data._storage.length
    assert offset is not None

    def read() -> None:
        for item in indices.tolist():
            os.pread(descriptor, int(length[item]), int(offset[item]))

    return read


def beside_a_busy_thread(read: Callable[[], None]) -> None:
    thread = threading.Thread(target=read)
    thread.start()
    while thread.is_alive():
        sum(range(200))


def cold(folder: Path) -> None:
    for side in (52, 64, 256):
        path = rows_file(folder, side)
        data = open_dataset(path, cache_dir=folder / "cache")
        tenth = np.random.default_rng(0).permutation(len(data))[: len(data) // 10]
        chosen = len(tenth) * side * side * 3
        readers = {"ours": ours(data, tenth), "np.memmap": memmap(path, tenth), "os.pread": preads(data, tenth)}
        for busy in (False, True):
            seconds: dict[str, list[float]] = {name: [] for name in readers}
            disk: dict[str, int] = {}
            for _ in range(ROUNDS):
                for name, read in readers.items():
                    if busy and name == "os.pread" and len(seconds[name]) > 0:
                        continue  # it takes minutes
                    data._storage._maps.clear()  # what is mapped cannot be thrown out
                    gc.collect()
                    forget(path)
                    before = counters()
                    began = time.perf_counter()
                    if busy:
                        beside_a_busy_thread(read)
                    else:
                        read()
                    seconds[name].append(time.perf_counter() - began)
                    disk[name] = counters()["read_bytes"] - before["read_bytes"]
            where = "beside a busy main thread" if busy else "quiet"
            for name, taken in seconds.items():
                ratio = statistics.median(seconds["np.memmap"]) / statistics.median(taken)
                print(
                    f"cold, {side * side * 3:,} bytes a record, {len(tenth):,} of {len(data):,}, {where}, {name}: "
                    f"{min(taken) * 1e3:.0f} ms min, {statistics.median(taken) * 1e3:.0f} median, {ratio:.2f} times "
                    f"np.memmap, {disk[name] / chosen:.2f} bytes read from disk a byte chosen, {load()}",
                    flush=True,
                )
        del data, readers
        path.unlink()


def picture(rng: np.random.Generator, side: int) -> bytes:
    file = io.BytesIO()
    coarse = Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8))
    coarse.resize((side, side), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def jpegs(root: Path, side: int, count: int) -> dict[str, Path]:
    rng = np.random.default_rng(side)
    places = {"folder": root / "folder", "tar": root / "a.tar", "zip": root / "a.zip"}
    places["folder"].mkdir(parents=True)
    with tarfile.open(places["tar"], "w") as tar, zipfile.ZipFile(places["zip"], "w") as archive:
        for k in range(count):
            name, blob = f"{k:06}.jpg", picture(rng, side)
            (places["folder"] / name).write_bytes(blob)
            info = tarfile.TarInfo(name)
            info.size = len(blob)
            tar.addfile(info, io.BytesIO(blob))
            archive.writestr(name, blob)
    return places


def asked_and_read(folder: Path) -> None:
    for side, count in ((64, 8000), (256, 2000)):
        places = jpegs(folder / f"jpeg{side}", side, count)
        places["npy"] = rows_file(folder, side)
        for kind, path in places.items():
            data = open_dataset(path, cache_dir=folder / "cache")
            tenth = np.random.default_rng(0).permutation(len(data))[: len(data) // 10]
            length = data._storage.length[tenth]
            offset = np.zeros_like(length) if kind == "folder" else data._storage.offset[tenth]  # type: ignore[index]
            first, last = offset // PAGE, (offset + length - 1) // PAGE
            if kind == "folder":
                pages = int((last - first + 1).sum())
            else:
                pages = len(np.unique(np.concatenate([np.arange(a, b + 1) for a, b in zip(first, last, strict=True)])))
            for file in sorted(path.iterdir()) if path.is_dir() else [path]:
                forget(file)
            before = counters()
            ours(data, tenth)()
            after = counters()
            asked, disk = (after[name] - before[name] for name in ("rchar", "read_bytes"))
            print(
                f"bytes, {side} px, {kind}: {asked / length.sum():.3f} asked for a byte chosen, "
                f"{disk / (pages * PAGE):.3f} read from disk a byte of the pages that cover them, {load()}",
                flush=True,
            )
        places["npy"].unlink()


class Coreset:
    def __init__(self, indices: np.ndarray):
        self.indices, self.weights = indices, np.ones(len(indices), np.float32)
        self.fingerprint = "measured"


def resident_bytes() -> int:
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory(folder: Path) -> None:
    os.environ["PRUNEFAST_CACHE"] = str(folder / "cache")
    places = jpegs(folder / "memory", 64, 8000)
    for kind, path in places.items():
        for placement in ("disk", "pack"):
            data = open_dataset(path)
            coreset = Coreset(np.sort(np.random.default_rng(0).permutation(len(data))[:4000]))
            options = {"batch_size": 64, "epochs": 1, "threads": 2, "placement": placement}
            loader = CoresetLoader(data, coreset, **options)  # type: ignore[arg-type]
            sizes = []
            for _ in range(11):
                for _ in loader:
                    pass
                sizes.append(resident_bytes())
            grown = [(size - sizes[0]) / 1e6 for size in sizes[1:]]
            print(
                f"memory, 4,000 of 8,000 JPEGs, {kind}, {placement}: {sizes[0] / 1e6:.0f} MB after an epoch; ten "
                f"more: {min(grown):+.1f} to {max(grown):+.1f} MB, {load()}",
                flush=True,
            )


FIRST = """
import sys, time
began = time.perf_counter()
import numpy as np
from prunefast.data import open_dataset
from prunefast.stream import CoresetLoader
sys.path.insert(0, sys.argv[3])
from stream_reads import Coreset
imported = time.perf_counter()
data = open_dataset(sys.argv[1], cache_dir=sys.argv[2])
opened = time.perf_counter()
indices = np.arange(0, len(data), 10)
loader = CoresetLoader(data, Coreset(indices), batch_size=256, placement="disk")
next(iter(loader))
print(len(data), opened - imported, time.perf_counter() - opened, imported - began)
"""


def first(folder: Path) -> None:
    path, blob = folder / "imagenet.tar", picture(np.random.default_rng(0), 8)
    with open(path, "wb", buffering=1 << 20) as file:
        for k in range(IMAGENET):
            info = tarfile.TarInfo(f"n{k % 1000:08}/n{k % 1000:08}_{k:07}.JPEG")
            info.size = len(blob)
            file.write(info.tobuf(tarfile.USTAR_FORMAT) + blob + bytes(-len(blob) % 512))
        file.write(bytes(1024))
    began = time.perf_counter()
    data = open_dataset(path, cache_dir=folder / "cache")
    print(f"first, {len(data):,} images in a tar, opened the first time: {time.perf_counter() - began:.1f} s, {load()}")
    del data
    found = []
    for _ in range(ROUNDS):
        out = subprocess.run(
            [sys.executable, "-c", FIRST, path, folder / "cache", Path(__file__).parent],
            capture_output=True,
            text=True,
            check=True,
        )
        found.append([float(word) for word in out.stdout.split()])
    for name, column in (("opening", 1), ("the first batch of a tenth, after it", 2), ("imports, before", 3)):
        taken = [row[column] for row in found]
        print(f"first, {name}: {min(taken):.3f} s min, {statistics.median(taken):.3f} median, {load()}", flush=True)


def warm(folder: Path) -> None:
    import bench_records

    for side in (64, 256):
        (folder / str(side)).mkdir()
        source = bench_records.Source(folder / str(side), side)
        for part in ("tenth", "all"):
            indices = getattr(source, part)
            readers = {name: prepare(source, indices) for name, prepare in bench_records.LOADERS.items()}
            seconds: dict[str, list[float]] = {name: [] for name in readers}
            for number in range(ROUNDS + 2):
                for name, read in readers.items():
                    if number > ROUNDS and name == "webdataset":
                        continue
                    began = time.perf_counter()
                    assert read() == len(indices)
                    if number:
                        seconds[name].append(time.perf_counter() - began)
            for name, taken in seconds.items():
                print(
                    f"warm, {side} px, {part} ({len(indices):,}), {name}: {min(taken) * 1e3:.2f} ms min, "
                    f"{statistics.median(taken) * 1e3:.2f} median, {load()}",
                    flush=True,
                )


WORK: dict[str, Callable[[Path], Any]] = {
    "cold": cold,
    "bytes": asked_and_read,
    "memory": memory,
    "first": first,
    "warm": warm,
}


def main() -> None:
    with contextlib.ExitStack() as stack:
        for name in sys.argv[1:] or WORK:
            WORK[name](Path(stack.enter_context(tempfile.TemporaryDirectory())))


if __name__ == "__main__":
    main()
