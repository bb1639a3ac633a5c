"""The whole contract of stopping and going on: what a checkpoint holds, how it is written, checked, found and pruned.

    RUN/train/checkpoint-000012800/        named by the images trained
        model.safetensors                  weights, by their names in the uncompiled module
        ema.safetensors                    their moving average, the same names
        optimizer.safetensors              moments and step counts, PARAMETER.KEY
        averages.safetensors               further averages, AVERAGE/NAME (only where there are some)
        pruning.safetensors                of dynamic pruning: scores, and what is left of the epoch (only with it)
        state.json                         everything else, with a SHA-256 of each file and of itself

Of a run whose weights are sharded (sharded.py) there stand folders `model`, `ema`, `optimizer` of safetensors files in
the place of those files, until it is finished.

Nothing is pickled. A checkpoint appears under its name whole and flushed to disk, or not at all; every byte of it is
under a digest, so damage that comes later (a torn disk, an edit) is seen, and the checkpoint before it is used.
What random numbers a step draws follows from (seed, position) alone: images trained are the whole state of order,
flips, times, noise, label drop and dropout, and there is no generator to save.
"""

import hashlib
import json
import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import prunefast
from prunefast.errors import InputError, MachineError
from prunefast.files import TEMPORARY_PREFIX, atomic_folder, explain_os_error
from prunefast.train.ema import Ema, copy_tensors, named_weights
from prunefast.train.optim import Updater

FORMAT_VERSION = 1
PREFIX = "checkpoint-"
WEIGHT_FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")
AVERAGES_FILE = "averages.safetensors"
PRUNING_FILE = "pruning.safetensors"
STATE_FILE = "state.json"


class BrokenCheckpoint(InputError):
    """A checkpoint that is not, byte for byte, what was written."""


# --- writing ---


def save_checkpoint(
    folder: Path,
    images: int,
    state: Mapping[str, Any],
    model: nn.Module,
    ema: Ema,
    updater: Updater,
    keep: int,
    pruning: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write FOLDER/checkpoint-`images` and remove what is older than the newest `keep`.

    `state` is JSON-able: what `read_state` gives back, under the same keys.
    Raises `MachineError` for a full disk, `InputError` for a folder that cannot be written; nothing half-written stays.
    """
    path = checkpoint_path(folder, images)
    tensors = checkpoint_tensors(model, ema, updater, pruning)
    write_checkpoint(path, images, {"ema": ema.state(), **state}, tensors)
    prune(folder, images, keep)
    return path


def checkpoint_path(folder: Path, images: int) -> Path:
    return folder / f"{PREFIX}{images:09d}"


def checkpoint_tensors(
    model: nn.Module, ema: Ema, updater: Updater, pruning: Mapping[str, Tensor] | None = None
) -> dict[str, Mapping[str, Tensor]]:
    """The tensors of a checkpoint by file name; of a sharded model, this rank's parts."""
    tensors: dict[str, Mapping[str, Tensor]] = dict(
        zip(WEIGHT_FILES, (named_weights(model), ema.tensors(), updater.tensors()), strict=True)
    )
    if len(ema.averages) > 1:
        tensors[AVERAGES_FILE] = ema.more_tensors()
    if pruning is not None:
        tensors[PRUNING_FILE] = pruning
    return tensors


def write_checkpoint(
    path: Path, images: int, state: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Write the folder `path`: `tensors` by file name, and `state`."""
    with atomic_folder(path) as temporary:
        for name, content in tensors.items():
            save_tensors(content, temporary / name, path / name)
        seal(temporary, images, state)


def seal(folder: Path, images: int, state: Mapping[str, Any]) -> None:
    """Write state.json, with digests of all files that are there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {path.relative_to(folder).as_posix(): _file_digest(path) for path in files}
    versions = {"prunefast": prunefast.__version__, "torch": torch.__version__}
    document = {"format": FORMAT_VERSION, "images": images, **state, "versions": versions, "files": digests}
    (folder / STATE_FILE).write_bytes(_render({**document, "digest": _digest(_render(document))}))


def save_tensors(tensors: Mapping[str, Tensor], path: Path, shown: Path) -> None:
    """Write a safetensors file; errors are told of `shown`."""
    try:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path)
    except SafetensorError as error:
        # the writer of safetensors reports the system's error in its text only
        if "os error 28" in str(error) or "os error 122" in str(error):
            raise MachineError(
                f"{shown}: no space left on the disk; free some or choose another output folder"
            ) from None
        raise MachineError(f"{shown}: cannot be written ({error})") from None


def prune(folder: Path, images: int, keep: int) -> None:
    """Keep the newest `keep` up to `images`, which was just written. What is numbered higher was found broken when this
    run was resumed, or it would have been resumed from; it would hide the good ones and goes too."""
    paths = list_checkpoints(folder)
    good = [path for path in paths if checkpoint_images(path) <= images]
    for path in paths:
        if path not in good[:keep]:
            # renamed first: a process killed in the middle leaves no half-deleted checkpoint, only a temporary
            doomed = folder / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
            try:
                os.replace(path, doomed)
            except OSError as error:
                raise explain_os_error(error, path) from None
            shutil.rmtree(doomed, ignore_errors=True)


# --- reading ---


def checkpoint_images(path: Path) -> int:
    """Images trained, from the folder's name; -1 for another name."""
    number = path.name.removeprefix(PREFIX)
    return int(number) if path.name.startswith(PREFIX) and number.isascii() and number.isdigit() else -1


def list_checkpoints(folder: Path) -> list[Path]:
    """Newest first; unchecked. Empty where there is no folder."""
    if not folder.is_dir():
        return []
    paths = [path for path in folder.iterdir() if checkpoint_images(path) >= 0]
    return sorted(paths, key=lambda path: (checkpoint_images(path), path.name), reverse=True)


def read_state(path: Path) -> dict[str, Any]:
    """The state of a checkpoint, after every byte of its files was compared with its digest.

    Raises `BrokenCheckpoint` for any difference, `InputError` for a format that this version does not know.
    """
    try:
        raw = (path / STATE_FILE).read_bytes()
        document = json.loads(raw)
        digest = document.pop("digest")
        # compared as bytes, so that even a changed space counts
        if _render({**document, "digest": digest}) != raw or _digest(_render(document)) != digest:
            raise BrokenCheckpoint(f"{path / STATE_FILE}: was changed after it was written")
        if document["format"] != FORMAT_VERSION:
            raise InputError(f"{path}: has format {document['format']}; update prunefast (it reads {FORMAT_VERSION})")
        for name in WEIGHT_FILES:
            if name not in document["files"] and not (path / name).with_suffix("").is_dir():
                raise BrokenCheckpoint(f"{path / name}: is missing")
        for name, expected in document["files"].items():
            if _file_digest(path / name) != expected:
                raise BrokenCheckpoint(f"{path / name}: was damaged or changed after it was written")
    except OSError as error:
        raise BrokenCheckpoint(f"{error.filename or path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise BrokenCheckpoint(f"{path / STATE_FILE}: is damaged") from None
    return {**document, "digest": digest}


def latest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint of a training folder and its state; a warning for each broken one passed over.

    None where there is none. Raises `InputError` when there are some and all are broken.
    """
    paths = list_checkpoints(folder)
    for path in paths:
        try:
            return path, read_state(path)
        except BrokenCheckpoint as error:
            warnings.warn(f"{error}; the checkpoint before it is used", stacklevel=2)
    if paths:
        raise InputError(f"{folder}: all checkpoints are damaged; delete the folder to train from the start")
    return None


def find_checkpoint(path: str | os.PathLike[str]) -> tuple[Path, dict[str, Any]]:
    """The checkpoint that `path` means (a run folder, its train folder, or one checkpoint), checked, and its state."""
    path = Path(path)
    if checkpoint_images(path) >= 0 or (path / STATE_FILE).is_file():
        return path, read_state(path)
    for folder in (path / "train", path):
        found = latest_checkpoint(folder)
        if found is not None:
            return found
    raise InputError(f"{path}: there is no checkpoint; give a run folder that was trained, or a {PREFIX}* folder")


def is_sharded(path: Path) -> bool:
    """Whether a checkpoint is one of a sharded run that was not finished."""
    return not (path / WEIGHT_FILES[0]).exists()


def load_checkpoint(
    path: Path,
    model: nn.Module,
    ema: Ema,
    updater: Updater,
    state: Mapping[str, Any],
    read: Callable[[Path], dict[str, Tensor]] | None = None,
) -> None:
    """Put a checkpoint's tensors, and its `state` as `read_state` gave it, into a model, its averages and its
    optimizer. `read`: of a sharded model, what gives this rank's parts of a file."""
    read = read or load_tensors
    name = "model.safetensors"
    copy_tensors(named_weights(model), read(path / name), str(path / name))
    more = read(path / AVERAGES_FILE) if len(state.get("ema", {}).get("averages", ())) > 1 else None
    ema.load(read(path / "ema.safetensors"), more, state.get("ema"))
    updater.load(read(path / "optimizer.safetensors"))


def load_pruning(path: Path) -> dict[str, Tensor]:
    """The state of dynamic pruning in a checkpoint."""
    return load_tensors(path / PRUNING_FILE)


def load_weights(path: Path, model: nn.Module, *, ema: bool) -> None:
    """Put the weights of a checkpoint, or their moving average, into `model`."""
    name = "ema.safetensors" if ema else "model.safetensors"
    copy_tensors(named_weights(model), load_tensors(path / name), str(path / name))


def load_initial_weights(source: Path, model: nn.Module) -> str:
    """Put weights to begin with into `model`: the average of a checkpoint, or a .safetensors file. Their digest."""
    if source.suffix == ".safetensors":
        file = source
    else:
        path, state = find_checkpoint(source)
        file = path / "ema.safetensors"
    tensors = load_tensors(file)
    copy_tensors(named_weights(model), tensors, str(file))
    return _file_digest(file) if file.exists() else _digest(state["digest"].encode())


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU; or whole ones of the folder of shards in its place."""
    if not path.exists() and path.with_suffix("").is_dir():
        from prunefast.train.sharded import load_shards  # torch's sharding takes a second to import

        return load_shards(path.with_suffix(""))
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None


def check_same_recipe(recorded: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    """Raise one `InputError` that lists every key in which the run differs from the one in `folder`."""
    changed = [key for key in {**recorded, **wanted} if recorded.get(key) != wanted.get(key)]
    if changed:
        listing = ", ".join(f"{key} ({_short(recorded.get(key))}, now {_short(wanted.get(key))})" for key in changed)
        raise InputError(
            f"{folder}: holds a run with other options: {listing}; put them back to continue it, delete the "
            "folder, or choose another out"
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


# --- one process at a time ---


# --- bytes ---


def _render(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=1, ensure_ascii=True, allow_nan=False) + "\n").encode()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
