"""Parquet files of images, as Hugging Face data sets have them: a column of bytes, one of labels, one of captions.

A row cannot be read alone: Parquet compresses a column of a row group as a whole. So the rows of a batch are read group
by group, and the groups read last are kept. For a shuffled coreset of many groups place the images in memory or in a
pack (`placement`), which reads every group once.
"""

import contextlib
import json
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prunefast.data.cache import digest, file_signature
from prunefast.data.listing import SPLIT_NAMES, choose_split
from prunefast.errors import InputError, PrunefastError

_IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "content")
_LABEL_NAMES = ("label", "labels", "class", "cls", "fine_label", "target")
_CAPTION_NAMES = ("caption", "text", "prompt")
_KEPT_BYTES = 256 << 20  # of row groups read last
_SPLIT = re.compile(rf"({'|'.join(SPLIT_NAMES)})(?=[-_.])")


class ParquetSource:
    """Images of one or several Parquet files with the same columns."""

    def __init__(self, name: str, files: Sequence[str]):
        self.name = name
        self.files = list(files)
        self.signature = digest(*map(file_signature, self.files))
        schema: pa.Schema | None = None
        tables: list[pa.Table] = []
        groups: list[tuple[int, int]] = []  # (file, row group)
        rows: list[int] = []
        wanted: list[str | None] = []
        for number, file in enumerate(self.files):
            with readable(file, "Parquet"):
                opened = pq.ParquetFile(file, page_checksum_verification=True)
                mine = opened.schema_arrow
                if schema is None:
                    schema = mine
                    self._column, self._inner = _image_column(file, mine)
                    wanted = [_named(mine, names, kinds) for names, kinds in _EXTRA]
                elif not schema.equals(mine):
                    raise InputError(f"{file}: has other columns than {self.files[0]}; open one data set at a time")
                here = [opened.metadata.row_group(group).num_rows for group in range(opened.num_row_groups)]
                if min(here, default=0) < 0 or sum(here) > os.path.getsize(file):
                    raise InputError(f"{file}: says it has {sum(here):,} images, more than bytes; copy it again")
                tables.append(opened.read([column for column in wanted if column]))
                tables[-1].validate(full=True)
            groups += [(number, group) for group in range(len(here))]
            rows += here
        assert schema is not None
        self._groups = groups
        self._ends = np.cumsum(rows, dtype=np.int64)
        count = int(self._ends[-1]) if rows else 0
        if not count:
            raise InputError(f"{name}: has no rows")
        self.keys = [f"{row:0{len(str(count - 1))}}" for row in range(count)]
        label, caption = wanted
        with readable(name, "Parquet"):
            table = pa.concat_tables(tables) if any(wanted) else pa.table({})
            self.labels = None if label is None else table[label].fill_null(-1).to_numpy().astype(np.int64)
            self.captions = None if caption is None else table[caption].to_pylist()
        self.classes = _class_names(schema, label)
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def read(self, item: int) -> bytes:
        return self.read_many([item])[0]

    def read_many(self, items: Sequence[int]) -> list[bytes]:
        groups = np.searchsorted(self._ends, np.asarray(items), side="right")
        out: list[bytes] = [b""] * len(items)
        for group in np.unique(groups).tolist():
            column = self._group(group)
            first = int(self._ends[group - 1]) if group else 0
            for place in np.flatnonzero(groups == group).tolist():
                out[place] = column[items[place] - first].as_py() or b""
        return out

    def _group(self, number: int) -> Any:
        """The image bytes of a row group, an Arrow array of binary."""
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
            file, group = self._groups[number]
            with readable(self.files[file], "Parquet"):
                opened = pq.ParquetFile(self.files[file], page_checksum_verification=True)
                column = opened.read_row_group(group, columns=[self._column])[self._column].combine_chunks()
                column.validate(full=True)
                if self._inner:
                    column = column.field(self._inner)
            self._kept[number] = column
            while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > _KEPT_BYTES:
                self._kept.popitem(last=False)
            return column


_EXTRA = ((_LABEL_NAMES, pa.types.is_integer), (_CAPTION_NAMES, pa.types.is_string))


def parquet_files(folder: str) -> list[str]:
    """The Parquet files of a data set folder (its top, or data/ below it), or []."""
    for place in (folder, os.path.join(folder, "data")):
        if os.path.isdir(place):
            names = sorted(n for n in os.listdir(place) if n.endswith(".parquet") and not n.startswith("."))
            if names:
                return [os.path.join(place, name) for name in names]
    return []


def open_parquet(path: str, files: Sequence[str], split: str | None) -> tuple[ParquetSource, str]:
    """(the source, the split chosen): files named train-..., test-... are splits where all are named so."""
    found = [_SPLIT.match(os.path.basename(file)) for file in files]
    splits = {match[1] if match else None for match in found}
    if None in splits:
        choose_split(path, (), split)
        return ParquetSource(path, files), "all"
    chosen = choose_split(path, [name for name in SPLIT_NAMES if name in splits], split)
    mine = [file for file, match in zip(files, found, strict=True) if match and chosen in ("all", match[1])]
    return ParquetSource(path, mine), chosen


@contextlib.contextmanager
def readable(file: str, what: str) -> Iterator[None]:
    """InputError for whatever Arrow's readers fail with on hostile bytes, which is nearly anything."""
    try:
        yield
    except PrunefastError:
        raise
    except Exception as error:
        if isinstance(error, MemoryError) and not isinstance(error, pa.ArrowException):
            raise
        raise InputError(f"{file}: is not readable {what} ({' '.join(str(error).split())[:120]})") from None


def _image_column(file: str, schema: pa.Schema) -> tuple[str, str]:
    """(name of the column, name of its field that holds the bytes or "")."""
    binary = (pa.types.is_binary, pa.types.is_large_binary)
    found = []
    for field in schema:
        if any(test(field.type) for test in binary):
            found.append((field.name, ""))
        elif pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            found.append((field.name, "bytes"))
    named = [column for column in found if column[0].lower() in _IMAGE_NAMES]
    if len(named) == 1 or (not named and len(found) == 1):
        return (named or found)[0]
    there = ", ".join(f"{field.name} ({field.type})"[:60] for field in schema)
    raise InputError(
        f"{file}: which column holds the images? Name one 'image' (binary, or a struct with bytes): {there}"
    )


def _named(schema: pa.Schema, names: Sequence[str], kind: Any) -> str | None:
    return next((f.name for name in names for f in schema if f.name.lower() == name and kind(f.type)), None)


def _class_names(schema: pa.Schema, label: str | None) -> list[str]:
    """As Hugging Face records them in the file's metadata; [] where it does not."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
        return [str(name) for name in names]
    except (KeyError, TypeError, ValueError):
        return []
