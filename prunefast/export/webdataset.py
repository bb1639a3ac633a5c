"""Tar shards as WebDataset has them, with the index that DALI's reader takes beside each.

A sample is NNNNNNNNN.jpg, .cls (the label, where there are classes) and .json (key, index, weight); NNN is the position
in the data set. The same coreset gives the same bytes.
"""

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prunefast.errors import InputError
from prunefast.export.items import Item, Job
from prunefast.files import atomic_path, write_text

BLOCK = 512  # bytes of a tar header


@dataclass(frozen=True)
class WebdatasetOptions:
    """shard_megabytes  size at which a shard is closed"""

    shard_megabytes: int = 256

    def __post_init__(self) -> None:
        if (
            isinstance(self.shard_megabytes, bool)
            or not isinstance(self.shard_megabytes, int)
            or self.shard_megabytes < 1
        ):
            raise InputError(f"shard_megabytes: must be a whole number of at least 1, not {self.shard_megabytes!r}")


class _Shard:
    def __init__(self, path: Path):
        self.tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115  # closed by `close`
        self.samples: list[str] = []

    def add(self, item: Item) -> None:
        parts = [(item.suffix.lstrip(".") or "bin", item.content)]
        if item.label is not None:
            parts.append(("cls", str(item.label).encode()))
        facts = {"key": item.key, "index": item.index, "weight": item.weight}
        parts.append(("json", json.dumps(facts, ensure_ascii=False).encode("utf-8", "surrogatepass")))
        words = []
        for extension, content in parts:
            entry = tarfile.TarInfo(f"{item.index:09d}.{extension}")
            entry.size = len(content)
            words.append(index_entry(extension, self.tar.offset + BLOCK, len(content), entry.name))
            self.tar.addfile(entry, io.BytesIO(content))
        self.samples.append(" ".join(words))

    @property
    def size(self) -> int:
        return self.tar.offset

    def close(self) -> None:
        self.tar.close()


def index_entry(extension: str, offset: int, size: int, name: str) -> str:
    """One file of a sample in DALI's index: where its bytes begin, and how many there are."""
    return f"{extension} {offset} {size} {name}"


def index_text(samples: list[str]) -> str:
    """DALI's index of a tar, version 1.2: the number of samples, then a line each."""
    return f"v1.2 {len(samples)}\n" + "".join(f"{sample}\n" for sample in samples)


def write(job: Job, target: Path, options: WebdatasetOptions) -> None:
    number, done = _finished(target)
    items = job.items(places=np.arange(done, len(job.coreset)))
    waiting = next(items, None)
    while waiting is not None:
        with atomic_path(target / f"shard-{number:06d}.tar") as temporary:
            shard = _Shard(temporary)
            while waiting is not None and not (
                shard.samples and shard.size + len(waiting.content) > options.shard_megabytes * 1_000_000
            ):
                shard.add(waiting)
                waiting = next(items, None)
            shard.close()
        write_text(target / f"shard-{number:06d}.idx", index_text(shard.samples))
        number += 1
    job.arguments["shards"] = number


def _finished(target: Path) -> tuple[int, int]:
    """(shards, samples in them) that an interrupted export left whole: those with an index."""
    shards = samples = 0
    while (index := target / f"shard-{shards:06d}.idx").exists():
        samples += int(index.read_text(encoding="utf-8").split()[1])
        shards += 1
    return shards, samples
