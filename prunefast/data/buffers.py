"""Arrays that are used again once nobody holds them.

Fresh memory costs a page fault every 4 KiB, which for raw pixels is more than reading them.
"""

import math
import mmap
import sys
from collections.abc import Callable
from typing import Any

import numpy as np


def _references(held: list[np.ndarray]) -> list[int]:
    return [sys.getrefcount(array) for array in held]


_UNUSED = _references([np.empty(0)])[0]  # what an array counts that only the list holds, on this interpreter


def _is(array: np.ndarray, shape: tuple[int, ...], kind: np.dtype[Any]) -> bool:
    return array.shape == shape and array.dtype == kind


def page_aligned(shape: tuple[int, ...], kind: np.dtype[Any]) -> np.ndarray:
    """Memory that begins with a page, as NumPy's does not (16 bytes behind it): copying rows that begin with one, those
    of a pack, to memory that lies nearly like them takes up to three times as long.
    """
    size = math.prod(shape) * kind.itemsize
    memory = mmap.mmap(-1, max(size, 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.ndarray(shape, kind, memory)  # the owner of its views: `Buffers` counts them


class Buffers:
    """Arrays by shape and type. An array is handed out again when all that was made of it (views, tensors) is gone.

    For one thread; what it hands out may go anywhere.
    """

    def __init__(self, allocate: Callable[[tuple[int, ...], np.dtype], np.ndarray] | None = None):
        self._allocate = allocate or page_aligned
        self._held: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...], kind: np.dtype[Any] | type = np.uint8) -> np.ndarray:
        """An array of that shape and type with anything in it."""
        kind = np.dtype(kind)
        for number, references in enumerate(_references(self._held)):
            if references == _UNUSED and _is(self._held[number], shape, kind):
                return self._held[number]
        array = self._allocate(shape, kind)
        # of other shapes, a smaller last batch say, what is not used is let go
        counts = _references(self._held)
        self._held = [a for a, count in zip(self._held, counts, strict=True) if count > _UNUSED or _is(a, shape, kind)]
        self._held.append(array)
        return array
