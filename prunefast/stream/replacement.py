"""What is shown in the place of an image that cannot be read: another of its class, the same one on every rank."""

import contextlib
import threading
import warnings
from dataclasses import dataclass

import numpy as np

from prunefast.data.dataset import ImageDataset
from prunefast.errors import InputError

LIMIT_SHARE, LIMIT_LEAST = 0.01, 10  # of a coreset that may be replaced: beyond, the data is broken, not an image


@dataclass(frozen=True, slots=True)
class Replaced:
    """An item that could not be read, what was shown instead, and why."""

    key: str
    by: str
    reason: str


class Replacements:
    """Chooses and remembers; by the item and the coreset alone. Calls may come from several threads."""

    def __init__(self, data: ImageDataset, indices: np.ndarray):
        self._data, self._indices = data, indices
        self._found: dict[int, tuple[int, Replaced]] = {}
        self._lock = threading.Lock()
        self._limit = max(int(LIMIT_SHARE * len(indices)), LIMIT_LEAST)

    @property
    def all(self) -> list[Replaced]:
        """In the order of the items."""
        with self._lock:
            return [self._found[item][1] for item in sorted(self._found)]

    def __call__(self, item: int, error: InputError) -> int:
        with self._lock:
            if item in self._found:
                return self._found[item][0]
            other = self._readable(item) if len(self._found) < self._limit else None
            if other is None:
                raise InputError(
                    f"{error} (nothing can be shown in its place after {len(self._found):,} others: look at the data, "
                    "or open it with on_error='skip' (--on-error skip) and select again)"
                ) from None
            keys = self._data.keys
            self._found[item] = other, Replaced(keys[item], keys[other], str(error))
        warnings.warn(f"{error}; {keys[other]} is shown in its place", stacklevel=2)
        return other

    def _readable(self, item: int) -> int | None:
        """The first item of the coreset and of the same class that can be read, from one drawn by the item's number on.

        Whatever was found broken before does not matter, or ranks and runs would differ.
        """
        labels = self._data.labels
        mine = self._indices if labels is None else self._indices[labels[self._indices] == labels[item]]
        start = int(np.random.Philox(key=0, counter=item).random_raw() % len(mine))
        for other in np.roll(mine, -start)[: self._limit + 2].tolist():
            with contextlib.suppress(InputError):
                self._data.images([other])
                return other
        return None
