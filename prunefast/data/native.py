"""The native module `_images`, where it loads, and what it offers."""

import os
from types import ModuleType

from prunefast.errors import InputError

images: ModuleType | None
missing = ""  # why it does not load
try:
    from prunefast import _images

    images = _images
except ImportError as error:  # it links libjpeg, which may be gone: everything then goes the general way
    images, missing = None, str(error)

# Leaves out better ways of decoding: "processes" the native module's, "threads" that of processes too.
DECODE_VARIABLE = "PRUNEFAST_DECODE"


def available() -> bool:
    """Whether records are read and summed natively."""
    return images is not None


def decodes_jpeg() -> bool:
    """Whether JPEG is decoded natively (libjpeg-turbo was found when prunefast was built)."""
    return images is not None and images.has_jpeg() and not _left_out()


def in_processes() -> bool:
    """Whether what is not decoded natively is decoded in processes of its own, where many images are asked for."""
    return _left_out() != "threads" and hasattr(os, "memfd_create")


def describe() -> str:
    """Who decodes here, for `prunefast doctor`."""
    rest = f"in {'processes' if in_processes() else 'threads'}"
    if decodes_jpeg():
        return f"JPEG by libjpeg-turbo in the native module, the rest by Pillow {rest}"
    if images is None:
        reason = f"the native module _images does not load: {missing}"
    else:
        reason = f"{DECODE_VARIABLE} is set" if images.has_jpeg() else "built without libjpeg-turbo"
    return f"all by simplejpeg or Pillow {rest} ({reason})"


def _left_out() -> str:
    value = os.environ.get(DECODE_VARIABLE, "")
    if value not in ("", "processes", "threads"):
        raise InputError(f"{DECODE_VARIABLE}={value}: set it to processes or threads, or unset it")
    return value


def xxh3(data: bytes) -> int:
    """XXH3 (64 bits, seed 0) of the bytes. Only where `available`."""
    assert images is not None
    return images.xxh3(data)


def is_baseline_jpeg(data: bytes, width: int, height: int) -> bool:
    """Whether the bytes are one whole baseline JPEG of that size (csrc/images/baseline.h). Only where `available`."""
    assert images is not None
    return images.is_baseline_jpeg(data, width, height)


def stop() -> None:
    """Calls that read records end at their next record, with an error, and so do all later ones. For an interpreter
    that exits.
    """
    if images is not None:
        images.stop()


def running() -> bool:
    """Whether a thread is within such a call."""
    return images is not None and images.running() > 0
