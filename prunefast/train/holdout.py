"""Images that a run is not trained on, and what the network's loss on them says while it trains.

At every measurement the loss of the network as it is (not its average), without dropout, on up to `IMAGES` held-out
images is compared with that on as many training images, at the same times and noises every time
(`prunefast.evaluate.gap`). A line of metrics then has "held_out_loss", "held_out_gap" (to the training images) and
"held_out_error" (its standard error).
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prunefast.data import ImageDataset, open_dataset
from prunefast.data.latents import LatentDataset
from prunefast.errors import InputError
from prunefast.evaluate.gap import DenoisingGap, Measured, fixed_losses, gap_of
from prunefast.evaluate.overfitting import overfitting_signs
from prunefast.evaluate.set_aside import seeded_order, set_aside
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

    def measure(self, measured: Measured, autocast: Any) -> dict[str, float]:
        """The entries of a line of metrics; the network is left in the mode it was in."""
        model = measured.model
        mode = model.training
        model.eval()
        try:
            # eager: batches of other sizes than training's are not worth compiling for
            with autocast, torch.compiler.set_stance("force_eager"):
                trained, held_out = (
                    fixed_losses(measured, data, items, draws=DRAWS)
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


def make_holdout(config: TrainConfig, data: ImageDataset, coreset: Coreset) -> tuple[Coreset, Holdout | None]:
    """The coreset to train on and what is held out of it, or another data set's images; the coreset and None where the
    run holds nothing out."""
    if config.holdout is None:
        return coreset, None
    left: Coreset | None
    if isinstance(config.holdout, str):
        others, left = _open_others(config, data), coreset
        items = np.arange(len(others))
    else:
        others = data
        left, items = set_aside(data, coreset, config.holdout, config.seed)
    if len(items) < 2 or left is None or len(left) < 2:
        kept = 0 if left is None else len(left)
        raise InputError(f"holdout: {len(items)} images held out and {kept} to train on; at least 2 are needed")
    size = min(IMAGES, len(items), len(left))
    held_out = items[np.sort(seeded_order(len(items), config.seed, 1)[:size])]
    training = left.indices[np.sort(seeded_order(len(left), config.seed, 2)[:size])]
    every = config.holdout_every_images
    lines = LINES if every is None else max(round(every / config.status_every_images), 1)
    return left, Holdout(others, held_out, data, training, lines)


def _open_others(config: TrainConfig, data: ImageDataset) -> ImageDataset:
    """The images of `holdout`, which must be told and denoised as those of the data are."""
    name = config.holdout
    assert isinstance(name, str)
    others = open_dataset(name)
    if isinstance(others, LatentDataset) != isinstance(data, LatentDataset):
        wanted = "latents, as the data" if isinstance(data, LatentDataset) else "images, as the data"
        raise InputError(f"holdout: {name} must hold {wanted} (prunefast encode-latents makes latents of images)")
    if isinstance(data, LatentDataset) and _made_by(others) != _made_by(data):
        raise InputError(f"holdout: {name} holds latents of another autoencoder or size than the data")
    others = others.with_image_size(data.image_size)
    if config.text_encoder is not None and others.captions is None:
        raise InputError(f"holdout: {name} has no captions; give images with captions, or a share of the coreset")
    if config.text_encoder is None and data.labels is not None and list(others.classes) != list(data.classes):
        raise InputError(f"holdout: {name} has other classes than the data")
    return others


def _made_by(data: Any) -> Any:
    return dataclasses.replace(data.latents, vae="")  # wherever the autoencoder lay
