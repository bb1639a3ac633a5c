"""A checkpoint as its denoising gap is measured: the network, what it is told, and the data set it was trained on."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prunefast.data import ImageDataset, open_dataset
from prunefast.data.latents import LatentDataset, LatentScale
from prunefast.diffusion import HybridLoss
from prunefast.encode.encoder import weights_digest
from prunefast.encode.latents import Autoencoder
from prunefast.encode.text import TextEncoder
from prunefast.errors import InputError
from prunefast.evaluate.gap import Measured
from prunefast.evaluate.set_aside import set_aside
from prunefast.select import Coreset


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """measured  its losses, float32 with the average weights
    data         what it was trained on: the images, or their latents
    coreset      of these, without what training set aside
    set_aside    the items int64 [n] that training did; None: it set nothing aside
    digest       of the checkpoint
    of_another_coreset   it says of itself that it was trained on other images than the coreset given
    """

    measured: Measured
    data: ImageDataset
    coreset: Coreset
    set_aside: NDArray[np.int64] | None
    digest: str
    of_another_coreset: bool


def open_model(
    checkpoint: str | os.PathLike[str],
    data: ImageDataset,
    coreset: Coreset,
    held_out: ImageDataset | None,
    device: Any,
) -> Subject:
    """InputError for a checkpoint that was not trained on such images."""
    # the training package lies above this one and is needed for its checkpoints only
    from prunefast.train.network import load_network
    from prunefast.train.step import pick_device

    target = pick_device("auto" if device is None else str(device))
    network = load_network(checkpoint, target)
    network_config: dict[str, Any] = network.model.config  # type: ignore[assignment]
    learns_variance = network_config.get("learn_sigma", False)
    told_captions = network.text is not None
    measured = Measured(
        network.model,
        HybridLoss(network.loss.process, network.loss.prediction) if learns_variance else network.loss,
        labelled=network.num_classes is not None and not told_captions,
        captions=_open_text_encoder(network, data, held_out, target) if told_captions else None,
        coordinates=network_config.get("coordinates", False),
        timesteps=tuple(network.config.get("timesteps") or (0.0, 1.0)),
        latents=network.latents,
    )
    if network.latents is None:
        network.check_data(data, "checkpoint")
        if held_out is not None:
            network.check_data(held_out, "held_out")
    else:
        data = _open_latents(network, data)
        network.check_data(data, "checkpoint")
        if held_out is not None:
            _check_pixels(network, held_out)
            measured = dataclasses.replace(measured, encode=_open_autoencoder(network.latents, target))
    left, items, share = coreset, None, network.config.get("holdout")
    if isinstance(share, float) and coreset.fingerprint != network.coreset:
        without, items = set_aside(data, coreset, share, network.config.get("seed", 0))
        left = coreset if without is None else without
    other = network.coreset not in (None, left.fingerprint)
    return Subject(measured, data, left, items, network.digest, other)


def _check_pixels(network: Any, held_out: ImageDataset) -> None:
    """Of images in the place of latents."""
    pixels = network.latents.pixels
    if held_out.image_size != pixels:
        raise InputError(
            f"held_out: {network.path} was trained on images of {pixels} pixels; open it at image_size={pixels}"
        )
    if network.num_classes is not None and network.text is None and list(held_out.classes) != network.classes:
        raise InputError(f"held_out: {network.path} was trained on other classes")


def _open_text_encoder(
    network: Any, data: ImageDataset, held_out: ImageDataset | None, device: torch.device
) -> TextEncoder:
    for name, images in (("reference", data), ("held_out", held_out)):
        if images is not None and images.captions is None:
            raise InputError(f"{name}: {network.path} was trained on captions, and these images have none")
    encoder = TextEncoder(network.text["folder"])
    if encoder.digest() != network.text["digest"]:
        raise InputError(f"checkpoint: {encoder.folder} has other weights than the text model of {network.path}")
    return encoder.to(device)


def _open_latents(network: Any, data: ImageDataset) -> LatentDataset:
    """The latents that a network was trained on, which its configuration names."""
    folder = network.config.get("data")
    moments = open_dataset(folder) if folder and os.path.isdir(folder) else None
    if not isinstance(moments, LatentDataset) or moments.fingerprint != data.fingerprint:
        raise InputError(
            f"checkpoint: {network.path} was trained on latents, and those of the reference are not at "
            f"{folder or 'a path that it knows'}; put them there, or leave checkpoint out"
        )
    return moments


def _open_autoencoder(latents: LatentScale, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """Images uint8 [B, 3, R, R] -> moments [B, 2 C, side, side]."""
    if not latents.vae or latents.means is not None:
        raise InputError("held_out: the latents were made elsewhere; leave held_out out, or checkpoint")
    autoencoder = Autoencoder(latents.vae)
    if weights_digest(autoencoder.state_dict()) != latents.weights:
        raise InputError(f"held_out: {autoencoder.folder} has other weights than those that encoded the data")
    autoencoder.to(device)

    def encode(images: torch.Tensor) -> torch.Tensor:
        rows = autoencoder(images.float() / 127.5 - 1).unflatten(1, (latents.side, latents.side, 2 * latents.channels))
        return rows.permute(0, 3, 1, 2)

    return encode
