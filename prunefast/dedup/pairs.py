"""What a level finds, before anything is decided: which images are identical to it, and which pairs are close."""

import hashlib
from dataclasses import dataclass, field

import numpy as np

Array = np.ndarray
_DIGEST_BYTES = 16


def _none(dtype: type) -> Array:
    return np.zeros(0, dtype=dtype)


@dataclass(frozen=True)
class Pairs:
    """Images by content, and the close pairs of contents.

    A thousand copies of one image are one content and not half a million pairs.

    content           int64 [N]: images of one number are at distance 0; numbers 0 .. C - 1
    first, second     int64 [P]: contents, first < second, each pair once
    distance          float64 [P]
    against           int64 [N]: the nearest image of the other data set, -1 where none is close (or there is none)
    against_distance  float64 [N]; infinity where `against` is -1
    """

    content: Array
    first: Array = field(default_factory=lambda: _none(np.int64))
    second: Array = field(default_factory=lambda: _none(np.int64))
    distance: Array = field(default_factory=lambda: _none(np.float64))
    against: Array = field(default_factory=lambda: _none(np.int64))
    against_distance: Array = field(default_factory=lambda: _none(np.float64))

    def __post_init__(self) -> None:
        if not len(self.against):
            object.__setattr__(self, "against", np.full(len(self.content), -1, dtype=np.int64))
            object.__setattr__(self, "against_distance", np.full(len(self.content), np.inf))

    def digest(self) -> str:
        """16 hex digits over everything here."""
        state = hashlib.blake2b(digest_size=8)
        for array in (self.content, self.first, self.second, self.distance, self.against, self.against_distance):
            state.update(np.ascontiguousarray(array).data)
        return state.hexdigest()


def number_contents(keys: Array) -> tuple[Array, Array]:
    """(content of each row of `keys` [N, ...], the smallest row of each content); contents in order of first sight."""
    if not len(keys):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    rows = np.ascontiguousarray(keys).reshape(len(keys), -1)
    if rows.itemsize * rows.shape[1] > 2 * _DIGEST_BYTES:  # sorting whole features would copy all of them
        digests = (hashlib.blake2b(row.data, digest_size=_DIGEST_BYTES).digest() for row in rows)
        rows = np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(len(rows), _DIGEST_BYTES)
    packed = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()
    _, first, inverse = np.unique(packed, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    number = np.empty(len(order), dtype=np.int64)
    number[order] = np.arange(len(order))
    return number[inverse.ravel()], first[order].astype(np.int64)


def nearest_of_pairs(rows: Array, other: Array, distance: Array, count: int) -> tuple[Array, Array]:
    """(nearest `other`, its distance) of each of `count` rows, ties to the smallest; -1 for rows without one."""
    order = np.lexsort((other, distance, rows))
    rows, other, distance = rows[order], other[order], distance[order]
    best = np.flatnonzero(np.diff(rows, prepend=-1))
    index, value = np.full(count, -1, dtype=np.int64), np.full(count, np.inf)
    index[rows[best]], value[rows[best]] = other[best], distance[best]
    return index, value
