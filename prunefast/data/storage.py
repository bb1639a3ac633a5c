"""Reading the bytes of items: one positional read of (file, offset, length), no shared file offset.

Positional reads are safe in threads and after a fork, where a shared `zipfile` or file offset gives wrong bytes; and a
file that was cut short gives an error, where a memory map would kill the process. Runs of items that lie close together
are read at once.
"""

import contextlib
import errno
import mmap
import os
import threading
import zlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from prunefast.data import native
from prunefast.errors import InputError, MachineError

MERGE_GAP_BYTES = 4096  # a page: reading over it costs less than another system call
MERGE_LIMIT_BYTES = 8 << 20  # of one merged read
MAX_ITEM_BYTES = 1 << 30  # no image file is larger; a bound on what a lying header can make us allocate


def read_exactly(descriptor: int, count: int, offset: int, what: str) -> bytes:
    """`count` bytes at `offset`, or an `InputError` naming `what`."""
    parts = []
    while count > 0:
        try:
            part = os.pread(descriptor, count, offset)
        except OSError as error:
            raise MachineError(f"{what}: cannot be read ({error.strerror})") from None
        if not part:
            raise InputError(f"{what}: ends before its data does; the file was cut short or changed, copy it again")
        parts.append(part)
        count -= len(part)
        offset += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def open_for_reading(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise explain_read_error(error, path) from None


def open_folder(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    except OSError as error:
        raise explain_read_error(error, path) from None


def explain_read_error(error: OSError, path: str | os.PathLike[str]) -> Exception:
    """The error to raise instead of `error`, met while opening or listing `path`."""
    if error.errno == errno.ENOENT:
        return InputError(f"{path}: no such file or folder; check the path")
    if error.errno in (errno.EACCES, errno.EPERM):
        return InputError(f"{path}: may not be read; give yourself permission (chmod u+r, for folders u+rx)")
    if error.errno in (errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR):
        return InputError(f"{path}: {error.strerror}; check the path")
    return MachineError(f"{path}: {error.strerror or error}")


def inflate(data: bytes, size: int, what: str) -> bytes:
    """Undo raw deflate; the result has exactly `size` bytes, and never more are made."""
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        out = engine.decompress(data, size + 1)
    except zlib.error as error:
        raise InputError(f"{what}: compressed data is broken ({error}); copy the archive again") from None
    if len(out) != size:
        raise InputError(f"{what}: expands to another size than its archive says; copy the archive again")
    return out


def inflate_head(data: bytes, size: int) -> bytes:
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size)
    except zlib.error:
        return b""


class _Descriptor:
    """An open file that closes with its last reference."""

    def __init__(self, path: str, size: int, mtime_ns: int):
        self.number = open_for_reading(path)
        status = os.fstat(self.number)
        if (status.st_size, status.st_mtime_ns) != (size, mtime_ns):
            raise InputError(f"{path}: changed since the data set was opened; open it again")

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        number = getattr(self, "number", None)
        if number is not None:
            close(number)


class Storage:
    """The bytes of the items of a table. Holds arrays and paths only, so it pickles; files open when first read.

    container int32 [N] (None: item i is the file `root/names[i]`), offset, length, expanded int64 [N] as in `Listing`.
    sums uint64 [N]: xxh3 of each item's bytes as they lie, which every reading is checked against; None: unknown.
    """

    native = True  # the bytes lie in files as they are: the native module can read them

    def __init__(
        self,
        names: Sequence[str],
        root: str,
        containers: list[tuple[str, int, int]],  # path, size, mtime_ns
        container: np.ndarray | None,
        offset: np.ndarray | None,
        length: np.ndarray,
        expanded: np.ndarray | None,
        sums: np.ndarray | None = None,
    ):
        self.names = names
        self.root = root
        self.containers = containers
        self.container = container
        self.offset = offset
        self.length = length
        self.expanded = expanded
        self.sums = sums
        self._open: dict[int, _Descriptor] = {}
        self._maps: dict[int, np.ndarray | None] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        del state["_open"], state["_maps"], state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open, self._maps = {}, {}
        self._lock = threading.Lock()

    def part(self, items: np.ndarray) -> "Storage":
        """These items alone, numbered from 0: small enough to be sent to another process."""

        def of_items(column: np.ndarray | None) -> np.ndarray | None:
            return None if column is None else column[items]

        containers, container = self.containers, of_items(self.container)
        if container is not None:
            used, container = np.unique(container, return_inverse=True)
            containers = [containers[number] for number in used.tolist()]
        names = [self.names[item] for item in items.tolist()]
        offset, expanded, sums = map(of_items, (self.offset, self.expanded, self.sums))
        return Storage(names, self.root, containers, container, offset, self.length[items], expanded, sums)

    def describe(self, item: int) -> str:
        """The item's file for an error message: ``archive.tar: train/cat/1.jpg`` or its path."""
        name = self.names[item]
        if self.container is None:
            return os.path.join(self.root, name)
        return f"{self.containers[int(self.container[item])][0]}: {name}"

    def descriptor(self, container: int) -> int:
        """The open file of that number."""
        held = self._open.get(container)
        if held is None:
            with self._lock:
                held = self._open.get(container)
                if held is None:
                    held = self._open[container] = _Descriptor(*self.containers[container])
        return held.number

    def mapped(self, container: int) -> np.ndarray | None:
        """All bytes of that file in memory, uint8, or None where it cannot be mapped. Only for the native module: what
        has been cut off the file since kills a process that merely looks.
        """
        if container not in self._maps:
            descriptor = self.descriptor(container)
            with self._lock:
                if container not in self._maps:  # a second map would free the first, which others copy from by now
                    self._maps[container] = self._map(container, descriptor)
        return self._maps[container]

    def _map(self, container: int, descriptor: int) -> np.ndarray | None:
        with contextlib.suppress(OSError, ValueError):
            file = mmap.mmap(descriptor, self.containers[container][1], prot=mmap.PROT_READ)
            if hasattr(mmap, "MADV_RANDOM"):
                file.madvise(mmap.MADV_RANDOM)  # reading ahead would read what was not chosen
            return np.frombuffer(file, dtype=np.uint8)
        return None

    def _read_file(self, item: int, limit: int | None = None) -> bytes:
        path = os.path.join(self.root, self.names[item])
        length = int(self.length[item])
        descriptor = open_for_reading(path)
        try:
            if limit is not None and limit < length:
                return read_exactly(descriptor, limit, 0, path)
            data = os.pread(descriptor, length + 1, 0)
            if len(data) < length:  # a network file system may give less than was asked for
                data += read_exactly(descriptor, length - len(data), len(data), path)
        except OSError as error:
            if isinstance(error, MachineError):
                raise
            raise MachineError(f"{path}: cannot be read ({error.strerror})") from None
        finally:
            os.close(descriptor)
        if len(data) != length:
            raise InputError(f"{path}: changed since the data set was opened; open it again")
        return data

    def _check(self, item: int, data: bytes) -> bytes:
        """The bytes, if they are those that the item's sum was made of."""
        if self.sums is not None and native.xxh3(data) != self.sums[item]:
            raise InputError(
                f"{self.describe(item)}: its bytes are not what they were when the data set was first opened (the "
                "checksum differs): the disk or a copy is damaged; copy it again, or open with verify=False"
            )
        return data

    def read_raw(self, item: int) -> bytes:
        """All bytes of one item as they lie."""
        if self.container is None:
            return self._check(item, self._read_file(item))
        assert self.offset is not None
        descriptor = self.descriptor(int(self.container[item]))
        data = read_exactly(descriptor, int(self.length[item]), int(self.offset[item]), self.describe(item))
        return self._check(item, data)

    def read(self, item: int) -> bytes:
        """All bytes of one item, expanded."""
        data = self.read_raw(item)
        if self.expanded is not None and self.expanded[item] >= 0:
            return inflate(data, int(self.expanded[item]), self.describe(item))
        return data

    def head(self, item: int, limit: int) -> bytes:
        """The first `limit` bytes of one item, or fewer where it is shorter."""
        if self.container is None:
            return self._read_file(item, limit)
        assert self.offset is not None
        count = min(int(self.length[item]), limit)
        data = read_exactly(
            self.descriptor(int(self.container[item])), count, int(self.offset[item]), self.describe(item)
        )
        if self.expanded is not None and self.expanded[item] >= 0:
            return inflate_head(data, limit)
        return data

    def read_many(self, items: np.ndarray) -> list[bytes]:
        """Bytes of several items, in the order asked for; neighbours in one file are read together."""
        if self.container is None:
            return [self.read(item) for item in items.tolist()]
        if len(items) < 2:
            return [self.read(item) for item in items.tolist()]
        assert self.offset is not None
        container, offset, length = self.container[items], self.offset[items], self.length[items]
        order = np.lexsort((offset, container))
        container, offset, length = container[order], offset[order], length[order]
        end = offset + length
        breaks = (
            (container[1:] != container[:-1]) | (offset[1:] - end[:-1] > MERGE_GAP_BYTES) | (offset[1:] < offset[:-1])
        )
        starts = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(items)]
        out: list[bytes] = [b""] * len(items)
        places, offsets, lengths = order.tolist(), offset.tolist(), length.tolist()
        expanded = None if self.expanded is None else self.expanded[items].tolist()
        for first, last in pairwise(starts):
            descriptor = self.descriptor(int(container[first]))
            row = first
            while row < last:
                base = offsets[row]
                stop, reach = row, base
                while stop < last and (stop == row or offsets[stop] + lengths[stop] - base <= MERGE_LIMIT_BYTES):
                    reach = max(reach, offsets[stop] + lengths[stop])
                    stop += 1
                block = read_exactly(descriptor, reach - base, base, self.describe(int(items[places[row]])))
                for k in range(row, stop):
                    begin = offsets[k] - base
                    place = places[k]
                    data = self._check(int(items[place]), block[begin : begin + lengths[k]])
                    if expanded is not None and expanded[place] >= 0:
                        data = inflate(data, expanded[place], self.describe(int(items[place])))
                    out[place] = data
                row = stop
        return out
