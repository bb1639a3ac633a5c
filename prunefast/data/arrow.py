"""Hugging Face data sets as `save_to_disk` writes them: a folder of Arrow files with a state.json.

Arrow keeps the bytes of a column one behind the other and as they are, so the files are looked at once, for the place
of every image, and then read by offset like a tar.
"""

import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from prunefast.data.listing import Listing
from prunefast.data.parquet import _EXTRA, _class_names, _image_column, _named, readable
from prunefast.errors import InputError

STATE_FILE = "state.json"


def arrow_files(folder: str) -> list[str]:
    """The data files that state.json names, in order, or []."""
    state = os.path.join(folder, STATE_FILE)
    if not os.path.isfile(state):
        return []
    try:
        with open(state, encoding="utf-8") as file:
            names = [entry["filename"] for entry in json.load(file)["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{state}: does not name the data files; save the data set again") from None
    if any(not isinstance(name, str) or os.path.basename(name) != name for name in names):
        raise InputError(f"{state}: names a file outside its folder; save the data set again")
    missing = next((name for name in names if not os.path.isfile(os.path.join(folder, name))), None)
    if missing is not None:
        raise InputError(f"{state}: names {missing}, which is not there; copy the data set again")
    return [os.path.join(folder, name) for name in names]


def list_arrow(source: str, files: list[str]) -> Listing:
    """Every image of the files, by its place."""
    offsets: list[np.ndarray] = []
    lengths: list[np.ndarray] = []
    containers: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    captions: list[str | None] = []
    classes: list[str] = []
    for number, file in enumerate(files):
        with readable(file, "Arrow"), pa.memory_map(file) as mapped:
            base = mapped.read_buffer().address if mapped.size() else 0  # of the whole file: nothing is copied
            mapped.seek(0)
            for batch in _batches(mapped):
                if (batch.schema.metadata and b"huggingface" in batch.schema.metadata) or not classes:
                    classes = _class_names(batch.schema, _named(batch.schema, *_EXTRA[0]))
                begin, size = _places(file, batch, base, mapped.size())
                offsets.append(begin)
                lengths.append(size)
                containers.append(np.full(len(begin), number, dtype=np.int32))
                label, caption = (_named(batch.schema, *extra) for extra in _EXTRA)
                if label is not None:
                    labels.append(batch[label].fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64))
                captions += [None] * len(begin) if caption is None else batch[caption].to_pylist()
    if not offsets or not sum(map(len, offsets)):
        raise InputError(f"{source}: has no rows")
    count = sum(map(len, offsets))
    return Listing(
        names=[f"{row:0{len(str(count - 1))}}" for row in range(count)],
        length=np.concatenate(lengths),
        containers=files,
        container=np.concatenate(containers),
        offset=np.concatenate(offsets),
        label=np.concatenate(labels) if labels else None,
        classes=classes,
        caption=captions if any(caption is not None for caption in captions) else None,
        split="all",
        all_images=True,
    )


def _batches(mapped: Any) -> Iterator[pa.RecordBatch]:
    """The file's batches, each checked whole: Arrow itself follows offsets that lead anywhere."""
    try:
        batches: Iterator[pa.RecordBatch] = iter(pa.ipc.open_stream(mapped))
    except pa.ArrowInvalid:
        mapped.seek(0)
        reader = pa.ipc.open_file(mapped)
        batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
    for batch in batches:
        batch.validate(full=True)
        yield batch


def _places(file: str, batch: pa.RecordBatch, base: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(offset, length) int64 [n] in the file of every image of a batch."""
    column, inner = _image_column(file, batch.schema)
    values = batch[column]
    if inner:
        values = values.field(inner)
    if values.null_count:
        raise InputError(f"{file}: some images are only paths, without bytes; save it with embed_external_files")
    kind = np.int64 if pa.types.is_large_binary(values.type) else np.int32
    _, starts, data = values.buffers()
    ends = np.frombuffer(starts, dtype=kind)[values.offset : values.offset + len(values) + 1].astype(np.int64)
    begin = (data.address if data is not None else base) - base
    if data is None or not 0 <= begin <= size - data.size:
        raise InputError(f"{file}: is compressed; save it without compression, or as Parquet")
    return begin + ends[:-1], np.diff(ends)
