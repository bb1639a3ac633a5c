"""The native module `_images`, where it loads, and what it offers."""

from types import ModuleType

images: ModuleType | None
try:
    from prunefast import _images

    images = _images
except ImportError:  # it links libjpeg, which may be gone: everything then goes the general way
    images = None


def available() -> bool:
    """Whether records are read and summed natively."""
    return images is not None


def decodes_jpeg() -> bool:
    """Whether JPEG is decoded natively (libjpeg-turbo was found when prunefast was built)."""
    return images is not None and images.has_jpeg()


def xxh3(data: bytes) -> int:
    """XXH3 (64 bits, seed 0) of the bytes. Only where `available`."""
    assert images is not None
    return images.xxh3(data)


def is_baseline_jpeg(data: bytes, width: int, height: int) -> bool:
    """Whether the bytes are one whole baseline JPEG of that size (csrc/images/baseline.h). Only where `available`."""
    assert images is not None
    return images.is_baseline_jpeg(data, width, height)
