"""Decoding by NVIDIA's DALI, on a GPU or on the CPU, of the records that the native module reads.

DALI is given bytes and nothing else: which image comes when, its label, weight and position stay with `CoresetLoader`,
so that both decoders have one order and one state. A batch goes through three stations: its records are read, summed
and looked through by one native call (`ImageDataset.jpegs`), the whole baseline JPEGs among them are given to a DALI
pipeline, and what comes out is cut and resized as `ImageDataset.images` does.

All others (progressive, CMYK, turned by EXIF, PNG, WebP, broken ...) are decoded natively: DALI reads some of them
otherwise, and from 2.2 on it was seen to end the whole process on bytes that are no image. So nothing reaches it that
has not been found to be sound from its first byte to its last, and sums are checked before.
"""

import importlib
import os
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from prunefast.data import native
from prunefast.data.dataset import ImageDataset, Replace
from prunefast.data.decode import fit_square
from prunefast.data.threads import ThreadPool
from prunefast.errors import InputError, MachineError, MissingDependencyError
from prunefast.stream.order import check_whole
from prunefast.stream.resample import resample
from prunefast.stream.transfer import moved

_RUN_BYTES = 64 << 20  # of squares that DALI gives at a time: a few very large images must not fill the memory
_FAILURES = 3  # at the start, without a success: then it is not the data
_ENOUGH = 1000  # images after which is said that most of them are not for DALI


@dataclass(frozen=True)
class DaliOptions:
    """How `CoresetLoader(loader="dali")` decodes.

    decode     "mixed": on the GPU (Huffman decoding partly on the CPU); "cpu": by DALI's libjpeg-turbo, the pixels of
               `loader="native"` bit for bit; "auto": "mixed" where the batches go to a GPU
    prefetch   batches that are read and decoded ahead of the training loop
    """

    decode: Literal["auto", "mixed", "cpu"] = "auto"
    prefetch: int = 2

    def __post_init__(self) -> None:
        if self.decode not in ("auto", "mixed", "cpu"):
            raise InputError(f"decode={self.decode!r}: choose auto, mixed or cpu")
        check_whole("prefetch", self.prefetch, 1)


def import_dali() -> Any:
    """The module `nvidia.dali`; MissingDependencyError with the extra that fits this torch."""
    extra = "dali-cuda12" if (torch.version.cuda or "").startswith("12.") else "dali"
    if native.images is None:
        raise MissingDependencyError(
            "loader: DALI is given what prunefast's native module _images has checked, which does not load here "
            "(prunefast doctor says why); use loader='native'"
        )
    try:
        return importlib.import_module("nvidia.dali")
    except ModuleNotFoundError as error:
        if error.name in ("nvidia", "nvidia.dali"):
            raise MissingDependencyError(
                f"loader: DALI is not installed; run: pip install 'prunefast[{extra}]' (Linux), or use loader='native'"
            ) from None
        raise MissingDependencyError(
            f"loader: DALI does not load ({error}); run: pip install 'prunefast[{extra}]'"
        ) from None
    except Exception as error:  # libraries of another CUDA, a placeholder package: whatever it is, DALI is not there
        reason = " ".join(str(error).split())[:200]
        raise MissingDependencyError(
            f"loader: DALI does not load ({reason}); run: pip install 'prunefast[{extra}]'"
        ) from None


@dataclass(slots=True)
class _Read:
    """What became of a batch's records. DALI's: their bytes, and which rows of the batch they are."""

    records: list[np.ndarray]
    rows: np.ndarray
    others: np.ndarray  # rows that DALI is not given
    images: np.ndarray | None  # of those, uint8 [len(others), R, R, 3]


@dataclass(slots=True)
class _Batch:
    items: np.ndarray
    read: Future[_Read]
    pipeline: Any = None  # that has it, once it has begun
    runs: list[np.ndarray] = field(default_factory=list)  # rows of the batch, a run of the pipeline each


class DaliDecoder:
    """Decodes batches of `data` with DALI; `decode_ahead` is `ImageDataset.decode_ahead`, its images on `device`.

    batch_size   the most images that DALI is given at a time
    counts       images decoded so far by "dali" and by "native"
    Not for several threads; after a fork the child makes a pipeline of its own.
    Raises InputError for data without encoded images, MissingDependencyError without DALI.
    """

    def __init__(
        self, data: ImageDataset, *, device: torch.device, threads: int, batch_size: int, options: DaliOptions
    ):
        if not data.encoded:
            raise InputError(
                f"loader: {data.path or 'a data set in memory'} holds decoded pixels or latents, there is nothing for "
                "DALI to decode; use loader='native'"
            )
        decode = options.decode if options.decode != "auto" else ("mixed" if device.type == "cuda" else "cpu")
        if decode == "mixed" and device.type != "cuda":
            raise InputError("decode='mixed': decodes on a GPU, the batches go to the CPU; use device='cuda' or 'cpu'")
        self._dali = import_dali()
        self._data, self._device, self._decode = data, device, decode
        self._threads, self._batch_size, self._prefetch = threads, batch_size, options.prefetch
        self._pipeline: Any = None
        self._held: deque[tuple[torch.cuda.Event, torch.Tensor]] = deque()
        self._process = os.getpid()
        self._failures = 0
        self._told = False
        self.counts = {"dali": 0, "native": 0}

    def decode_ahead(
        self, parts: Iterator[np.ndarray], replace: Replace | None = None
    ) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Yield (items, uint8 [n, R, R, 3] on the device) for index arrays of any order and size, without end if they
        have none. Errors as `ImageDataset.decode_ahead` raises them, when the turn of their batch comes.
        """
        pool = ThreadPool(self._threads, "prunefast-dali")
        waiting: deque[_Batch] = deque()
        try:
            for items in parts:
                waiting.append(_Batch(items, pool.submit(self._read, items, replace)))
                if len(waiting) > self._prefetch:
                    yield self._next(waiting, pool, replace)
            while waiting:
                yield self._next(waiting, pool, replace)
        finally:  # also when the caller breaks off, is interrupted, or drops the iterator
            pool.shutdown()
            if any(batch.runs for batch in waiting):
                self._pipeline = None  # with what nobody will ask it for

    def _next(
        self, waiting: deque[_Batch], pool: ThreadPool, replace: Replace | None
    ) -> tuple[np.ndarray, torch.Tensor]:
        """The first batch; the second begins before it is waited for, so that DALI works while the caller does."""
        for batch in (waiting[0], *list(waiting)[1:2]):
            if batch.pipeline is None and batch.read.exception() is None:
                self._begin(batch)
        batch = waiting[0]
        images = self._finished(batch, pool, replace)
        waiting.popleft()  # not before: what fails or is interrupted in between leaves runs behind
        return batch.items, images

    def _read(self, items: np.ndarray, replace: Replace | None) -> _Read:
        """In a thread of the pool."""
        records = self._data.jpegs(items, self._threads)
        sides = np.minimum(self._data.widths[items], self._data.heights[items]).astype(np.int64)
        ours = np.array([record is not None for record in records]) & (3 * sides * sides <= _RUN_BYTES)
        others = np.flatnonzero(~ours)
        images = None
        if len(others):
            images = next(self._data.decode_ahead(iter([items[others]]), self._threads, replace=replace))[1]
        rows = np.flatnonzero(ours)
        return _Read([records[row] for row in rows.tolist()], rows, others, images)  # type: ignore[misc]

    def _begin(self, batch: _Batch) -> None:
        """Give its records to DALI, which works on them by itself."""
        read = batch.read.result()
        try:
            batch.pipeline = self._live_pipeline()
            for run in _runs(self._squares(batch.items[read.rows])[2], self._batch_size):
                tops, lefts, sides = self._squares(batch.items[read.rows[run]])
                batch.pipeline.feed_input("records", read.records[run])
                batch.pipeline.feed_input("corners", np.stack([tops, lefts], axis=1))
                batch.pipeline.feed_input("sizes", np.full((len(sides), 2), sides.max(), dtype=np.int32))
                batch.pipeline.schedule_run()
                batch.runs.append(read.rows[run])
        except Exception as error:
            self._failed(error)
        read.records.clear()  # DALI has a copy

    def _finished(self, batch: _Batch, pool: ThreadPool, replace: Replace | None) -> torch.Tensor:
        """All images of the batch."""
        read = batch.read.result()
        rows, parts = [], []
        if len(read.others):
            rows.append(read.others)
            parts.append(moved(torch.from_numpy(read.images), self._device))
        try:
            while batch.runs and batch.pipeline is self._pipeline:
                parts.append(self._from_dali(batch.items[batch.runs[0]], pool))
                rows.append(batch.runs.pop(0))
                self._failures = 0
        except Exception as error:
            self._failed(error)
        done = sum(len(part) for part in rows)
        by_dali = done - len(read.others)
        self.counts["dali"] += by_dali
        if done < len(batch.items):  # of a pipeline that failed, on this batch or on one before it
            left = np.setdiff1d(np.arange(len(batch.items)), np.concatenate([*rows, np.zeros(0, np.int64)]))
            batch.runs.clear()
            parts.append(self._natively(batch.items[left], replace))
            rows.append(left)
        self.counts["native"] += len(batch.items) - by_dali
        self._tell_when_native()
        if len(parts) == 1:
            return parts[0]
        order = np.argsort(np.concatenate(rows), kind="stable")
        return torch.cat(parts)[moved(torch.from_numpy(order), self._device)]

    def _from_dali(self, items: np.ndarray, pool: ThreadPool) -> torch.Tensor:
        """The next run of the pipeline, of these items: uint8 [n, R, R, 3]."""
        (output,) = self._pipeline.outputs()
        squares = torch.from_dlpack(output.as_tensor())
        side = self._data.row_shape[0]
        sides = self._squares(items)[2]
        ready = bool((sides == side).all())
        if squares.is_cuda:
            images = squares.clone() if ready else resample(squares, sides, side)
            self._hold(squares)
            return images
        if ready:
            return moved(squares, self._device)
        cut = [image[:size, :size] for image, size in zip(squares.numpy(), sides.tolist(), strict=True)]
        fitted = np.stack(list(pool.map(lambda image: fit_square(image, side), cut)))
        return moved(torch.from_numpy(fitted), self._device)

    def _hold(self, squares: torch.Tensor) -> None:
        """Keep a GPU tensor of DALI's until the work on it that was queued is done: its memory goes back with it."""
        done = torch.cuda.Event()
        done.record()
        self._held.append((done, squares))
        while self._held[0][0].query() and len(self._held) > 1:
            self._held.popleft()

    def _squares(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """int32 [n] each: top and left of the centre squares, and their sides."""
        widths, heights = self._data.widths[items], self._data.heights[items]
        sides = np.minimum(widths, heights)
        return (heights - sides) // 2, (widths - sides) // 2, sides

    def _natively(self, items: np.ndarray, replace: Replace | None) -> torch.Tensor:
        _, images = next(self._data.decode_ahead(iter([items]), self._threads, replace=replace))
        return moved(torch.from_numpy(images), self._device)

    def _failed(self, error: Exception) -> None:
        """DALI cannot leave one image out: the pipeline is done for, with all that it was given."""
        # DALI's begins with the traceback of the pipeline's definition
        reason = next(iter(str(error).split("encountered:")[-1].strip().splitlines()), type(error).__name__)
        self._pipeline = None
        self._failures += 1
        if self._failures >= _FAILURES and not self.counts["dali"]:
            raise MachineError(
                f"loader: DALI decoded none of its first {_FAILURES} batches ({reason[:200]}); check that it fits the "
                "driver's CUDA, or use loader='native'"
            ) from error
        warnings.warn(f"DALI failed on a batch, which is decoded natively ({reason[:200]})", stacklevel=2)

    def _tell_when_native(self) -> None:
        dali, others = self.counts["dali"], self.counts["native"]
        if not self._told and dali + others >= _ENOUGH:
            self._told = True
            if others > dali:
                warnings.warn(
                    f"{others:,} of the first {dali + others:,} images are not upright baseline JPEGs and were decoded "
                    "natively; loader='native' does that without DALI",
                    stacklevel=2,
                )

    def _live_pipeline(self) -> Any:
        if os.getpid() != self._process:  # its threads are not in this process: ending it here would wait for them
            _OF_PARENTS.append(self._pipeline)
            self._pipeline, self._process = None, os.getpid()
        if self._pipeline is None:
            self._pipeline = self._make_pipeline()
        return self._pipeline

    def _make_pipeline(self) -> Any:
        fn, types = self._dali.fn, self._dali.types
        pipeline = self._dali.Pipeline(
            batch_size=self._batch_size,
            num_threads=self._threads,
            device_id=_index(self._device) if self._decode == "mixed" else None,
            prefetch_queue_depth=1,  # runs begin when they are scheduled, and as many as are
        )
        with pipeline:
            records = fn.external_source(name="records", dtype=types.UINT8, ndim=1)
            corners = fn.external_source(name="corners", dtype=types.INT32, ndim=1)
            sizes = fn.external_source(name="sizes", dtype=types.INT32, ndim=1)
            # Whole images, then the cut: decoding a region on a GPU crashes with nvImageCodec 0.9 (its issue 55), and
            # saves little, for the Huffman codes before a region are decoded all the same.
            images = fn.decoders.image(
                records,
                device=self._decode,
                output_type=types.RGB,
                adjust_orientation=False,  # only upright ones come here
                jpeg_fancy_upsampling=True,  # on the GPU too: chroma as libjpeg-turbo has it
                affine=False,  # threads bound to processors would be the same ones for every rank
            )
            # One size a run: squares that are smaller get their neighbourhood along, and it is cut off afterwards.
            images = fn.slice(images, corners, sizes, axes=(0, 1), out_of_bounds_policy="pad")
            pipeline.set_outputs(images)
        pipeline.build()
        return pipeline


_OF_PARENTS: list[Any] = []


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _runs(sides: Sequence[int] | np.ndarray, most: int) -> Iterator[slice]:
    """Consecutive images of at most `most` and, at the size of the largest, _RUN_BYTES."""
    begin, largest = 0, 0
    for number, side in enumerate(np.asarray(sides, dtype=np.int64).tolist()):
        grown = max(largest, side)
        if number > begin and (number - begin == most or 3 * grown * grown * (number - begin + 1) > _RUN_BYTES):
            yield slice(begin, number)
            begin, grown = number, side
        largest = grown
    if begin < len(sides):
        yield slice(begin, len(sides))
