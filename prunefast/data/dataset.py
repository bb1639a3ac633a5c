"""A data set of images: an item table, and the images it points to, by index."""

import copy
import math
import os
import resource
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from prunefast.data import decode, native
from prunefast.data.buffers import Buffers
from prunefast.data.cache import digest
from prunefast.data.processes import DecodeProcesses, shared
from prunefast.data.records import READ, RecordReader
from prunefast.data.source import Source
from prunefast.data.storage import Storage
from prunefast.data.table import FIX, Keys, TableInfo, save_table, storage_of_table, table_of_rows, worker_count
from prunefast.data.threads import ThreadPool
from prunefast.errors import InputError, InputTypeError, PrunefastError

_MIN_TASK = 64  # images a decoding task has at least: handing it over costs 40 us of Python, a JPEG of 64 px 20
_MIN_TASK_BYTES = 1 << 20  # of pixels, enough as well: 5 images of 256 x 256, a millisecond of decoding
_TASKS_A_THREAD = 2
_LEAST_FOR_PROCESS = 4  # images of a task: fewer are the odd ones among many that are decoded natively
_THREAD_BYTES = 8 << 20  # of rows that a thread copies: another one is not worth its start for less
_BATCHES_AHEAD = 2  # decoded while the caller works on one, and more where they are too few for all threads
_CALL_BYTES = 8 << 20  # of rows that are copied by one native call
# And no more rows: NumPy lets go of the interpreter in each operation on more than 500 elements. There are a dozen a
# call, and beside a busy main thread each waits 5 ms to get it back.
_CALL_ROWS = 480
_CALL_PIXELS = 32 << 20  # of images that are decoded by one native call
_CALLS_AHEAD = 2  # announced to the system while rows are copied


Replace = Callable[[int, InputError], int]


class Windows(NamedTuple):
    """Of each item the size x size pixels at its corner, int32 [n, 2], top and left (`ImageDataset.windows`)."""

    items: np.ndarray
    corners: np.ndarray
    size: int


class ImageDataset:
    """Images by index, from a file or folder (`open_dataset`) or from memory (`from_arrays`).

    Reading touches the bytes of the items asked for and nothing else. Safe in threads, after a fork, and picklable.

    path         where it was opened, absolute; "" in memory
    split        "train", "test", ... or "all"
    labels       int64 [N], indices into `classes`; None where there are no classes
    classes      names of the classes, [] where there are none
    keys         N names, unique: the path below the data set's top folder
    widths, heights   int32 [N], pixels
    image_size   side R of the squares that `images` gives: asked for, else the size that all images share, else None
    fingerprint  hex digest of what the items are (not of where they lie): a coreset belongs to one fingerprint
    skipped      [(key, reason)] of what on_error="skip" left out
    table        pyarrow.Table: key, label, container, offset, length, width, height, expanded, sum, caption
    notices      lines worth telling a person, such as where an expanded copy lies
    """

    def __init__(
        self,
        table: pa.Table,
        info: TableInfo,
        *,
        image_size: int | None = None,
        pixels: np.ndarray | None = None,
        notices: Sequence[str] = (),
        verify: bool = True,
        source: Source | None = None,
    ):
        self.table = table
        self.keys = Keys(table["key"])
        self.labels: np.ndarray | None = table["label"].to_numpy().astype(np.int64) if info.labelled else None
        self.widths: np.ndarray = table["width"].to_numpy()
        self.heights: np.ndarray = table["height"].to_numpy()
        self.notices = list(notices)
        self._info = info
        self._pixels = pixels  # uint8 [N, H, W, 3] of a data set in memory
        self._storage: Storage = storage_of_table(table, info, self.keys, verify, source)
        self._records = RecordReader(self._storage)
        self._disk = _Disk()
        if image_size is None and len(table) and _all_equal(self.widths) and _all_equal(self.heights):
            image_size = int(self.widths[0]) if self.widths[0] == self.heights[0] else None
        self.image_size = image_size
        self.row_dtype: np.dtype[Any] = np.dtype(np.uint8)  # of what `batches` gives

    @property
    def row_shape(self) -> tuple[int, int, int]:
        """Of one item of `batches`: (R, R, 3)."""
        side = self._side()
        return (side, side, 3)

    @property
    def path(self) -> str:
        return self._info.path

    @property
    def split(self) -> str:
        return self._info.split

    @property
    def classes(self) -> list[str]:
        return self._info.classes

    @property
    def fingerprint(self) -> str:
        return self._info.fingerprint

    @property
    def skipped(self) -> list[tuple[str, str]]:
        return self._info.skipped

    @property
    def captions(self) -> Sequence[str | None] | None:
        """N texts (None where an image has none), from WebDataset, Parquet, Arrow or a `Source`; None without any."""
        column = self.table["caption"]
        return None if column.null_count == len(column) else Keys(column)

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        size = f"{self.image_size} px" if self.image_size else "sizes differ"
        classes = f", {len(self.classes)} classes" if self.classes else ""
        return (
            f"ImageDataset({self.path or 'in memory'!r}, split={self.split!r}, {len(self):,} images, {size}{classes})"
        )

    def with_image_size(self, side: int | None) -> "ImageDataset":
        """The same items (and fingerprint), given by `images` as side x side squares."""
        other = copy.copy(self)
        other.image_size = check_image_size(side)
        return other

    def read(self, index: int) -> bytes:
        """The bytes of one item's file as they lie (raw rows for array files). InputError for a data set in memory."""
        item = int(self._checked(np.array([_as_int(index)]))[0])
        if self._pixels is not None:
            raise InputError("read: this data set was made from arrays in memory and has no files; use image()")
        return self._storage.read(item)

    def read_many(self, indices: Any) -> list[bytes]:
        """The bytes of several items, as `read` gives them; the rows of pixels for a data set in memory."""
        items = self._checked(as_indices(indices))
        if self._pixels is not None:
            return [self._pixels[item].tobytes() for item in items]
        return self._storage.read_many(items)

    def jpegs(self, indices: Any, threads: int = 1) -> list[np.ndarray | None]:
        """For a decoder that is not prunefast's: the bytes of each item, uint8 [length], sum checked, where they are a
        whole upright baseline JPEG of the size in the table; else None, also for what cannot be read (`images` tells
        why).

        Only where the native module loads, and for `encoded` data.
        """
        items = self._checked(as_indices(indices))
        widths, heights = self.widths[items], self.heights[items]
        if self._records.handles(items):
            data, place, status = self._records.jpegs(items, widths, heights, threads)
            begins = place.tolist()
            return [data[begins[k] : begins[k + 1] - 1] if status[k] == READ else None for k in range(len(items))]
        blobs: list[np.ndarray | None] = []
        for item, width, height in zip(items.tolist(), widths.tolist(), heights.tolist(), strict=True):
            try:
                blob = self._storage.read(item)
            except PrunefastError:
                blob = b""
            plain = native.is_baseline_jpeg(blob, width, height)
            blobs.append(np.frombuffer(blob, dtype=np.uint8) if plain else None)
        return blobs

    @property
    def encoded(self) -> bool:
        """Whether an item is a file of some image format; else it is raw pixels, [H, W, 3] or [3, H, W] or grey."""
        return self._pixels is None and self._info.layout == "encoded"

    @property
    def root(self) -> str:
        """The folder that the keys are relative to; "" where items do not lie in files of their own."""
        return self._info.root if self.encoded and self._storage.container is None else ""

    @property
    def files(self) -> Callable[[int], str] | None:
        """Index -> path of the item's file; None where items do not lie in files of their own."""
        return (lambda index: os.path.join(self.root, self.keys[index])) if self.root else None

    def grey(self, index: int, least: int) -> np.ndarray:
        """One image in grey, uint8 [h, w], no smaller than `least` pixels a side where the image is not.

        A JPEG is decoded at the smallest scale that gives them, much faster than in full.
        """
        if not self.encoded:
            return decode.to_grey(self.image(index))
        item = int(self._checked(np.array([_as_int(index)]))[0])
        try:
            return decode.decode_grey(self._storage.read(item), least)
        except ValueError as error:
            raise self._explain(item, error) from None

    def image(self, index: int) -> np.ndarray:
        """One image as it is stored: uint8 [H, W, 3]."""
        item = int(self._checked(np.array([_as_int(index)]))[0])
        if self._pixels is not None:
            return self._pixels[item].copy()
        if self._info.layout != "encoded":
            return self._raw(np.array([item]))[0]
        try:
            return decode.decode(self._storage.read(item))
        except ValueError as error:
            raise self._explain(item, error) from None

    def images(self, indices: Any) -> np.ndarray:
        """Images as squares: uint8 [n, R, R, 3], RGB, C order.

        Centre crop to a square, then to R = image_size: box filter down, bicubic up; nothing where it is R x R.
        Raises InputError for an index out of range, no common size, or a broken image.
        """
        shape = self.row_shape
        items = self._checked(as_indices(indices))
        out = np.empty((len(items), *shape), dtype=self.row_dtype)
        for part in self._calls(items):
            self._fill(items[part], out[part])
        return out

    def _calls(self, items: np.ndarray) -> list[slice]:
        """Parts of `items` for a native call each, which a Ctrl-C waits for: what decodes in a third of a second."""
        if not self.reads_windows:
            return [slice(None)]
        pixels = np.cumsum(self.widths[items].astype(np.int64) * self.heights[items])
        cuts = np.flatnonzero(np.diff(pixels // _CALL_PIXELS)) + 1
        return [slice(begin, end) for begin, end in pairwise([0, *cuts.tolist(), len(items)])]

    @property
    def reads_windows(self) -> bool:
        """Whether a window may cost less than its image: those that are decoded, not those that lie ready."""
        return self._pixels is None and self._info.layout == "encoded"

    def windows(self, indices: Any, corners: Any, size: int) -> np.ndarray:
        """Windows of the squares that `images` gives: uint8 [n, size, size, 3], C order.

        corners: whole numbers [n, 2], (top, left) of each window within the R x R image. Of a JPEG that is R x R as it
        lies, only the window is decoded.
        Raises InputError as `images` does, and for a window that leaves the image.
        """
        side = self._side()
        items, places = self._checked(as_indices(indices)), _as_numpy(corners)
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= side:
            raise InputError(f"size={size!r}: give a whole number of pixels from 1 to {side}, the images' side")
        if places.shape != (len(items), 2) or places.dtype.kind not in "iu":
            raise InputError(f"corners: give whole numbers [{len(items)}, 2], top and left of each window")
        if len(places) and (places.min() < 0 or places.max() > side - size):
            raise InputError(f"corners: a window of {size} px at up to {places.max()} leaves the image of {side} px")
        out = np.empty((len(items), size, size, 3), dtype=np.uint8)
        places = np.ascontiguousarray(places, dtype=np.int32)
        for part in self._calls(items):
            self._fill(items[part], out[part], places[part])
        return out

    def batches(
        self, indices: Any = None, batch_size: int = 256, threads: int | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (indices int64 [n], images uint8 [n, R, R, 3]) in order, decoded ahead in worker threads.

        indices: what to go through, default everything. threads: default one a processor.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(f"batch_size={batch_size!r}: give a whole number of at least 1")
        items = np.arange(len(self)) if indices is None else self._checked(as_indices(indices))
        parts = (items[start : start + batch_size] for start in range(0, len(items), batch_size))
        return self.decode_ahead(parts, threads)

    def decode_ahead(
        self,
        parts: "Iterator[np.ndarray | Windows]",
        threads: int | None = None,
        buffers: Buffers | None = None,
        replace: "Replace | None" = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Like `batches` for index arrays of any order and size, which may go on for ever; images lie in `buffers`.

        parts: arrays, or `Windows` where `reads_windows`: of those the images are the windows.
        replace: called in a worker thread with an item that cannot be decoded and its error; gives the item to show in
        its place, or raises.
        """
        count, buffers = worker_count(threads), buffers or Buffers()
        if self._pixels is None and self._lie_ready(self._side()):
            return self._rows_ahead(parts, count, buffers, replace)  # type: ignore[arg-type]  # never windows
        return self._decode_ahead(parts, self.row_shape, count, buffers, replace)

    def _rows_ahead(
        self, parts: Iterator[np.ndarray], threads: int, buffers: Buffers, replace: "Replace | None"
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """`decode_ahead` of rows that are only copied: in the caller's thread, for handing over costs more than that.

        Small batches are read several at a time: a native call is 0.1 ms of Python, and beside a busy main thread a
        wait of 5 ms for the interpreter. The system is told of the next ones only while the disk is read: advice
        costs as much as copying 12 KB.
        """
        row_bytes = math.prod(self.row_shape) * self.row_dtype.itemsize
        # of a buffer, so that all are of one size; a batch that has more has one of its own
        rows = max(min(_CALL_BYTES // row_bytes, _CALL_ROWS), 1)
        waiting: deque[list[np.ndarray]] = deque()
        cold = self._disk.was_read()

        def first(ahead: list[np.ndarray] | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            group = waiting.popleft()
            items = np.concatenate(group)
            out = buffers.take((max(len(items), rows), *self.row_shape), self.row_dtype)[: len(items)]
            count = min(threads, 1 + out.nbytes // _THREAD_BYTES)
            announced = None if ahead is None else np.concatenate(ahead)
            try:
                self._read_rows(items, out.reshape(len(items), -1), count, announced)
            except InputError:
                return self._one_by_one(group, buffers, replace)
            ends = np.cumsum([len(batch) for batch in group]).tolist()
            return ((batch, out[end - len(batch) : end]) for batch, end in zip(group, ends, strict=True))

        for group in _groups(map(self._checked, parts), rows):
            waiting.append(group)
            done: Iterator[tuple[np.ndarray, np.ndarray]] = iter(())
            if len(waiting) > _CALLS_AHEAD:
                done = first(group if cold else None)  # announced within the same call
            elif cold:
                self._announce(np.concatenate(group))
            cold = self._disk.was_read()
            yield from done
        while waiting:
            yield from first()

    def _one_by_one(
        self, group: list[np.ndarray], buffers: Buffers, replace: "Replace | None"
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches of rows some of which cannot be read: those before them are given, and the error in its turn."""
        for items in group:
            out = buffers.take((len(items), *self.row_shape), self.row_dtype)
            self._fill_or_replace(items, out, replace)
            yield items, out

    def _decode_ahead(
        self,
        parts: "Iterator[np.ndarray | Windows]",
        shape: tuple[int, int, int],
        threads: int,
        buffers: Buffers,
        replace: "Replace | None",
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        pool, processes = ThreadPool(threads, "prunefast-decode"), shared()
        waiting: deque[tuple[np.ndarray, np.ndarray, list[Future[None]]]] = deque()

        def submit(part: "np.ndarray | Windows") -> None:
            items, corners, size = part if isinstance(part, Windows) else (part, None, None)
            items = self._checked(items)
            if self._disk.was_read():
                pool.submit(self._announce, items)
            out = buffers.take((len(items), *(shape if size is None else (size, size, 3))), self.row_dtype)
            # a few tasks a thread, of one size within one image: who is done early takes the next
            least = min(_MIN_TASK, max(_MIN_TASK_BYTES * len(items) // max(out.nbytes, 1), 1))
            count = max(min(threads * _TASKS_A_THREAD, len(items) // least), 1)
            cuts = [len(items) * k // count for k in range(count + 1)]
            tasks = [
                pool.submit(
                    self._fill_or_replace,
                    items[begin:end],
                    out[begin:end],
                    replace,
                    None if corners is None else corners[begin:end],
                    processes,
                )
                for begin, end in pairwise(cuts)
            ]
            waiting.append((items, out, tasks))

        try:
            for part in parts:
                submit(part)
                behind = sum(len(tasks) for _, _, tasks in waiting) - len(waiting[0][2])
                if len(waiting) > _BATCHES_AHEAD and behind >= threads * _TASKS_A_THREAD:
                    yield _finished(*waiting.popleft())
            while waiting:
                yield _finished(*waiting.popleft())
        finally:  # also when the caller breaks off, is interrupted, or drops the iterator
            pool.shutdown()

    def save_items(self, path: str | os.PathLike[str]) -> None:
        """Write the item table, with what `open_run_dataset` needs to open this data set again."""
        save_table(path, self.table, replace(self._info, image_size=self.image_size))

    def _side(self) -> int:
        if self.image_size is None:
            raise InputError(
                f"image_size: the images of {self.path or 'this data set'} have different shapes; give image_size= "
                "(pixels) to get squares"
            )
        return self.image_size

    def _checked(self, items: np.ndarray) -> np.ndarray:
        if len(items) and (items.min() < 0 or items.max() >= len(self)):
            bad = items[(items < 0) | (items >= len(self))][0]
            raise InputError(f"indices: {bad} is not in 0..{len(self) - 1}, the items of this data set")
        return items

    def _fill(
        self,
        items: np.ndarray,
        out: np.ndarray,
        corners: np.ndarray | None = None,
        processes: DecodeProcesses | None = None,
    ) -> None:
        """Images of `items`, or their windows at `corners` int32 [n, 2], into `out`; in this thread, but for what goes
        to `processes`.
        """
        side = self._side()
        if self._pixels is None and corners is None and self._lie_ready(side):
            self._read_rows(items, out.reshape(len(items), -1))
            return
        if self._pixels is not None or self._info.layout != "encoded":
            raw = self._pixels[items] if self._pixels is not None else self._raw(items)
            squares = raw if raw.shape[1:3] == (side, side) else [decode.fit_square(image, side) for image in raw]
            decode.cut(squares, out, corners)
            return
        left = np.arange(len(items))
        if native.decodes_jpeg() and self._records.handles(items):
            left = np.flatnonzero(self._records.decode(items, side, out, corners) != READ)
        if not len(left):
            return
        whole = len(left) == len(items)
        part = out if whole else np.empty((len(left), *out.shape[1:]), dtype=np.uint8)
        places = None if corners is None else corners[left]
        if processes is None or len(left) < _LEAST_FOR_PROCESS:
            bad = decode.decode_windows(self._storage.read_many(items[left]), side, part, places)
        else:
            bad = processes.decode(self._storage, items[left], side, part, places)
        if bad is not None:
            number, reason = bad
            raise self._explain(int(items[left[number]]), ValueError(reason))
        if not whole:
            out[left] = part

    def _raw(self, items: np.ndarray) -> np.ndarray:
        """Rows of raw pixels as uint8 [n, H, W, 3]."""
        height, width, channels = int(self.heights[0]), int(self.widths[0]), self._info.channels
        rows = np.empty((len(items), height * width * channels), dtype=np.uint8)
        self._read_rows(items, rows)
        if self._info.layout == "chw":
            return np.ascontiguousarray(rows.reshape(-1, channels, height, width).transpose(0, 2, 3, 1))
        images = rows.reshape(-1, height, width, channels)
        return images if channels == 3 else np.repeat(images, 3, axis=3)

    def _fill_or_replace(
        self,
        items: np.ndarray,
        out: np.ndarray,
        replace: "Replace | None",
        corners: np.ndarray | None = None,
        processes: DecodeProcesses | None = None,
    ) -> None:
        try:
            self._fill(items, out, corners, processes)
            return
        except InputError:
            if replace is None:
                raise
        for number in range(len(items)):
            item, place = items[number : number + 1], out[number : number + 1]
            corner = None if corners is None else corners[number : number + 1]
            while True:
                try:
                    self._fill(item, place, corner)
                    break
                except InputError as error:
                    item = np.array([replace(int(item[0]), error)])

    def _announce(self, items: np.ndarray) -> None:
        if native.available() and self._pixels is None:
            self._records.announce(items)

    def _lie_ready(self, side: int) -> bool:
        """Whether every item's bytes are the side x side RGB square itself."""
        if self._info.layout != "hwc" or self._info.channels != 3:
            return False
        return bool(self.widths[0] == side and self.heights[0] == side)

    def _read_rows(
        self, items: np.ndarray, rows: np.ndarray, threads: int = 1, ahead: np.ndarray | None = None
    ) -> None:
        left = list(range(len(items)))
        if native.available():
            left = np.flatnonzero(self._records.copy(items, rows, threads, ahead) != READ).tolist()
        for number in left:
            rows[number] = np.frombuffer(self._storage.read_raw(int(items[number])), dtype=np.uint8)

    def _explain(self, item: int, error: ValueError) -> InputError:
        if isinstance(error, InputError):
            return error
        return InputError(f"{self._storage.describe(item)}: {error}; {FIX}")


def _finished(items: np.ndarray, out: np.ndarray, tasks: list["Future[None]"]) -> tuple[np.ndarray, np.ndarray]:
    for task in tasks:
        task.result()
    return items, out


def _groups(parts: Iterator[np.ndarray], rows: int) -> Iterator[list[np.ndarray]]:
    """Consecutive batches of at most so many rows together, or one that has more."""
    group: list[np.ndarray] = []
    left = rows
    for items in parts:
        if group and len(items) > left:
            yield group
            group, left = [], rows
        group.append(items)
        left -= len(items)
    if group:
        yield group


class _Disk:
    """Tells whether files came from a disk, not from memory."""

    def __init__(self) -> None:
        self._blocks = -1

    def was_read(self) -> bool:
        """By this process since it was last asked; True at first."""
        before, self._blocks = self._blocks, resource.getrusage(resource.RUSAGE_SELF).ru_inblock
        return self._blocks != before


def _all_equal(values: np.ndarray) -> bool:
    return bool((values == values[0]).all())


def _as_int(index: Any) -> int:
    try:
        return index.__index__()
    except AttributeError:
        raise InputTypeError(f"index: {type(index).__name__} is no whole number") from None


def _as_numpy(values: Any) -> np.ndarray:
    """A NumPy array of a list, an array, or a torch tensor on any device."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def as_indices(indices: Any) -> np.ndarray:
    """int64 [n] of a list, range, array or tensor of whole numbers."""
    array = _as_numpy(indices)
    if array.size == 0:
        return np.zeros(0, dtype=np.int64)
    if array.ndim != 1:
        raise InputError(f"indices: of shape {array.shape}; give one dimension")
    if array.dtype.kind not in "iu":
        raise InputTypeError(f"indices: of type {array.dtype}; give whole numbers (np.flatnonzero of a mask)")
    return array.astype(np.int64)


def check_image_size(side: int | None) -> int | None:
    if side is not None and (isinstance(side, bool) or not isinstance(side, int | np.integer) or not 1 <= side <= 8192):
        raise InputError(f"image_size={side!r}: give a whole number of pixels from 1 to 8192, or leave it out")
    return None if side is None else int(side)


def from_arrays(
    images: Any,
    labels: Any = None,
    classes: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
    image_size: int | None = None,
) -> ImageDataset:
    """A data set of images in memory.

    images: uint8 [N, H, W, 3] or [N, H, W] (grey), NumPy or torch; not copied where it is [N, H, W, 3] in C order.
    labels: whole numbers [N] from 0 on. classes: their names, default "0", "1", ... keys: N different names, default
    the numbers. The fingerprint is a hash of the content. Raises InputError or InputTypeError naming the argument.
    """
    pixels = _as_numpy(images)
    if pixels.dtype != np.uint8:
        raise InputTypeError(
            f"images: of type {pixels.dtype}; give uint8 (for floats in 0..1: (x * 255).round().astype('uint8'))"
        )
    if pixels.ndim == 3:
        pixels = np.repeat(pixels[:, :, :, None], 3, axis=3)
    elif pixels.ndim == 4 and pixels.shape[3] == 1:
        pixels = np.repeat(pixels, 3, axis=3)
    if pixels.ndim != 4 or pixels.shape[3] != 3:
        raise InputError(f"images: of shape {pixels.shape}; give [N, H, W, 3] or [N, H, W] (channels last)")
    if 0 in pixels.shape:
        raise InputError(f"images: of shape {pixels.shape}: there is nothing in it")
    pixels = np.ascontiguousarray(pixels)
    count, height, width, _ = pixels.shape
    label_column, names = check_labels(labels, classes, count, "labels")
    if keys is None:
        digits = len(str(count - 1))
        keys = [f"{k:0{digits}}" for k in range(count)]
    else:
        keys = [str(key) for key in keys]
        if len(keys) != count:
            raise InputError(f"keys: {len(keys):,} for {count:,} images; give one an image")
        if len(set(keys)) != count:
            raise InputError("keys: some are there twice; give every image a name of its own")
    fingerprint = digest(
        "prunefast-arrays", str(pixels.shape), pixels.reshape(-1).data, "\0".join(keys), "\0".join(names)
    )
    if label_column is not None:
        fingerprint = digest(fingerprint, label_column.tobytes())
    size = height * width * 3
    table = table_of_rows(keys, label_column, width, height, np.arange(count, dtype=np.int64) * size, size)
    info = TableInfo(
        path="",
        root="",
        split="all",
        classes=names,
        fingerprint=fingerprint,
        layout="hwc",
        labelled=label_column is not None,
    )
    return ImageDataset(table, info, image_size=check_image_size(image_size), pixels=pixels)


def check_labels(
    labels: Any, classes: Sequence[str] | None, count: int, what: str
) -> tuple[np.ndarray | None, list[str]]:
    """Labels as int64 [count] with the names of their classes, or (None, [])."""
    if labels is None:
        if classes:
            raise InputError("classes: given without labels")
        return None, []
    column = _as_numpy(labels)
    if column.dtype.kind not in "iu":
        raise InputTypeError(f"{what}: of type {column.dtype}; give whole numbers from 0 on")
    if column.ndim == 2 and column.shape[1] == 1:
        column = column[:, 0]
    if column.shape != (count,):
        raise InputError(f"{what}: of shape {column.shape} for {count:,} images; give one label an image")
    column = column.astype(np.int64)
    if column.min() < 0:
        raise InputError(f"{what}: {column.min()} at item {int(column.argmin())}; labels are whole numbers from 0 on")
    names = [str(name) for name in classes] if classes is not None else None
    if names is None:
        if column.max() >= max(1 << 16, count):
            raise InputError(f"{what}: go up to {column.max():,}; number the classes from 0 on without gaps")
        names = [str(k) for k in range(int(column.max()) + 1)]
    if column.max() >= len(names):
        raise InputError(f"{what}: {column.max()} at item {int(column.argmax())}, but there are {len(names)} classes")
    if len(set(names)) != len(names):
        raise InputError("classes: a name is there twice")
    return column, names
