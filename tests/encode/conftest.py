"""Stand-ins for data sets, and real images where they are at hand."""

import hashlib

import numpy as np
import pytest


class Pictures:
    """Anything with len() and `.images`: what `embed` asks of data at least."""

    def __init__(self, images, image_size="same", fingerprint=None):
        self.array = np.asarray(images, dtype=np.uint8)
        self.keys = [f"{i:05}.png" for i in range(len(self.array))]
        self.labels, self.classes = None, []
        self.fingerprint = fingerprint or hashlib.sha256(self.array.tobytes()).hexdigest()
        self.image_size = self.array.shape[1] if image_size == "same" else image_size
        self.read = []

    def __len__(self):
        return len(self.array)

    def images(self, indices):
        self.read += [int(i) for i in indices]
        return np.ascontiguousarray(self.array[indices])


def random_images(count, side, seed=0):
    """Smooth random images: noise on a 4 x 4 grid enlarged, plus a little fine noise."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (count, 4, 4, 3))
    pick = np.arange(side) * 4 // side
    fine = random.integers(-20, 21, (count, side, side, 3))
    return np.clip(coarse[:, pick][:, :, pick] + fine, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def pictures():
    return lambda count=50, side=16, seed=0, **more: Pictures(random_images(count, side, seed), **more)


@pytest.fixture(scope="session")
def make_pictures():
    return Pictures
