"""Metrics as TensorBoard's event file, written without TensorBoard, and as a run of Weights & Biases.

    tensorboard --logdir RUN

An event file is a sequence of records (uint64 length, its checksum, the message, its checksum; little-endian, masked
CRC-32C as TensorFlow's record format has it), each a protocol-buffer message `Event`: wall_time = 1 (double), step = 2
(varint), file_version = 3 (string), summary = 5, of values = 1 with tag = 1 (string) and simple_value = 2 (float).
"""

import functools
import os
import struct
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from prunefast.errors import MissingDependencyError
from prunefast.files import atomic_path, explain_os_error, read_json, write_json

EVENTS_FILE = "events.out.tfevents.0.prunefast"  # TensorBoard looks for "tfevents" in a name
WANDB_FILE = "wandb.json"


@functools.cache
def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


def _checksum(content: bytes) -> bytes:
    """CRC-32C, rotated and offset so that a checksum of checksums is none."""
    table, crc = _crc_table(), 0xFFFFFFFF
    for byte in content:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _record(wall_time: float, step: int, content: bytes) -> bytes:
    event = b"\x09" + struct.pack("<d", wall_time) + b"\x10" + _varint(step) + content
    length = struct.pack("<Q", len(event))
    return length + _checksum(length) + event + _checksum(event)


def _scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics that are drawn over images."""
    return {
        f"train/{key}": float(value)
        for key, value in record.items()
        if key != "images" and isinstance(value, int | float) and not isinstance(value, bool)
    }


class EventFile:
    """The lines of metrics.jsonl so far, and every one that follows. Written anew when a run goes on, so a step that is
    done again is there once; its wall time is the start of the run plus its seconds of training."""

    def __init__(self, path: Path, records: Sequence[Mapping[str, Any]]):
        self.path = path
        self._start = time.time() - (records[-1].get("seconds", 0.0) if records else 0.0)
        with atomic_path(path) as temporary:
            version = _record(self._start, 0, _field(3, b"brain.Event:2"))
            temporary.write_bytes(version + b"".join(map(self._event, records)))
        try:
            self._file = open(path, "ab")  # noqa: SIM115  closed by close()
        except OSError as error:
            raise explain_os_error(error, path) from None

    def _event(self, record: Mapping[str, Any]) -> bytes:
        values = b"".join(
            _field(1, _field(1, tag.encode()) + b"\x15" + struct.pack("<f", value))
            for tag, value in _scalars(record).items()
        )
        return _record(self._start + record.get("seconds", 0.0), record["images"], _field(5, values))

    def write(self, record: Mapping[str, Any]) -> None:
        try:
            self._file.write(self._event(record))
            self._file.flush()
        except OSError as error:
            raise explain_os_error(error, self.path) from None

    def close(self) -> None:
        self._file.close()


def load_wandb() -> ModuleType:
    """The package of Weights & Biases."""
    try:
        import wandb
    except ImportError as error:
        raise MissingDependencyError(
            f"wandb: the package is not importable here ({error}); pip install wandb, or leave the option out "
            "(metrics.jsonl and TensorBoard's event file are written anyway)"
        ) from None
    return wandb


class WandbRun:
    """A run of Weights & Biases that a continued training goes on with: its id lies in FOLDER/wandb.json. A step that
    is done again is not counted twice, because a step below the last one is not taken."""

    def __init__(self, folder: Path, project: str, config: Mapping[str, Any]):
        path = folder / WANDB_FILE
        if not path.exists():
            write_json(path, {"id": uuid.uuid4().hex[:16]})
        self._run = load_wandb().init(
            project=project, id=read_json(path)["id"], resume="allow", dir=os.fspath(folder), config=dict(config)
        )
        self._last = int(getattr(self._run, "step", 0) or 0)

    def write(self, record: Mapping[str, Any]) -> None:
        if record["images"] > self._last:
            self._run.log(_scalars(record), step=record["images"])

    def close(self) -> None:
        self._run.finish()
