"""Exact copies: the same bytes on disk, or the same pixels after decoding. One read of the data, 16 bytes an image."""

import functools
import hashlib
from dataclasses import dataclass

import numpy as np

from prunefast.data import ImageDataset
from prunefast.dedup.pairs import Pairs, number_contents
from prunefast.dedup.reading import for_each
from prunefast.errors import InputTypeError
from prunefast.together import rows_of_everybody

DIGEST_BYTES = 16  # 2^64 images before two different ones would be expected to agree


@dataclass(frozen=True)
class ExactOptions:
    """pixels  compare decoded pixels: the same picture saved as PNG twice with other settings is a copy then"""

    pixels: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.pixels, bool):
            raise InputTypeError(f"pixels: must be True or False, not {self.pixels!r}")


def find_exact(data: ImageDataset, against: ImageDataset | None, options: ExactOptions, progress: bool) -> Pairs:
    own = digests(data, options.pixels, progress)
    if against is None:
        return Pairs(number_contents(own)[0])
    both = np.concatenate([own, digests(against, options.pixels, progress)])
    content, first = number_contents(both)
    # the smallest row of `against` with each content
    other = np.full(len(first), -1, dtype=np.int64)
    other[content[len(own) :][::-1]] = np.arange(len(against))[::-1]
    near = other[content[: len(own)]]
    return Pairs(number_contents(own)[0], against=near, against_distance=np.where(near >= 0, 0.0, np.inf))


def digests(data: ImageDataset, pixels: bool, progress: bool) -> np.ndarray:
    """uint8 [N, 16]: BLAKE2b of each image's bytes as they lie, or of its size and pixels."""
    return rows_of_everybody(functools.partial(_digests, data, pixels, progress), len(data))


def _digests(data: ImageDataset, pixels: bool, progress: bool, first: int, last: int) -> np.ndarray:
    out = np.empty((last - first, DIGEST_BYTES), dtype=np.uint8)

    def take(start: int, stop: int) -> None:
        if pixels:
            for row in range(start, stop):
                image = data.image(first + row)
                state = hashlib.blake2b(repr(image.shape).encode(), digest_size=DIGEST_BYTES)
                state.update(np.ascontiguousarray(image).data)
                out[row] = np.frombuffer(state.digest(), np.uint8)
        else:
            for row, content in enumerate(data.read_many(range(first + start, first + stop)), start):
                out[row] = np.frombuffer(hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest(), np.uint8)

    for_each(take, last - first, "comparing bytes" if not pixels else "comparing pixels", progress)
    return out
