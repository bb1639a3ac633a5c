"""The zip that EDM's and StyleGAN's loaders read: files of at most 1,000 a folder, stored, and dataset.json."""

import json
import struct
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from prunefast.export.items import Job

_MADE = (1980, 1, 1, 0, 0, 0)  # the same export gives the same bytes
_A_FOLDER = 1000
_READABLE = 0o600 << 16  # the permissions that `writestr` notes
_LOCAL = b"PK\x03\x04"
_HEAD = struct.Struct("<4s5H3I2H")  # of a member: signature, ..., checksum, sizes, lengths of its name and extra field


@dataclass(frozen=True)
class EdmOptions:
    """No options."""


def write(job: Job, target: Path, options: EdmOptions) -> None:
    indices = job.coreset.indices
    sizes = set(zip(job.data.widths[indices].tolist(), job.data.heights[indices].tolist(), strict=True))
    if len(sizes) > 1 or any(width != height for width, height in sizes):
        warnings.warn(
            "edm: the images are not squares of one size, which EDM's loader refuses; its dataset_tool.py makes them "
            "so from this zip (--source)",
            stacklevel=4,
        )
    names = [
        f"{number // _A_FOLDER:05d}/img{number:08d}{job.item(number).suffix}" for number in range(len(job.coreset))
    ]
    labels = [[name, job.item(number).label] for number, name in enumerate(names)]
    with open(target, "r+b" if target.exists() else "w+b") as file:
        done = _whole_members(file, names)
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for member in done:
                archive.filelist.append(member)
                archive.NameToInfo[member.filename] = member
            for item, name in zip(job.items(places=np.arange(len(done), len(names))), names[len(done) :], strict=True):
                archive.writestr(zipfile.ZipInfo(name, _MADE), item.content)
            known = labels if job.coreset.labels is not None else None
            for name, value in (("dataset.json", {"labels": known}), ("export.json", job.record)):
                archive.writestr(zipfile.ZipInfo(name, _MADE), json.dumps(value, ensure_ascii=False))


def _whole_members(file: BinaryIO, names: list[str]) -> list[zipfile.ZipInfo]:
    """The first of `names` that an interrupted export wrote whole, by their checksums; `file` ends after them."""
    members: list[zipfile.ZipInfo] = []
    for name in names:
        start = file.tell()
        head = file.read(_HEAD.size)
        member = zipfile.ZipInfo(name, _MADE)
        if len(head) == _HEAD.size:
            signature, *_, member.CRC, member.compress_size, member.file_size, length, extra = _HEAD.unpack(head)
            said, content = file.read(length), file.read(extra + member.file_size)[extra:]
        if len(head) < _HEAD.size or signature != _LOCAL or said != name.encode() or zlib.crc32(content) != member.CRC:
            file.seek(start)
            break
        member.header_offset, member.external_attr = start, _READABLE
        members.append(member)
    file.truncate()
    return members
