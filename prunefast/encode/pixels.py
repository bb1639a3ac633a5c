"""The encoder that needs no weights: a small thumbnail of the image, projected to whitened principal components.

Fitted on the data it embeds (or, for an evaluation, on the reference). Thumbnails are area means rounded to whole grey
levels, so mean and covariance are sums of integers: they are computed exactly, and do not depend on threads, batches or
the order of the images.

Why 8 x 8 and 64 components: on CIFAR-10 (50,000 images) Gaussian classifiers on the features reach 55 % there and no
more with larger thumbnails or more components (16 x 16 with 128: 55 %), while nearest neighbours get worse with every
component that is whitened noise (44 % at 64, 31 % at 16 x 16 with 128). 64 components hold 98 % of the variance of 8 x
8.
"""

import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prunefast.distributed import is_main
from prunefast.encode.encoder import Encoder, check_images
from prunefast.errors import InputError
from prunefast.files import atomic_path
from prunefast.progress import progress as show_progress
from prunefast.together import rows_of_everybody

FORMAT_VERSION = 1
FIT_IMAGES = 50_000  # enough for a covariance of 192 numbers to 0.5 %, and quick to read
# Rounding a thumbnail to whole levels adds noise of variance 1/12; components below it are noise that whitening would
# blow up. So are those that hold the last percent of the variance together: on scikit-learn's digits some pixels are
# ink in one image of a thousand, and whitened they alone would decide a Frechet distance.
NOISE_VARIANCE = 1 / 12
VARIANCE_SHARE = 0.99
_EXACT_ROWS = 1024  # |level - 128| <= 128: sums of 1,024 products stay within 2^24, exact in float32 in any order
_BATCH = 1024


class PixelsEncoder(Encoder):
    """Thumbnail of at most `size` x `size` pixels -> `dim` whitened principal components.

    Fewer where 99 % of the variance needs fewer. Centred, every component has unit
    variance over the images it was fitted on: at most 50,000 of them, evenly spaced.
    """

    name = "pixels"

    def __init__(self, *, size: int = 8, dim: int = 64):
        for label, value in (("size", size), ("dim", dim)):
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise InputError(f"{label}: must be a whole number, at least 1, not {value!r}")
        self.size, self.wanted_dim = int(size), int(dim)
        self.dim: int | None = None
        self.input_size: int | None = self.size
        self.fitted = False
        self.thumbnail_size = self.size
        self.fitted_on_images = 0
        self._mean: np.ndarray = np.zeros(0)
        self._projection: np.ndarray = np.zeros((0, 0))
        self._held: tuple[Any, np.ndarray, np.ndarray] | None = None

    def manifest(self) -> dict[str, Any]:
        return {
            "encoder": "pixels",
            "version": FORMAT_VERSION,
            "size": self.size,
            "wanted_dim": self.wanted_dim,
            "dim": self.dim,
            "fitted_on_images": self.fitted_on_images,
            "weights": self._digest() if self.fitted else None,
        }

    def _digest(self) -> str:
        digest = hashlib.sha256(self._mean.astype("<f8").tobytes())
        digest.update(self._projection.astype("<f8").tobytes())
        return digest.hexdigest()[:32]

    def fit(self, data: Any, progress: bool = False) -> "PixelsEncoder":
        """Learn mean and components from at most 50,000 evenly spaced images of `data`; one pass over them."""
        total = len(data)
        chosen = np.arange(total) if total <= FIT_IMAGES else np.arange(FIT_IMAGES) * total // FIT_IMAGES
        if total < 2:
            raise InputError(f"pixels: too few images to learn from ({total}); at least 2 are needed")
        side = getattr(data, "image_size", None) or data.images(chosen[:1]).shape[1]
        self.thumbnail_size = min(self.size, side)
        held = rows_of_everybody(
            functools.partial(_read_small, data, chosen, self.thumbnail_size, progress), len(chosen)
        )
        self._learn(held)
        self._held = (data, chosen, held)
        return self

    def _learn(self, held: np.ndarray) -> None:
        self.fitted_on_images = len(held)
        self._mean, covariance = exact_moments(held)
        variances, vectors = np.linalg.eigh(covariance)
        variances, vectors = variances[::-1], vectors[:, ::-1]
        count = min(self.wanted_dim, _components(variances))
        if count == 0:
            raise InputError(
                "pixels: the images do not differ from each other (as thumbnails); nothing can be learned from them; "
                "check the data, or take another encoder"
            )
        vectors = vectors[:, :count]
        # an eigenvector is known up to its sign: the largest entry is made positive
        signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(count)])
        self._projection = vectors * signs / np.sqrt(variances[:count])
        self._ready()

    def _ready(self) -> None:
        self.dim = self._projection.shape[1]
        self.fitted = True
        weight = self._projection.astype(np.float32)
        self._weight = torch.from_numpy(np.ascontiguousarray(weight))
        self._mean32 = torch.from_numpy(self._mean.astype(np.float32))

    def release(self) -> None:
        self._held = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": None}

    def cached(self, data: Any, indices: np.ndarray) -> np.ndarray | None:
        # the very object: a view of the same data, in another size or of a part, has other images at the same positions
        if self._held is None or self._held[0] is not data:
            return None
        _, chosen, held = self._held
        place = np.searchsorted(chosen, indices)
        if place.size and (place.max() >= len(chosen) or (chosen[place] != indices).any()):
            return None
        return self._project(held[place])

    def __call__(self, images: np.ndarray) -> np.ndarray:
        if not self.fitted:
            raise InputError("pixels: the encoder is not fitted yet; call fit(data) first, or use prunefast.embed")
        return self._project(thumbnails(check_images(images), self.thumbnail_size))

    def _project(self, small: np.ndarray) -> np.ndarray:
        return ((torch.from_numpy(small).to(torch.float32) - self._mean32) @ self._weight).numpy()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted encoder as safetensors; atomic."""
        from safetensors.numpy import save_file

        if not self.fitted:
            raise InputError("pixels: the encoder is not fitted yet; there is nothing to save")
        facts = {
            "format_version": FORMAT_VERSION,
            "size": self.size,
            "wanted_dim": self.wanted_dim,
            "thumbnail_size": self.thumbnail_size,
            "fitted_on_images": self.fitted_on_images,
        }
        tensors = {"mean": self._mean, "projection": np.ascontiguousarray(self._projection)}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={"prunefast_pixels": json.dumps(facts)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "PixelsEncoder":
        """Read what `save` wrote; `InputError` naming the file otherwise."""
        from safetensors import safe_open

        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path}: no such file; save a fitted encoder there first")
        try:
            with safe_open(path, framework="numpy") as file:
                facts = json.loads((file.metadata() or {})["prunefast_pixels"])
                mean, projection = file.get_tensor("mean"), file.get_tensor("projection")
            version = facts["format_version"]
            encoder = cls(size=facts["size"], dim=facts["wanted_dim"])
            encoder.thumbnail_size = facts["thumbnail_size"]
            encoder.fitted_on_images = facts["fitted_on_images"]
            numbers = encoder.thumbnail_size**2 * 3
            good = mean.shape == (numbers,) and projection.ndim == 2 and len(projection) == numbers
        except Exception as error:  # safetensors has its own errors, JSON and the facts others
            raise InputError(f"{path}: is not a saved pixels encoder ({error}); save it again") from None
        if version != FORMAT_VERSION or not good:
            raise InputError(f"{path}: is not a pixels encoder of format version {FORMAT_VERSION}; save it again")
        encoder._mean, encoder._projection = mean.astype(np.float64), projection.astype(np.float64)
        encoder._ready()
        return encoder


def _read_small(data: Any, chosen: np.ndarray, size: int, progress: bool, start: int, stop: int) -> np.ndarray:
    """uint8 [stop - start, size * size * 3]: thumbnails of those of the images `chosen`."""
    from prunefast.encode.reading import read_batches

    held = np.empty((stop - start, size * size * 3), dtype=np.uint8)
    done = 0
    with show_progress("Fitting pixels", len(held), silent=not (progress and is_main())) as bar:
        for _, images in read_batches(data, chosen[start:stop], _BATCH):
            held[done : done + len(images)] = thumbnails(check_images(images), size)
            done += len(images)
            bar.advance(len(images))
    return held


def overlap(pixels: int, cells: int) -> np.ndarray:
    """int64 [cells, pixels]: length shared by cell c and pixel p of the same side, in units of 1 / (cells * pixels).

    Each row sums to `pixels`: the area mean over a cell is the row applied, divided by `pixels`.
    """
    edge = np.arange(max(cells, pixels) + 1)
    low = np.maximum(edge[:cells, None] * pixels, edge[None, :pixels] * cells)
    high = np.minimum(edge[1 : cells + 1, None] * pixels, edge[None, 1 : pixels + 1] * cells)
    return np.maximum(high - low, 0)


def thumbnails(images: np.ndarray, size: int) -> np.ndarray:
    """uint8 [B, R, R, 3] -> uint8 [B, size * size * 3]: area means, rounded half up. Integers throughout, so exact."""
    count, pixels = images.shape[0], images.shape[1]
    if pixels == size:
        return images.reshape(count, -1)
    if pixels % size == 0:
        step = pixels // size
        # rows first: they are long, so that most of the additions are vectorised
        rows = images.reshape(count, size, step, pixels * 3).sum(axis=2, dtype=np.uint32)
        columns = rows.reshape(count, size, size, step, 3)
        total = columns[:, :, :, 0].copy()
        for offset in range(1, step):
            total += columns[:, :, :, offset]
        area = step * step
        return ((total + area // 2) // area).astype(np.uint8).reshape(count, -1)
    weight = overlap(pixels, size).astype(np.float64)  # float64 products of such integers are exact up to 2^53
    rows = weight @ images.reshape(count, pixels, pixels * 3).astype(np.float64)
    total = weight @ rows.reshape(count, size, pixels, 3).reshape(count * size, pixels, 3)
    area = pixels * pixels
    return ((total.astype(np.int64) + area // 2) // area).astype(np.uint8).reshape(count, -1)


def exact_moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean float64 [d], covariance float64 [d, d], divisor N) of uint8 [N, d], from exact integer sums.

    Blocks of 1,024 rows are multiplied in float32, whose every partial sum is an integer below 2^24 and so exact, then
    added up in int64.
    """
    rows, width = values.shape
    first = np.zeros(width, dtype=np.int64)
    second = np.zeros((width, width), dtype=np.int64)
    for start in range(0, rows, _EXACT_ROWS):
        block = values[start : start + _EXACT_ROWS].astype(np.float32) - 128
        first += block.sum(axis=0, dtype=np.float64).astype(np.int64)
        second += (block.T @ block).astype(np.int64)
    mean = first / rows
    covariance = second / rows - np.outer(mean, mean)
    return mean + 128, (covariance + covariance.T) / 2


def _components(variances: np.ndarray) -> int:
    """How many of the principal components, by falling variance, are worth whitening."""
    total = variances.sum()
    if not total > 0:
        return 0
    share = int(np.searchsorted(np.cumsum(variances), VARIANCE_SHARE * total)) + 1
    return min(share, int((variances > NOISE_VARIANCE).sum()))
