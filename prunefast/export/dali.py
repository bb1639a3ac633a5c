"""What DALI reads the kept images by, where they already lie: nothing is copied.

A folder becomes file_list.txt ("path label" a line) for `fn.readers.file`; tars become an index of the kept members of
each for `fn.readers.webdataset`, and labels.npy.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prunefast.errors import InputError
from prunefast.export.items import Job
from prunefast.export.webdataset import index_entry, index_text


@dataclass(frozen=True)
class DaliOptions:
    """No options."""


def write(job: Job, target: Path, options: DaliOptions) -> None:
    data, coreset = job.data, job.coreset
    if not data.encoded or (data.files is None and not _in_tars(job)):
        raise InputError(
            f"dali: {data.path or 'data in memory'} is no folder and no tar of images, which DALI reads in place; "
            "export to webdataset and give DALI the shards"
        )
    labels = np.zeros(len(coreset), np.int64) if coreset.labels is None else coreset.labels[coreset.indices]
    for name in job.names:
        if any(c.isspace() for c in name):
            raise InputError(
                f"dali: the name {name!r} has a space in it, which DALI's lists cannot hold; export to folder"
            )
    if data.files is not None:
        for index in coreset.indices.tolist():
            job.source(index)
        lines = [f"{name} {label}\n" for name, label in zip(job.names, labels.tolist(), strict=True)]
        (target / "file_list.txt").write_text("".join(lines), encoding="utf-8")
        job.arguments |= {"reader": "file", "file_root": data.root, "file_list": "file_list.txt"}
        return
    np.save(target / "labels.npy", labels)
    places = data.table.take(coreset.indices)
    samples: dict[str, list[str]] = {}
    rows = zip(*(places[name].to_pylist() for name in ("container", "offset", "length")), job.names, strict=True)
    for container, offset, length, name in rows:
        extension = os.path.splitext(name)[1].lstrip(".")
        samples.setdefault(container, []).append(index_entry(extension, offset, length, name))
    for number, lines in enumerate(samples.values()):
        (target / f"{number:06d}.idx").write_text(index_text(lines), encoding="utf-8")
    extensions = sorted({os.path.splitext(name)[1].lstrip(".") for name in job.names})
    job.arguments |= {
        "reader": "webdataset",
        "paths": list(samples),
        "index_paths": [f"{number:06d}.idx" for number in range(len(samples))],
        "ext": ";".join(extensions),
    }


def _in_tars(job: Job) -> bool:
    from prunefast.data.tar import BLOCK, is_tar_header

    containers = set(job.data.table["container"].take(job.coreset.indices).to_pylist())
    if None in containers:
        return False
    for path in containers:
        with open(path, "rb") as file:
            if not is_tar_header(file.read(BLOCK)):
                return False
    return True
