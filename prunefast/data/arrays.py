"""NumPy files of uint8 images: .npy, and .npz with labels. No pickle is ever read."""

import io
import math
import os
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from prunefast.data.cache import CacheEntry, digest, file_signature
from prunefast.data.dataset import check_labels
from prunefast.data.expand import expand_stream
from prunefast.data.listing import Layout, Listing
from prunefast.data.storage import inflate, open_for_reading, read_exactly
from prunefast.errors import InputError, PrunefastError

NPY_MAGIC = b"\x93NUMPY"
IMAGE_KEYS = ("images", "x", "arr_0")
LABEL_KEYS = ("labels", "y", "arr_1")
_HEAD = 1 << 16  # bytes that hold any header NumPy writes for a plain array
_MAX_LABEL_BYTES = 1 << 31
_CHUNK = 8 << 20


def is_npz(listing: Listing) -> bool:
    return bool(listing.names) and all(name.endswith(".npy") and "/" not in name for name in listing.names)


def _header(head: bytes, what: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, Fortran order, dtype and the size of the header of a .npy file."""
    file = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(file)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = reader(file)
    except (MemoryError, PrunefastError):
        raise
    except Exception as error:  # the header is parsed as Python text, which fails in many ways
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"{what}: is not a readable .npy array ({reason}); save it again with numpy.save") from None
    if any(not isinstance(side, int) or side < 0 for side in shape):
        raise InputError(f"{what}: has the impossible shape {shape}; save it again")
    return shape, fortran, dtype, file.tell()


def _image_shape(
    shape: tuple[int, ...], fortran: bool, dtype: np.dtype[Any], what: str
) -> tuple[int, int, int, Layout]:
    """(height, width, channels, layout) of an array of images."""
    if dtype != np.uint8:
        fix = "it holds Python objects, which are not read" if dtype.hasobject else "save it as uint8 (0..255)"
        raise InputError(f"{what}: has dtype {dtype}; {fix}")
    if fortran and len([side for side in shape if side > 1]) > 1:
        raise InputError(
            f"{what}: is in Fortran order; save it again with numpy.save(path, numpy.ascontiguousarray(x))"
        )
    if 0 in shape or not shape:
        raise InputError(f"{what}: has shape {shape}: there are no images in it")
    if len(shape) == 3:
        return shape[1], shape[2], 1, "hwc"
    if len(shape) == 4 and shape[3] in (1, 3):
        return shape[1], shape[2], shape[3], "hwc"
    if len(shape) == 4 and shape[1] == 3:
        return shape[2], shape[3], 3, "chw"
    raise InputError(f"{what}: has shape {shape}; give [N, H, W, 3] or [N, H, W]")


def _listing(
    what: str, file: str, begin: int, length: int, labels: Callable[[int], tuple[np.ndarray | None, list[str]]]
) -> Listing:
    """Items of the .npy array in bytes [begin, begin + length) of `file`."""
    descriptor = open_for_reading(file)
    try:
        head = read_exactly(descriptor, min(_HEAD, length), begin, what)
        shape, fortran, dtype, skip = _header(head, what)
        height, width, channels, layout = _image_shape(shape, fortran, dtype, what)
        count, row = shape[0], math.prod(shape[1:])
        if count * row > length - skip:
            raise InputError(
                f"{what}: says it has {count * row:,} bytes, there are {length - skip:,}; it was cut short, copy it "
                "again"
            )
        if max(height, width) >= 1 << 31:
            raise InputError(f"{what}: has shape {shape}, which are no images")
        parts = (
            read_exactly(descriptor, min(_CHUNK, count * row - at), begin + skip + at, what)
            for at in range(0, count * row, _CHUNK)
        )
        content = digest(str(shape), *(digest(part) for part in parts))
    finally:
        os.close(descriptor)
    label_column, classes = labels(count)
    digits = len(str(count - 1))
    return Listing(
        names=[f"{k:0{digits}}" for k in range(count)],
        length=np.full(count, row, dtype=np.int64),
        containers=[file],
        container=np.zeros(count, dtype=np.int32),
        offset=begin + skip + np.arange(count, dtype=np.int64) * row,
        layout=layout,
        height=height,
        width=width,
        channels=channels,
        label=label_column,
        classes=classes,
        content=content,
    )


def list_npy(path: str) -> Listing:
    """One array of images, no labels."""
    return _listing(path, path, 0, os.stat(path).st_size, lambda count: (None, []))


def list_npz(path: str, members: Listing, entry: CacheEntry, progress: bool) -> Listing:
    """Images and labels by their keys in a .npz; a compressed one is expanded once into the cache."""
    keys = {name.removesuffix(".npy"): row for row, name in enumerate(members.names)}
    image_key = next((key for key in IMAGE_KEYS if key in keys), None)
    if image_key is None:
        raise InputError(
            f"{path}: has the arrays {', '.join(sorted(keys)[:8])}; name the images one of {', '.join(IMAGE_KEYS)}"
        )
    label_key = next((key for key in LABEL_KEYS if key in keys), None)
    what = f"{path}: {image_key}"
    begin, length, expanded = _place(members, keys[image_key])
    file = path
    if expanded >= 0:
        descriptor = open_for_reading(path)
        try:
            file = expand_stream(
                path,
                lambda: _Inflated(descriptor, begin, length, expanded, what),
                file_signature(path),
                ".npy",
                lambda first: (
                    None if first[:6] == NPY_MAGIC else f"{image_key} is not a .npy array; save the file again"
                ),
                entry,
                progress,
            )
        finally:
            os.close(descriptor)
        begin, length = 0, os.stat(file).st_size
        if length != expanded:
            raise InputError(f"{what}: expands to another size than its archive says; copy it again")

    def labels(count: int) -> tuple[np.ndarray | None, list[str]]:
        if label_key is None:
            return None, []
        return check_labels(
            _small_array(path, members, keys[label_key], label_key), None, count, f"{path}: {label_key}"
        )

    return _listing(what, file, begin, length, labels)


def _place(members: Listing, row: int) -> tuple[int, int, int]:
    assert members.offset is not None
    assert members.expanded is not None
    return int(members.offset[row]), int(members.length[row]), int(members.expanded[row])


def _small_array(path: str, members: Listing, row: int, key: str) -> np.ndarray:
    """An integer array of a .npz, read whole."""
    what = f"{path}: {key}"
    begin, length, expanded = _place(members, row)
    if max(length, expanded) > _MAX_LABEL_BYTES:
        raise InputError(f"{what}: is too large for labels; save one whole number an image")
    descriptor = open_for_reading(path)
    try:
        data = read_exactly(descriptor, length, begin, what)
    finally:
        os.close(descriptor)
    if expanded >= 0:
        data = inflate(data, expanded, what)
    shape, fortran, dtype, skip = _header(data[:_HEAD], what)
    count = math.prod(shape)
    if dtype.kind not in "iu":
        raise InputError(f"{what}: has dtype {dtype}; save labels as whole numbers from 0 on")
    if count * dtype.itemsize > len(data) - skip:
        raise InputError(f"{what}: is cut short; copy the file again")
    return np.frombuffer(data, dtype, count, skip).reshape(shape, order="F" if fortran else "C")


class _Inflated(io.RawIOBase):
    """A raw-deflate member as a stream of at most `size` bytes."""

    def __init__(self, descriptor: int, begin: int, length: int, size: int, what: str):
        self._engine = zlib.decompressobj(-zlib.MAX_WBITS)
        self._descriptor, self._position, self._end = descriptor, begin, begin + length
        self._left, self._what = size, what

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes; b"" at the end."""
        want = min(size if size >= 0 else _CHUNK, self._left)
        while want:
            data = self._engine.unconsumed_tail
            if not data and self._position < self._end:
                data = read_exactly(
                    self._descriptor, min(_CHUNK, self._end - self._position), self._position, self._what
                )
                self._position += len(data)
            out = self._engine.decompress(data, want)
            if out:
                self._left -= len(out)
                return out
            if not data:
                break
        return b""
