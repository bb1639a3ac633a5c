"""`groups.parquet` (one row an image) and `pairs.parquet` (the close pairs, so that the threshold can move later).

groups: index, key, label, group, kept, survivor, distance, against, against_distance, content, rank. pairs: first,
second (numbers of `content`), distance. Both carry the same manifest; a pair of files that do not belong together is
refused.
"""

import os
from typing import Any

import numpy as np
import pyarrow as pa

import prunefast
from prunefast.dedup.groups import Deduplication, check_same_data
from prunefast.dedup.pairs import Pairs
from prunefast.errors import InputError, InputTypeError
from prunefast.files import RunFolder
from prunefast.score.parquet_file import check_columns, check_rows, check_version, read_parquet, to_json, write_parquet
from prunefast.select.coreset import LabelledData

FORMAT_VERSION = 1
REMAKE = "delete it and run prunefast dedup again"

_GROUPS = {
    "index": pa.int64(),
    "key": pa.string(),
    "label": pa.int64(),  # null: the data set has no classes
    "group": pa.int64(),  # null: no duplicate
    "kept": pa.bool_(),
    "survivor": pa.int64(),  # index of the kept image; null: dropped for an image of the other data set
    "distance": pa.float64(),  # to the survivor, or to that image
    "against": pa.int64(),  # nearest image of the other data set within max_threshold; null: none
    "against_distance": pa.float64(),
    "content": pa.int64(),
    "rank": pa.int64(),
}
_PAIRS = {"first": pa.int64(), "second": pa.int64(), "distance": pa.float64()}


def save(run: str | os.PathLike[str], found: Deduplication, data: LabelledData) -> None:
    check_same_data(found.manifest.get("data_fingerprint"), data.fingerprint)
    folder = RunFolder(run)
    pairs, total = found.pairs, found.total
    manifest = to_json(
        {
            "package_version": prunefast.__version__,
            **found.manifest,
            "format_version": FORMAT_VERSION,
            "level": found.level,
            "threshold": found.threshold,
            "max_threshold": found.max_threshold,
            "images": total,
            "kept": len(found),
            "groups": found.group_count,
            "pairs_digest": pairs.digest(),
        }
    )
    outside = pairs.against < 0
    columns: dict[str, Any] = {
        "index": np.arange(total),
        "key": pa.array(list(data.keys), pa.string()),
        "label": pa.nulls(total, pa.int64()) if data.labels is None else pa.array(np.asarray(data.labels), pa.int64()),
        "group": pa.array(found.groups, mask=found.groups < 0),
        "kept": found.keep,
        "survivor": pa.array(found.survivor, mask=found.survivor < 0),
        "distance": found.distance,
        "against": pa.array(pairs.against, mask=outside),
        "against_distance": pa.array(pairs.against_distance, mask=outside),
        "content": pairs.content,
        "rank": found.rank,
    }
    close = {"first": pairs.first, "second": pairs.second, "distance": pairs.distance}
    write_parquet(folder.pairs, pa.table(close, schema=pa.schema(list(_PAIRS.items()))), manifest)
    write_parquet(folder.groups, pa.table(columns, schema=pa.schema(list(_GROUPS.items()))), manifest)


def load(run: str | os.PathLike[str], data: LabelledData | None = None) -> Deduplication:
    folder = RunFolder(run)
    table, manifest = read_parquet(folder.groups, REMAKE)
    close, other = read_parquet(folder.pairs, REMAKE)
    for path, found in ((folder.groups, manifest), (folder.pairs, other)):
        check_version(path, found, FORMAT_VERSION, REMAKE)
    if manifest != other:
        raise InputError(f"{folder.pairs}: does not belong to {folder.groups.name} beside it; {REMAKE}")
    if data is not None:
        try:
            check_same_data(manifest.get("data_fingerprint"), data.fingerprint)
        except InputError as error:
            raise InputError(f"{folder.groups}: {str(error).removeprefix('data: ')}") from None
    check_columns(folder.groups, table, _GROUPS, REMAKE)
    check_columns(folder.pairs, close, _PAIRS, REMAKE)
    try:
        check_rows(folder.groups, table["index"].to_numpy(), int(manifest["images"]), REMAKE)
        table = table.take(pa.array(np.argsort(table["index"].to_numpy())))
        pairs = Pairs(
            content=table["content"].to_numpy(),
            first=close["first"].to_numpy(),
            second=close["second"].to_numpy(),
            distance=close["distance"].to_numpy(),
            against=table["against"].fill_null(-1).to_numpy(),
            against_distance=table["against_distance"].fill_null(np.inf).to_numpy(),
        )
        _check(folder, pairs, table["rank"].to_numpy())
        if manifest["pairs_digest"] != pairs.digest():
            raise InputError(f"{folder.pairs}: its pairs are not those that were written; {REMAKE}")
        own = ("level", "threshold", "max_threshold")
        more = {key: value for key, value in manifest.items() if key not in own}
        return Deduplication(pairs, table["rank"].to_numpy(), **{key: manifest[key] for key in own}, **more)
    except (KeyError, InputTypeError) as error:
        raise InputError(f"{folder.groups}: its manifest is broken ({error}); {REMAKE}") from None


def _check(folder: RunFolder, pairs: Pairs, rank: np.ndarray) -> None:
    total = len(rank)
    check_rows(folder.groups, rank, total, REMAKE)
    contents = np.unique(pairs.content)
    whole = len(contents) == 0 or (contents[0] == 0 and contents[-1] == len(contents) - 1)
    inside = all(
        len(side) == 0 or (side.min() >= 0 and side.max() < len(contents)) for side in (pairs.first, pairs.second)
    )
    if not whole or not inside or not (pairs.first < pairs.second).all():
        raise InputError(f"{folder.groups}: its contents and pairs do not agree; {REMAKE}")
