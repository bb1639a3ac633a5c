"""Images that a run is not trained on, and what the network's loss on them says while it trains.

At every measurement the loss of the network as it is (not its average), without dropout, on up to `IMAGES` held-out
images is compared with that on as many training images, at the same times and noises every time
(`prunefast.evaluate.gap`). A line of metrics then has "held_out_loss", "held_out_gap" (to the training images) and
"held_out_error" (its standard error).
"""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from prunefast.data import ImageDataset, open_dataset
from prunefast.data.latents import LatentDataset
from prunefast.errors import InputError
from prunefast.evaluate.gap import DenoisingGap, batches_of, fixed_losses, gap_of
from prunefast.evaluate.overfitting import overfitting_signs
from prunefast.select import Coreset
from prunefast.train.config import TrainConfig

IMAGES = 256  # of each set; with DRAWS, a measurement costs what training on 700 images does
DRAWS = 4
LINES = 25  # lines of metrics from one measurement to the next, where the run does not say


@dataclasses.dataclass(frozen=True)
class Holdout:
    """data, items: the images held out. training: as many of those trained on. every_lines: of metrics."""

    data: ImageDataset
    items: NDArray[np.int64]
    training_data: ImageDataset
    training: NDArray[np.int64]
    every_lines: int

    def measure(self, model: nn.Module, loss: Any, labelled: bool, autocast: Any) -> dict[str, float]:
        """The entries of a line of metrics; the network is left in the mode it was in."""
        mode = model.training
        model.eval()
        try:
            with autocast:
                trained, held_out = (
                    fixed_losses(model, loss, batches_of(data, items, labelled), draws=DRAWS)
                    for data, items in ((self.training_data, self.training), (self.data, self.items))
                )
        finally:
            model.train(mode)
        gap = gap_of(trained, held_out)
        return {"held_out_loss": gap.held_out, "held_out_gap": gap.gap, "held_out_error": gap.standard_error}


def overfitting(record: dict[str, Any]) -> str | None:
    """What a line of metrics with a measurement says against the run; None for nothing, or no measurement."""
    if record.get("held_out_loss") is None:
        return None
    gap, held_out = record["held_out_gap"], record["held_out_loss"]
    trained = held_out - gap
    measured = DenoisingGap(trained, held_out, gap, record["held_out_error"], gap / trained, (0, 0), DRAWS)
    return next(iter(overfitting_signs({"denoising_gap": measured.as_dict()}, 0, 0) or []), None)


def set_aside(config: TrainConfig, data: ImageDataset, coreset: Coreset) -> tuple[Coreset, Holdout | None]:
    """The coreset to train on and what is held out of it, or another data set's images; the coreset and None where the
    run holds nothing out."""
    if config.holdout is None:
        return coreset, None
    if isinstance(data, LatentDataset):
        raise InputError("holdout: is not measured on latents; leave it out")
    for key in ("patch_p", "learn_sigma", "mask_ratio", "text_encoder"):
        if getattr(config, key):
            raise InputError(f"holdout: is not measured with {key}; leave one of them out")
    order = _order(len(coreset), config.seed, 0)
    if isinstance(config.holdout, str):
        others = open_dataset(config.holdout).with_image_size(data.image_size)
        if data.labels is not None and list(others.classes) != list(data.classes):
            raise InputError(f"holdout: {config.holdout} has other classes than the data")
        items, kept = np.arange(len(others)), order
    else:
        others, count = data, round(config.holdout * len(coreset))
        items, kept = coreset.indices[np.sort(order[:count])], order[count:]
        rows = np.sort(kept)
        coreset = Coreset.from_indices(
            data,
            coreset.indices[rows],
            coreset.weights[rows],
            clusters=coreset.clusters,
            manifest={key: coreset.manifest[key] for key in ("method", "options", "direction", "seed")}
            | {"held_out": count},
        )
    if len(items) < 2 or len(kept) < 2:
        raise InputError(f"holdout: {len(items)} images held out and {len(kept)} to train on; at least 2 are needed")
    size = min(IMAGES, len(items), len(coreset))
    held_out = items[np.sort(_order(len(items), config.seed, 1)[:size])]
    training = coreset.indices[np.sort(_order(len(coreset), config.seed, 2)[:size])]
    every = config.holdout_every_images
    lines = LINES if every is None else max(round(every / config.status_every_images), 1)
    return coreset, Holdout(others, held_out, data, training, lines)


def _order(count: int, seed: int, purpose: int) -> NDArray[np.int64]:
    return np.random.Generator(np.random.Philox(key=[seed, 0x401D0 + purpose])).permutation(count)
