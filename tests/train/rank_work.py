"""What the processes of test_ranks.py and test_sharded.py do: training runs, and a record of what every image was."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prunefast.data import ImageDataset, from_arrays
from prunefast.train import TrainConfig, train
from prunefast.train.step import TrainingStep

NETWORK = {"width": 8, "channel_multipliers": [1, 2], "blocks": 1, "attention_levels": [1]}
BASE: dict[str, Any] = {
    "model": "unet-tiny",
    "model_options": NETWORK,
    "dropout": 0.2,
    "batch_size": 16,
    "lr": 1e-3,
    "warmup_images": 32,
    "status_every_images": 32,
    "device": "cpu",
    "precision": "fp32",
    "threads": 1,
}


def images() -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=3)).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)


def build_data() -> ImageDataset:
    return from_arrays(images(), np.arange(40) % 3, classes=["a", "b", "c"])


def make_config(out: str | Path, **values: Any) -> TrainConfig:
    return TrainConfig(**{**BASE, "out": str(out), **values})


@contextmanager
def recorded() -> Iterator[dict[str, str]]:
    """position -> a digest of what the network was given for it: noisy pixels, time, label, and the dropout's mask."""
    seen: dict[str, str] = {}
    original = TrainingStep.__call__

    def call(self: TrainingStep, batch: Any, *arguments: Any, **options: Any) -> Any:
        network = self.network
        kept: list[torch.Tensor] = []

        def watched(x: torch.Tensor, time: torch.Tensor, labels: torch.Tensor | None, **told: Any) -> torch.Tensor:
            dropouts = [module for module in network.modules() if isinstance(module, torch.nn.Dropout)]
            hooks = [dropouts[0].register_forward_hook(lambda _m, _i, output: kept.append(output == 0))]
            result = network(x, time, labels, **told)
            for hook in hooks:
                hook.remove()
            for i, position in enumerate(batch.position.tolist()):
                parts = [x[i].contiguous(), time[i], labels[i] if labels is not None else time[i], kept[-1][i]]
                content = b"".join(part.detach().contiguous().numpy().tobytes() for part in parts)
                seen[str(position)] = hashlib.sha256(content).hexdigest()
            return result

        watched.modules = network.modules  # type: ignore[attr-defined]
        self.network = watched  # type: ignore[assignment]
        try:
            return original(self, batch, *arguments, **options)
        finally:
            self.network = network

    TrainingStep.__call__ = call  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        TrainingStep.__call__ = original  # type: ignore[method-assign]


def failure(work: Callable[[], Any]) -> str:
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "none"


RUNS: dict[str, dict[str, Any]] = {
    "plain": {"images": 96},
    "micro": {"images": 96, "batch_device": 3},
    "patches": {"images": 160, "patch_p": 0.4, "patch_levels": 2, "batch_device": 3},
    "dynamic": {"images": 192, "dynamic_prune": 0.6, "dynamic_prune_until": 170},
    "disk": {"images": 192, "dynamic_prune": 0.6, "dynamic_prune_until": 170, "placement": "disk"},
}


# a family of networks each, for FSDP2
NETWORKS: dict[str, dict[str, Any]] = {
    "dit-tiny/2": {"model_options": {"depth": 1, "width": 16, "heads": 2}, "dropout": 0.1},
    "maskdit-tiny/2": {
        "model_options": {"depth": 1, "width": 16, "heads": 2, "decoder_width": 16, "decoder_depth": 1},
        "mask_ratio": 0.5,
        "mask_images": 16,
    },
    "edm-ddpmpp": {"model_options": {"width": 8}, "process": "edm"},
}


def run_all(folder: Path) -> dict[str, dict[str, str]]:
    """Every one of RUNS, into FOLDER/name; what its images were."""
    found = {}
    for name, values in RUNS.items():
        with recorded() as seen:
            train(make_config(folder / name, **values), build_data())
        found[name] = seen
    return found
