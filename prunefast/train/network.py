"""A trained network from a checkpoint, frozen: what scores and class weights are measured with."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunefast.data.latents import LatentScale
from prunefast.diffusion import DenoisingLoss
from prunefast.errors import InputError
from prunefast.models import build_model
from prunefast.train.state import find_checkpoint, load_weights


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """model   in eval mode, without gradients, channels_last on its device; called as model(x, network_time, labels)
    loss       its process and prediction, unweighted
    classes    names in the order of its labels; num_classes None: unconditional
    digest     of the checkpoint: what a result measured with it depends on
    """

    path: Path
    model: nn.Module
    loss: DenoisingLoss
    image_size: int
    num_classes: int | None
    classes: list[str]
    precision: str
    digest: str
    config: dict[str, Any]  # of the run that trained it, as `TrainConfig.to_dict` gives it
    latents: LatentScale | None  # what it makes, where it makes no images
    coreset: str | None  # fingerprint of what it was trained on, where that is known
    text: dict[str, str] | None  # the text model ("folder", "digest") of a network that is told captions

    def check_data(self, data: Any, argument: str) -> None:
        """InputError where the images or classes of `data` are not those the network was trained on."""
        if data.image_size != self.image_size:
            raise InputError(
                f"{argument}: {self.path} was trained on images of {self.image_size} x {self.image_size}, the data "
                f"gives {data.image_size or 'several sizes'}; open it with image_size={self.image_size}"
            )
        network: dict[str, Any] = self.model.config  # type: ignore[assignment]
        latents = getattr(data, "latents", None)
        if network["channels"] != (3 if latents is None else latents.channels):
            ours = "images" if latents is None else f"latents of {latents.channels} channels"
            raise InputError(
                f"{argument}: {self.path} was trained on {network['channels']} channels, the data gives {ours}"
            )
        if self.num_classes is not None and list(data.classes) != self.classes:
            raise InputError(f"{argument}: {self.path} was trained on other classes ({_listed(self.classes)})")

    def check_plain(self, argument: str) -> None:
        """InputError for a network that answers with, or is told, more than the images' targets and classes."""
        network: dict[str, Any] = self.model.config  # type: ignore[assignment]
        special = {"patch_p": network.get("coordinates"), "learn_sigma": network.get("learn_sigma")}
        for option, present in {**special, "text_encoder": self.text is not None}.items():
            if present:
                raise InputError(
                    f"{argument}: {self.path} was trained with {option}, which is not measured with here; give one "
                    "trained without it"
                )


def load_network(
    checkpoint: str | os.PathLike[str],
    device: torch.device | str = "cpu",
    *,
    ema: bool = True,
    state: Mapping[str, Any] | None = None,
) -> TrainedNetwork:
    """checkpoint: a run folder, its train folder, or one checkpoint-* folder. ema: the averaged weights. state: of one
    folder that `find_checkpoint` has checked already, which reads all of it.

    Raises InputError where there is no whole checkpoint.
    """
    path, state = find_checkpoint(checkpoint) if state is None else (Path(checkpoint), state)
    recipe, network = state["recipe"], state["model"]
    latents = state.get("latents")
    with torch.random.fork_rng(devices=[]):  # fresh weights are drawn before the checkpoint's are read over them
        model = build_model(**network)
    load_weights(path, model, ema=ema)
    model = model.to(torch.device(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return TrainedNetwork(
        path=path,
        model=model.eval().requires_grad_(False),
        loss=DenoisingLoss(recipe["process"], recipe["prediction"]),
        image_size=network["image_size"],
        num_classes=network["num_classes"],
        classes=list(state["classes"]),
        precision=recipe["precision"],
        digest=state["digest"],
        config=state["config"],
        latents=None if latents is None else LatentScale(**latents),
        coreset=recipe.get("coreset"),
        text=state.get("text"),
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
