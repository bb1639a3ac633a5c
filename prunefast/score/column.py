"""A score of the user's: a column of a CSV or parquet file, an .npy array, or a function of the images' keys.

Rows are matched by a key column where the file has one, else by position. Missing, doubled or unknown keys and cells
that are no finite number are errors that name the row: a score that is silently shifted by one selects nonsense.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from prunefast.checks import as_numpy
from prunefast.errors import InputError

KEY_COLUMNS = ("key", "path", "file", "filename", "file_name", "name", "id")  # looked for, in this order
SUFFIXES = (".csv", ".tsv", ".parquet", ".npy")
DIRECTION = "a column of the user's; the highest are kept"
LOW_DIRECTION = "minus a column of the user's; the lowest of the column are kept"


def column_scores(
    source: str | os.PathLike[str] | Callable[[Any], Any] | Any,
    data: Any,
    *,
    column: str | None = None,
    key: str | None = None,
    keep_low: bool = False,
) -> np.ndarray:
    """float64 [N], higher = keep, in the order of `data`.

    source    a .csv, .tsv, .parquet or .npy file; a function that gets `data` and returns [N] numbers; or [N] numbers
    column    of the table; may be left out where there is one column of numbers besides the key
    key       column of `data.keys`; None: one of the usual names where there is one, else rows in the order of `data`
    keep_low  lower is better in the column: its sign is turned

    Raises InputError naming the file and the row for anything that does not fit `data`.

        scores = column_scores("aesthetic.csv", data, column="score")
        scores = column_scores(lambda data: [len(key) for key in data.keys], data)
    """
    name = "scores"
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        values = _read(Path(source), data, column, key)
    else:
        values = source(data) if callable(source) else source
        try:
            values = np.array(as_numpy(values), dtype=np.float64)
        except (TypeError, ValueError):
            raise InputError("scores: the function must return a number for every image") from None
    if values.shape != (len(data),):
        raise InputError(f"{name}: {list(values.shape)} numbers for {len(data)} images")
    bad = ~np.isfinite(values)
    if bad.any():
        row = int(bad.argmax())
        raise InputError(
            f"{name}: {values[row]} for {data.keys[row]!r} (image {row}); every image needs a finite number"
        )
    return -values if keep_low else values


def _read(path: Path, data: Any, column: str | None, key: str | None) -> np.ndarray:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: must be one of {', '.join(SUFFIXES)}")
    try:
        if path.suffix == ".npy":
            if column is not None or key is not None:
                raise InputError(f"{path}: an array has no columns; leave column and key out")
            array = np.load(path, allow_pickle=False)
            if array.dtype.kind not in "iufb":
                raise InputError(f"{path}: holds {array.dtype}, not numbers")
            return array.astype(np.float64)
        if path.suffix == ".parquet":
            table = pa.parquet.read_table(path)
        else:
            options = pa.csv.ParseOptions(delimiter="\t" if path.suffix == ".tsv" else ",")
            table = pa.csv.read_csv(path, parse_options=options)
    except (pa.ArrowException, OSError, ValueError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read ({(str(error).splitlines() or ['?'])[0]})") from None
    key = _key_column(path, table, key, column)
    values = _numbers(path, table, column, key)
    return values if key is None else _by_key(path, table[key], values, data)


def _key_column(path: Path, table: pa.Table, key: str | None, column: str | None) -> str | None:
    if key is not None:
        _check_column(path, table, key)
        return key
    return next((name for name in KEY_COLUMNS if name in table.column_names and name != column), None)


def _check_column(path: Path, table: pa.Table, name: str) -> None:
    if table.column_names.count(name) != 1:
        found = table.column_names.count(name)
        raise InputError(f"{path}: has {found} columns {name!r}; there are {', '.join(table.column_names)}")


def _numbers(path: Path, table: pa.Table, column: str | None, key: str | None) -> np.ndarray:
    if column is None:
        numeric = [
            field.name
            for field in table.schema
            if field.name != key and (pa.types.is_floating(field.type) or pa.types.is_integer(field.type))
        ]
        if len(numeric) != 1:
            found = ", ".join(numeric) or "none"
            raise InputError(f"{path}: name the column of the score; columns of numbers: {found}")
        column = numeric[0]
    _check_column(path, table, column)
    try:
        values = table[column].cast(pa.float64()).to_numpy()
    except pa.ArrowException:
        raise InputError(f"{path}: column {column!r} is {table[column].type}, not numbers") from None
    return np.asarray(values, dtype=np.float64)  # null becomes NaN


def _by_key(path: Path, keys: pa.ChunkedArray, values: np.ndarray, data: Any) -> np.ndarray:
    row_of = {key: row for row, key in enumerate(map(str, keys.to_pylist()))}
    if len(row_of) != len(keys):
        seen: set[str] = set()
        twice = next(key for key in map(str, keys.to_pylist()) if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise InputError(f"{path}: {twice!r} is there more than once")
    try:
        rows = np.array([row_of[str(key)] for key in data.keys], dtype=np.int64)
    except KeyError as error:
        raise InputError(f"{path}: has no row for {error.args[0]!r}; every image needs one") from None
    return values[rows]
