"""Hugging Face datasets: parquet that `load_dataset` decodes, and the kept indices for a data set that is there.

The `image` column is what datasets' Image feature stores, {bytes, path}. For a folder of images the bytes can stay
where they are (copy=False); those of archives and arrays are always put in.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prunefast.errors import InputError, InputTypeError
from prunefast.export.items import Item, Job
from prunefast.files import atomic_path

_ROWS = 512  # a row group: what a reader holds at a time
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@dataclass(frozen=True)
class HfOptions:
    """copy             put the bytes of the files into the parquet; else, for a folder, their paths
    shard_megabytes  size at which a parquet file is closed
    """

    copy: bool = True
    shard_megabytes: int = 500

    def __post_init__(self) -> None:
        if not isinstance(self.copy, bool):
            raise InputTypeError(f"copy: must be True or False, not {self.copy!r}")
        if (
            isinstance(self.shard_megabytes, bool)
            or not isinstance(self.shard_megabytes, int)
            or self.shard_megabytes < 1
        ):
            raise InputError(f"shard_megabytes: must be a whole number of at least 1, not {self.shard_megabytes!r}")


def write(job: Job, target: Path, options: HfOptions) -> None:
    files = job.data.files
    if not options.copy and files is None:
        raise InputError(f"copy: {job.data.path or 'data in memory'} is no folder of files to refer to; use copy=True")
    labelled = job.coreset.labels is not None
    columns = [("image", _IMAGE), *([("label", pa.int64())] if labelled else [])]
    columns += [("index", pa.int64()), ("key", pa.string()), ("weight", pa.float32())]
    schema = pa.schema(columns, metadata={"huggingface": json.dumps({"info": {"features": _features(job)}})})
    finished, done = _finished(target)
    items = job.items(read=options.copy, places=np.arange(done, len(job.coreset)))
    for number, shard in enumerate(_shards(items, options.shard_megabytes * 1_000_000), finished):
        with atomic_path(target / f"data-{number:05d}.parquet") as path, pq.ParquetWriter(path, schema) as writer:
            for group in shard:
                writer.write_table(_table(group, schema, None if options.copy else job.source))
    indices = job.coreset.indices
    np.save(target / "indices.npy", indices)
    # as datasets keeps an indices mapping: Dataset.from_file(..., indices_filename=...)
    table = pa.table({"indices": pa.array(indices.astype(np.uint64))})
    with pa.OSFile(str(target / "indices.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)


def _finished(target: Path) -> tuple[int, int]:
    """(parquet files, rows in them) that an interrupted export left whole."""
    files = rows = 0
    while (path := target / f"data-{files:05d}.parquet").exists():
        rows += pq.read_metadata(path).num_rows
        files += 1
    return files, rows


def _features(job: Job) -> dict[str, Any]:
    def value(dtype: str) -> dict[str, str]:
        return {"dtype": dtype, "_type": "Value"}

    features: dict[str, Any] = {"image": {"_type": "Image"}}
    if job.coreset.labels is not None:
        features["label"] = {"names": job.coreset.classes, "_type": "ClassLabel"}
    return features | {"index": value("int64"), "key": value("string"), "weight": value("float32")}


def _shards(items: Iterator[Item], limit: int) -> Iterator[Iterator[list[Item]]]:
    """Items in groups of rows, those in shards of at most `limit` bytes (and at least one group)."""
    waiting = _groups(items)
    first = next(waiting, None)

    def shard() -> Iterator[list[Item]]:
        nonlocal first
        size = 0
        while first is not None:
            size += sum(len(item.content) for item in first)
            yield first
            first = next(waiting, None)
            if size >= limit:
                return

    while first is not None:
        yield shard()


def _groups(items: Iterator[Item]) -> Iterator[list[Item]]:
    group: list[Item] = []
    for item in items:
        group.append(item)
        if len(group) == _ROWS or sum(len(one.content) for one in group[-1:]) > 64_000_000:
            yield group
            group = []
    if group:
        yield group


def _table(items: list[Item], schema: pa.Schema, source: Any) -> pa.Table:
    if source is None:
        images: list[dict[str, Any]] = [{"bytes": item.content, "path": item.name} for item in items]
    else:
        images = [{"bytes": None, "path": source(item.index)} for item in items]
    columns: dict[str, Any] = {
        "image": images,
        "label": [item.label for item in items],
        "index": [item.index for item in items],
        "key": [item.key for item in items],
        "weight": [item.weight for item in items],
    }
    return pa.table({name: pa.array(columns[name], schema.field(name).type) for name in schema.names}, schema=schema)
