"""Threads that the end of a program does not wait for.

Those of `concurrent.futures` are joined when the interpreter exits. One that waits in a user's `Source.read`, for a
network that does not answer, would hold up Ctrl-C for as long as that takes. These are left behind, but not within a
native call, which would come back to an interpreter that is gone: those are told to stop, and waited for.
"""

import atexit
import contextlib
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from prunefast.data import native
from prunefast.errors import MachineError

T = TypeVar("T")

_EXIT_SECONDS = 0.5  # that an exiting interpreter waits for all threads together

_Task = tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]
_Tasks = queue.SimpleQueue[_Task | None]


class ThreadPool:
    """At most `threads` threads, started as tasks come. `submit` and `map` as in `concurrent.futures`."""

    def __init__(self, threads: int, name: str):
        self._count, self._name, self._owner = threads, name, os.getpid()
        self._tasks: _Tasks = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        _pools.add(self)

    def submit(self, call: Callable[..., T], *arguments: Any) -> Future[T]:
        if self._owner != os.getpid():  # its threads are not here: the result would be waited for without end
            raise MachineError("an iteration went on in a forked process; begin one there")
        future: Future[T] = Future()
        self._tasks.put((future, call, arguments))
        if len(self._threads) < self._count:
            name = f"{self._name}_{len(self._threads)}"
            self._threads.append(_Thread(target=_work, args=(self._tasks,), name=name, daemon=True))
            self._threads[-1].start()
        return future

    def map(self, call: Callable[..., T], values: Iterable[Any]) -> Iterator[T]:
        """call(value) of each, in order; all begin at once."""
        futures = [self.submit(call, value) for value in values]
        return (future.result() for future in futures)

    def shutdown(self) -> None:
        """Take back what has not begun; nothing is waited for."""
        with contextlib.suppress(queue.Empty):
            while True:
                task = self._tasks.get_nowait()
                if task is not None:
                    task[0].cancel()
        for _ in self._threads:
            self._tasks.put(None)

    def __enter__(self) -> "ThreadPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()


class _Thread(threading.Thread):
    """One of a `ThreadPool`, also when that is gone."""


_pools: "weakref.WeakSet[ThreadPool]" = weakref.WeakSet()


def _work(tasks: _Tasks) -> None:
    while (task := tasks.get()) is not None:
        future, call, arguments = task
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(call(*arguments))
            except BaseException as error:
                future.set_exception(error)
        del task, future, call, arguments  # what a task held is free while its thread waits for the next


@atexit.register
def _leave() -> None:
    for pool in list(_pools):
        pool.shutdown()
    native.stop()
    until = time.monotonic() + _EXIT_SECONDS
    for thread in threading.enumerate():
        if isinstance(thread, _Thread):
            thread.join(max(until - time.monotonic(), 0.0))
    while native.running():  # an image of hundreds of megapixels, a disk that does not answer
        time.sleep(0.005)
