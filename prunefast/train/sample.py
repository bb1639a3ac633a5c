"""Sampling from a checkpoint, into memory or into a folder of PNG files with the protocol beside them."""

import dataclasses
import math
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from prunefast.data.latents import LatentScale
from prunefast.diffusion import GroupedDenoiser, TimestepGroups, make_process
from prunefast.diffusion.samplers import SAMPLERS, Denoiser, sample_images
from prunefast.encode.encoder import weights_digest
from prunefast.encode.latents import Autoencoder
from prunefast.encode.text import EMPTY, TextEncoder
from prunefast.errors import InputError, InputTypeError, MachineError
from prunefast.files import (
    TEMPORARY_PREFIX,
    explain_os_error,
    folder_names,
    lock_folder,
    make_folder,
    read_json,
    remove_leftovers,
    write_json,
)
from prunefast.models import ModuleNetwork, build_model
from prunefast.models.adapter import MODULE
from prunefast.models.prompted import PromptedNetwork
from prunefast.progress import progress as show_progress
from prunefast.train.experts import find_experts, is_tdc_folder
from prunefast.train.state import find_checkpoint, load_weights
from prunefast.train.step import autocast, pick_device

PROTOCOL_FILE = "samples.json"


def sample(
    checkpoint: str | os.PathLike[str],
    n: int,
    *,
    out: str | os.PathLike[str] | None = None,
    sampler: str = "ddim",
    steps: int = 50,
    guidance: float = 1.0,
    labels: Any = None,
    seed: int = 0,
    batch_size: int = 64,
    ema: bool = True,
    device: str = "auto",
    progress: bool = False,
    model: nn.Module | None = None,
    vae: str | os.PathLike[str] | None = None,
    prompts: str | Sequence[str] | None = None,
    text_encoder: str | os.PathLike[str] | None = None,
) -> np.ndarray:
    """Images of a trained model, uint8 [n, R, R, 3].

        images = pf.sample("run", 1_000, out="run/samples", steps=50)

    Image k follows from the checkpoint, the seed and its number: the same in a larger n, and whatever came before.
    (Another `batch_size` may change the last digits of torch's own products, a grey level here and there.)

    With `out`, image k goes to OUT/CLASS/k.png (OUT/k.png without classes), and OUT/samples.json says how they were
    made. A second call makes what is missing, reads the rest, and may ask for more images; another protocol is an
    error.

    Args:
        checkpoint: a run folder, its train folder, one checkpoint-* folder, or the tdc folder of a run.
        n: number of images.
        sampler, steps: see `prunefast.diffusion.samplers`.
        guidance: of classifier-free guidance; 1: none.
        labels: of a conditional model: one class or [n] classes, each a number or a name; None: balanced, image k is of
            class k mod C.
        batch_size: images at a time.
        ema: the averaged weights; False: the raw ones.
        vae: of a model of latents, the folder of the autoencoder that decodes them; None: where it was at training.
        model: the module that was trained, where it was one of your own; the weights are read into it.
        prompts: of a model that was trained on captions: image k is of prompt k mod their number.
        text_encoder: its text model, the folder of the pipeline; None: where it was at training.

    Raises:
        InputError: no whole checkpoint there, an option out of range, or a folder of other samples.
    """
    path = Path(checkpoint)
    paths, state = find_model(path)
    if isinstance(n, bool) or not isinstance(n, int | np.integer):
        raise InputTypeError(f"n is {n!r}; give a number of images")
    if n < 1:
        raise InputError(f"n is {n}; it must be at least 1")
    recipe, network = state["recipe"], state["model"]
    check_sampling(recipe["process"], sampler=sampler, steps=steps, guidance=guidance, seed=seed, batch_size=batch_size)
    if (model is not None) != (network["name"] == MODULE):
        need = (
            "is of a module of your own; pass it (model=)"
            if model is None
            else "is of a network by name; leave model out"
        )
        raise InputError(f"model: {path} {need}")
    table = texts = None
    if state.get("text") is not None:
        texts = _check_prompts(prompts, path)
        table = _embed(texts, state["text"], text_encoder)
    elif prompts is not None or text_encoder is not None:
        key = "prompts" if prompts is not None else "text_encoder"
        raise InputError(f"{key}: the model of {path} was not trained on captions; leave it out")
    latents = None if state.get("latents") is None else LatentScale(**state["latents"])
    if latents is None and vae is not None:
        raise InputError(f"vae: the model of {path} makes images, not latents; leave it out")
    side, depth = (network["image_size"], network["channels"]) if latents is None else (latents.pixels, 3)
    shape = (int(n), side, side, depth)
    try:
        images = np.empty(shape, np.uint8)
    except (MemoryError, ValueError):
        raise MachineError(f"n is {n}: so many images do not fit into memory; sample fewer at a time") from None
    classes = resolve_labels(labels, int(n), network["num_classes"], state["classes"])
    if network["num_classes"] is None and guidance != 1.0 and table is None:
        raise InputError(f"guidance is {guidance:g}: the model of {path} has no classes; leave guidance at 1")
    protocol = {
        "n": int(n),
        "sampler": sampler,
        "steps": int(steps),
        "guidance": float(guidance),
        "seed": int(seed),
        "labels": "balanced" if labels is None and classes is not None else _run_lengths(classes),
        "ema": bool(ema),
        "precision": recipe["precision"],
        "checkpoint": state["digest"],
        "images_trained": state["images"],
        "process": recipe["process"],
        "prediction": recipe["prediction"],
        "image_size": network["image_size"],
    }
    if sampler == "ddpm" and network.get("learn_sigma"):
        protocol["variance"] = "learned"
    if texts is not None:
        protocol |= {"prompts": texts, "text_encoder_weights": state["text"]["digest"]}
    decoder = None
    if latents is not None:
        if not latents.vae and vae is None:
            raise InputError(
                "vae: the latents were made elsewhere; give the folder of the autoencoder that decodes them"
            )
        decoder = Autoencoder(latents.vae if vae is None else vae)
        if latents.means is not None:
            decoder.unscale(latents)
        elif weights_digest(decoder.state_dict()) != latents.weights:
            raise InputError(f"vae: {decoder.folder} has other weights than those that encoded the data")
        protocol["vae"] = latents.weights
    target = pick_device(device)
    if out is None:
        return _fill(
            paths, state, images, None, protocol, classes, target, guidance, batch_size, progress, model, decoder, table
        )
    with lock_folder(make_folder(out), "sampling"):
        files = _SampleFolder(Path(out), protocol, classes, state["classes"])
        return _fill(
            paths,
            state,
            images,
            files,
            protocol,
            classes,
            target,
            guidance,
            batch_size,
            progress,
            model,
            decoder,
            table,
        )


def _check_prompts(prompts: Any, path: Path) -> list[str]:
    texts = [prompts] if isinstance(prompts, str) else list(prompts or ())
    if not texts:
        raise InputError(f"prompts: the model of {path} was trained on captions; say what to show (--prompt)")
    for text in texts:
        if not isinstance(text, str):
            raise InputTypeError(f"prompts: {text!r} is no text")
    return texts


def _embed(texts: list[str], record: dict[str, str], folder: str | os.PathLike[str] | None) -> torch.Tensor:
    """[P + 1, tokens, width]: of the texts and of none."""
    encoder = TextEncoder(record["folder"] if folder is None else folder)
    if encoder.digest() != record["digest"]:
        raise InputError(f"text_encoder: {encoder.folder} has other weights than the one of training")
    return encoder([*texts, EMPTY])


def find_model(path: Path) -> tuple[list[Path], dict[str, Any]]:
    """The checkpoints of the model that `path` means, one or one a timestep group, and their state."""
    if is_tdc_folder(path):
        return find_experts(path)
    checkpoint, state = find_checkpoint(path)
    return [checkpoint], state


def load_denoiser(
    paths: Sequence[Path],
    state: dict[str, Any],
    *,
    ema: bool,
    device: torch.device,
    guidance: float = 1.0,
    module: nn.Module | None = None,
    prompts: torch.Tensor | None = None,
) -> Denoiser | GroupedDenoiser:
    """The networks of `find_model`, with their weights on `device`, as a sampler asks them.

    module: the user's own network, where the checkpoint is of one.
    prompts: embeddings [P + 1, tokens, width] of a model of captions, which the labels number; the last: no text.
    """
    process, prediction = make_process(state["recipe"]["process"]), state["recipe"]["prediction"]
    denoisers = []
    for path, network in zip(paths, state.get("networks", [state["model"]]), strict=True):
        model: nn.Module
        if module is not None:
            known = ("image_size", "channels", "num_classes", "coordinates", "learn_sigma")
            model = ModuleNetwork(module, **{key: network[key] for key in known})
        else:
            with torch.random.fork_rng(devices=[]):  # fresh weights are drawn, then the checkpoint's read over them
                model = build_model(**network)
        load_weights(path, model, ema=ema)
        model = model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        if prompts is not None:
            rows = prompts.to(device)
            model = PromptedNetwork(model, partial(rows.index_select, 0), len(rows) - 1)
        denoisers.append(Denoiser(model, process, prediction, guidance))
    if "edges" in state:
        return GroupedDenoiser(TimestepGroups(process, tuple(state["edges"])), denoisers)
    return denoisers[0]


def _fill(
    paths: Sequence[Path],
    state: dict[str, Any],
    images: np.ndarray,
    files: "_SampleFolder | None",
    protocol: dict[str, Any],
    classes: np.ndarray | None,
    target: torch.device,
    guidance: float,
    batch_size: int,
    progress: bool,
    module: nn.Module | None,
    decoder: Autoencoder | None,
    prompts: torch.Tensor | None,
) -> np.ndarray:
    """Put every image of `protocol` into `images`: read where the folder has it, else made and written there."""
    n, recipe, network = len(images), state["recipe"], state["model"]
    missing = [k for k in range(n) if files is None or not files.read(k, images[k])]
    if missing:
        denoiser = load_denoiser(
            paths, state, ema=protocol["ema"], device=target, guidance=guidance, module=module, prompts=prompts
        )
        if prompts is not None:
            classes = np.arange(n) % (len(prompts) - 1)
        with show_progress("sample", len(missing), silent=not progress) as bar:
            # whole batches of the same cut every time: what a second call makes has the bits of the first
            for begin in sorted({k - k % batch_size for k in missing}):
                numbers = np.arange(begin, min(begin + batch_size, n))
                with autocast(target, recipe["precision"]):
                    made = sample_images(
                        denoiser,
                        torch.from_numpy(numbers),
                        image_size=network["image_size"],
                        channels=network["channels"],
                        labels=None if classes is None else torch.from_numpy(classes[numbers]),
                        sampler=protocol["sampler"],
                        steps=protocol["steps"],
                        seed=protocol["seed"],
                        batch_size=batch_size,
                        clamp=decoder is None,
                        **({"variance": protocol["variance"]} if "variance" in protocol else {}),
                    )
                if decoder is not None:
                    with torch.inference_mode():
                        made = decoder.to(target).decode(made.to(target)).clamp(-1, 1).float().cpu()
                new = [k for k in missing if begin <= k < begin + batch_size]
                images[new] = quantise(made).numpy()[np.array(new) - begin]
                if files is not None:
                    for k in new:
                        files.write(k, images[k])
                bar.advance(len(new))
    if files is not None:
        files.finish()
    return images


def check_sampling(
    process: str, *, sampler: str = "ddim", steps: int = 50, guidance: float = 1.0, seed: int = 0, batch_size: int = 64
) -> None:
    """Refuse options of `sample` that cannot work with a process of that name, before there is a model."""
    for key, value in (("batch_size", batch_size), ("steps", steps)):
        if value < 1:
            raise InputError(f"{key} is {value}; it must be at least 1")
    if sampler not in SAMPLERS:
        raise InputError(f"sampler is {sampler!r}; choose one of {', '.join(SAMPLERS)}")
    if sampler != "heun":  # which chooses times of its own
        make_process(process).sampling_times(min(steps, 1_000_000))
    if not math.isfinite(guidance):
        raise InputError(f"guidance is {guidance:g}; it must be finite")
    if not 0 <= seed < 2**64:
        raise InputError(f"seed is {seed}; it must be from 0 to 2^64 - 1")


def quantise(images: torch.Tensor) -> torch.Tensor:
    """[n, C, R, R] in [-1, 1] -> uint8 [n, R, R, C], as EDM: clip(127.5 x + 128), cut to whole numbers."""
    return (images.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()


def resolve_labels(labels: Any, n: int, num_classes: int | None, names: Sequence[str]) -> np.ndarray | None:
    """int64 [n] class numbers for `sample`'s argument `labels`; None for a model without classes."""
    if num_classes is None:
        if labels is not None:
            raise InputError("labels: the model has no classes; leave labels out")
        return None
    if labels is None:
        return np.arange(n, dtype=np.int64) % num_classes
    single = isinstance(labels, str) or np.ndim(labels) == 0
    values = [labels] * n if single else list(labels)
    if len(values) != n:
        raise InputError(f"labels: {len(values)} for {n} images; give one class, or one for each image")
    numbers = np.empty(n, np.int64)
    for k, value in enumerate(values):
        if isinstance(value, str):
            if value not in names:
                raise InputError(f"labels: there is no class {value!r}; there are: {', '.join(names)}")
            numbers[k] = names.index(value)
            continue
        number = value.item() if isinstance(value, np.generic | torch.Tensor) else value
        if isinstance(number, bool) or not isinstance(number, int):
            raise InputTypeError(f"labels: {value!r} is no class; give numbers or names")
        if not 0 <= number < num_classes:
            raise InputError(f"labels: {number} is not in 0 .. {num_classes - 1}")
        numbers[k] = number
    return numbers


def _run_lengths(classes: np.ndarray | None) -> list[list[int]] | None:
    """[[class, count], ...] in order: short for what people ask for, exact for everything."""
    if classes is None:
        return None
    starts = np.flatnonzero(np.r_[True, classes[1:] != classes[:-1]])
    counts = np.diff(np.r_[starts, len(classes)])
    return [[int(classes[start]), int(count)] for start, count in zip(starts, counts, strict=True)]


@dataclasses.dataclass
class _SampleFolder:
    """PNG files of one protocol. Checked when made; samples.json is there before the first image, and nothing before
    an image was made, so that a first try that failed does not bind the second to its options."""

    path: Path
    protocol: dict[str, Any]
    labels: np.ndarray | None
    class_names: list[str]

    def __post_init__(self) -> None:
        make_folder(self.path)
        remove_leftovers(self.path)
        record = self.path / PROTOCOL_FILE
        if record.exists():
            self._check_same(read_json(record), record)
        elif any(self.path.iterdir()):
            raise InputError(
                f"{self.path}: has files in it but no {PROTOCOL_FILE}; choose an empty folder for samples, or delete it"
            )
        self._folders = [self.path]
        if self.labels is not None:
            names = folder_names(self.class_names, taken=[PROTOCOL_FILE])
            self._folders = [self.path / name for name in names]
            for folder in self._folders:
                remove_leftovers(folder)
        self._begun = False

    def _begin(self) -> None:
        """The record, then the folders of the classes."""
        write_json(self.path / PROTOCOL_FILE, {"protocol": self.protocol, "finished": False})
        for label in () if self.labels is None else np.unique(self.labels):
            make_folder(self._folders[label])
        self._begun = True

    def _check_same(self, recorded: Any, record: Path) -> None:
        before = recorded.get("protocol") if isinstance(recorded, dict) else None
        if not isinstance(before, dict) or not isinstance(before.get("n"), int):
            raise InputError(f"{record}: is no record of samples; choose another folder")
        changed = [key for key in self.protocol if key not in ("n", "labels") and before.get(key) != self.protocol[key]]
        if self.protocol["n"] < before["n"]:
            changed.insert(0, "n")
        if not _continues(before.get("labels"), self.protocol["labels"]):
            changed.append("labels")
        if changed:
            listing = ", ".join(f"{key} {before.get(key)}, now {self.protocol[key]}" for key in changed)
            raise InputError(
                f"{self.path}: holds samples of another protocol ({listing}); choose another folder, or delete it"
            )

    def _file(self, k: int) -> Path:
        folder = self._folders[0] if self.labels is None else self._folders[self.labels[k]]
        return folder / f"{k:06d}.png"

    def read(self, k: int, into: np.ndarray) -> bool:
        """Whether image k is there and whole; its pixels go to `into`."""
        try:
            with Image.open(self._file(k)) as image:
                pixels = np.asarray(image)
        except (OSError, SyntaxError, ValueError):  # SyntaxError: what Pillow raises for a broken PNG
            return False
        if pixels.shape[:2] != into.shape[:2] or pixels.dtype != np.uint8:
            return False
        into[...] = pixels.reshape(into.shape)
        return True

    def write(self, k: int, pixels: np.ndarray) -> None:
        """Renamed into place but not flushed one by one: what a power cut tears, `read` finds and it is made again."""
        if not self._begun:
            self._begin()
        path = self._file(k)
        temporary = path.with_name(TEMPORARY_PREFIX + path.name)
        try:
            Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).save(temporary, format="PNG")
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise explain_os_error(error, path) from None

    def finish(self) -> None:
        write_json(self.path / PROTOCOL_FILE, {"protocol": self.protocol, "finished": True})


def _continues(before: Any, now: Any) -> bool:
    """Whether the classes of the first images are the same: equal, or the same classes and then more."""
    if not isinstance(before, list) or not isinstance(now, list):
        return before == now
    expanded, wanted = ([label for label, count in runs for _ in range(count)] for runs in (before, now))
    return wanted[: len(expanded)] == expanded
