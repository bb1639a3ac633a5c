"""Arrays that are used again once nobody holds them.

Fresh memory costs a page fault every 4 KiB, which for raw pixels is more than reading them.
"""

import sys
from collections.abc import Callable

import numpy as np


def _references(held: list[np.ndarray]) -> list[int]:
    return [sys.getrefcount(array) for array in held]


_UNUSED = _references([np.empty(0)])[0]  # what an array counts that only the list holds, on this interpreter


class Buffers:
    """uint8 arrays by shape. An array is handed out again when all that was made of it (views, tensors) is gone.

    For one thread; what it hands out may go anywhere.
    """

    def __init__(self, allocate: Callable[[tuple[int, ...]], np.ndarray] | None = None):
        self._allocate = allocate or (lambda shape: np.empty(shape, dtype=np.uint8))
        self._held: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """An array of that shape with anything in it."""
        for number, references in enumerate(_references(self._held)):
            if references == _UNUSED and self._held[number].shape == shape:
                return self._held[number]
        array = self._allocate(shape)
        # of other shapes, a smaller last batch say, what is not used is let go
        counts = _references(self._held)
        self._held = [a for a, count in zip(self._held, counts, strict=True) if count > _UNUSED or a.shape == shape]
        self._held.append(array)
        return array
