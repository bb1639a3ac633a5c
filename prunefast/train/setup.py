"""From a configuration to the parts of a run: the data it opens, the recipe it resolves to, what the loop drives."""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import nn

from prunefast.data import ImageDataset, open_dataset
from prunefast.diffusion import DenoisingLoss
from prunefast.errors import InputError
from prunefast.models import build_model, count_parameters
from prunefast.select import Coreset
from prunefast.stream import CoresetLoader
from prunefast.stream.draw import make_draw
from prunefast.train.config import TrainConfig, read_class_weights, recipe
from prunefast.train.ema import Ema
from prunefast.train.optim import Updater
from prunefast.train.step import (
    TrainingStep,
    derived_seed,
    forked_generators,
    pick_device,
    pick_precision,
    pick_weighting,
    seed_generators,
)


def open_inputs(
    config: TrainConfig, data: ImageDataset | None, coreset: Coreset | None
) -> tuple[ImageDataset, Coreset]:
    """Data with square images of one size and a coreset of it that is not empty, or an error that names the key."""
    if data is None:
        if config.data is None:
            raise InputError("data: name the images to train on (data=...), or pass an opened data set")
        data = open_dataset(config.data, split=config.split, image_size=config.image_size)
    elif config.image_size is not None and data.image_size != config.image_size:
        data = data.with_image_size(config.image_size)
    if data.image_size is None:
        raise InputError(
            "image_size: the images are not squares of one size; say the size to train at (image_size=32, "
            "--image-size 32)"
        )
    if coreset is None:
        coreset = Coreset.full(data) if config.coreset is None else Coreset.load(config.coreset, data)
    if coreset.data_fingerprint != data.fingerprint:
        raise InputError("coreset: it was selected from another data set; select again from this one")
    if len(coreset) == 0:
        raise InputError("coreset: it keeps no image; keep more")
    needing = ["class_conditional"] + ["class_weights"] * (config.class_weights_of == "classes")
    for key in needing:
        if getattr(config, key) not in (None, False, "auto") and data.labels is None:
            raise InputError(f"{key}: the data has no classes; leave it out, or open data with class folders")
    return data, coreset


@dataclasses.dataclass(frozen=True)
class Plan:
    """A configuration with everything that was "auto", None or a path made definite, and the network's first weights.

    Making one checks every option and touches no file of the run.
    """

    config: TrainConfig
    data: ImageDataset
    coreset: Coreset
    device: torch.device
    loss: DenoisingLoss
    num_classes: int | None  # None: the network is unconditional
    model: nn.Module  # on the CPU
    recipe: dict[str, Any]
    class_weights: list[float] | None = None
    groups: np.ndarray | None = None  # int64 [N], what the class weights are of

    def continuing(self, recorded: dict[str, Any]) -> "Plan":
        """The plan for a run that began with the recipe `recorded`: it keeps its precision, should "auto" come out
        differently on this machine."""
        if self.config.precision != "auto":
            return self
        return dataclasses.replace(self, recipe={**self.recipe, "precision": recorded["precision"]})


def make_plan(config: TrainConfig, data: ImageDataset, coreset: Coreset) -> Plan:
    """Raises `InputError` for any option that does not go with the data or with another option."""
    device = pick_device(config.device)
    groups = weighted_groups(config, data, coreset)
    names = data.classes if config.class_weights_of == "classes" else _cluster_names(groups)
    class_weights = read_class_weights(config.class_weights, names, config.class_weights_of)
    weighted: dict[str, Any] = {"class_weights": class_weights}
    if class_weights is not None:
        draw = make_draw(class_weights, groups, coreset.indices)
        if config.class_weights_in != "loss":
            weighted["class_weights_in"] = config.class_weights_in
        if config.class_weights_of != "classes":
            weighted["class_weights_of"] = draw.digest()
    weighting = pick_weighting(config.weighting, config.weighting_gamma)
    loss = DenoisingLoss(config.process, config.prediction, weighting)  # class weights act at the loader
    conditional = config.class_conditional is not False and data.labels is not None
    num_classes = len(data.classes) if conditional else None
    options: dict[str, Any] = {"num_classes": num_classes, "dropout": config.dropout, **config.model_options}
    cpu = torch.device("cpu")  # where weights are drawn: the same on every device
    with forked_generators(cpu):
        seed_generators(cpu, derived_seed("weights", config.seed))
        model = build_model(config.model, image_size=data.image_size, **options)  # type: ignore[arg-type]
    resolved = recipe(
        config,
        data=data.fingerprint,
        coreset=coreset.fingerprint,
        image_size=data.image_size,
        num_classes=num_classes,
        prediction=loss.prediction,
        **weighted,
        precision=pick_precision(config.precision, device, count_parameters(model)),
    )
    return Plan(config, data, coreset, device, loss, num_classes, model, resolved, class_weights, groups)


def weighted_groups(config: TrainConfig, data: ImageDataset, coreset: Coreset) -> np.ndarray | None:
    """int64 [N], the class or cluster that class weights are of; None where there is none."""
    if config.class_weights_of == "classes":
        return data.labels
    if config.class_weights is not None and coreset.clusters is None:
        raise InputError('class_weights_of: the coreset has no clusters; select with method="clusters"')
    return coreset.clusters


def _cluster_names(clusters: np.ndarray | None) -> list[str]:
    return [] if clusters is None else [f"cluster {number}" for number in range(int(clusters.max()) + 1)]


def check_training(config: TrainConfig, data: ImageDataset) -> None:
    """Raise what `train` would raise for these options and data whatever the coreset: before one is selected."""
    data, everything = open_inputs(config, data, Coreset.full(data))
    make_plan(config, data, everything)


@dataclasses.dataclass(frozen=True)
class Parts:
    model: nn.Module  # not compiled: the one whose weights are averaged and saved
    step: TrainingStep
    ema: Ema
    updater: Updater
    loader: CoresetLoader


def build_parts(plan: Plan) -> Parts:
    """Everything on the device."""
    config, device = plan.config, plan.device
    model = plan.model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    network: nn.Module = torch.compile(model) if config.compile else model  # type: ignore[assignment]
    step = TrainingStep(
        network,
        plan.loss.to(device),
        seed=config.seed,
        num_classes=plan.num_classes,
        label_drop=config.label_drop,
        flip=config.flip,
        precision=plan.recipe["precision"],
    )
    loader = CoresetLoader(
        plan.data,
        plan.coreset,
        batch_size=config.batch_size,
        seed=config.seed,
        threads=config.threads,
        device=device,
        on_error=config.on_unreadable,  # type: ignore[arg-type]
        placement=config.placement,  # type: ignore[arg-type]  # one of its literals: TrainConfig checks
        class_weights=plan.class_weights,
        class_weights_in=config.class_weights_in,  # type: ignore[arg-type]
        groups=plan.groups,
    )
    ema = Ema(model, config.ema_half_life_images, config.ema_ramp_up)
    return Parts(model, step, ema, Updater(model, config), loader)
