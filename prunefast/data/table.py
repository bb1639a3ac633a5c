"""The item table: one row an image with its place and size, built once from a listing and kept as parquet.

Columns: key (string), label (int64 or null), container (dictionary of paths, null: the file root/key), offset (of a
`Source`: its number there), length (int64, bytes as they lie), width, height (int32, as the image comes out), expanded
(int64 or null: size after raw deflate), sum (uint64 or null: xxh3 of the bytes as they lie), caption (string or null).
JSON under the key "prunefast" of the file's metadata holds what is true of all rows, `TableInfo`.
"""

import contextlib
import dataclasses
import json
import os
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prunefast.data import decode, native
from prunefast.data.cache import digest
from prunefast.data.listing import (
    IMAGE_SUFFIXES,
    LABEL_FILE,
    Layout,
    Listing,
    choose_split,
    is_image_name,
    labels_from_names,
    splits_of,
    wrapping_folder,
)
from prunefast.data.records import OTHER, READ, RecordReader
from prunefast.data.source import Source, SourceStorage
from prunefast.data.storage import MAX_ITEM_BYTES, Storage
from prunefast.data.threads import ThreadPool
from prunefast.data.webdataset import with_side_files
from prunefast.errors import InputError, PrunefastError
from prunefast.files import atomic_path
from prunefast.progress import progress as show_progress

FORMAT_VERSION = 2  # of the table and of the rules that fill it; a table of another version is built again
FINGERPRINT_VERSION = 1  # of what a fingerprint is made of: coresets belong to it
METADATA_KEY = b"prunefast"
DIGEST_KEY = b"prunefast-digest"  # parquet checks its pages, not its metadata
FIX = "replace or delete it, or open with on_error='skip' (--on-error skip)"
_CHUNK = 256  # images a task looks at: tasks stay short, their overhead small
_SUM_CHUNK = 4096  # records summed in a native call: a second at most, so that Ctrl-C is heard
AUTO_SUM_BYTES = 4 << 30  # up to here every record is read and summed unasked: seconds, where a header a record is read

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("label", pa.int64()),
        ("container", pa.dictionary(pa.int32(), pa.string())),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("expanded", pa.int64()),
        ("sum", pa.uint64()),
        ("caption", pa.string()),
    ]
)


def table_of_rows(
    keys: Any,
    labels: np.ndarray | None,
    width: int,
    height: int,
    offsets: np.ndarray,
    length: int,
    *,
    container: str | None = None,
    sums: np.ndarray | None = None,
) -> pa.Table:
    """The table (SCHEMA) of N rows that lie ready, all of one size.

    keys: N strings. labels: int64 [N] or None. width, height: pixels. offsets int64 [N], length: bytes, in the file
    `container` or (None) in memory. sums: uint64 [N], xxh3 of each, or None.
    """
    count = len(offsets)
    files = pa.nulls(count, pa.int32()) if container is None else pa.array(np.zeros(count, dtype=np.int32))
    return pa.Table.from_arrays(
        [
            pa.array(keys, pa.string()),
            pa.nulls(count, pa.int64()) if labels is None else pa.array(labels, pa.int64()),
            pa.DictionaryArray.from_arrays(files, pa.array([] if container is None else [container], pa.string())),
            pa.array(offsets),
            pa.array(np.full(count, length, dtype=np.int64)),
            pa.array(np.full(count, width, dtype=np.int32)),
            pa.array(np.full(count, height, dtype=np.int32)),
            pa.nulls(count, pa.int64()),
            pa.nulls(count, pa.uint64()) if sums is None else pa.array(sums),
            pa.nulls(count, pa.string()),
        ],
        schema=SCHEMA,
    )


@dataclass
class TableInfo:
    """What a table says of all its rows. `containers`: path, size, mtime_ns of every file that holds items."""

    path: str
    root: str
    split: str
    classes: list[str]
    fingerprint: str
    layout: Layout = "encoded"
    channels: int = 3
    labelled: bool = False
    containers: list[tuple[str, int, int]] = dataclasses.field(default_factory=list)
    skipped: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    on_error: str = "raise"
    image_size: int | None = None
    signature: str = ""  # the source's state when the table was made
    own_source: bool = False  # of a `Source` that somebody passed: no path opens it again
    version: int = FORMAT_VERSION


def worker_count(threads: int | None) -> int:
    """Threads to use: as many as asked for, else the processors this process may run on, 16 at most."""
    if threads is None:
        return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 16)
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise InputError(f"threads={threads!r}: give a whole number of at least 1, or leave it out")
    return threads


def build_table(
    source: str,
    listing: Listing,
    *,
    split: str | None,
    on_error: str,
    signature: str,
    progress: bool,
    verify: bool | None = None,
) -> tuple[pa.Table, TableInfo]:
    """Apply the rules for splits, labels and keys, look at every image's header, and make the table, with sums where
    `verify` asks for them (None: where all records together have at most `AUTO_SUM_BYTES`).

    With on_error="skip" every image is decoded in full, so that `skipped` is complete and later reads do not fail.
    """
    skipped: list[tuple[str, str]] = []
    if listing.all_images:
        classes, chosen = _named_classes(source, listing), listing.split or "all"
        width, height, broken = _measure(source, listing, on_error, progress)
    elif listing.layout == "encoded":
        listing, classes, chosen, skipped = _arrange(source, listing, split, on_error)
        width, height, broken = _measure(source, listing, on_error, progress)
    else:
        classes, chosen, broken = listing.classes, listing.split or choose_split(source, (), split), {}
        width = np.full(len(listing), listing.width, dtype=np.int32)
        height = np.full(len(listing), listing.height, dtype=np.int32)
    if broken:
        skipped += [(listing.names[row], reason) for row, reason in sorted(broken.items())]
        good = np.setdiff1d(np.arange(len(listing)), np.fromiter(broken, dtype=np.int64))
        listing, width, height = listing.take(good), width[good], height[good]
    if not len(listing):
        first = f" (the first: {skipped[0][0]} {skipped[0][1]})" if skipped else ""
        raise InputError(f"{source}: no image can be read{first}")
    info = TableInfo(
        path=source,
        root=listing.root,
        split=chosen,
        classes=classes,
        fingerprint=_fingerprint(listing, classes),
        layout=listing.layout,
        channels=listing.channels,
        labelled=listing.label is not None,
        containers=[container_state(path) for path in listing.containers],
        skipped=skipped,
        on_error=on_error,
        signature=signature,
    )
    sums = listing.sums
    if verify is False or not native.available():
        sums = None
    elif sums is None and (verify or listing.length.sum() <= AUTO_SUM_BYTES):
        sums = _sums(source, listing, info.containers, progress)
    return _to_arrow(listing, width, height, sums), info


def container_state(path: str) -> tuple[str, int, int]:
    status = os.stat(path)
    return path, status.st_size, status.st_mtime_ns


def _arrange(
    source: str, listing: Listing, split: str | None, on_error: str
) -> tuple[Listing, list[str], str, list[tuple[str, str]]]:
    """Images only, without the wrapping folder, of one split, sorted by key, with labels."""
    images = [row for row, name in enumerate(listing.names) if is_image_name(name)]
    if not images:
        what = "holds no images" if listing.names else "is empty"
        other = sorted({os.path.splitext(name)[1] for name in listing.names} - {""})[:5]
        found = f" (but {', '.join(other)})" if other else ""
        raise InputError(f"{source}: {what}{found}; images are files named {' '.join(sorted(IMAGE_SUFFIXES))}")
    if len(images) < len(listing):
        listing = with_side_files(source, listing, [container_state(path) for path in listing.containers])
    if len(images) < len(listing):
        listing = listing.take(images)
    if prefix := wrapping_folder(listing.names):
        listing.names = [name[len(prefix) :] for name in listing.names]
        listing.root = os.path.join(listing.root, prefix.rstrip("/")) if listing.root else ""
    splits = splits_of(listing.names)
    chosen = choose_split(source, splits, split)
    rows = sorted(range(len(listing)), key=listing.names.__getitem__)
    if chosen != "all":
        rows = [row for row in rows if listing.names[row].startswith(f"{chosen}/")]
    listing = listing.take(rows)
    skipped: list[tuple[str, str]] = []

    def drop(bad: list[int], reason: str) -> None:
        nonlocal listing
        if not bad:
            return
        if on_error == "raise":
            more = f" (and {len(bad) - 1:,} more)" if len(bad) > 1 else ""
            raise InputError(f"{source}: {listing.names[bad[0]]!r}{more} {reason}, or open with on_error='skip'")
        skipped.extend((_printable(listing.names[row]), reason) for row in bad)
        listing = listing.take(np.setdiff1d(np.arange(len(listing)), bad))

    drop(
        [row for row, name in enumerate(listing.names) if not _is_utf8(name)], "has a name that is not UTF-8; rename it"
    )
    if (content := listing.label_files.get(prefix + LABEL_FILE)) is not None:
        listing.label, classes = labels_from_file(
            f"{source}: {prefix}{LABEL_FILE}", content, listing.names, chosen == "all" or not splits
        )
    elif listing.label is not None:
        classes = listing.classes
    else:
        labels, classes, outside = labels_from_names(source, listing.names, chosen)
        listing.label = labels
        drop(outside, "lies beside the class folders, not in one; move it")
    return listing, classes, chosen, skipped


def _named_classes(source: str, listing: Listing) -> list[str]:
    """The class names of a listing that has its own labels: those it gives, else the numbers. Labels are checked."""
    if listing.label is None:
        return []
    if len(listing.label) != len(listing):
        raise InputError(f"{source}: has {len(listing.label):,} labels for {len(listing):,} images")
    low, high = (int(listing.label.min()), int(listing.label.max())) if len(listing) else (0, -1)
    most = min(len(listing.classes) or 1 << 16, 1 << 16)  # before names are made: a damaged label may be 2^62
    if low < -1 or high >= most:
        there = f"{len(listing.classes):,}" if listing.classes else "at most 65,536"
        raise InputError(f"{source}: labels go from {low} to {high}; there are {there} classes, from 0 on")
    classes = listing.classes or [str(k) for k in range(high + 1)]
    if high < 0:
        listing.label = None
        return []
    return list(classes)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def labels_from_file(
    what: str, content: bytes, names: Sequence[str], complete: bool
) -> tuple[np.ndarray | None, list[str]]:
    """Labels of EDM's dataset.json: ``{"labels": [[name, number], ...]}``; null: there are none.

    Every image needs a label; where `complete`, every label needs an image.
    """
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what}: is not readable JSON ({error}); make it again or delete it") from None
    if not isinstance(value, dict) or "labels" not in value:
        raise InputError(f'{what}: has no "labels"; make it again or delete it')
    if value["labels"] is None:
        return None, []
    number: dict[str, int] = {}
    try:
        for name, label in value["labels"]:
            if (
                isinstance(label, bool)
                or not isinstance(label, int)
                or not 0 <= label < 1 << 31
                or not isinstance(name, str)
            ):
                raise InputError(
                    f"{what}: label of {str(name)[:100]!r} is {str(label)[:40]}; labels are whole numbers from 0 on"
                )
            number[name.removeprefix("./")] = label
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f'{what}: "labels" is not a list of [name, number]; make it again or delete it') from None
    missing = next((name for name in names if name not in number), None)
    if missing is not None:
        raise InputError(f"{what}: has no label for {missing!r}; make it again or delete it")
    if complete and len(number) > len(names):
        known = set(names)
        extra = next(name for name in number if name not in known)
        raise InputError(
            f"{what}: labels {len(number):,} images, there are {len(names):,} (no {extra[:100]!r}); make it again"
        )
    labels = np.fromiter((number[name] for name in names), dtype=np.int64, count=len(names))
    classes = int(max(number.values(), default=-1)) + 1
    if classes > max(1 << 16, len(number)):
        raise InputError(f"{what}: labels go up to {classes - 1:,}; number the classes from 0 on without gaps")
    return labels, [str(k) for k in range(classes)]


def _measure(
    source: str, listing: Listing, on_error: str, progress: bool
) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Width and height of every image, and what is wrong with those that have none. Raises at the first, in order, if
    asked to.
    """
    count = len(listing)
    width, height = np.zeros(count, dtype=np.int32), np.zeros(count, dtype=np.int32)
    storage = storage_of(listing.names, listing.root, [container_state(p) for p in listing.containers], listing)

    def look(start: int) -> dict[int, str]:
        broken: dict[int, str] = {}
        for row in range(start, min(start + _CHUNK, count)):
            try:
                header = _header(storage, row, whole=on_error == "skip")
            except ValueError as error:
                reason = (
                    str(error).removeprefix(f"{storage.describe(row)}: ")
                    if isinstance(error, PrunefastError)
                    else str(error)
                )
                broken[row] = reason
                if on_error == "raise":
                    break
                continue
            width[row], height[row] = header.width, header.height
        return broken

    broken: dict[int, str] = {}
    title = f"reading {os.path.basename(source) or source}"
    starts = range(0, count, _CHUNK)
    threads = ThreadPool(worker_count(None), "prunefast-look")
    with show_progress(title, count, "img", silent=not progress) as bar, threads:
        for start, found in zip(starts, threads.map(look, starts), strict=True):
            if found and on_error == "raise":
                row, reason = min(found.items())
                raise InputError(f"{storage.describe(row)}: {reason}; {FIX}")
            broken.update(found)
            bar.advance(min(_CHUNK, count - start))
    return width, height, broken


def _header(storage: Storage, row: int, whole: bool) -> decode.Header:
    size = int(storage.length[row])
    if size > MAX_ITEM_BYTES or (storage.expanded is not None and storage.expanded[row] > MAX_ITEM_BYTES):
        raise ValueError(f"says it has over {MAX_ITEM_BYTES:,} bytes, which no image file has")
    if whole:
        data = storage.read(row)
        image = decode.decode(data)
        return decode.Header(image.shape[1], image.shape[0], plain=False)
    if storage.expanded is not None and storage.expanded[row] >= 0:
        size = int(storage.expanded[row])
    limit = decode.HEAD_BYTES
    while True:
        data = storage.head(row, limit)
        complete = limit >= size
        try:
            return decode.probe(data, complete)
        except decode.IncompleteHeader:
            limit *= 16


def _sums(source: str, listing: Listing, containers: list[tuple[str, int, int]], progress: bool) -> np.ndarray:
    """xxh3 of every record, uint64 [N]."""
    count = len(listing)
    storage = storage_of(listing.names, listing.root, containers, listing)
    reader, sums = RecordReader(storage), np.empty(count, dtype=np.uint64)
    threads = worker_count(None)
    with show_progress(f"summing {os.path.basename(source) or source}", count, "img", silent=not progress) as bar:
        for start in range(0, count, _SUM_CHUNK):
            items = np.arange(start, min(start + _SUM_CHUNK, count))
            status = np.full(len(items), OTHER)
            if storage.native:
                sums[items], status = reader.sums(items, threads)
            for item in items[status != READ].tolist():  # the general way reads it after all, or says what is wrong
                sums[item] = native.xxh3(storage.read_raw(item))
            bar.advance(len(items))
    return sums


def storage_of(names: Sequence[str], root: str, containers: list[tuple[str, int, int]], columns: Listing) -> Storage:
    if columns.source is not None:
        assert columns.rows is not None
        return SourceStorage(columns.source, names, columns.rows, columns.length)
    return Storage(names, root, containers, columns.container, columns.offset, columns.length, columns.expanded)


def _fingerprint(listing: Listing, classes: list[str]) -> str:
    """Names the items, not where they lie: keys, labels, sizes, and times of change or a digest of the pixels.

    So a copied archive, or a folder copied with its times, keeps its coresets, and a changed file loses them.
    """
    times = b"" if listing.mtime_ns is None else listing.mtime_ns.tobytes()
    labels = b"" if listing.label is None else listing.label.tobytes()
    return digest(
        f"prunefast-{FINGERPRINT_VERSION}-{listing.layout}",
        "\0".join(listing.names),
        "\0".join(classes),
        labels,
        listing.length.tobytes(),
        times,
        listing.content,
    )


def _to_arrow(listing: Listing, width: np.ndarray, height: np.ndarray, sums: np.ndarray | None) -> pa.Table:
    count = len(listing)

    def column(values: np.ndarray | None, kind: pa.DataType, null: np.ndarray | None = None) -> pa.Array:
        return pa.nulls(count, kind) if values is None else pa.array(values, kind, mask=null)

    if listing.container is None:
        container = pa.DictionaryArray.from_arrays(pa.nulls(count, pa.int32()), pa.array([], pa.string()))
    else:
        container = pa.DictionaryArray.from_arrays(
            pa.array(listing.container, pa.int32()), pa.array(listing.containers, pa.string())
        )
    expanded = listing.expanded
    columns = [
        pa.array(listing.names, pa.string()),
        column(listing.label, pa.int64()),
        container,
        pa.array(_first_given(listing.offset, listing.rows, np.zeros(count, dtype=np.int64))),
        pa.array(listing.length),
        pa.array(width),
        pa.array(height),
        column(expanded, pa.int64(), None if expanded is None else expanded < 0),
        column(sums, pa.uint64()),
        pa.nulls(count, pa.string()) if listing.caption is None else pa.array(listing.caption, pa.string()),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _first_given(*arrays: np.ndarray | None) -> np.ndarray:
    return next(array for array in arrays if array is not None)


def save_table(path: str | os.PathLike[str], table: pa.Table, info: TableInfo) -> None:
    """Write parquet with the info in its metadata, under a temporary name first."""
    text = json.dumps(dataclasses.asdict(info)).encode()
    metadata = {METADATA_KEY: text, DIGEST_KEY: digest(text).encode()}
    with atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata(metadata), temporary, compression="zstd", write_page_checksum=True)


def load_table(path: str | os.PathLike[str]) -> tuple[pa.Table, TableInfo]:
    """Read a table back; `InputError` where the file is missing, broken or of another version."""
    if os.path.isdir(path):
        raise InputError(f"{path}: is a folder where a file is needed; remove it")
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file")
    try:
        table = pq.read_table(path, memory_map=True, partitioning=None, page_checksum_verification=True)
        metadata = table.schema.metadata or {}
        if metadata[DIGEST_KEY] != digest(metadata[METADATA_KEY]).encode():
            raise ValueError("damaged metadata")
        info = TableInfo(**json.loads(metadata[METADATA_KEY]))
        table = table.select(SCHEMA.names).replace_schema_metadata(None).cast(SCHEMA).combine_chunks()
        table.validate(full=True)
        if info.version != FORMAT_VERSION:
            raise ValueError("made by another version of prunefast")
        info.containers = [(str(name), int(size), int(time)) for name, size, time in info.containers]
        info.skipped = [(str(key), str(reason)) for key, reason in info.skipped]
    except MemoryError:
        raise
    except Exception as error:  # parquet readers fail on hostile bytes in many ways
        raise InputError(
            f"{path}: is not an item table ({textwrap.shorten(str(error), 120)}); delete it, and the same "
            "command makes it again (that of a run: prunefast embed DATA -o RUN)"
        ) from None
    return table, info


def load_cached(path: Path, signature: str, summed: bool = False) -> tuple[pa.Table, TableInfo] | None:
    """The table at `path` if it is whole, of this state of the source, and the files it points to are as they were;
    with `summed`, if it has sums.
    """
    with contextlib.suppress(InputError, OSError):
        table, info = load_table(path)
        if summed and table["sum"].null_count:
            return None
        if info.signature == signature and all(container_state(c[0]) == tuple(c) for c in info.containers):
            return table, info
    return None


def storage_of_table(
    table: pa.Table, info: TableInfo, keys: Sequence[str], verify: bool = True, source: Source | None = None
) -> Storage:
    """Reading by the places a table gives, or from a source; with `verify`, checked against the sums it may have."""
    sums = table["sum"].to_numpy() if verify and native.available() and not table["sum"].null_count else None
    if source is not None:
        return SourceStorage(source, keys, table["offset"].to_numpy(), table["length"].to_numpy(), sums)
    container = None
    if info.containers:
        column = _one_chunk(table["container"])
        place = {path: number for number, (path, _, _) in enumerate(info.containers)}
        renumber = np.array([place[path] for path in column.dictionary.to_pylist()], dtype=np.int32)
        container = renumber[column.indices.to_numpy(zero_copy_only=False)]
    expanded = None
    if table["expanded"].null_count < len(table):
        expanded = table["expanded"].fill_null(-1).to_numpy()
    return Storage(
        keys,
        info.root,
        info.containers,
        container,
        table["offset"].to_numpy(),
        table["length"].to_numpy(),
        expanded,
        sums,
    )


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


class Keys(Sequence[str]):
    """The keys of a table, as a sequence of str that makes strings only when asked for."""

    def __init__(self, column: pa.ChunkedArray):
        self.column = _one_chunk(column)

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return self.column.take(pa.array(range(*index.indices(len(self))), pa.int64())).to_pylist()
        index = int(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"key {index} of {len(self)}")
        return self.column[index].as_py()

    def __iter__(self) -> Iterator[str]:
        return iter(self.column.to_pylist())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Keys):
            return self.column.equals(other.column)
        return isinstance(other, Sequence) and not isinstance(other, str) and self.column.to_pylist() == list(other)

    def __hash__(self) -> int:
        return hash((len(self), self[0] if len(self) else None))

    def __repr__(self) -> str:
        head = ", ".join(repr(key) for key in self[:3])
        return f"Keys([{head}{', ...' if len(self) > 3 else ''}], {len(self):,} keys)"
