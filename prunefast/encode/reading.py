"""Reading a data set in batches, whatever it offers."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from prunefast.errors import InputError


def read_batches(
    data: Any, indices: np.ndarray, batch_size: int, threads: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(indices, uint8 images [B, R, R, 3]) in the order of `indices`, by `data.batches` or else by `data.images`."""
    if hasattr(data, "batches"):
        yield from data.batches(indices, batch_size=batch_size, threads=threads)
        return
    for start in range(0, len(indices), batch_size):
        some = indices[start : start + batch_size]
        yield some, data.images(some)


def with_one_size(data: Any, encoder: Any) -> Any:
    """`data` with square images of one size: its own, else the one the encoder wants."""
    if getattr(data, "image_size", 0) is not None:
        return data
    if encoder.input_size is None:
        raise InputError(
            f"data: its images have different sizes and {encoder.name} asks for none; "
            "pass size= with the encoder, or open the data with image_size="
        )
    return data.with_image_size(encoder.input_size)
