"""Pictures whose duplicates are known, because they were made here."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIZE = (120, 90)


def picture(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """A smooth random image with a few rectangles: no two are alike."""
    rng = np.random.default_rng([17, seed])
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    pixels = np.array(coarse)
    for _ in range(4):
        y, x = rng.integers(0, size[1] - 20), rng.integers(0, size[0] - 20)
        pixels[y : y + rng.integers(10, 45), x : x + rng.integers(10, 45)] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def make_picture() -> Callable[..., Image.Image]:
    return picture


@pytest.fixture
def encode() -> Callable[..., bytes]:
    return encoded


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """12 pictures: a.jpg of each, and copies of some: the same bytes, another encoding, a smaller one, mirrored."""
    root = tmp_path_factory.mktemp("dedup") / "photos"
    for seed in range(12):
        place = root / ("cat" if seed % 2 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        image = picture(seed)
        (place / f"{seed:02}a.jpg").write_bytes(encoded(image, quality=90))
        if seed in (1, 2):
            (place / f"{seed:02}copy.jpg").write_bytes(encoded(image, quality=90))
        if seed in (1, 3):
            (place / f"{seed:02}q.jpg").write_bytes(encoded(image, quality=50))
        if seed in (4, 5):
            (place / f"{seed:02}small.png").write_bytes(encoded(image.resize((60, 45), Image.Resampling.BOX), "PNG"))
        if seed == 6:
            (place / "06mirror.jpg").write_bytes(encoded(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), quality=90))
    return root
