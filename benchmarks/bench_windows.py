"""Patch Diffusion on JPEGs of 512 px: the loader that decodes whole images and one that decodes the windows it uses.

    pytest benchmarks/bench_windows.py --benchmark-group-by=group --benchmark-columns=min,median

A round is 64 images from disk, one decoding thread, from an open loader's start to its end. On a machine that is not
quiet add --benchmark-timer=time.process_time.
"""

import numpy as np
import pytest
from PIL import Image

from prunefast.data import open_dataset
from prunefast.diffusion import PatchSchedule
from prunefast.select import Coreset
from prunefast.stream import CoresetLoader

SIDE, IMAGES = 512, 64


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for number in range(IMAGES):
        coarse = generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(np.int64)
        grain = generator.integers(-12, 13, smooth.shape)
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg", quality=85)
    return open_dataset(folder, image_size=SIDE)


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("read", ["whole images", "windows"])
def test_read(benchmark, photos, read, level):
    schedule = PatchSchedule(SIDE, p=0.5)
    benchmark.group = f"{IMAGES} JPEGs of {SIDE} px for patches of {SIDE >> level}"
    schedule.at = lambda position: schedule.patches[level]  # type: ignore[method-assign]
    windows = schedule.windows if read == "windows" else None

    def go_through() -> None:
        options = {"batch_size": 16, "epochs": 1, "placement": "disk", "threads": 1}
        for batch in CoresetLoader(photos, Coreset.full(photos), windows=windows, **options):
            assert batch.images.shape[-1] == (SIDE >> level if windows else SIDE)

    benchmark.pedantic(go_through, rounds=7, warmup_rounds=1)
