"""One process leads, the others lend a hand: how the commands that write a run use the processes of torchrun.

    lead(work)                     work() on rank 0; the others wait, ready for what it hands out
    handed_out(job)                inside work: job() on every rank at once, a job that exchanges among them itself
    rows_of_everybody(job, count)  inside work: job(start, stop) gives rows start .. stop - 1, a contiguous part a rank
    is_followed()                  whether there are others to hand out to
    sendable(array)                what a job carries in the place of a large array

Outside `lead` the last two just do the work here: one process, or a script in which every rank calls the library.
A job is sent to the other processes, so it and what it is given can be pickled (`functools.partial` of a function).
"""

import contextlib
import functools
import mmap
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from prunefast.distributed import all_gather_rows, broadcast_object, connect, everywhere, is_main, on_main, world

T = TypeVar("T")

_followed = False  # whether this is rank 0 and the others stand in `lead`


def lead(work: Callable[[], T]) -> T:
    """`work()` on rank 0, once; its result, which is small and can be pickled, on every rank. Its error too."""
    global _followed
    if connect().size == 1:
        return work()
    result: Any = None
    error: Exception | None = None
    if is_main():
        _followed = True
        try:
            result = work()
        except Exception as caught:
            error = caught
        finally:
            _followed = False
        broadcast_object(None)
    else:
        while (job := broadcast_object(None)) is not None:
            with contextlib.suppress(Exception):  # rank 0 hears of it, and what it makes of it is the outcome
                everywhere(job)

    def outcome() -> T:
        if error is not None:
            raise error
        return result

    return on_main(outcome)


def handed_out(job: Callable[[], T]) -> T:
    """`job()` on every rank; rank 0's result. Between two exchanges of the job, errors need `everywhere` in it."""
    global _followed
    if not _followed:
        return job()
    broadcast_object(job)
    _followed = False  # the others are in the job now, and take no other
    try:
        return everywhere(job)
    finally:
        _followed = True


class _Part:
    """This rank's part of `rows_of_everybody`, gathered."""

    def __init__(self, job: Callable[[int, int], np.ndarray], count: int):
        self.job, self.count = job, count

    def __call__(self) -> np.ndarray:
        here = world()
        bounds = [self.count * rank // here.size for rank in range(here.size + 1)]
        return all_gather_rows(everywhere(functools.partial(self.job, bounds[here.rank], bounds[here.rank + 1])))


def rows_of_everybody(job: Callable[[int, int], np.ndarray], count: int) -> np.ndarray:
    """[count, ...]: the rows of job(0, count), which must not depend on where it is cut."""
    return handed_out(_Part(job, count)) if _followed else job(0, count)


def is_followed() -> bool:
    """Whether this is rank 0 inside `lead`, and the others wait for a job."""
    return _followed


def sendable(array: np.ndarray) -> Callable[[], np.ndarray]:
    """A function that gives `array`, and can be pickled: by the name of its file, where all of a .npy is mapped."""
    path = getattr(array, "filename", None)
    if path is not None and str(path).endswith(".npy"):
        opener = functools.partial(np.load, path, mmap_mode="r", allow_pickle=False)
        whole = opener()
        same = (whole.dtype, whole.shape, whole.strides) == (array.dtype, array.shape, array.strides)
        if same and isinstance(array.base, mmap.mmap):  # a view of a part of the file has the array as its base
            return opener
    return functools.partial(np.asarray, array)
