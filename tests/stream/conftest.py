"""A stand-in for a coreset: only what streaming uses."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from PIL import Image

from prunefast.data import from_arrays


@dataclass
class StandIn:
    indices: np.ndarray
    weights: np.ndarray
    fingerprint: str = "0123456789abcdef0123456789abcdef"
    data_fingerprint: str | None = None
    labels: np.ndarray | None = field(default=None)


def stand_in(indices, weights=None, **more):
    indices = np.asarray(indices, dtype=np.int64)
    return StandIn(indices, np.arange(len(indices), dtype=np.float32) if weights is None else weights, **more)


@pytest.fixture
def make_coreset():
    return stand_in


@pytest.fixture
def data():
    """100 images of 8 x 8 that say their own number: pixel (0, 0) is (k, 255 - k, k // 2)."""
    pixels = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 3), dtype=np.uint8)
    numbers = np.arange(100)
    pixels[:, 0, 0] = np.stack([numbers, 255 - numbers, numbers // 2], axis=1)
    return from_arrays(pixels, labels=numbers % 7)


@pytest.fixture
def coreset():
    """37 of the 100 images."""
    return stand_in(np.sort(np.random.default_rng(1).permutation(100)[:37]))


@pytest.fixture
def write_images(tmp_path):
    def write(shapes):
        for k, shape in enumerate(shapes):
            pixels = np.random.default_rng(k).integers(0, 256, (*shape, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{k:03}.jpg")
        return tmp_path

    return write
