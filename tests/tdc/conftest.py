"""A data set of 8 x 8 images and a base network of a few thousand weights, trained for a moment."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from prunefast.data import ImageDataset, from_arrays
from prunefast.train import TrainConfig, train

TINY = {"width": 8, "channel_multipliers": [1, 2], "blocks": 1, "attention_levels": [1]}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def data() -> ImageDataset:
    generator = np.random.Generator(np.random.Philox(key=0))
    images = generator.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    return from_arrays(images, np.arange(40) % 3, classes=["a", "b", "c"])


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, data: ImageDataset) -> Path:
    """The run folder of a base network."""
    out = tmp_path_factory.mktemp("base") / "run"
    config = TrainConfig(
        out=str(out),
        images=160,
        batch_size=8,
        model="unet-tiny",
        model_options=TINY,
        dropout=0.1,
        lr=1e-3,
        warmup_images=32,
        device="cpu",
        precision="fp32",
    )
    train(config, data)
    return out
