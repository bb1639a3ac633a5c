"""`features.npy` written batch by batch so that a killed run loses almost nothing.

While it grows it is `features.npy.partial`, and `features.npy.partial.json` beside it says what it will be and how many
images are safely in it. When all are there it becomes `features.npy`, with its manifest in `features.json`. Both names
are derived from the path that was asked for. Rows are written with write(), not through a memory map: a full disk is
then an error and not a crash.
"""

import contextlib
import io
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from prunefast.errors import InputError, MachineError
from prunefast.files import explain_os_error, make_folder, read_json, write_json

FORMAT_VERSION = 1
RECORD_SECONDS = 1.0  # what a killed run repeats at most, besides the batch it was at


def manifest_path(path: Path) -> Path:
    return path.with_suffix(".json")


class FeatureFile:
    """The file at `path` for features of `rows` images; `request` is the JSON-able description of what they are."""

    def __init__(self, path: str | os.PathLike[str], rows: int, request: dict[str, Any]):
        self.path = Path(path)
        if self.path.suffix != ".npy":
            raise InputError(f"{self.path}: must end in .npy; features are stored as a NumPy array")
        if self.path.is_dir():
            raise InputError(f"{self.path}: is a folder where a file is needed; remove it, or name a file in it")
        self.manifest = manifest_path(self.path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self.record = self.path.with_name(self.path.name + ".partial.json")
        self.rows, self.request = rows, request
        self.done = 0
        self._file: Any = None
        self._dim = 0
        self._recorded = 0.0

    # --- what is there already

    def finished(self) -> np.memmap | None:
        """The features, where an earlier call with the same request finished them."""
        facts = _read_facts(self.manifest)
        if facts.get("request") != self.request:
            return None
        features = _open(self.path)
        shape = (self.rows, facts.get("dim"))
        return features if features is not None and features.shape == shape and features.dtype == np.float32 else None

    def resume(self) -> int:
        """How many images an interrupted call with the same request left; writing goes on after them."""
        facts = _read_facts(self.record)
        done, dim = facts.get("done"), facts.get("dim")
        if facts.get("request") != self.request or type(done) is not int or type(dim) is not int:
            return 0
        if not 0 < done <= self.rows or dim < 1:
            return 0
        header = _header(self.rows, dim)
        try:
            with open(self.partial, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if file.read(len(header)) != header or size < len(header) + done * dim * 4:
                    return 0
        except OSError:
            return 0
        self.done, self._dim = done, dim
        return done

    # --- writing

    def append(self, features: np.ndarray) -> None:
        """Write the features of the next images, float32 [B, D]."""
        try:
            if self._file is None:
                self._open_partial(features.shape[1])
            if features.shape[1] != self._dim:
                raise InputError(f"{self.path}: the encoder gave {features.shape[1]} features after {self._dim} before")
            self._file.write(np.ascontiguousarray(features, dtype="<f4").tobytes())
            self.done += len(features)
            if time.monotonic() - self._recorded >= RECORD_SECONDS:
                self._write_record()
        except OSError as error:
            raise explain_os_error(error, self.path) from error

    def _open_partial(self, dim: int) -> None:
        make_folder(self.path.parent)
        header = _header(self.rows, dim)
        if self.done:
            self._file = open(self.partial, "r+b")  # noqa: SIM115  # closed by close()
            self._file.seek(len(header) + self.done * dim * 4)
            self._file.truncate()
        else:
            self.record.unlink(missing_ok=True)
            self._file = open(self.partial, "wb")  # noqa: SIM115
            self._file.write(header)
            self._dim = dim
        self._recorded = time.monotonic()

    def _write_record(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        write_json(self.record, {"request": self.request, "done": self.done, "dim": self._dim})
        self._recorded = time.monotonic()

    def finish(self, facts: dict[str, Any]) -> np.memmap:
        """Give the file its name and write the manifest.

        The order makes a crash in between harmless: an old manifest is removed first, and features without a manifest
        are not taken for finished ones.
        """
        try:
            if self._file is None:
                self._open_partial(self._dim)
            self._write_record()
            self._file.close()
            self._file = None
            self.manifest.unlink(missing_ok=True)
            os.replace(self.partial, self.path)
        except OSError as error:
            raise explain_os_error(error, self.path) from error
        write_json(
            self.manifest,
            {"format_version": FORMAT_VERSION, "request": self.request, "dim": self._dim, "images": self.rows, **facts},
        )
        self.record.unlink(missing_ok=True)
        features = _open(self.path)
        if features is None:
            raise InputError(f"{self.path}: cannot be opened again after writing; embed again")
        return features

    def close(self, *, keep: bool) -> None:
        """Stop: `keep` what is there for a later call, or remove it."""
        if self._file is not None:
            # on a full disk neither of these works, and the error that is on its way says so already
            with contextlib.suppress(OSError, MachineError):
                if keep:
                    self._write_record()
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
        if not keep:
            with contextlib.suppress(OSError):  # there may not even be a folder
                self.partial.unlink(missing_ok=True)
                self.record.unlink(missing_ok=True)


def _header(rows: int, dim: int) -> bytes:
    """Of the .npy format, version 1.0: what np.save writes before the data."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)})
    return buffer.getvalue()


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        facts = read_json(path)
    except InputError:  # missing or broken: the work is done again
        return {}
    return facts if isinstance(facts, dict) else {}


def _open(path: Path) -> np.memmap | None:
    try:
        features = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return features if isinstance(features, np.memmap) else None


def open_features(path: str | os.PathLike[str], data: Any = None) -> np.memmap:
    """The features of a finished run; with `data`, refuse those of another data set."""
    path = Path(path)
    facts = read_json(manifest_path(path)) if path.is_file() else {}
    features = _open(path)
    request = facts.get("request") if isinstance(facts, dict) else None
    if features is None or not isinstance(request, dict):
        raise InputError(f"{path}: no finished features there; run: prunefast embed")
    if data is not None and request.get("data_fingerprint") != data.fingerprint:
        raise InputError(f"{path}: holds features of another data set; use another output folder")
    return features
