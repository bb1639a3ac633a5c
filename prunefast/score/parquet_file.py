"""Parquet files that carry a JSON manifest: what `scores.parquet` and `coreset.parquet` have in common.

The manifest is JSON in the file's metadata under the key ``prunefast``. Pages carry checksums that are verified on
reading, so that a file that was cut or changed on its way is an error and not a slightly different coreset.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prunefast.errors import InputError
from prunefast.files import atomic_path

METADATA_KEY = b"prunefast"


def to_json(value: Any) -> Any:
    """`value` as JSON gives it back: NumPy scalars become numbers, tuples become lists, a Path becomes a string."""

    def plain(item: Any) -> Any:
        if hasattr(item, "tolist"):  # NumPy scalars and arrays
            return item.tolist()
        if isinstance(item, os.PathLike):
            return os.fspath(item)
        raise TypeError(f"{type(item).__name__} is not JSON")

    try:
        return json.loads(json.dumps(value, default=plain, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"options: cannot be written into the manifest ({error}); pass plain numbers and texts"
        ) from None


def write_parquet(path: str | os.PathLike[str], table: pa.Table, manifest: dict[str, Any]) -> None:
    """Write `table` with `manifest` in its metadata; atomic, the same input gives the same bytes."""
    text = json.dumps(manifest, ensure_ascii=False, allow_nan=False)
    table = table.replace_schema_metadata({METADATA_KEY: text.encode("utf-8", "surrogatepass")})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def read_parquet(path: str | os.PathLike[str], remake: str) -> tuple[pa.Table, dict[str, Any]]:
    """The table and manifest of a file; `InputError` naming the file, where `remake` says how to get a good one."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a parquet file in it")
    if not path.is_file():
        raise InputError(f"{path}: no such file; {remake.removeprefix('delete it and ')}")
    # Arrow reports damage as any of these, by the layer that meets it first (a broken footer, page or text)
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
        table.validate(full=True)
        metadata = table.schema.metadata or {}
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: is not a readable parquet file ({reason}); {remake}") from None
    try:
        manifest = json.loads(metadata[METADATA_KEY].decode("utf-8", "surrogatepass"))
    except KeyError:
        raise InputError(f"{path}: was not written by prunefast (its metadata has no manifest); {remake}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: its manifest is broken ({error}); {remake}") from None
    if not isinstance(manifest, dict):
        raise InputError(f"{path}: its manifest is broken (not a JSON object); {remake}")
    return table, manifest


def check_version(path: str | os.PathLike[str], manifest: dict[str, Any], known: int, remake: str) -> None:
    """Refuse a file of another format version."""
    version = manifest.get("format_version")
    if type(version) is not int or version != known:
        raise InputError(
            f"{path}: has format version {version!r}, this prunefast reads {known}; upgrade it or {remake}"
        )


def check_columns(path: str | os.PathLike[str], table: pa.Table, columns: dict[str, pa.DataType], remake: str) -> None:
    """Refuse a table in which one of `columns` is missing, doubled, or of another type."""
    for name, dtype in columns.items():
        found = [field.type for field in table.schema if field.name == name]
        if len(found) != 1:
            raise InputError(f"{path}: has {len(found)} columns {name!r} where one is needed; {remake}")
        if found[0] != dtype:
            raise InputError(f"{path}: column {name!r} is {found[0]}, not {dtype}; {remake}")


def check_rows(path: str | os.PathLike[str], index: np.ndarray, rows: int, remake: str) -> None:
    """Refuse an int64 NumPy `index` that is not a permutation of 0 .. rows-1, naming the first bad row."""
    if len(index) != rows:
        raise InputError(f"{path}: has {len(index)} rows where {rows} are needed; {remake}")
    outside = (index < 0) | (index >= rows)
    if outside.any():
        raise InputError(f"{path}: index {index[outside][0]} is out of range for {rows} images; {remake}")
    count = np.bincount(index, minlength=rows)
    if rows and count.max() > 1:
        raise InputError(f"{path}: row {int(count.argmax())} is there {int(count.max())} times; {remake}")
