"""What a training run is: every option with its unit, its default and its limits, and presets with their reasons.

A `TrainConfig` is frozen and complete: ``RUN/train/config.toml`` and every checkpoint carry it, and the same
configuration gives the same run. `recipe` is the part of it that decides the numbers (with everything that was "auto"
or a path resolved); a checkpoint is continued by the same recipe only.
"""

import dataclasses
import difflib
import math
import operator
import os
import tomllib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tomli_w

from prunefast.diffusion.patches import LOSSES, SCHEDULES
from prunefast.errors import InputError, InputTypeError
from prunefast.files import read_json, write_text
from prunefast.train.ema import WIDEST

PRECISIONS = ("auto", "bf16", "fp32")
OPTIMIZERS = ("adamw", "apex")
PARALLELS = ("ddp", "fsdp")
PLACEMENTS = ("auto", "device", "memory", "pack", "disk")
LOADERS = ("native", "dali")
CLASS_WEIGHTS_IN = ("loss", "sampler")
CLASS_WEIGHTS_OF = ("classes", "clusters")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Options of `train`. Everything that counts time counts images; give `images`, `max_seconds` or both.

    Raises `InputError` that names the key for a value that cannot be used.
    """

    # what is trained on, and where the run goes
    out: str  # the run folder; training writes into OUT/train
    data: str | None = None  # any source `open_dataset` takes; not needed when `train` is given the data set
    split: str | None = None  # of the data; None: "train" where there is one
    coreset: str | None = None  # coreset.parquet; None: all images
    image_size: int | None = None  # pixels; None: the data set's own square size
    seed: int = 0  # order, flips, times, noise, label drop, dropout and initial weights

    # how long
    images: int | None = None  # images to train on, counted with repetition; rounded up to whole batches
    max_seconds: float | None = None  # seconds of training steps (see loop.py: what is not counted)

    # network
    model: str = "unet-small"  # a name of prunefast.models.PRESETS
    model_options: dict[str, Any] = dataclasses.field(default_factory=dict)  # overrides of the preset
    dropout: float | None = None  # None: the preset's
    init_from: str | None = None  # begin with the averaged weights of this checkpoint, or those of a .safetensors file
    class_conditional: bool | Literal["auto"] = "auto"  # "auto": when the data has labels
    # a diffusers pipeline with tokenizer and CLIP text model: the network (a UNet2DConditionModel) is told the captions
    # of the data in place of classes
    text_encoder: str | None = None
    caption_cache: bool = True  # every caption is encoded once, into OUT/captions.npy; False: with each batch
    label_drop: float = (
        0.1  # share of labels or captions replaced by the null class, for classifier-free guidance (Ho & Salimans)
    )

    # diffusion
    process: str = "ddpm-linear"
    prediction: str | None = None  # None: the process' default
    # only the times between these shares of the process' training times, 0 the least noise: (0, 0.2) of ddpm-linear is
    # t = 0 ... 199; None: all
    timesteps: tuple[float, float] | None = None
    weighting: str = "uniform"
    weighting_gamma: float | None = None  # of "min_snr" and "p2"; None: the weighting's default
    learn_sigma: bool = False  # the network learns the variance too, by the variational bound (ddpm-* only)
    bound_weight: float = 0.001  # of the bound, Nichol & Dhariwal 2021
    class_weights: str | tuple[float, ...] | None = None  # class_weights.json, numbers in class order, or ClassWeights
    class_weights_in: str = "loss"  # "loss": an image weighs weight / share of its class; "sampler": drawn so often
    class_weights_of: str = "classes"  # "clusters": one weight for each cluster of the coreset
    # InfoBatch: this share of the images with a loss below the mean is left out of every epoch, and those that stay
    # count for them; None: nothing. Epochs that begin at `dynamic_prune_until` images or later (None: 7/8 of `images`,
    # the paper's share) are whole
    dynamic_prune: float | None = None
    dynamic_prune_until: int | None = None
    flip: bool = True  # mirror half of the images left to right; False for digits and letters

    # Patch Diffusion (prunefast.diffusion.PatchSchedule); the network gets coordinates
    patch_p: float | None = None  # share of steps on full images; None: all, and no coordinates. The paper: 0.5
    patch_levels: int | None = None  # sizes R, R / 2, R / 4: how many of them; None: 3 for pixels, 2 for latents
    patch_multiply: bool = True  # 2 and 4 times the images at R / 2 and R / 4
    patch_schedule: str = "stochastic"  # "progressive": from the smallest size to the largest over `images`
    patch_loss: str = "sum"  # over pixels, as the paper; "mean": small patches pull as hard as full images

    # masked training (prunefast.diffusion.TokenMasking); models "maskdit-..." and "mdt-..." only
    mask_ratio: float = 0.0  # share of the tokens that the encoder does not see; MaskDiT: 0.5, MDT: 0.3
    mask_reconstruction: float = 0.0  # weight of reconstructing the masked input; MaskDiT: 0.1
    mask_images: int | None = None  # after so many images every token is seen (fine-tuning); None: masked to the end

    # optimisation
    batch_size: int = 128  # images of a step, over all processes
    # images of full size that a device takes at a time; the rest of its part of the batch comes after, for the same
    # gradient (accumulation). None: all at once. Halved where they do not fit
    batch_device: int | None = None
    optimizer: str = "adamw"
    lr: float = 2e-4
    warmup_images: int = 20_000  # linear warm-up of the learning rate, then constant
    weight_decay: float = 0.0  # on matrices and filters only, not on biases, norms and gains
    betas: tuple[float, float] = (0.9, 0.999)
    grad_clip: float = 1.0  # largest norm of the whole gradient; 0: not clipped
    max_bad_steps: int = 10  # training stops after so many steps in a row without a finite loss and gradient

    # moving average of the weights
    # Karras et al. 2022, table 7: 0.5 Mimg for CIFAR-10. Several: the first is sampled from, `choose_ema` gives others
    ema_half_life_images: float | tuple[float, ...] = 500_000
    ema_ramp_up: float = 0.05  # the half-life is at most this share of the images so far, so short runs average too
    # power-function averages of these relative widths besides; of two, such as (0.05, 0.1), `choose_ema` makes any
    ema_sigma_rel: tuple[float, ...] = ()
    ema_snapshots: int = 24  # of the power-function averages: the newest so many stay (see train/posthoc.py)

    # machine
    # under torchrun: "ddp", every process has the whole network; "fsdp", a part of it, for networks that do not fit
    parallel: str = "ddp"
    device: str = "auto"  # "auto": a GPU where there is one; else "cpu", "cuda", "cuda:1"
    precision: str = "auto"  # "auto": bf16 autocast where the device has it in hardware; weights are float32 always
    compile: bool = False  # torch.compile the network: pays on GPUs and for long runs
    deterministic: bool = True  # on GPUs: only algorithms that repeat bit for bit (exact resume), at some speed
    placement: str = "auto"  # where the loader keeps the images: "device", "memory", "pack", "disk"
    loader: str = "native"  # who decodes: "native", or NVIDIA's "dali" (extra prunefast[dali])
    on_unreadable: str = "raise"  # an image that cannot be read: "raise", or "replace" by another of its class
    threads: int | None = None  # decoding threads; None: the loader's choice

    # files
    status_every_images: int = 2_000  # between two lines of metrics.jsonl
    # share of the coreset not trained on, or a data set: the loss on those images, every so many (None: 25 lines)
    holdout: float | str | None = None
    holdout_every_images: int | None = None
    wandb: str | None = None  # log to this project of Weights & Biases too; TensorBoard's event file is always written
    checkpoint_every_images: int | None = None  # None: by time alone
    checkpoint_every_seconds: float = 300.0
    keep_checkpoints: int = 2  # at least the newest and one before it, should the newest be damaged

    def __post_init__(self) -> None:
        def put(key: str, value: Any) -> None:
            object.__setattr__(self, key, value)

        for field in dataclasses.fields(self):
            check = _CHECKS.get(field.name)
            if check is not None:
                put(field.name, check(field.name, getattr(self, field.name)))
        if self.images is None and self.max_seconds is None:
            raise InputError("images: say how long to train: images=..., max_seconds=..., or both")
        groups = getattr(self.class_weights, "groups", self.class_weights_of)  # ClassWeights know whose they are
        put("class_weights_of", _Choice(CLASS_WEIGHTS_OF)("class_weights_of", groups))
        if self.dynamic_prune is not None and self.dynamic_prune_until is None and self.images is None:
            raise InputError("dynamic_prune_until: say when epochs are whole again; without images it is not known")
        put("class_weights", _class_weights("class_weights", self.class_weights))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "TrainConfig") -> "TrainConfig":
        """From keys and values; `InputError` for a key that does not exist, with the nearest that does."""
        names = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                near = difflib.get_close_matches(str(key), names, n=1)
                raise InputError(f"{source}: unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        if "out" not in values:
            raise InputError(f"{source}: out is missing; name the run folder")
        return cls(**values)

    @classmethod
    def from_preset(cls, preset: str, **values: Any) -> "TrainConfig":
        """A preset of `PRESETS` with `values` over it (``out`` and the data at least)."""
        if preset not in PRESETS:
            raise InputError(f"preset {preset!r} does not exist; there are: {', '.join(PRESETS)}")
        return cls.from_dict({**PRESETS[preset], **values}, f"preset {preset}")

    @classmethod
    def load(cls, path: str | os.PathLike[str], **values: Any) -> "TrainConfig":
        """From a TOML file (as `dump` writes it), with `values` over it."""
        try:
            read = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{path}: no such file") from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InputError(f"{path}: is not readable TOML ({error})") from None
        return cls.from_dict({**read, **values}, str(path))

    def dump(self, path: str | os.PathLike[str]) -> None:
        """Write the TOML file that `load` reads: equal configuration back. TOML has no null: None is left out."""
        write_text(path, tomli_w.dumps(self.to_dict()))

    def to_dict(self) -> dict[str, Any]:
        """Keys and values as TOML and JSON hold them, without those that are None."""
        values = dataclasses.asdict(self)
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in values.items()
            if value is not None
        }

    def replace(self, **values: Any) -> "TrainConfig":
        """A copy with other values, checked again."""
        return self.from_dict(
            {**{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}, **values}, "TrainConfig"
        )


# Keys that decide nothing about the numbers, or whose meaning is in the resolved part of a recipe.
_NOT_RECIPE = frozenset(
    {
        *("out", "images", "max_seconds", "max_bad_steps"),
        *("data", "split", "coreset", "image_size", "class_conditional", "prediction", "precision"),
        *("class_weights", "class_weights_in", "class_weights_of"),
        *("init_from", "dynamic_prune_until"),
        *("batch_device", "parallel", "device", "compile", "deterministic"),
        *("placement", "loader", "on_unreadable", "threads"),
        *("text_encoder", "caption_cache"),
        *("checkpoint_every_images", "checkpoint_every_seconds", "keep_checkpoints", "status_every_images"),
        *("ema_snapshots", "holdout", "holdout_every_images", "wandb"),
    }
)


def recipe(config: TrainConfig, **resolved: Any) -> dict[str, Any]:
    """What decides the numbers of a run: a checkpoint is continued by the same recipe only.

    `resolved` are the facts behind the keys that hold a path, None or "auto" (fingerprints of data and coreset, the
    number of classes, ...). JSON-able. `images` and `max_seconds` are no part of it: a run may be extended.
    """
    kept = {
        field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.name not in _NOT_RECIPE
    }
    kept = {key: list(value) if isinstance(value, tuple) else value for key, value in kept.items()}
    if config.patch_p is None:  # they mean nothing; and runs from before there were any go on
        kept = {key: value for key, value in kept.items() if not key.startswith("patch_")}
    if config.mask_ratio == 0:
        kept = {key: value for key, value in kept.items() if not key.startswith("mask_")}
    if not config.ema_sigma_rel:
        del kept["ema_sigma_rel"]
    if not config.learn_sigma:
        del kept["learn_sigma"], kept["bound_weight"]
    return {**resolved, **kept}


# Starting points; every number with its source or reason.
PRESETS: dict[str, dict[str, Any]] = {
    # Ho et al. 2020, appendix B: 35.7 M parameters, batch 128, lr 2e-4, 5,000 warm-up steps, dropout 0.1, flips,
    # 800,000 steps; EMA 0.9999 a step = a half-life of 6,931 steps = 887,000 images.
    "cifar10": {
        "model": "unet-cifar10",
        "image_size": 32,
        "batch_size": 128,
        "lr": 2e-4,
        "warmup_images": 640_000,
        "dropout": 0.1,
        "ema_half_life_images": 887_000,
        "images": 102_400_000,
        "status_every_images": 50_000,
    },
    # Karras et al. 2022, appendix F, CIFAR-10: DDPM++, batch 512, lr 1e-3 reached after 10 Mimg, dropout 0.13, EMA
    # half-life 0.5 Mimg with a ramp of 5 %, 200 Mimg; their augmentation besides mirroring is not built.
    "edm": {
        "model": "edm-ddpmpp",
        "process": "edm",
        "weighting": "edm",
        "image_size": 32,
        "batch_size": 512,
        "lr": 1e-3,
        "warmup_images": 10_000_000,
        "dropout": 0.13,
        "grad_clip": 0.0,
        "images": 200_000_000,
        "status_every_images": 50_000,
    },
    # Minutes on a few CPU cores: small batches, because at 10^4 - 10^5 images the number of steps is what is short;
    # flow matching and no dropout, because they get further in so few (30 s on scikit-learn's digits, precision /
    # recall of the samples: eps 0.28 / 0.72, v 0.34 / 0.64, flow 0.48 / 0.73); and a larger share of them averaged.
    "cpu": {
        "model": "unet-tiny",
        "process": "flow",
        "dropout": 0.0,
        "ema_ramp_up": 0.1,
        "batch_size": 32,
        "lr": 1e-3,
        "warmup_images": 1_000,
        "images": 20_000,
        "status_every_images": 500,
    },
    # Peebles & Xie 2023, section 4: constant lr 1e-4, no weight decay, no warm-up, batch 256, EMA 0.9999 a step.
    "dit": {
        "model": "dit-s/2",
        "batch_size": 256,
        "lr": 1e-4,
        "warmup_images": 0,
        "grad_clip": 0.0,
        "ema_half_life_images": 1_774_000,
        "images": 102_400_000,
        "status_every_images": 50_000,
    },
}


def read_class_weights(
    value: str | tuple[float, ...] | None, classes: Sequence[str], groups: str = "classes"
) -> list[float] | None:
    """The class weights of a run as numbers in class order; `groups`: of what ("classes" or "clusters").

    A file holds a list, or an object with "average" (a list in class order, as `ClassWeights` is saved) or with the
    class names as keys.
    """
    if value is None:
        return None
    source = "class_weights"
    content: Any = value
    if isinstance(value, str):
        source, content = value, read_json(value)
        if isinstance(content, dict):
            recorded = content.get("groups", groups) if "average" in content else groups
            if recorded != groups:
                raise InputError(f"{source}: holds weights of {recorded}; set class_weights_of to that")
            named = content.get("classes") if "average" in content else None
            if named is not None and named != list(classes):
                raise InputError(f"{source}: its classes are not those of the data ({', '.join(map(str, named))[:60]})")
            content = content.get("average", content)
        if isinstance(content, dict):
            missing = [name for name in classes if name not in content]
            if missing or len(content) != len(classes):
                raise InputError(
                    f"{source}: its classes are not those of the data ({', '.join(missing) or 'too many'})"
                )
            content = [content[name] for name in classes]
    try:
        weights = [float(weight) for weight in content]
    except (TypeError, ValueError):
        raise InputError(f"{source}: is no list of numbers, one for each class") from None
    if len(weights) != len(classes):
        raise InputError(f"{source}: has {len(weights)} weights, the data has {len(classes)} classes")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or sum(weights) <= 0:
        raise InputError(f"{source}: weights must be finite, not negative and not all zero")
    return weights


# --- checks: (key, value) -> the value as it is stored, or an error that names the key ---


def _text(key: str, value: Any) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str) or not value:
        raise InputTypeError(f"{key} is {value!r}; give a text")
    return value


def _flag(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InputTypeError(f"{key} is {value!r}; give true or false")
    return value


def _flag_or_auto(key: str, value: Any) -> bool | str:
    if value == "auto" and isinstance(value, str):
        return value
    if not isinstance(value, bool):
        raise InputTypeError(f'{key} is {value!r}; give true, false or "auto"')
    return value


class _Whole:
    def __init__(self, low: int, high: float = math.inf):
        self.low, self.high = low, high

    def __call__(self, key: str, value: Any) -> int:
        try:
            if isinstance(value, bool):
                raise TypeError
            whole = operator.index(value)
        except TypeError:
            raise InputTypeError(f"{key} is {value!r}; give a whole number") from None
        if not self.low <= whole <= self.high:
            upper = f" and at most {int(self.high)}" if self.high < math.inf else ""
            raise InputError(f"{key} is {whole}; it must be at least {self.low}{upper}")
        return whole


class _Number:
    """low <= value < high; or low < value where `open_low`, value <= high where `closed_high`."""

    def __init__(self, low: float, high: float = math.inf, *, open_low: bool = False, closed_high: bool = False):
        self.low, self.high, self.open_low, self.closed_high = low, high, open_low, closed_high

    def __call__(self, key: str, value: Any) -> float:
        try:
            if isinstance(value, bool | str):
                raise TypeError
            number = float(value)
        except (TypeError, ValueError):
            raise InputTypeError(f"{key} is {value!r}; give a number") from None
        low_ok = number > self.low if self.open_low else number >= self.low
        high_ok = number <= self.high if self.closed_high else number < self.high
        if not (low_ok and high_ok):  # NaN fails too
            upper = f" and {'at most' if self.closed_high else 'below'} {self.high:g}"
            if self.high == math.inf:
                upper = " and finite"
            raise InputError(
                f"{key} is {number:g}; it must be {'above' if self.open_low else 'at least'} {self.low:g}{upper}"
            )
        return number


class _Choice:
    def __init__(self, choices: Sequence[str]):
        self.choices = choices

    def __call__(self, key: str, value: Any) -> str:
        if value not in self.choices:
            raise InputError(f"{key} is {value!r}; choose one of {', '.join(self.choices)}")
        return value


class _Optional:
    def __init__(self, check: typing.Callable[[str, Any], Any]):
        self.check = check

    def __call__(self, key: str, value: Any) -> Any:
        return None if value is None else self.check(key, value)


def _betas(key: str, value: Any) -> tuple[float, float]:
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise InputTypeError(f"{key} is {value!r}; give two numbers")
    check = _Number(0.0, 1.0)
    return check(key, value[0]), check(key, value[1])


def _timesteps(key: str, value: Any) -> tuple[float, float]:
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise InputTypeError(f"{key} is {value!r}; give two shares of the times, such as (0, 0.2)")
    check = _Number(0.0, 1.0 + 2**-52)
    low, high = check(key, value[0]), check(key, value[1])
    if not low < high:
        raise InputError(f"{key} is {low:g} ... {high:g}; the first share must be below the second")
    return low, high


def _share_or_text(key: str, value: Any) -> float | str:
    if isinstance(value, str | os.PathLike):
        return _text(key, value)
    return _Number(0.0, 1.0, open_low=True)(key, value)


def _numbers(key: str, value: Any, check: _Number) -> tuple[float, ...]:
    """Different numbers."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise InputTypeError(f"{key} is {value!r}; give numbers, such as (0.05, 0.1)")
    numbers = tuple(check(key, entry) for entry in value)
    if len(set(numbers)) < len(numbers):
        raise InputError(f"{key}: the same average twice; leave one out")
    return numbers


def _half_lives(key: str, value: Any) -> float | tuple[float, ...]:
    check = _Number(0.0)
    if isinstance(value, str) or not isinstance(value, Sequence):
        return check(key, value)
    numbers = _numbers(key, value, check)
    if not numbers:
        raise InputError(f"{key}: is empty; give at least one")
    return numbers if len(numbers) > 1 else numbers[0]


def _widths(key: str, value: Any) -> tuple[float, ...]:
    return _numbers(key, value, _Number(0.0, WIDEST, open_low=True, closed_high=True))


def _options(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise InputTypeError(f"{key} is {value!r}; give a table of options")
    for name, entry in value.items():
        if entry is None:
            raise InputError(f"{key}.{name} is None; leave it out")
    return {name: list(entry) if isinstance(entry, tuple) else entry for name, entry in value.items()}


def _class_weights(key: str, value: Any) -> str | tuple[float, ...] | None:
    value = getattr(value, "average", value)
    if value is None:
        return None
    if isinstance(value, str | os.PathLike):
        return _text(key, value)
    check = _Number(0.0)
    try:
        return tuple(check(key, weight) for weight in value)
    except TypeError:
        raise InputTypeError(f"{key} is {value!r}; give ClassWeights, a file or one number for each class") from None


_CHECKS: dict[str, typing.Callable[[str, Any], Any]] = {
    "out": _text,
    "data": _Optional(_text),
    "split": _Optional(_text),
    "coreset": _Optional(_text),
    "image_size": _Optional(_Whole(1)),
    "seed": _Whole(0, 2**64 - 1),
    "images": _Optional(_Whole(1)),
    "max_seconds": _Optional(_Number(0.0, open_low=True)),
    "model": _text,
    "model_options": _options,
    "init_from": _Optional(_text),
    "dropout": _Optional(_Number(0.0, 1.0)),
    "class_conditional": _flag_or_auto,
    "text_encoder": _Optional(_text),
    "caption_cache": _flag,
    "label_drop": _Number(0.0, 1.0),
    "process": _text,
    "prediction": _Optional(_text),
    "timesteps": _Optional(_timesteps),
    "weighting": _text,
    "weighting_gamma": _Optional(_Number(0.0, open_low=True)),
    "learn_sigma": _flag,
    "bound_weight": _Number(0.0),
    "class_weights_in": _Choice(CLASS_WEIGHTS_IN),
    "dynamic_prune": _Optional(_Number(0.0, 1.0, open_low=True)),
    "dynamic_prune_until": _Optional(_Whole(0)),
    "flip": _flag,
    "mask_ratio": _Number(0.0, 1.0),
    "mask_reconstruction": _Number(0.0),
    "mask_images": _Optional(_Whole(0)),
    "patch_p": _Optional(_Number(0.0, 1.0, closed_high=True)),
    "patch_levels": _Optional(_Whole(1, 3)),
    "patch_multiply": _flag,
    "patch_schedule": _Choice(SCHEDULES),
    "patch_loss": _Choice(LOSSES),
    "batch_size": _Whole(1),
    "batch_device": _Optional(_Whole(1)),
    "optimizer": _Choice(OPTIMIZERS),
    "lr": _Number(0.0),
    "warmup_images": _Whole(0),
    "weight_decay": _Number(0.0),
    "betas": _betas,
    "grad_clip": _Number(0.0),
    "max_bad_steps": _Whole(1),
    "ema_half_life_images": _half_lives,
    "ema_ramp_up": _Number(0.0, open_low=True),
    "parallel": _Choice(PARALLELS),
    "ema_sigma_rel": _widths,
    "ema_snapshots": _Whole(0),
    "device": _text,
    "precision": _Choice(PRECISIONS),
    "compile": _flag,
    "deterministic": _flag,
    "placement": _Choice(PLACEMENTS),
    "loader": _Choice(LOADERS),
    "on_unreadable": _Choice(("raise", "replace")),
    "threads": _Optional(_Whole(1)),
    "status_every_images": _Whole(1),
    "holdout": _Optional(_share_or_text),
    "holdout_every_images": _Optional(_Whole(1)),
    "wandb": _Optional(_text),
    "checkpoint_every_images": _Optional(_Whole(1)),
    "checkpoint_every_seconds": _Number(0.0, open_low=True),
    "keep_checkpoints": _Whole(1),
}
