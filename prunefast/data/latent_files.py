"""Latents that something else has computed: one array in a .npy or safetensors file, with what normalises them.

    photos.npy  or  photos.safetensors     [N, C, side, side], float16, bfloat16 or float32
    photos.json                            how the numbers are meant, below; in safetensors its metadata serves as well

Of a safetensors file the tensor is named latents, latent, moments, mean or z, or is the only one of four dimensions;
whole numbers [N] named labels or label are the classes. The record has the names of diffusers' configurations:

    scaling_factor, shift_factor     a latent z becomes (z - shift_factor) * scaling_factor; the latter is 0 by default
    latents_mean, latents_std        or, a number a channel: (z - mean) / std, then the two above (1 by default)
    posterior                        "std" or "logvar": the array is [N, 2 C, side, side], means, then that; a latent is
                                     then drawn anew each time. Left out: the array holds the latents themselves
    pixels                           side of the images, default 8 times that of a latent
    labels, classes                  [N] whole numbers, or the name of a .npy file beside; names of the classes
"""

import contextlib
import json
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prunefast.data.cache import CacheEntry, digest, file_signature
from prunefast.data.dataset import check_labels
from prunefast.data.latents import LatentDataset, LatentScale
from prunefast.data.table import TableInfo, table_of_rows
from prunefast.errors import InputError
from prunefast.files import write_json

_NAMES = ("latents", "latent", "moments", "mean", "z")
_LABELS = ("labels", "label")
_KINDS = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "I64": "<i8", "I32": "<i4", "U8": "|u1"}
_MAX_HEADER_BYTES = 100 << 20  # as the safetensors library has it
_CHUNK_BYTES = 32 << 20


@dataclass
class _Array:
    """[N, channels, side, side] in a file; bfloat16 as its bits."""

    values: np.ndarray
    bfloat16: bool

    def rows(self, items: Any) -> np.ndarray:
        """float32 [n, channels, side, side]."""
        rows = self.values[items]
        if self.bfloat16:
            return (rows.astype(np.uint32) << 16).view(np.float32)
        return rows.astype(np.float32)


class LatentFile(LatentDataset):
    """Latents of a file, normalised as they are read."""

    def __init__(self, path: str, table: Any, info: TableInfo, array: _Array, latents: LatentScale, posterior: str):
        super().__init__(Path(path), table, info, array.values, latents)
        self._array, self._posterior = array, posterior
        assert latents.means is not None
        assert latents.stds is not None
        self._mean = np.asarray(latents.means, dtype=np.float32)[:, None, None]
        self._std = np.asarray(latents.stds, dtype=np.float32)[:, None, None]

    def _fill(
        self, items: np.ndarray, out: np.ndarray, corners: np.ndarray | None = None, processes: Any = None
    ) -> None:
        if corners is not None:
            raise InputError(f"{self.folder}: holds latents, which have no windows")
        rows, channels = self._array.rows(items), self.latents.channels
        spread: Any = rows[:, channels:]
        if self._posterior == "logvar":
            spread = np.exp(0.5 * np.clip(spread, -30, 20))  # the bounds of diffusers' posterior
        mean = (rows[:, :channels] - self._mean) / self._std
        out[..., :channels] = mean.transpose(0, 2, 3, 1)
        out[..., channels:] = (spread / self._std).transpose(0, 2, 3, 1) if self._posterior else 0


def is_latent_file(path: str) -> bool:
    """A safetensors file, or a .npy with a record beside it."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        head = file.read(9)
    return head[8:] == b"{" or (head[:6] == b"\x93NUMPY" and _record_of(path).is_file())


def open_latent_file(path: str, cache_dir: str | os.PathLike[str] | None = None) -> LatentFile:
    """The latents in the file at `path` (absolute); InputError naming the file and the fix."""
    tensors, record = _tensors(path)
    array = _latents(path, tensors)
    record |= _read_record(path)
    posterior = record.get("posterior") or ""
    if posterior not in ("", "std", "logvar"):
        raise InputError(f'{path}: posterior={posterior!r} in its record; give "std" or "logvar", or leave it out')
    count, channels, side = array.values.shape[:3]
    if posterior and channels % 2:
        raise InputError(f"{path}: has {channels} channels; with a posterior they are means and as many others")
    channels //= 2 if posterior else 1
    means, stds = _normalisation(path, record, channels)
    labels, classes = check_labels(_labels(path, tensors, record), record.get("classes"), count, f"{path}: labels")
    content = _digest(path, array, cache_dir)
    keys = [f"{k:0{len(str(count - 1))}}" for k in range(count)]
    table = table_of_rows(keys, labels, side, side, np.zeros(count, dtype=np.int64), 0)
    info = TableInfo(
        path=path,
        root="",
        split="all",
        classes=classes,
        fingerprint=digest("prunefast-latent-file", content, b"" if labels is None else labels.tobytes()),
        labelled=labels is not None,
    )
    pixels = record.get("pixels", 8 * side)
    if isinstance(pixels, bool) or not isinstance(pixels, int) or pixels < side:
        raise InputError(f"{path}: pixels={pixels!r} in its record; give the side of the images, at least {side}")
    weights = "made elsewhere: " + digest(json.dumps([means, stds, posterior]))[:16]
    latents = LatentScale(channels, side, pixels, 1.0, 0.0, "", weights, means, stds)
    return LatentFile(path, table, info, array, latents, posterior)


def _record_of(path: str) -> Path:
    return Path(path).with_suffix(".json")


def _read_record(path: str) -> dict[str, Any]:
    record = _record_of(path)
    try:
        value = json.loads(record.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{record}: is not readable JSON ({' '.join(str(error).split())[:100]})") from None
    if not isinstance(value, dict):
        raise InputError(f'{record}: holds no record; write {{"scaling_factor": 0.18215}}')
    return value


def _tensors(path: str) -> tuple[dict[str, tuple[np.ndarray, bool]], dict[str, Any]]:
    """{name: (mapped array, whether it is bfloat16)} of the file, and the record in its metadata."""
    with open(path, "rb") as file:
        head = file.read(8)
        size = os.fstat(file.fileno()).st_size
        if head[:6] == b"\x93NUMPY":
            try:
                return {"latents": (np.load(path, mmap_mode="r", allow_pickle=False), False)}, {}
            except MemoryError:
                raise
            except Exception as error:  # the header is parsed as Python text, which fails in many ways
                reason = " ".join(str(error).split())[:100]
                raise InputError(f"{path}: is not a readable .npy array ({reason})") from None
        try:
            (length,) = struct.unpack("<Q", head)
            if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
                raise ValueError("a header of impossible length")
            header = json.loads(file.read(length))
            metadata = header.pop("__metadata__", {})
            out = {name: _mapped(path, entry, 8 + length, size) for name, entry in header.items()}
            return out, {key: _value(text) for key, text in metadata.items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, struct.error) as error:
            reason = " ".join(str(error).split())[:100]
            raise InputError(f"{path}: is not a readable safetensors file ({reason}); save it again") from None


def _mapped(path: str, entry: dict[str, Any], data: int, size: int) -> tuple[np.ndarray, bool]:
    shape = [int(n) for n in entry["shape"]]
    begin, end = (int(n) for n in entry["data_offsets"])
    kind = np.dtype(_KINDS.get(entry["dtype"], "V1"))
    if min(shape, default=1) < 0 or not 0 <= begin <= end <= size - data:
        raise ValueError("a tensor that leaves the file")
    if kind.kind == "V" or not end - begin:
        return np.zeros(0), False
    if math.prod(shape) * kind.itemsize != end - begin:
        raise ValueError("a tensor of another size than its shape")
    return np.memmap(path, kind, "r", data + begin, tuple(shape)), entry["dtype"] == "BF16"


def _value(text: Any) -> Any:
    """Metadata of safetensors are texts: numbers and lists stand in them as JSON."""
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        return text


def _latents(path: str, tensors: dict[str, tuple[np.ndarray, bool]]) -> _Array:
    wide = [name for name, (values, _) in tensors.items() if values.ndim == 4]
    name = next((name for name in _NAMES if name in wide), wide[0] if len(wide) == 1 else None)
    if name is None:
        there = ", ".join(f"{name} {list(values.shape)}" for name, (values, _) in list(tensors.items())[:6])
        raise InputError(f"{path}: which tensor holds the latents? Name one 'latents', [N, C, side, side]: {there}")
    values, bfloat16 = tensors[name]
    if not bfloat16 and values.dtype not in (np.float16, np.float32):
        raise InputError(f"{path}: {name} has dtype {values.dtype}; latents are float16, bfloat16 or float32")
    if 0 in values.shape or values.shape[2] != values.shape[3]:
        raise InputError(f"{path}: {name} has shape {list(values.shape)}; latents are [N, C, side, side]")
    return _Array(values, bfloat16)


def _normalisation(path: str, record: dict[str, Any], channels: int) -> tuple[list[float], list[float]]:
    """(means, stds) a channel: a latent z becomes (z - mean) / std."""
    if "scaling_factor" not in record and "latents_std" not in record:
        raise InputError(
            f"{path}: nothing says how to bring its latents to unit variance; write {_record_of(path)} with "
            '{"scaling_factor": 0.18215} (that of the autoencoder; 1 where they were scaled already)'
        )
    scale, shift = record.get("scaling_factor", 1.0), record.get("shift_factor") or 0.0
    mean, std = record.get("latents_mean") or [0.0] * channels, record.get("latents_std") or [1.0] * channels
    try:
        means = [float(m) + float(shift) * float(s) for m, s in zip(mean, std, strict=True)]
        stds = [float(s) / float(scale) for s in std]
    except (TypeError, ValueError, ZeroDivisionError):
        means, stds = [], []
    good = len(means) == channels and all(math.isfinite(m) for m in means)
    if not good or not all(math.isfinite(s) and s > 0 for s in stds):
        raise InputError(
            f"{path}: its scaling_factor, shift_factor, latents_mean or latents_std is no number, not above 0 or not "
            f"one for each of {channels} channels"
        )
    return means, stds


def _labels(path: str, tensors: dict[str, tuple[np.ndarray, bool]], record: dict[str, Any]) -> Any:
    for name in _LABELS:
        if name in tensors:
            return np.array(tensors[name][0])
    labels = record.get("labels")
    if isinstance(labels, str):
        file = Path(path).with_name(Path(labels).name)
        try:
            return np.load(file, allow_pickle=False)
        except MemoryError:
            raise
        except Exception as error:  # as above
            raise InputError(f"{file}: cannot be read ({' '.join(str(error).split())[:100]})") from None
    return labels


def _digest(path: str, array: _Array, cache_dir: str | os.PathLike[str] | None) -> str:
    """Of the content, kept in the cache: reading all of it is for the first opening. Infinities and NaN are refused."""
    entry, signature = CacheEntry(path, cache_dir), file_signature(path)
    kept = entry.folder / "latent-file.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(kept.read_text())
        if known["signature"] == signature:
            return str(known["content"])
    values, parts = array.values, [str(array.values.shape), str(array.values.dtype)]
    step = max(_CHUNK_BYTES // max(values[0].nbytes, 1), 1)
    for start in range(0, len(values), step):
        finite = np.isfinite(array.rows(slice(start, start + step))).all(axis=(1, 2, 3))
        if not finite.all():
            raise InputError(f"{path}: item {start + int(finite.argmin())} has a NaN or an infinity; encode it again")
        parts.append(digest(np.ascontiguousarray(values[start : start + step]).tobytes()))
    content = digest(*parts)
    with contextlib.suppress(InputError, OSError), entry.locked():  # else the next opening reads it all again
        write_json(kept, {"signature": signature, "content": content})
    return content
