"""From a configuration to the parts of a run: the data it opens, the recipe it resolves to, what the loop drives."""

import dataclasses
import hashlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from prunefast import distributed
from prunefast.data import ImageDataset, open_dataset
from prunefast.data.latents import LatentDataset, LatentScale
from prunefast.diffusion import DenoisingLoss, HybridLoss, PatchSchedule, TokenMasking
from prunefast.diffusion.patches import LATENT_LEVELS, PIXEL_LEVELS
from prunefast.errors import InputError
from prunefast.evaluate.gap import Measured
from prunefast.models import MDT, MaskedDiT, ModuleNetwork, build_model, count_parameters
from prunefast.models.adapter import takes_labels
from prunefast.select import Coreset
from prunefast.stream import CoresetLoader, DynamicPruning
from prunefast.stream.dali import import_dali
from prunefast.stream.draw import make_draw
from prunefast.train.blocks import compile_network
from prunefast.train.captions import Remembered, TextCondition, make_text
from prunefast.train.config import TrainConfig, read_class_weights, recipe
from prunefast.train.ema import Ema, named_weights
from prunefast.train.events import load_wandb
from prunefast.train.holdout import Holdout, make_holdout
from prunefast.train.optim import Updater
from prunefast.train.state import load_initial_weights
from prunefast.train.step import (
    TrainingStep,
    derived_seed,
    forked_generators,
    pick_device,
    pick_precision,
    pick_weighting,
    seed_generators,
)
from prunefast.train.whole_batch import WholeBatch

if TYPE_CHECKING:
    from prunefast.train.sharded import Shards


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
    patches: PatchSchedule | None  # None: full images
    masking: TokenMasking | None  # None: every token is seen
    latents: LatentScale | None  # None: images
    model: nn.Module  # on the CPU
    recipe: dict[str, Any]
    class_weights: list[float] | None = None
    text: TextCondition | None = None  # None: the network is told no captions
    groups: np.ndarray | None = None  # int64 [N], what the class weights are of
    holdout: Holdout | None = None

    def continuing(self, recorded: dict[str, Any]) -> "Plan":
        """The plan for a run that began with the recipe `recorded`: it keeps its precision, should "auto" come out
        differently on this machine."""
        if self.config.precision != "auto":
            return self
        return dataclasses.replace(self, recipe={**self.recipe, "precision": recorded["precision"]})


# what says more about an option, and means nothing where that is not given
_DETAILS = {
    "patch_p": ("patch_levels", "patch_multiply", "patch_schedule", "patch_loss"),
    "mask_ratio": ("mask_reconstruction", "mask_images"),
    "dynamic_prune": ("dynamic_prune_until",),
    "text_encoder": ("caption_cache",),
    "class_weights": ("class_weights_in",),
    "holdout": ("holdout_every_images",),
}


def _check_details(config: TrainConfig) -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for key, details in _DETAILS.items():
        if getattr(config, key) != defaults[key]:
            continue
        for detail in details:
            if getattr(config, detail) != defaults[detail]:
                raise InputError(f"{detail}: means nothing without {key}; give {key} too, or leave it out")


def make_plan(config: TrainConfig, data: ImageDataset, coreset: Coreset, module: nn.Module | None = None) -> Plan:
    """Raises `InputError` for any option that does not go with the data or with another option.

    module: trained in the place of the network that `config.model` names.
    """
    _check_details(config)
    if config.parallel == "fsdp" and config.compile:
        raise InputError('compile: does not go with parallel = "fsdp"; leave one of them out')
    if config.wandb is not None:
        load_wandb()
    if config.loader == "dali":
        import_dali()
    coreset, holdout = make_holdout(config, data, coreset)
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
    described = (config.process, config.prediction, weighting)  # class weights act at the loader
    loss = HybridLoss(*described, bound_weight=config.bound_weight) if config.learn_sigma else DenoisingLoss(*described)
    text = make_text(config, data, module)
    conditional = config.class_conditional is not False and data.labels is not None and text is None
    if module is not None and config.class_conditional == "auto" and conditional:
        conditional = takes_labels(module)
    num_classes = len(data.classes) if conditional else None
    options: dict[str, Any] = {"num_classes": num_classes, "dropout": config.dropout, **config.model_options}
    assert data.image_size is not None  # open_inputs
    latents = data.latents if isinstance(data, LatentDataset) else None
    if latents is not None:
        if config.placement == "pack":
            raise InputError('placement: latents are packed already; choose "disk" or "memory"')
        options["channels"] = latents.channels
    decided = {"image_size": data.image_size, "num_classes": num_classes, "learn_sigma": config.learn_sigma}
    for key, value in {**decided, "channels": 3 if latents is None else latents.channels}.items():
        if config.model_options.get(key, value) != value:
            raise InputError(f"model_options.{key}: follows from the data and the other options; leave it out")
    options.pop("image_size", None)
    if text is not None:
        options["text_width"] = text.encoder.width
    patches = make_patches(config, data.image_size, PIXEL_LEVELS if latents is None else LATENT_LEVELS)
    if patches is not None:
        if config.model.startswith(("maskdit", "mdt")):
            raise InputError(f"patch_p: {config.model} takes no coordinates; leave patch_p out, or take another model")
        options.setdefault("coordinates", True)
    if config.learn_sigma:
        options["learn_sigma"] = True
    if config.dynamic_prune is not None:
        for key, off in (("learn_sigma", False), ("mask_ratio", 0.0), ("patch_p", None)):
            if getattr(config, key) != off:
                raise InputError(f"dynamic_prune: does not go with {key}; leave one of them out")
        if class_weights is not None and config.class_weights_in == "sampler":
            raise InputError('dynamic_prune: chooses the images itself; give class_weights_in = "loss"')
    if module is not None:
        for key in ("dropout", "model_options"):
            if getattr(config, key) not in (None, {}):
                raise InputError(
                    f"{key}: is of a network that prunefast builds, and the module passed is built; leave it out"
                )
    model = _network(config, module, data.image_size, options)
    if patches is not None:
        check_patches(patches, model.config["name"], model.size_multiple)
    init_from = None if config.init_from is None else load_initial_weights(Path(config.init_from), model)
    resolved = recipe(
        config,
        data=data.fingerprint,
        coreset=coreset.fingerprint,
        image_size=data.image_size,
        num_classes=num_classes,
        prediction=loss.prediction,
        **weighted,
        init_from=init_from,
        dynamic_prune_until=_prune_until(config),
        precision=pick_precision(config.precision, device, count_parameters(model)),
    )
    if module is not None:
        resolved |= {"model": model.config["class"], "model_options": {}, "dropout": None, "weights": _shapes(model)}
    if patches is not None:  # what "auto" and the length of the run came to
        resolved |= {"patch_levels": len(patches.patches), "patch_images": patches.images}
    masking = make_masking(config, model, data.image_size)
    if latents is not None:
        # a mirrored latent is not the latent of the mirrored image
        resolved |= {"flip": False, "latents": latents.weights, "latent_scale": [latents.scale, latents.shift]}
    if text is not None:
        resolved |= {"captions": text.captions.digest, "text_encoder": text.encoder.digest()}
    return Plan(
        config=config,
        data=data,
        coreset=coreset,
        device=device,
        loss=loss,
        num_classes=num_classes,
        patches=patches,
        masking=masking,
        latents=latents,
        model=model,
        recipe=resolved,
        class_weights=class_weights,
        groups=groups,
        text=text,
        holdout=holdout,
    )


def _network(config: TrainConfig, module: nn.Module | None, image_size: int, options: dict[str, Any]) -> Any:
    """The network with its first weights, on the CPU."""
    if module is not None:
        known = ("num_classes", "coordinates", "learn_sigma", "channels")
        return ModuleNetwork(module, image_size=image_size, **{key: options[key] for key in known if key in options})
    cpu = torch.device("cpu")  # where weights are drawn: the same on every device
    with forked_generators(cpu):
        seed_generators(cpu, derived_seed("weights", config.seed))
        return build_model(config.model, image_size=image_size, **options)


def _shapes(model: nn.Module) -> str:
    """A digest of the names and shapes of a module's weights: what tells one network of a class from another."""
    listing = sorted((name, tuple(weight.shape)) for name, weight in named_weights(model).items())
    return hashlib.sha256(repr(listing).encode()).hexdigest()[:16]


def make_masking(config: TrainConfig, model: nn.Module, image_size: int) -> TokenMasking | None:
    """The masks of a run, None without `mask_ratio`."""
    if config.mask_ratio == 0:
        return None
    if not isinstance(model, MaskedDiT | MDT):
        raise InputError(
            f'mask_ratio: {config.model} takes no mask; give a model "maskdit-..." or "mdt-...", or leave it out'
        )
    side = isinstance(model, MDT)
    if config.learn_sigma and not side:
        raise InputError("mask_ratio: does not go with learn_sigma; leave one of them out")
    if config.mask_reconstruction and side:
        raise InputError(f"mask_reconstruction: is MaskDiT's; {config.model} reconstructs nothing, leave it out")
    return TokenMasking(image_size, model.patch_size, config.mask_ratio, config.mask_reconstruction, config.seed, side)


def make_patches(config: TrainConfig, image_size: int, levels: int) -> PatchSchedule | None:
    """The patches of a run, None without `patch_p`."""
    if config.patch_p is None:
        return None
    if config.patch_schedule == "progressive" and config.images is None:
        raise InputError("images: patch_schedule = 'progressive' needs the length of the run in images")
    return PatchSchedule(
        image_size,
        p=config.patch_p,
        levels=config.patch_levels or levels,
        multiply=config.patch_multiply,
        schedule=config.patch_schedule,
        images=config.images,
        loss=config.patch_loss,
        seed=config.seed,
    )


def check_patches(patches: PatchSchedule, model: str, multiple: int) -> None:
    """The smallest crops go through the network."""
    smallest = patches.patches[-1].size
    if smallest % multiple:
        raise InputError(
            f"patch_p: crops of {smallest} pixels do not go through {model}, which takes multiples of {multiple}; "
            f"give patch_levels = {len(patches.patches) - 1}, larger images or another model"
        )


def weighted_groups(config: TrainConfig, data: ImageDataset, coreset: Coreset) -> np.ndarray | None:
    """int64 [N], the class or cluster that class weights are of; None where there is none."""
    if config.class_weights_of == "classes":
        return data.labels
    if config.class_weights is not None and coreset.clusters is None:
        raise InputError('class_weights_of: the coreset has no clusters; select with method="clusters"')
    return coreset.clusters


def _cluster_names(clusters: np.ndarray | None) -> list[str]:
    return [] if clusters is None else [f"cluster {number}" for number in range(int(clusters.max()) + 1)]


def _prune_until(config: TrainConfig) -> int | None:
    """From which image on epochs are whole again; None without dynamic pruning."""
    if config.dynamic_prune is None:
        return None
    if config.dynamic_prune_until is not None:
        return config.dynamic_prune_until
    assert config.images is not None  # TrainConfig checks
    return config.images * 7 // 8


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
    pruning: DynamicPruning | None
    gradient: WholeBatch
    shards: "Shards | None"  # None: every process has the whole network
    measured: Measured  # the network as held-out images are measured with it


def make_step(
    plan: Plan,
    network: nn.Module,
    *,
    seed: int | None = None,
) -> TrainingStep:
    """The training step of a plan for `network` on its device; seed None: the run's."""
    config = plan.config
    network_config: dict[str, Any] = plan.model.config  # type: ignore[assignment]
    text = plan.text
    return TrainingStep(
        network if text is None else text.network(network, plan.device),
        plan.loss.to(plan.device),
        seed=config.seed if seed is None else seed,
        num_classes=plan.num_classes if text is None else text.captions.null,
        captions=None if text is None else text.numbers(plan.device),
        label_drop=config.label_drop,
        flip=config.flip and plan.latents is None,
        precision=plan.recipe["precision"],
        coordinates=network_config.get("coordinates", False),
        augment_labels=network_config.get("augment_labels", 0),
        patches=plan.patches,
        masking=plan.masking,
        latents=plan.latents,
        timesteps=config.timesteps,
    )


def make_measured(plan: Plan, model: nn.Module) -> Measured:
    """`model`, on its device, as held-out images are measured with it."""
    config: dict[str, Any] = plan.model.config  # type: ignore[assignment]
    return Measured(
        model,
        plan.loss.to(plan.device),
        labelled=plan.num_classes is not None,
        captions=None if plan.text is None else Remembered(plan.text.encoder),
        coordinates=config.get("coordinates", False),
        timesteps=plan.config.timesteps or (0.0, 1.0),
        latents=plan.latents,
    )


def build_parts(plan: Plan) -> Parts:
    """Everything on the device."""
    config, device, model = plan.config, plan.device, plan.model
    sharded = config.parallel == "fsdp" and distributed.world().size > 1
    if sharded:
        from prunefast.train.sharded import ShardedUpdater, Shards, shard  # takes a second to import

        shard(model.train(), device)
    else:
        model = model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    network = compile_network(model) if config.compile else model
    pruning = None
    if config.dynamic_prune is not None:
        until = plan.recipe["dynamic_prune_until"]
        n, fraction = len(plan.coreset), config.dynamic_prune
        pruning = DynamicPruning(n, config.seed, fraction=fraction, until=until, device=device)
    items = torch.tensor(plan.coreset.indices, dtype=torch.int64, device=device)  # ascending

    def observe(index: Tensor, share: Tensor, errors: Tensor) -> None:
        assert pruning is not None
        pruning.observe(torch.searchsorted(items, index), share, errors)

    step = make_step(plan, network)
    here = distributed.world()
    gradient = WholeBatch(
        step,
        model,
        seed=config.seed,
        device=device,
        batch_size=config.batch_size,
        batch_device=config.batch_device,
        observe=None if pruning is None else observe,
        sharded=sharded,
    )
    loader = CoresetLoader(
        plan.data,
        plan.coreset,
        batch_size=config.batch_size // here.size,
        rank=here.rank,
        world_size=here.size,
        multiplier=None if plan.patches is None else plan.patches.multiplier,
        windows=None if plan.patches is None else partial(plan.patches.windows, flip=step.flip),
        seed=config.seed,
        threads=config.threads or distributed.share_of_processors(),
        device=device,
        pruning=pruning,
        on_error=config.on_unreadable,  # type: ignore[arg-type]
        placement=config.placement,  # type: ignore[arg-type]  # one of its literals: TrainConfig checks
        loader=config.loader,  # type: ignore[arg-type]
        class_weights=plan.class_weights,
        class_weights_in=config.class_weights_in,  # type: ignore[arg-type]
        groups=plan.groups,
    )
    ema = Ema(model, config.ema_half_life_images, config.ema_ramp_up, config.ema_sigma_rel)
    updater = ShardedUpdater(model, config) if sharded else Updater(model, config)
    shards = Shards(model) if sharded else None
    return Parts(model, step, ema, updater, loader, pruning, gradient, shards, make_measured(plan, model))
