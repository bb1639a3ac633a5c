"""Records by index from every source: a random tenth and all, of 64 and 256 px JPEGs, against the loaders people use.

pytest benchmarks/bench_records.py

Peers: a torch DataLoader with two workers and Pillow over a folder; webdataset over a tar with the coreset as a filter
(it cannot skip); a NumPy memory map of the decoded pixels; FFCV, whose files (.beton) are made of the same pixels
before, as JPEGs of the same quality and raw. Workers of the peers live on from round to round, ours start with each.
PRUNEFAST_BENCH_IMAGES: how many images of 64 px (default 4,000), a quarter of it at 256 px.
"""

import io
import os
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prunefast.data import ImageDataset, native, open_dataset
from prunefast.data.buffers import Buffers
from prunefast.stream.pack import pack

BATCH = 64
IMAGES = int(os.environ.get("PRUNEFAST_BENCH_IMAGES", "4000"))
COUNT = {64: IMAGES, 256: IMAGES // 4}


class Source:
    """The same JPEGs in a folder, a tar and a zip, and their pixels as an array and as PNGs."""

    def __init__(self, root: Path, side: int):
        self.side, self.count = side, COUNT[side]
        rng = np.random.default_rng(side)
        self.folder, self.png, self.tar, self.zip, self.npy = (
            root / name for name in ("folder", "png", "a.tar", "a.zip", "a.npy")
        )
        self.folder.mkdir()
        self.png.mkdir()
        pixels = np.lib.format.open_memmap(self.npy, "w+", np.uint8, (self.count, side, side, 3))
        with tarfile.open(self.tar, "w") as tar, zipfile.ZipFile(self.zip, "w", zipfile.ZIP_STORED) as archive:
            for k in range(self.count):
                coarse = Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8))
                buffer = io.BytesIO()
                coarse.resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
                blob, name = buffer.getvalue(), f"{k:06}.jpg"
                (self.folder / name).write_bytes(blob)
                info = tarfile.TarInfo(name)
                info.size = len(blob)
                tar.addfile(info, io.BytesIO(blob))
                archive.writestr(name, blob)
                pixels[k] = np.asarray(Image.open(io.BytesIO(blob)))
                Image.fromarray(pixels[k]).save(self.png / f"{k:06}.png")
        pixels.flush()
        self.tenth = np.random.default_rng(0).permutation(self.count)[: self.count // 10]
        self.all = np.arange(self.count)
        self.opened = {
            kind: open_dataset(getattr(self, kind), cache_dir=root / "cache")
            for kind in ("folder", "png", "tar", "zip", "npy")
        }


@pytest.fixture(scope="session", params=[64, 256])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Source:
    return Source(tmp_path_factory.mktemp(f"px{request.param}"), request.param)


class Pixels(torch.utils.data.Dataset):
    """For FFCV's writer."""

    def __init__(self, source: Source):
        self.pixels = np.load(source.npy, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, item: int) -> tuple[np.ndarray]:
        return (np.ascontiguousarray(self.pixels[item]),)


def ffcv(mode: str) -> Callable[[Source, np.ndarray], Callable[[], int]]:
    def prepare(source: Source, indices: np.ndarray) -> Callable[[], int]:
        pytest.importorskip("ffcv")
        from ffcv.fields import RGBImageField
        from ffcv.fields.decoders import SimpleRGBImageDecoder
        from ffcv.loader import Loader, OrderOption
        from ffcv.writer import DatasetWriter

        path = source.npy.with_name(f"{mode}.beton")
        if not path.exists():
            field = RGBImageField(write_mode=mode, jpeg_quality=90)
            DatasetWriter(str(path), {"image": field}, num_workers=1).from_indexed_dataset(Pixels(source))
        loader = Loader(
            str(path),
            batch_size=BATCH,
            num_workers=2,
            order=OrderOption.RANDOM,
            indices=indices,
            os_cache=True,
            drop_last=False,
            pipelines={"image": [SimpleRGBImageDecoder()]},
        )
        return lambda: sum(len(images) for (images,) in loader)

    return prepare


class PillowFolder(torch.utils.data.Dataset):
    def __init__(self, folder: Path, suffix: str, indices: np.ndarray):
        self.paths = [folder / f"{k:06}{suffix}" for k in indices]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: int) -> torch.Tensor:
        with Image.open(self.paths[item]) as image:
            return torch.from_numpy(np.array(image.convert("RGB")))


def dataloader(kind: str = "folder", suffix: str = ".jpg") -> Callable[[Source, np.ndarray], Callable[[], int]]:
    def prepare(source: Source, indices: np.ndarray) -> Callable[[], int]:
        images = PillowFolder(getattr(source, kind), suffix, indices)
        loader = torch.utils.data.DataLoader(images, batch_size=BATCH, num_workers=2, persistent_workers=True)
        return lambda: sum(len(batch) for batch in loader)

    return prepare


def webdataset(source: Source, indices: np.ndarray) -> Callable[[], int]:
    wds = pytest.importorskip("webdataset")
    wanted = {f"{k:06}" for k in indices}
    data = wds.WebDataset(str(source.tar), shardshuffle=False, empty_check=False)
    data = data.select(lambda sample: sample["__key__"] in wanted).decode("rgb8").to_tuple("jpg")
    loader = wds.WebLoader(data, batch_size=None, num_workers=1, persistent_workers=True)
    return lambda: sum(1 for _ in loader)


def memmap(source: Source, indices: np.ndarray) -> Callable[[], int]:
    pixels = np.load(source.npy, mmap_mode="r")
    out = np.empty((BATCH, source.side, source.side, 3), dtype=np.uint8)

    def read() -> int:
        for start in range(0, len(indices), BATCH):
            part = indices[start : start + BATCH]
            np.take(pixels, part, axis=0, out=out[: len(part)], mode="clip")
        return len(indices)

    return read


def ours(kind: str, decode: str = "") -> Callable[[Source, np.ndarray], Callable[[], int]]:
    """decode: what PRUNEFAST_DECODE says; "processes" and "threads" are what a build without libjpeg-turbo has."""

    def prepare(source: Source, indices: np.ndarray) -> Callable[[], int]:
        data: ImageDataset = source.opened[kind]
        buffers = Buffers()
        parts = [indices[k : k + BATCH] for k in range(0, len(indices), BATCH)]

        def read() -> int:
            os.environ[native.DECODE_VARIABLE] = decode
            return sum(len(images) for _, images in data.decode_ahead(iter(parts), 2, buffers))

        return read

    return prepare


def packed(source: Source, indices: np.ndarray) -> Callable[[], int]:
    """The pack of a coreset, which holds its images alone."""
    data = pack(source.opened["tar"], np.sort(indices), source.npy.parent / "cache")
    order, buffers = np.random.default_rng(1).permutation(len(data)), Buffers()
    parts = [order[k : k + BATCH] for k in range(0, len(order), BATCH)]
    return lambda: sum(len(images) for _, images in data.decode_ahead(iter(parts), 2, buffers))


LOADERS = {
    "prunefast folder": ours("folder"),
    "prunefast tar": ours("tar"),
    "prunefast zip": ours("zip"),
    "prunefast tar, processes": ours("tar", "processes"),
    "prunefast tar, Python threads": ours("tar", "threads"),
    "DataLoader Pillow": dataloader(),
    "webdataset": webdataset,
    "ffcv jpg": ffcv("jpg"),
    "prunefast pack": packed,
    "ffcv raw": ffcv("raw"),
    "prunefast npy": ours("npy"),
    "np.memmap": memmap,
    "prunefast PNG": ours("png"),
    "prunefast PNG, Python threads": ours("png", "threads"),
    "DataLoader Pillow PNG": dataloader("png", ".png"),
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("part", ["tenth", "all"])
def test_read(benchmark, source: Source, loader: str, part: str) -> None:
    benchmark.group = f"{part} of {source.count} JPEGs, {source.side} px"
    indices = getattr(source, part)
    read = benchmark.pedantic(LOADERS[loader](source, indices), rounds=5, warmup_rounds=1)
    assert read == len(indices)
    benchmark.extra_info["images_per_second"] = len(indices) / benchmark.stats.stats.min


@pytest.fixture
def busy_main_thread() -> Iterator[Callable[[Callable[[], int]], int]]:
    """Runs a reader in a thread while the main thread runs Python without a pause."""

    def run(read: Callable[[], int]) -> int:
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(read()))
        thread.start()
        while thread.is_alive():
            sum(range(200))
        return found[0]

    return run


@pytest.mark.parametrize(
    "loader",
    [
        "prunefast tar",
        "prunefast tar, processes",
        "prunefast tar, Python threads",
        "prunefast PNG",
        "prunefast PNG, Python threads",
        "prunefast npy",
        "np.memmap",
    ],
)
def test_read_beside_a_busy_main_thread(benchmark, source: Source, loader: str, busy_main_thread) -> None:
    benchmark.group = f"a tenth of {source.count}, {source.side} px, beside a busy main thread"
    reader = LOADERS[loader](source, source.tenth)
    read = benchmark.pedantic(busy_main_thread, (reader,), rounds=5, warmup_rounds=1)
    assert read == len(source.tenth)


@pytest.mark.parametrize("way", ["windows of 128 px", "whole images, then cut"])
def test_patches(benchmark, tmp_path_factory: pytest.TempPathFactory, way: str) -> None:
    """R / 4 patches of 512 px JPEGs: decoding the window only."""
    benchmark.group = "128 px patches of 200 JPEGs, 512 px"
    root = tmp_path_factory.mktemp("px512")
    rng = np.random.default_rng(0)
    for k in range(200):
        coarse = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        coarse.resize((512, 512), Image.Resampling.BICUBIC).save(root / f"{k}.jpg", quality=90)
    data = open_dataset(root, cache_dir=root / ".cache")
    corners = rng.integers(0, 512 - 128 + 1, (200, 2))

    def windows() -> int:
        return len(data.windows(np.arange(200), corners, 128))

    def whole() -> int:
        images = data.images(np.arange(200))
        return len(np.stack([image[y : y + 128, x : x + 128] for image, (y, x) in zip(images, corners, strict=True)]))

    benchmark.pedantic(windows if way.startswith("windows") else whole, rounds=5, warmup_rounds=1)
