"""Small pictures as data URIs: the smaller of PNG and JPEG."""

import base64
import io
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from prunefast.data import ImageDataset

THUMBNAIL = 64  # pixels at most: sharp at the 56 CSS pixels they are shown at, and about 2 KB each
JPEG_QUALITY = 85  # with full colour resolution: halving it smears images of 32 pixels
PNG_UP_TO = 40  # pixels; above, PNG of a photograph is never the smaller one


def data_uri(image: NDArray[np.uint8]) -> str:
    """uint8 [H, W, 3] -> ``data:image/...;base64,...``, no larger than THUMBNAIL pixels a side."""
    if max(image.shape[:2]) > THUMBNAIL:
        picture = Image.fromarray(image)
        picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    else:
        grey = bool((image[..., 0] == image[..., 1]).all() and (image[..., 0] == image[..., 2]).all())
        picture = Image.fromarray(image[..., 0] if grey else image)
    kind, data = "jpeg", _encode(picture, "JPEG", quality=JPEG_QUALITY, subsampling=0, optimize=True)
    if max(picture.size) <= PNG_UP_TO:
        png = _encode(picture, "PNG", optimize=True)
        if len(png) <= len(data):
            kind, data = "png", png
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


class Thumbnails:
    """Data URIs of images of one data set, each decoded and encoded once."""

    def __init__(self, data: ImageDataset):
        size = data.image_size
        self._data = data if size is not None and size <= THUMBNAIL else data.with_image_size(THUMBNAIL)
        self._uris: dict[int, str] = {}

    def prepare(self, indices: Iterable[int]) -> None:
        """Read `indices` in one pass, in the order in which they lie in the data set."""
        missing = np.array(sorted(set(indices) - self._uris.keys()), dtype=np.int64)
        for start in range(0, len(missing), 256):
            chunk = missing[start : start + 256]
            for index, image in zip(chunk.tolist(), self._data.images(chunk), strict=True):
                self._uris[index] = data_uri(image)

    def __getitem__(self, index: int) -> str:
        return self._uris[index]


def _encode(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()
