"""From a configuration to the parts of a run: the data it opens, the recipe it resolves to, what the loop drives."""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import nn

from prunefast.data import ImageDataset, open_dataset
from prunefast.diffusion import DenoisingLoss
from prunefast.errors import InputError
from prunefast.models import build_model
from prunefast.select import Coreset
from prunefast.stream import CoresetLoader
from prunefast.train.config import TrainConfig, read_class_weights, recipe
from prunefast.train.ema import Ema
from prunefast.train.optim import Updater
from prunefast.train.step import TrainingStep, derived_seed, pick_precision, pick_weighting, seed_generators


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
        raise InputError("image_size: the images are not squares of one size; say the size to train at (image_size=32)")
    if coreset is None:
        coreset = Coreset.full(data) if config.coreset is None else Coreset.load(config.coreset, data)
    if coreset.data_fingerprint != data.fingerprint:
        raise InputError("coreset: it was selected from another data set; select again from this one")
    if len(coreset) == 0:
        raise InputError("coreset: it keeps no image; keep more")
    for key in ("class_conditional", "class_weights"):
        if getattr(config, key) not in (None, False, "auto") and data.labels is None:
            raise InputError(f"{key}: the data has no classes; leave it out, or open data with class folders")
    return data, coreset


@dataclasses.dataclass(frozen=True)
class Plan:
    """A configuration with everything that was "auto", None or a path made definite. Nothing big is built yet."""

    config: TrainConfig
    data: ImageDataset
    coreset: Coreset
    device: torch.device
    loss: DenoisingLoss
    num_classes: int | None  # None: the network is unconditional
    recipe: dict[str, Any]


def make_plan(
    config: TrainConfig, data: ImageDataset, coreset: Coreset, device: torch.device, recorded: dict[str, Any] | None
) -> Plan:
    """`recorded`: the recipe of the run that is continued. A run keeps the precision it began with ("auto" may come out
    differently on another machine)."""
    class_weights = read_class_weights(config.class_weights, data.classes)
    frequencies = None
    if class_weights is not None:  # every image of the coreset is drawn equally often
        counts = np.bincount(np.asarray(data.labels)[coreset.indices], minlength=len(data.classes))
        frequencies = counts / counts.sum()
    weighting = pick_weighting(config.weighting, config.weighting_gamma)
    loss = DenoisingLoss(config.process, config.prediction, weighting, class_weights, frequencies)
    conditional = config.class_conditional is not False and data.labels is not None
    num_classes = len(data.classes) if conditional else None
    keeps = config.precision == "auto" and recorded is not None
    resolved = recipe(
        config,
        data=data.fingerprint,
        coreset=coreset.fingerprint,
        image_size=data.image_size,
        num_classes=num_classes,
        prediction=loss.prediction,
        class_weights=class_weights,
        precision=recorded["precision"] if keeps and recorded else pick_precision(config.precision, device),
    )
    return Plan(config, data, coreset, device, loss, num_classes, resolved)


@dataclasses.dataclass(frozen=True)
class Parts:
    model: nn.Module  # not compiled: the one whose weights are averaged and saved
    step: TrainingStep
    ema: Ema
    updater: Updater
    loader: CoresetLoader


def build_parts(plan: Plan) -> Parts:
    """Network with its first weights, average, optimizer and loader. Seeds torch's generators: call it in a fork."""
    config, device = plan.config, plan.device
    seed_generators(device, derived_seed("weights", config.seed))
    options: dict[str, Any] = {"num_classes": plan.num_classes, "dropout": config.dropout, **config.model_options}
    image_size = plan.recipe["image_size"]
    model = build_model(config.model, image_size=image_size, **options)
    model = model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
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
        placement=config.placement,  # type: ignore[arg-type]  # one of its literals: TrainConfig checks
    )
    ema = Ema(model, config.ema_half_life_images, config.ema_ramp_up)
    return Parts(model, step, ema, Updater(model, config), loader)
