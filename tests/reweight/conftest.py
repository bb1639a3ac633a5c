"""A skewed data set of 8 x 8 images and a reference trained on it for a moment."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prunefast.data import ImageDataset, from_arrays
from prunefast.train import TrainConfig, train

NETWORK = {"width": 8, "channel_multipliers": [1, 2], "blocks": 1, "attention_levels": [1]}
BASE: dict[str, Any] = {
    "images": 64,
    "batch_size": 16,
    "model": "unet-tiny",
    "model_options": NETWORK,
    "dropout": 0.0,
    "lr": 1e-3,
    "warmup_images": 0,
    "status_every_images": 32,
    "device": "cpu",
    "precision": "fp32",
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build_skewed() -> ImageDataset:
    """60 images: 40 flat ones of class 0, 15 of class 1, 5 noisy ones of class 2."""
    labels = np.repeat([0, 1, 2], [40, 15, 5])
    generator = np.random.Generator(np.random.Philox(key=0))
    noise = generator.integers(-1, 2, (60, 8, 8, 3)) * np.array([5, 40, 120])[labels][:, None, None, None]
    return from_arrays((128 + noise).clip(0, 255).astype(np.uint8), labels, classes=["flat", "mild", "wild"])


@pytest.fixture(scope="session")
def skewed() -> ImageDataset:
    return build_skewed()


@pytest.fixture(scope="session")
def reference(skewed: ImageDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    train(TrainConfig(out=str(folder), **{**BASE, "images": 320}), skewed)
    return folder


@pytest.fixture
def proxy(tmp_path: Path):
    def make(name: str = "proxy", **values: Any) -> TrainConfig:
        return TrainConfig(**{"out": str(tmp_path / name), "seed": 1, **BASE, **values})

    return make
