"""`scores.parquet`: one row an image, one column a score, so that another cut needs no new scoring.

Columns: index int64, key text, label int64 (null without classes), then a float64 column for every score. The manifest
in the metadata names the data set and, for each score, how it was made.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import prunefast
from prunefast.checks import as_numpy
from prunefast.errors import InputError
from prunefast.score.parquet_file import check_columns, check_rows, check_version, read_parquet, to_json, write_parquet

FORMAT_VERSION = 1
REMAKE = "delete it and score again"  # the same file in its place would be refused again

_COLUMNS = {"index": pa.int64(), "key": pa.string(), "label": pa.int64()}


def save_scores(
    path: str | os.PathLike[str], dataset: Any, column: str, scores: Any, manifest: dict[str, Any] | None = None
) -> None:
    """Write `scores` [N] (finite) as `column`; other columns of the file stay, a column of that name is replaced.

    A file that belongs to another data set is refused, not overwritten. The whole file is rewritten atomically.
    """
    if not isinstance(column, str) or not column or column in _COLUMNS:
        raise InputError(
            f"column: {column!r} cannot be the name of a score; it is a non-empty text but {list(_COLUMNS)}"
        )
    values = np.array(as_numpy(scores), dtype=np.float64)
    if values.shape != (len(dataset),):
        raise InputError(f"scores: shape {list(values.shape)} for {len(dataset)} images")
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise InputError(f"scores: {values[row]} for {dataset.keys[row]!r} (row {row}); scores must be finite")
    if Path(path).exists():
        table, whole = _read(path, dataset)
    else:
        labels = dataset.labels
        rows = len(dataset)
        label = pa.nulls(rows, pa.int64()) if labels is None else pa.array(np.asarray(labels), pa.int64())
        columns = [pa.array(np.arange(rows)), pa.array(list(dataset.keys), pa.string()), label]
        table = pa.Table.from_arrays(columns, schema=pa.schema(list(_COLUMNS.items())))
        whole = {"format_version": FORMAT_VERSION, "data_fingerprint": dataset.fingerprint, "columns": {}}
    new = pa.array(values)
    if column in table.column_names:
        table = table.set_column(table.column_names.index(column), column, new)
    else:
        table = table.append_column(column, new)
    made = {"package_version": prunefast.__version__, **(manifest or {})}
    whole["columns"] = {**whole["columns"], column: to_json(made)}
    write_parquet(path, table, whole)


def load_scores(path: str | os.PathLike[str], column: str, dataset: Any = None) -> np.ndarray:
    """float64 [N] of one column, in data-set order. With `dataset`, refuse the scores of another one."""
    table, whole = _read(path, dataset)
    if column not in whole["columns"]:
        there = ", ".join(whole["columns"]) or "none"
        raise InputError(
            f"{path}: has no scores {column!r}; there are {there}; name one of them, or run prunefast score"
        )
    values = table[column].to_numpy()
    if not np.isfinite(values).all():
        raise InputError(f"{path}: column {column!r} has cells that are no finite number; {REMAKE}")
    return np.array(values)


def load_manifests(path: str | os.PathLike[str], dataset: Any = None) -> dict[str, dict[str, Any]]:
    """Score name -> how it was made, for every score in the file."""
    return dict(_read(path, dataset)[1]["columns"])


def _read(path: str | os.PathLike[str], dataset: Any) -> tuple[pa.Table, dict[str, Any]]:
    if not os.path.lexists(path):
        raise InputError(f"{path}: no such file; run prunefast score first")
    table, whole = read_parquet(path, REMAKE)
    check_version(path, whole, FORMAT_VERSION, REMAKE)
    fingerprint, columns = whole.get("data_fingerprint"), whole.get("columns")
    if not isinstance(fingerprint, str) or not isinstance(columns, dict):
        raise InputError(f"{path}: is not a table of scores; {REMAKE}")
    if dataset is not None and fingerprint != dataset.fingerprint:
        raise InputError(
            f"{path}: holds scores of another data set (its fingerprint is {fingerprint[:12]}, this data has "
            f"{str(dataset.fingerprint)[:12]}); use another output folder, or delete the file"
        )
    if not all(isinstance(made, dict) for made in columns.values()):
        raise InputError(f"{path}: is not a table of scores; {REMAKE}")
    check_columns(path, table, _COLUMNS | dict.fromkeys(columns, pa.float64()), REMAKE)
    index = table["index"].to_numpy()
    check_rows(path, index, table.num_rows if dataset is None else len(dataset), REMAKE)
    if (index[1:] < index[:-1]).any():
        table = table.take(pa.array(np.argsort(index)))
    return table, whole
