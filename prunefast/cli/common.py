"""What the commands share: groups of arguments, what they mean for the library, and how results are printed."""

import argparse
import ast
import json
from typing import TYPE_CHECKING, Any

from prunefast.errors import InputError
from prunefast.files import finite

if TYPE_CHECKING:
    from prunefast.data import ImageDataset
    from prunefast.train import TrainConfig


# --- arguments and what the library gets of them


def add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="folder of a run, as `prunefast embed` or `prunefast run` made it")


def add_out(parser: argparse.ArgumentParser, help_text: str) -> None:
    parser.add_argument("-o", "--out", metavar="FOLDER", required=True, help=help_text)


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help='"auto" takes a GPU where there is one (default: auto)')


def device(options: argparse.Namespace) -> str | None:
    from prunefast.train.step import pick_device

    pick_device(options.device)  # an encoder that runs on the CPU anyway would not look at it
    return None if options.device == "auto" else options.device


def add_data_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument("--split", help="train, test or all, where the source has splits (default: train)")
    group.add_argument("--image-size", type=int, metavar="R", help="crop and resize to R x R pixels")
    group.add_argument(
        "--on-error",
        choices=("raise", "skip"),
        default="raise",
        help="a broken image stops the work, or is set aside and listed (default: raise)",
    )


def data_options(options: argparse.Namespace) -> dict[str, Any]:
    return {"split": options.split, "image_size": options.image_size, "on_error": options.on_error}


def refuse_data_options(options: argparse.Namespace, run: object, *, but: tuple[str, ...] = ()) -> None:
    """A run knows its data and how it is read; `but` are options that mean something there all the same."""
    given = {"split": options.split, "image_size": options.image_size, "on_error": options.on_error}
    for name, value in given.items():
        if name not in but and value not in (None, "raise"):
            raise InputError(f"--{name.replace('_', '-')}: the run in {run} has its data already; leave it out")


def add_encoder_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("encoder")
    group.add_argument(
        "--encoder",
        default="pixels",
        help="pixels, resnet20-cifar, torchvision:NAME, timm:NAME, hf:FOLDER or a FILE.pt2/.pt (default: pixels)",
    )
    group.add_argument("--weights", metavar="FILE", help="weights of the encoder (prunefast never downloads any)")
    group.add_argument("--trust", action="store_true", help="allow a FILE.pt2/.pt, which can run any code")


def encoder_options(options: argparse.Namespace) -> dict[str, Any]:
    chosen: dict[str, Any] = {"encoder": options.encoder, "trust": options.trust}
    if options.weights is not None:
        chosen["weights"] = options.weights
    return chosen


def add_per_class(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--per-class",
        action="store_true",
        default=None,
        help="within each class (default where there are classes; not for clusters and what works on all images)",
    )
    which.add_argument("--global", dest="per_class", action="store_false", help="over all images together")


def add_method_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="option of the method, such as ridge=1e-4, k=50, quota=equal or pick=nearest; may be repeated",
    )


def method_options(options: argparse.Namespace) -> dict[str, Any]:
    """The options of --method. Only names that the method has: another one could be an argument of ours."""
    from prunefast.score import METHODS
    from prunefast.score.options import make_options
    from prunefast.score.surrogate import SURROGATES
    from prunefast.select.selection import SELECTIONS

    given = key_values("--option", options.option)
    if options.command == "score":
        known: dict[str, Any] = {**METHODS, **SURROGATES}
        kind = known[options.method].options if options.method in known else None
    else:
        if options.method in SURROGATES:
            raise InputError(
                f"--method {options.method}: is a score of a trained model; make it with prunefast score RUN --method "
                f"{options.method} --checkpoint CKPT, then select with --method top --score {options.method}"
            )
        kind = SELECTIONS[options.method].options if options.method in SELECTIONS else None
    if kind is not None:  # a method that does not exist is said by the step itself
        make_options(kind, options.method, given)
    return given if kind is not None else {}


def key_values(flag: str, words: list[str], form: str = "KEY=VALUE") -> dict[str, Any]:
    """["k=50", "quota=equal"] -> {"k": 50, "quota": "equal"}: Python literals where they are some, else texts."""
    found = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise InputError(f"{flag} {word}: is not {form}")
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[key] = {"true": True, "false": False}.get(value, value)
    return found


def add_selection(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("selection")
    group.add_argument(
        "--method",
        default="gaussian",
        help="random, gaussian, ppca, knn, density, prototypes, coverage, moderate, clusters, hierarchical, k-center, "
        "herding, facility-location; of a score: top, band, stratified, interval, d2 (default: gaussian)",
    )
    group.add_argument(
        "--score", metavar="NAME", help="the score that top, band, ... work on (default: gaussian; top needs one)"
    )
    group.add_argument("--keep", type=float, metavar="F", help="fraction kept, in (0, 1] (default: 0.3)")
    group.add_argument("--keep-n", type=int, metavar="N", help="number kept, instead of --keep")
    group.add_argument("--threshold", type=float, metavar="S", help="keep scores of S and more, instead of --keep")
    group.add_argument("--select-seed", type=int, default=0, metavar="SEED", help="of random choices (default: 0)")
    add_per_class(parser)
    group.add_argument(
        "--class-target",
        metavar="T",
        help='split of the budget over classes: input, uniform, or shares such as "cat=2,dog=1" (default: input)',
    )
    add_method_options(parser)


def class_target(options: argparse.Namespace) -> str | dict[str, float] | None:
    """ "input", "uniform", or a share for each class; class names may hold anything but commas."""
    text = options.class_target
    if text is None or "=" not in text:
        return text
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.rpartition("=")
        try:
            shares[name.strip()] = float(value)
        except ValueError:
            raise InputError(f"--class-target: {part!r} is not CLASS=SHARE") from None
        if not name.strip():
            raise InputError(f"--class-target: {part!r} is not CLASS=SHARE")
    return shares


def budget(options: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(options, name) for name in ("keep", "keep_n", "threshold")}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) > 1:
        flags = " and ".join("--" + name.replace("_", "-") for name in given)
        raise InputError(f"{flags}: give one of them")
    return given or {"keep": 0.3}


def add_training(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument("--config", metavar="FILE", help="config.toml; the arguments given go over it")
    group.add_argument(
        "--preset", help="cifar10, cpu, edm or dit (default: cpu without a GPU, cifar10 settings with one)"
    )
    group.add_argument(
        "--model", help="such as unet-tiny, unet-small, unet-cifar10, edm-ddpmpp, dit-s/2, diffusers:FOLDER"
    )
    group.add_argument("--images", type=int, metavar="N", help="images to train on, counted with repetition")
    group.add_argument("--minutes", type=float, metavar="M", help="or the time to train")
    group.add_argument("--batch-size", type=int, metavar="B", help="images of a step, over all processes of torchrun")
    group.add_argument(
        "--batch-device", type=int, metavar="N", help="images a device takes at a time (default: all of its part)"
    )
    group.add_argument("--parallel", choices=("ddp", "fsdp"), help="under torchrun: whole networks, or parts of one")
    group.add_argument("--lr", type=float, help="learning rate")
    group.add_argument(
        "--process", help="ddpm-linear, ddpm-scaled-linear, ddpm-cosine (ddpm-cosine:4000 has 4,000 times), flow or edm"
    )
    group.add_argument("--prediction", help="eps, v, x0, flow ... (default: the process' own)")
    group.add_argument("--weighting", help="uniform, min_snr, edm or p2")
    group.add_argument(
        "--patch-p",
        type=float,
        nargs="?",
        const=0.5,
        metavar="P",
        help="Patch Diffusion: share of steps on full images (without a number: 0.5, as the paper)",
    )
    group.add_argument("--precision", choices=("auto", "bf16", "fp32"))
    group.add_argument("--class-weights", metavar="FILE", help="class_weights.json of `prunefast reweight`")
    group.add_argument(
        "--class-weights-in",
        choices=("loss", "sampler"),
        help="as a factor of the loss, or as how often a class is drawn",
    )
    group.add_argument("--no-flip", dest="flip", action="store_false", default=None, help="no mirrored images")
    group.add_argument("--compile", action="store_true", default=None, help="torch.compile the network")
    group.add_argument(
        "--loader", choices=("native", "dali"), help="who decodes images: NVIDIA's DALI needs prunefast[dali]"
    )
    group.add_argument("--seed", type=int, help="of order, noise and initial weights (default: 0)")
    add_device(parser)
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other key of TrainConfig, such as grad_clip=0.5; may be repeated",
    )


# arguments that are keys of TrainConfig by the same name
TRAINING_FLAGS = ["model", "images", "batch_size", "lr", "process", "prediction", "weighting", "precision", "flip"]
TRAINING_FLAGS += ["compile", "seed", "image_size", "device", "patch_p", "class_weights", "class_weights_in"]
TRAINING_FLAGS += ["batch_device", "parallel", "loader"]


def training_values(options: argparse.Namespace) -> dict[str, Any]:
    """The keys of TrainConfig that were given: flags, --set over them."""
    values: dict[str, Any] = {name: getattr(options, name, None) for name in TRAINING_FLAGS}
    values = {name: value for name, value in values.items() if value is not None}
    if options.minutes is not None:
        values["max_seconds"] = 60.0 * options.minutes
    more = key_values("--set", options.set)
    for key in ("out", "data", "split"):
        if key in more:
            raise InputError(f"--set {key}: has an argument of its own (-o, --data, --split); use that")
    return values | more


def training(options: argparse.Namespace, *, out: str, data: "ImageDataset") -> "TrainConfig":
    """The TrainConfig of the arguments: preset or config file, flags over it, --set over those."""
    import torch

    from prunefast.files import RunFolder
    from prunefast.train import PRESETS, TrainConfig
    from prunefast.train.state import list_checkpoints

    if options.config and options.preset:
        raise InputError("--config and --preset: give one of them")
    values = training_values(options)
    values |= {"out": out, "data": data.path or None, "split": data.split}
    base = options.config
    own = RunFolder(out).train / "config.toml"  # a run goes on with its own settings, whatever the presets are now
    if base is None and options.preset is None and own.is_file() and list_checkpoints(own.parent):
        base = own
    if base is not None:
        return TrainConfig.load(base, **values)
    preset = options.preset
    if preset is None:
        on_gpu = torch.cuda.is_available() and options.device != "cpu"
        preset = "cifar10" if on_gpu else "cpu"
    if preset in PRESETS and "max_seconds" in values and "images" not in values:
        values["images"] = None  # the time given is the limit, not the preset's number
    return TrainConfig.from_preset(preset, **values)


def describe_training(config: "TrainConfig") -> str:
    limits = []
    if config.images is not None:
        limits.append(f"{config.images:,} images")
    if config.max_seconds is not None:
        limits.append(f"{config.max_seconds / 60:g} minutes")
    return f"training: {config.model}, batch {config.batch_size}, lr {config.lr:g}, {' or '.join(limits)}"


def add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument("--sampler", default="ddim", help="ddim, ddpm, heun or euler (default: ddim)")
    group.add_argument("--steps", type=int, default=50, help="steps of the sampler (default: 50)")
    group.add_argument("--guidance", type=float, default=1.0, help="classifier-free guidance; 1 is none (default: 1)")
    group.add_argument("--sample-seed", type=int, default=0, metavar="SEED", help="of the images' noise (default: 0)")
    group.add_argument("--sample-batch", type=int, default=64, metavar="B", help="images at a time (default: 64)")


def sampling(options: argparse.Namespace) -> dict[str, Any]:
    from prunefast.diffusion import SAMPLERS

    if options.sampler not in SAMPLERS:
        raise InputError(f"--sampler {options.sampler}: does not exist; there are {', '.join(SAMPLERS)}")
    if options.sample_batch < 1:
        raise InputError(f"--sample-batch {options.sample_batch}: must be at least 1")
    if not 0 <= options.sample_seed < 2**64:
        raise InputError(f"--sample-seed {options.sample_seed}: must be from 0 to 2^64 - 1")
    return {
        "sampler": options.sampler,
        "steps": options.steps,
        "guidance": options.guidance,
        "seed": options.sample_seed,
        "batch_size": options.sample_batch,
    }


# --- what is printed


def show_progress(options: argparse.Namespace) -> bool:
    return not options.quiet


def say(options: argparse.Namespace, text: object) -> None:
    """A result for people, on standard output."""
    if not options.quiet:
        print(text, flush=True)


def finish(options: argparse.Namespace, facts: dict[str, Any]) -> int:
    """The machine-readable line, last, where it was asked for. Returns the exit status 0."""
    if options.json:
        print(json.dumps(finite(facts), default=str, allow_nan=False), flush=True)
    return 0


def describe(data: "ImageDataset") -> str:
    """One line on a data set, and one for each thing its user should know."""
    size = f"{data.image_size} x {data.image_size}" if data.image_size else "of several sizes"
    classes = f"{len(data.classes)} classes" if data.labels is not None else "no classes"
    split = f", split {data.split}" if data.split not in (None, "", "all") else ""
    lines = [f"data: {data.path or 'arrays'}{split}: {len(data):,} images {size}, {classes}", *data.notices]
    for key, reason in data.skipped[:5]:
        lines.append(f"set aside: {key}: {reason}")
    if len(data.skipped) > 5:
        lines.append(f"set aside: {len(data.skipped) - 5:,} more (all are listed by .skipped)")
    return "\n".join(lines)
