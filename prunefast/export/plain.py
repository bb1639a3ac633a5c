"""A text file of keys, and NumPy arrays."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prunefast.errors import InputError
from prunefast.export.items import Job


@dataclass(frozen=True)
class PlainOptions:
    """No options."""


def keys_text(job: Job) -> str:
    keys = [job.coreset.keys[index] for index in job.coreset.indices]
    for key in keys:
        if "\n" in key or "\r" in key:
            raise InputError(f"txt: the key {key!r} has a line break in it; export to npy")
    return "".join(f"{key}\n" for key in keys)


def write_txt(job: Job, target: Path, options: PlainOptions) -> None:
    target.write_bytes(keys_text(job).encode())


def write_npy(job: Job, target: Path, options: PlainOptions) -> None:
    """indices.npy int64 [n], sorted; weights.npy float32 [n]."""
    np.save(target / "indices.npy", job.coreset.indices)
    np.save(target / "weights.npy", job.coreset.weights)
