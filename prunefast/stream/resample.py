"""Squares of many sizes to one size, on any device, bit for bit as csrc/images/resample.cpp and Pillow do it.

Whole numbers throughout (pixels times weights of 22 bits, rounded to 8 bits after each of the two passes): a GPU gives
what the CPU gives.
"""

from functools import lru_cache

import numpy as np
import torch

from prunefast.stream.transfer import moved

_FRACTION_BITS = 32 - 8 - 2  # of the weights: 8 bits of pixel, 2 of overshoot


@lru_cache(maxsize=4096)
def _weights(source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """(int64 [target] the first pixel each result is made of, int32 [target, taps] weights of those from there on).

    Box filter down, bicubic (a = -0.5) up, as `ImageDataset.images` says.
    """
    scale = source / target
    filter_scale = max(scale, 1.0)
    support = (0.5 if target < source else 2.0) * filter_scale
    centre = (np.arange(target) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + support + 0.5).astype(np.int64), source)
    tap = np.arange(int((last - first).max()))
    x = (tap + first[:, None] - centre[:, None] + 0.5) * (1.0 / filter_scale)
    weight = ((x > -0.5) & (x <= 0.5)).astype(np.float64) if target < source else _bicubic(np.abs(x))
    weight[tap >= (last - first)[:, None]] = 0.0
    total = np.cumsum(weight, axis=1)[:, -1:]  # from left to right, as the other side adds them
    scaled = weight / total * (1 << _FRACTION_BITS)
    return first, np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int32)


def _bicubic(x: np.ndarray) -> np.ndarray:
    a = -0.5
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def resample(images: torch.Tensor, sides: np.ndarray, target: int) -> torch.Tensor:
    """uint8 [n, S, S, 3] whose first sides[i] rows and columns are image i -> uint8 [n, target, target, 3]."""
    width = images.shape[2]
    tables = [_weights(side, target) for side in sides.tolist()]
    weight = np.zeros((len(tables), target, max(table.shape[1] for _, table in tables)), dtype=np.int32)
    for row, (_, table) in zip(weight, tables, strict=True):
        row[:, : table.shape[1]] = table
    first = moved(torch.from_numpy(np.stack([start for start, _ in tables])), images.device)
    weights = moved(torch.from_numpy(weight), images.device)
    narrow = _pass(images, 2, first, weights, width)
    return _pass(narrow, 1, first, weights, width)


def _pass(images: torch.Tensor, axis: int, first: torch.Tensor, weights: torch.Tensor, width: int) -> torch.Tensor:
    """One of the two passes; results [n, T] along `axis`."""
    shape = list(images.shape)
    shape[axis] = first.shape[1]
    along = [len(images), 1, 1, 1]
    along[axis] = first.shape[1]
    total = torch.full(shape, 1 << (_FRACTION_BITS - 1), dtype=torch.int32, device=images.device)
    for tap in range(weights.shape[2]):
        place = (first + tap).clamp(max=width - 1).view(along).expand(shape)
        total.addcmul_(images.gather(axis, place).int(), weights[:, :, tap].reshape(along))
    return (total >> _FRACTION_BITS).clamp_(0, 255).to(torch.uint8)
