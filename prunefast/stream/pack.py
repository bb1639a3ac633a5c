"""A pack: the decoded pixels of a coreset in one safetensors file, from which batches are read by row.

Made once, by one process, and shared: of training loops, ranks and runs that ask for the same images at the same size
the first decodes, the others wait and read. Reading a row is one positional read of its bytes, far cheaper than
decoding, and costs 3 R^2 bytes of disk an image (about 10 times a JPEG of quality 90).

The file is an ordinary one for the safetensors library: `images` uint8 [n, R, R, 3], which begins at a multiple of
4,096 bytes, `label` int64 [n] (-1: none), `source_index` int64 [n] (which item of the data set), `sum` uint64 [n] (xxh3
of each image, checked when it is read). Its metadata says under "prunefast" what it was made from.
"""

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from prunefast.data import native
from prunefast.data.cache import CacheEntry, digest
from prunefast.data.dataset import ImageDataset, Replace
from prunefast.data.table import TableInfo, container_state, table_of_rows
from prunefast.errors import InputError, MachineError
from prunefast.files import atomic_path
from prunefast.progress import progress as show_progress

FORMAT_VERSION = 1
# Of the pixels that `ImageDataset.images` gives for the same bytes: it goes up when they change.
DECODER_VERSION = 1
ALIGNMENT_BYTES = 4096
_BATCH = 256
_SPARE_BYTES = 64 << 20  # of the disk that a pack leaves free


def pack(
    data: ImageDataset,
    indices: np.ndarray,
    cache_dir: str | os.PathLike[str] | None = None,
    *,
    threads: int | None = None,
    progress: bool = False,
    replace: Replace | None = None,
) -> ImageDataset:
    """The images `indices` (int64 [n]) of `data` as a data set of raw pixels: item k is image indices[k].

    cache_dir   where packs are kept; default as for `open_dataset`
    threads     that decode
    replace     for images that cannot be read, as `ImageDataset.decode_ahead` has it: `source_index` then says what is
                shown, and it is asked about them again where the pack was there. Packs with and without it are two.

    The file is written under another name and renamed when it is whole, so a stopped or killed process leaves none;
    the next one begins again.
    Raises InputError for a broken image, MachineError where the disk is too full (before any work).
    """
    if data.row_dtype != np.uint8:
        raise InputError(f"placement: {data.path} holds latents, which are packed already; choose disk or memory")
    side = data.image_size
    if side is None:
        raise InputError(f"data: the images of {data.path} have different shapes; open it with image_size= (pixels)")
    name = digest(
        f"prunefast-pack-{FORMAT_VERSION}-{DECODER_VERSION}",
        data.fingerprint,
        str(side),
        str(replace is None),
        indices.tobytes(),
    )
    entry = CacheEntry(data.path or data.fingerprint, cache_dir)
    path = entry.folder / f"pack-{name}.safetensors"
    made = False
    if not path.exists():
        with entry.locked():  # who waited here finds it made
            if not path.exists():
                _write(path, data, indices, side, threads, progress, replace)
                made = True
    packed, source_index = _open(path, data, indices, side)
    if replace is not None and not made:  # nobody trains on replacements without being told
        for item in indices[source_index != indices].tolist():
            replace(item, InputError(f"{data.keys[item]}: could not be read when {path} was made"))
    return packed


def _header(data: ImageDataset, indices: np.ndarray, side: int) -> bytes:
    """Length and JSON, filled up with spaces so that what follows is aligned."""
    count = len(indices)
    sizes = {"images": count * side * side * 3, "label": 8 * count, "source_index": 8 * count, "sum": 8 * count}
    shapes = {"images": [count, side, side, 3]}
    kinds = {"images": "U8", "label": "I64", "source_index": "I64", "sum": "U64"}
    made_from = {"version": FORMAT_VERSION, "decoder": DECODER_VERSION, "data_fingerprint": data.fingerprint}
    header: dict[str, Any] = {"__metadata__": {"prunefast": json.dumps(made_from)}}
    begin = 0
    for key, size in sizes.items():
        span = [begin, begin + size]
        header[key] = {"dtype": kinds[key], "shape": shapes.get(key, [count]), "data_offsets": span}
        begin += size
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT_BYTES)
    return struct.pack("<Q", len(text)) + text


def _write(
    path: Path,
    data: ImageDataset,
    indices: np.ndarray,
    side: int,
    threads: int | None,
    progress: bool,
    replace: Replace | None,
) -> None:
    needed = len(indices) * (side * side * 3 + 24) + 2 * ALIGNMENT_BYTES
    free = shutil.disk_usage(path.parent).free
    if needed + _SPARE_BYTES > free:
        raise MachineError(
            f"{path.parent}: a pack of {len(indices):,} images needs {needed / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are "
            "free; free some, set PRUNEFAST_CACHE, or choose another placement"
        )
    shown: dict[int, int] = {}

    def remember(item: int, error: InputError) -> int:
        assert replace is not None
        shown[item] = replace(item, error)
        return shown[item]

    asked = None if replace is None else remember
    sums = np.zeros(len(indices), dtype=np.uint64)
    labels = np.full(len(indices), -1, dtype=np.int64) if data.labels is None else data.labels[indices]
    with (
        atomic_path(path) as temporary,
        open(temporary, "wb") as file,
        show_progress("packing", len(indices), "img", silent=not progress) as bar,
    ):
        file.write(_header(data, indices, side))
        done = 0
        parts = (indices[start : start + _BATCH] for start in range(0, len(indices), _BATCH))
        for _, images in data.decode_ahead(parts, threads, replace=asked):
            file.write(images.data)
            if native.available():
                for image in images:
                    sums[done] = native.xxh3(image.data)
                    done += 1
            bar.advance(len(images))
        source_index = np.array([shown.get(item, item) for item in indices.tolist()], dtype=np.int64)
        for column in (labels, source_index, sums):
            file.write(column.tobytes())


def _open(path: Path, data: ImageDataset, indices: np.ndarray, side: int) -> tuple[ImageDataset, np.ndarray]:
    """The pack at `path` and its `source_index`; it is of these images, by its name, so only damage is looked for."""
    count, row_bytes = len(indices), side * side * 3
    head = _header(data, indices, side)
    pixels_end = len(head) + count * row_bytes
    with open(path, "rb") as file:
        if file.read(len(head)) != head or os.fstat(file.fileno()).st_size != pixels_end + 24 * count:
            raise InputError(f"{path}: is no whole pack; delete it, and it is made again")
        file.seek(pixels_end + 8 * count)
        source_index = np.frombuffer(file.read(8 * count), dtype=np.int64)
        sums = np.frombuffer(file.read(), dtype=np.uint64)
    labels = None if data.labels is None else data.labels[indices]
    offsets = len(head) + np.arange(count, dtype=np.int64) * row_bytes
    keys = pa.array(range(count), pa.int64()).cast(pa.string())
    summed = sums if native.available() and sums.any() else None
    table = table_of_rows(keys, labels, side, side, offsets, row_bytes, container=str(path), sums=summed)
    info = TableInfo(
        path=str(path),
        root="",
        split=data.split,
        classes=list(data.classes),
        fingerprint=path.stem,
        layout="hwc",
        labelled=labels is not None,
        containers=[container_state(str(path))],
    )
    return ImageDataset(table, info), source_index
