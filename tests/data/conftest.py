"""Small image sets in every format, made by tools other than the code under test (Pillow, tarfile, zipfile, numpy)."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Encode = Callable[..., bytes]


def picture(seed: int, width: int, height: int) -> np.ndarray:
    """A smooth random image, uint8 [H, W, 3]: JPEG keeps it nearly, and no two are alike."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def encoded(pixels: np.ndarray, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def make_picture() -> Callable[[int, int, int], np.ndarray]:
    return picture


@pytest.fixture
def encode() -> Encode:
    return encoded


@pytest.fixture
def files() -> dict[str, bytes]:
    """A data set with splits and three classes, 3 train and 1 test images each, JPEG and PNG of 16 x 16."""
    out = {}
    for split, count in (("train", 3), ("test", 1)):
        for c, name in enumerate(("cat", "dog", "eel")):
            for k in range(count):
                kind, suffix = ("PNG", "png") if k == 1 else ("JPEG", "jpg")
                out[f"{split}/{name}/{k}.{suffix}"] = encoded(picture(100 * c + k + 7 * len(split), 16, 16), kind)
    return out


@pytest.fixture
def write_folder(tmp_path: Path) -> Callable[..., Path]:
    def write(members: dict[str, bytes], name: str = "folder") -> Path:
        root = tmp_path / name
        root.mkdir(exist_ok=True)
        for key, data in members.items():
            (root / key).parent.mkdir(parents=True, exist_ok=True)
            (root / key).write_bytes(data)
        return root

    return write
