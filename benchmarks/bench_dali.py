"""The DALI loader on the CPU: beside the native one, and beside DALI's own reader over the same files.

pytest benchmarks/bench_dali.py

The native loader, the DALI loader and a plain DALI pipeline (`readers.file` with the coreset's paths, its buffer of
random order, the same decoder) read the same files, two threads each, warm cache. The plain pipeline has neither sums,
nor an order that can be continued, nor labels of ours; it resizes by its triangular filter, as it has no box filter;
and it works on between the rounds, so that only its rows for all images say something. On a GPU:
`benchmarks/gpu/run.sh decode`. PRUNEFAST_BENCH_IMAGES: how many images (default 4,000 of 64 px, a quarter of it of
256 px).
"""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prunefast.data import ImageDataset, open_dataset
from prunefast.stream import CoresetLoader

pytest.importorskip("nvidia.dali", reason="DALI is not installed (pip install 'prunefast[dali]')")

BATCH, THREADS = 64, 2
IMAGES = int(os.environ.get("PRUNEFAST_BENCH_IMAGES", "4000"))


class Coreset:
    def __init__(self, indices: np.ndarray):
        self.indices, self.fingerprint = np.sort(indices), "bench"


class Files:
    """JPEGs of one size in a folder, opened at the size they have and at a quarter of it."""

    def __init__(self, root: Path, side: int):
        self.count = IMAGES if side == 64 else IMAGES // 4
        rng = np.random.default_rng(side)
        for k in range(self.count):
            coarse = Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8))
            buffer = io.BytesIO()
            coarse.resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
            (root / f"{k:06}.jpg").write_bytes(buffer.getvalue())
        self.root = root
        self.data = open_dataset(root, cache_dir=root.parent / f"cache{side}")
        self.tenth = np.random.default_rng(0).permutation(self.count)[: self.count // 10]
        self.all = np.arange(self.count)


@pytest.fixture(scope="session", params=[64, 256])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp(f"px{request.param}"), request.param)


def ours(loader: str) -> Callable[[Files, ImageDataset, np.ndarray], Callable[[], int]]:
    def prepare(files: Files, data: ImageDataset, indices: np.ndarray) -> Callable[[], int]:
        batches = CoresetLoader(
            data, Coreset(indices), batch_size=BATCH, epochs=1, threads=THREADS, placement="disk", loader=loader
        )
        return lambda: sum(len(batch) for batch in batches)

    return prepare


def plain_dali(files: Files, data: ImageDataset, indices: np.ndarray) -> Callable[[], int]:
    from nvidia.dali import Pipeline, fn, types

    side = data.image_size
    pipeline: Any = Pipeline(batch_size=BATCH, num_threads=THREADS, device_id=None, prefetch_queue_depth=2)
    with pipeline:
        paths = [str(files.root / data.keys[k]) for k in indices]
        encoded, _ = fn.readers.file(files=paths, random_shuffle=True, initial_fill=1024, name="reader")
        images = fn.decoders.image(encoded, device="cpu", output_type=types.RGB)
        if side != int(data.widths[0]):
            images = fn.resize(images, size=[side, side], interp_type=types.INTERP_TRIANGULAR)
        pipeline.set_outputs(images)
    pipeline.build()

    def read() -> int:
        return sum(len(pipeline.run()[0]) for _ in range(-(-len(indices) // BATCH)))

    return read


LOADERS = {"native": ours("native"), "dali": ours("dali"), "readers.file": plain_dali}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("size", ["as they are", "a quarter"])
@pytest.mark.parametrize("part", ["tenth", "all"])
def test_read(benchmark: Any, files: Files, part: str, size: str, loader: str) -> None:
    side = int(files.data.widths[0])
    benchmark.group = f"{part} of {files.count} JPEGs of {side} px, {size}"
    data = files.data if size == "as they are" else files.data.with_image_size(side // 4)
    indices = getattr(files, part)
    read = LOADERS[loader](files, data, indices)
    done = benchmark.pedantic(read, rounds=5, warmup_rounds=1)
    assert done >= len(indices)  # the reader fills its last batch up
    benchmark.extra_info["images_per_second"] = done / benchmark.stats.stats.min
