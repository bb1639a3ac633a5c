"""Batches of records through the native module `_images`: one call a batch, in which no Python runs.

Threads that ask the interpreter once a record come to a halt beside a busy main thread (from 278,000 records/s to
1,100, measured); a call a batch does not notice it. What the module leaves (`OTHER`) or refuses goes the general way,
`Storage.read` and `decode.decode`, which also has the words for errors.
"""

import os
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa

from prunefast.data import native
from prunefast.data.storage import Storage, open_folder

READ, OTHER, CHANGED, WRONG_SUM = 0, 1, 2, 3  # prunefast_record_status; below zero: -errno


def _module() -> ModuleType:
    assert native.images is not None  # `native.available`
    return native.images


class RecordReader:
    """The records of a `Storage`, by item number. Methods take int64 [n] of items and are safe in threads."""

    def __init__(self, storage: Storage):
        self._storage = storage
        self._folder: _Folder | None = None
        self._names: tuple[np.ndarray, np.ndarray] | None = None  # bytes of all names, int32 [N + 1] where each begins

    def __getstate__(self) -> dict[str, Any]:
        return {"_storage": self._storage, "_folder": None, "_names": None}

    def handles(self, items: np.ndarray) -> bool:
        """Whether the bytes of these items lie in files as they are: not of compressed archive members."""
        expanded = self._storage.expanded
        return self._storage.native and (expanded is None or not (expanded[items] >= 0).any())

    def announce(self, items: np.ndarray) -> None:
        """Tell the system what is read next. Nothing for a file an image: opening it twice costs more than it saves."""
        if self._storage.container is not None:
            fields, _alive = self._fields(items, threads=1)
            _module().announce(fields)

    def sums(self, items: np.ndarray, threads: int) -> tuple[np.ndarray, np.ndarray]:
        """(uint64 [n] xxh3 of each record, int32 [n] status)."""
        status = np.empty(len(items), dtype=np.int32)
        sums = np.zeros(len(items), dtype=np.uint64)
        fields, _alive = self._fields(items, threads, check=False)
        _module().sum_records(fields, sums.ctypes.data, status.ctypes.data)
        return sums, status

    def copy(self, items: np.ndarray, out: np.ndarray, threads: int = 1, ahead: np.ndarray | None = None) -> np.ndarray:
        """The bytes of each record into the rows of `out` uint8 [n, at least the longest]; int32 [n] status.

        Out of maps of the files where they can be mapped: a system call a record costs more than its bytes (12 KB: 1.9
        us against 0.35 us). ahead: items that are announced in the same call.
        """
        status = np.empty(len(items), dtype=np.int32)
        fields, _alive = self._fields(items, threads)
        mapped = self._mapped(items)
        announced = None if ahead is None or self._storage.container is None else self._fields(ahead, threads=1)
        _module().copy_records(
            fields,
            None if announced is None else announced[0],
            0 if mapped is None else mapped.ctypes.data,
            out.ctypes.data,
            out.strides[0],
            status.ctypes.data,
        )
        return status

    def _mapped(self, items: np.ndarray) -> np.ndarray | None:
        """Where in memory each record begins, int64 [n]; None where a file cannot be mapped or a record leaves it."""
        storage = self._storage
        if storage.container is None:
            return None
        assert storage.offset is not None
        container = storage.container[items]
        begin, end = storage.offset[items], storage.offset[items] + storage.length[items]
        for number, mine in self._by_file(container):
            file = storage.mapped(number)
            if file is None or begin[mine].min(initial=0) < 0 or end[mine].max(initial=0) > len(file):
                return None
            begin[mine] += file.ctypes.data
        return begin

    def _by_file(self, container: np.ndarray) -> list[tuple[int, Any]]:
        """(number of a file, which of the items lie in it)."""
        if len(self._storage.containers) == 1:
            return [(0, slice(None))]
        return [(number, container == number) for number in np.unique(container).tolist()]

    def decode(
        self, items: np.ndarray, side: int, out: np.ndarray, corners: np.ndarray | None = None, threads: int = 1
    ) -> np.ndarray:
        """JPEGs as side x side squares, or their windows at `corners` int32 [n, 2], into `out` uint8 [n, W, W, 3], C
        order; int32 [n] status.
        """
        status = np.empty(len(items), dtype=np.int32)
        fields, _alive = self._fields(items, threads)
        corner = 0 if corners is None else corners.ctypes.data
        _module().decode_records(fields, side, out.shape[1], corner, False, out.ctypes.data, status.ctypes.data)
        return status

    def jpegs(
        self, items: np.ndarray, width: np.ndarray, height: np.ndarray, threads: int = 1
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(bytes of all records uint8, int64 [n + 1] where each begins, int32 [n] status).

        READ: a whole baseline JPEG of width[i] x height[i] pixels (csrc/images/baseline.h). Records are a byte apart.
        """
        status = np.empty(len(items), dtype=np.int32)
        place = np.zeros(len(items) + 1, dtype=np.int64)
        np.cumsum(self._storage.length[items] + 1, out=place[1:])
        out = np.empty(int(place[-1]), dtype=np.uint8)
        width, height = np.ascontiguousarray(width, np.int32), np.ascontiguousarray(height, np.int32)
        fields, _alive = self._fields(items, threads)
        given = (width.ctypes.data, height.ctypes.data, place.ctypes.data, out.ctypes.data, status.ctypes.data)
        _module().read_jpegs(fields, *given)
        return out, place, status

    def _fields(self, items: np.ndarray, threads: int, check: bool = True) -> tuple[tuple[int, ...], list[Any]]:
        """The arguments of the native module, and what must live as long as they are used."""
        storage = self._storage
        items = np.ascontiguousarray(items, dtype=np.int64)
        length = storage.length[items]
        sums = storage.sums[items] if check and storage.sums is not None else None
        alive: list[Any] = [items, length, sums]
        first = (len(items), length.ctypes.data, 0 if sums is None else sums.ctypes.data)
        if storage.container is not None:
            assert storage.offset is not None
            container = storage.container[items]
            descriptor, offset = np.empty(len(items), dtype=np.int32), storage.offset[items]
            for number, mine in self._by_file(container):
                descriptor[mine] = storage.descriptor(number)
            alive += [descriptor, offset]
            return (*first, descriptor.ctypes.data, offset.ctypes.data, -1, 0, 0, 0, threads), alive
        if self._names is None:
            self._names = _buffers(storage.names)
        if self._folder is None:
            self._folder = _Folder(storage.root)
        names, starts = self._names
        alive += [names, starts, self._folder]
        files = (self._folder.number, names.ctypes.data, starts.ctypes.data, items.ctypes.data)
        return (*first, 0, 0, *files, threads), alive


class _Folder:
    """An open folder, so that names below it need not be joined; closes with its last reference."""

    def __init__(self, path: str):
        self.number = open_folder(path)

    def __del__(self) -> None:
        number = getattr(self, "number", None)
        if number is not None:
            os.close(number)


def _buffers(names: Any) -> tuple[np.ndarray, np.ndarray]:
    """Names as Arrow has them: their bytes behind each other, and int32 [N + 1] where each begins."""
    column = getattr(names, "column", None)
    if column is None:
        column = pa.array(list(names), pa.string())
    _, starts, data = column.buffers()
    offsets = np.frombuffer(starts, dtype=np.int32)[column.offset : column.offset + len(column) + 1]
    return np.frombuffer(data, dtype=np.uint8) if data is not None else np.zeros(1, dtype=np.uint8), offsets
