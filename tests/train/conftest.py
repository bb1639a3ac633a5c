"""A data set of 8 x 8 images and a network of a few thousand weights: a training step takes a few milliseconds."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prunefast.data import ImageDataset, from_arrays
from prunefast.train import TrainConfig

TINY_NETWORK = {"width": 8, "channel_multipliers": [1, 2], "blocks": 1, "attention_levels": [1]}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Products this small only lose by threads, most of all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build_data(count: int = 40, classes: int | None = 3, seed: int = 0) -> ImageDataset:
    generator = np.random.Generator(np.random.Philox(key=seed))
    images = generator.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    if classes is None:
        return from_arrays(images)
    return from_arrays(images, np.arange(count) % classes, classes=[f"class {c}" for c in range(classes)])


@pytest.fixture
def make_data() -> Callable[..., ImageDataset]:
    return build_data


@pytest.fixture
def data() -> ImageDataset:
    return build_data()


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., TrainConfig]:
    def make(**values: Any) -> TrainConfig:
        defaults: dict[str, Any] = {
            "out": str(tmp_path / "run"),
            "images": 96,
            "batch_size": 8,
            "model": "unet-tiny",
            "model_options": TINY_NETWORK,
            "dropout": 0.2,
            "lr": 1e-3,
            "warmup_images": 32,
            "status_every_images": 24,
            "device": "cpu",
            "precision": "fp32",
        }
        return TrainConfig(**{**defaults, **values})

    return make


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The graphs that torch.compile makes, run by torch's own operators."""
    compiled: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    yield compiled
    torch._dynamo.reset()
