"""Precomputed latents: the item table of the images they were encoded from, and a mean and a standard deviation for
every number of every latent, so that training draws a fresh sample of the encoder's posterior each time.

    LATENTS/items.parquet    the item table of the images: labels, keys, and their fingerprint
    LATENTS/latents.npy      float32 [N, side * side * 2 * channels]: a pixel's means, then its standard deviations
    LATENTS/latents.json     how they were made, with a digest of the autoencoder's weights
    LATENTS/latents-scale.json   channels, side, and what brings a latent to unit variance; written last
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prunefast.data.dataset import ImageDataset
from prunefast.data.table import TableInfo, load_table
from prunefast.errors import InputError
from prunefast.files import read_json

ITEMS, MOMENTS, SCALE = "items.parquet", "latents.npy", "latents-scale.json"


@dataclass(frozen=True)
class LatentScale:
    """A latent z of the autoencoder becomes (z - shift) * scale for the diffusion model.

    channels, side: of a latent. pixels: side of the images. vae: the autoencoder's folder. weights: a digest of its
    weights. means, stds: a channel, of latents that were made elsewhere: taken off and divided by before, as they are
    read (`prunefast.data.latent_files`).
    """

    channels: int
    side: int
    pixels: int
    scale: float
    shift: float
    vae: str
    weights: str
    means: list[float] | None = None
    stds: list[float] | None = None


class LatentDataset(ImageDataset):
    """Latents in the place of images: `image_size` is their side, rows are float32 [side, side, 2 * channels].

    Labels, keys and fingerprint are those of the images, so a coreset selected from the images is one of the latents.
    """

    def __init__(self, folder: Path, table: Any, info: TableInfo, moments: np.ndarray, latents: LatentScale):
        super().__init__(table, info, image_size=latents.side)
        self.folder = folder
        self.latents = latents
        self._moments = moments
        self.row_dtype = np.dtype(np.float32)

    @property
    def path(self) -> str:
        return str(self.folder)

    @property
    def row_shape(self) -> tuple[int, int, int]:
        return (self.latents.side, self.latents.side, 2 * self.latents.channels)

    @property
    def reads_windows(self) -> bool:
        return False

    def with_image_size(self, side: int | None) -> "LatentDataset":
        if side not in (None, self.image_size, self.latents.pixels):
            raise InputError(f"image_size={side}: {self.folder} holds latents of {self.latents.pixels} pixel images")
        return self

    def read(self, index: int) -> bytes:
        raise InputError(f"{self.folder}: holds latents, not images; open {self._info.path or 'the images'}")

    def read_many(self, indices: Any) -> list[bytes]:
        raise InputError(f"{self.folder}: holds latents, not images; open {self._info.path or 'the images'}")

    def image(self, index: int) -> np.ndarray:
        raise InputError(f"{self.folder}: holds latents, not images; open {self._info.path or 'the images'}")

    def save_items(self, path: str | os.PathLike[str]) -> None:
        # the item table is that of the images: it would open them again, at the side of a latent
        raise InputError(
            f"{self.folder}: holds latents, a run begins with images; give {self._info.path or 'the images'}, and the "
            "latents to training (prunefast train --data)"
        )

    def _lie_ready(self, side: int) -> bool:
        return False  # the item table is that of the images

    def _announce(self, items: np.ndarray) -> None:
        pass  # a memory map

    def _fill(
        self, items: np.ndarray, out: np.ndarray, corners: np.ndarray | None = None, processes: Any = None
    ) -> None:
        if corners is not None:
            raise InputError(f"{self.folder}: holds latents, which have no windows")
        out[...] = self._moments[items].reshape(out.shape)


def holds_latents(path: str | os.PathLike[str]) -> bool:
    return os.path.isfile(os.path.join(path, SCALE))


def open_latents(folder: str | os.PathLike[str]) -> LatentDataset:
    """The latents that `prunefast encode-latents` wrote; InputError for a folder without finished ones."""
    folder = Path(os.path.abspath(folder))
    record = read_json(folder / SCALE)
    try:
        latents = LatentScale(**record)
        wide = latents.side * latents.side * 2 * latents.channels
    except TypeError:
        raise InputError(f"{folder / SCALE}: is no record of latents; encode them again") from None
    table, info = load_table(folder / ITEMS)
    try:
        moments = np.load(folder / MOMENTS, mmap_mode="r", allow_pickle=False)
    except MemoryError:
        raise
    except Exception as error:  # the header is parsed as Python text, which fails in many ways
        raise InputError(f"{folder / MOMENTS}: cannot be read ({error}); encode them again") from None
    if moments.shape != (len(table), wide) or moments.dtype != np.float32:
        raise InputError(
            f"{folder / MOMENTS}: is {moments.dtype} {list(moments.shape)}, not float32 {[len(table), wide]}; encode "
            "them again"
        )
    return LatentDataset(folder, table, info, moments, latents)
