"""Batches from main memory to a GPU, beside training: pinned buffers, copies on a stream of their own.

A copy from pageable memory waits for all work before it, and pinning a batch copies it once more; so batches are
decoded into pinned memory, and each is sent while the one before it is trained on. The host waits for nothing: a buffer
is used again once the event behind its copy has passed.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")


class Copies(Protocol):
    """What `sent_ahead` needs of a device; an event is whatever `begin` makes of one."""

    def begin(self, host: Tensor) -> tuple[Tensor, Any]: ...  # the copy and the event behind it

    def join(self, there: Tensor, event: Any) -> None: ...  # work from here on comes after the event

    def passed(self, event: Any) -> bool: ...

    def wait(self, event: Any) -> None: ...


class CudaCopies:
    """Copies on a stream of their own."""

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def begin(self, host: Tensor) -> tuple[Tensor, torch.cuda.Event]:
        with torch.cuda.stream(self._stream):
            there = host.to(self._device, non_blocking=True)
        return there, self._stream.record_event()

    def join(self, there: Tensor, event: torch.cuda.Event) -> None:
        current = torch.cuda.current_stream(self._device)
        current.wait_event(event)
        there.record_stream(current)  # its memory is this stream's until what runs now is done

    def passed(self, event: torch.cuda.Event) -> bool:
        return event.query()

    def wait(self, event: torch.cuda.Event) -> None:
        event.synchronize()


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device. To a GPU by way of pinned memory, for what is too small to be sent ahead."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def pinned(shape: tuple[int, ...], kind: np.dtype[Any]) -> np.ndarray:
    """Page-locked memory, for `Buffers`."""
    return torch.empty(shape, dtype=torch.from_numpy(np.empty(0, kind)).dtype, pin_memory=True).numpy()


def sent_ahead(batches: Iterator[tuple[T, np.ndarray]], copies: Copies) -> Iterator[tuple[T, Tensor]]:
    """The batches with their rows on the device, each sent before the one ahead of it is given out.

    Arrays are let go, for `Buffers` to hand out again, when their copies are done.
    """
    sending: deque[tuple[np.ndarray, Any]] = deque()
    ready: deque[tuple[T, Tensor, Any]] = deque()

    def first() -> tuple[T, Tensor]:
        what, there, event = ready.popleft()
        copies.join(there, event)
        return what, there

    try:
        for what, rows in batches:
            there, event = copies.begin(torch.from_numpy(rows))
            sending.append((rows, event))
            ready.append((what, there, event))
            del rows
            while sending and copies.passed(sending[0][1]):
                sending.popleft()
            if len(ready) > 1:
                yield first()
        while ready:
            yield first()
    finally:  # before the memory under a copy is given back
        while sending:
            copies.wait(sending[0][1])
            sending.popleft()  # not before: it holds the memory
