"""Image bytes -> uint8 [H, W, 3] RGB, and what their header says.

JPEG is decoded by libjpeg-turbo through simplejpeg (no GIL, 3-6 times Pillow); everything else, and JPEGs it refuses,
by Pillow, which gives the same pixels. EXIF rotation is applied, alpha is laid over white, 16-bit greyscale is rounded
to 8; colour profiles are not.
"""

import contextlib
import io
import re
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

try:
    import simplejpeg
except ImportError:  # optional at run time: Pillow decodes the same pixels, slower
    simplejpeg = None

# The only decoders Pillow may choose: no PostScript interpreter, no format that reads other files.
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "GIF", "TIFF", "PPM", "AVIF")
MAX_PIXELS = 89_478_485  # 256 MiB of RGB: Pillow's own limit against decompression bombs
HEAD_BYTES = 16 << 10  # enough for the header of nearly every file; the rest is read where it is not

_START_OF_FRAME = frozenset([0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF])
_STANDALONE = frozenset([0x01, *range(0xD0, 0xD8)])  # markers without a length


@dataclass(frozen=True, slots=True)
class Header:
    """Size of an image as `decode` gives it. `plain`: a JPEG that needs no rotation and is grey or YCbCr/RGB."""

    width: int
    height: int
    plain: bool


class IncompleteHeader(Exception):
    """The bytes given end before the header does."""


def probe(data: bytes, complete: bool = True) -> Header:
    """Read the header of an image; `ValueError` where it is broken, `IncompleteHeader` where more bytes are needed."""
    if not data:
        raise ValueError("is empty (0 bytes)")
    if data[:2] == b"\xff\xd8":
        header = _probe_jpeg(data, complete)
    elif not complete:
        try:
            header = _probe_other(data)
        except ValueError:
            raise IncompleteHeader from None
    else:
        header = _probe_other(data)
    _check_size(header.width, header.height)
    return header


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"says it is {width} x {height}: over {MAX_PIXELS:,} pixels, likely a decompression bomb")


def _probe_jpeg(data: bytes, complete: bool) -> Header:
    """Walk the segments up to the frame header (ITU-T T.81, annex B)."""
    position, orientation = 2, 1
    size = len(data)
    while True:
        while position < size and data[position] != 0xFF:  # junk between segments, which decoders skip
            position += 1
        while position < size and data[position] == 0xFF:
            position += 1
        if position + 2 >= size:
            break
        marker = data[position]
        position += 1
        if marker in _STANDALONE or marker == 0:
            continue
        if marker in (0xD9, 0xDA):
            raise ValueError("is not a JPEG: there is no frame header before the scan")
        length = data[position] << 8 | data[position + 1]
        if length < 2:
            raise ValueError("is not a JPEG: a segment of impossible length")
        if marker in _START_OF_FRAME:
            if position + 8 > size:
                break
            height, width, components = struct.unpack_from(">HHB", data, position + 3)
            if not height or not width:
                raise ValueError(f"is a JPEG of {width} x {height} pixels")
            if orientation >= 5:
                width, height = height, width
            return Header(width, height, plain=orientation == 1 and components in (1, 3))
        if marker == 0xE1 and data[position + 2 : position + 8] == b"Exif\0\0":
            if position + length > size and not complete:
                raise IncompleteHeader
            orientation = _exif_orientation(data[position + 8 : position + length])
        position += length
    if not complete:
        raise IncompleteHeader
    raise ValueError("is a JPEG cut off inside its header")


def _exif_orientation(tiff: bytes) -> int:
    """Tag 0x0112 of the first directory of an EXIF block; 1 (upright) where it is missing or broken."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return 1
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    if start + 2 > len(tiff):
        return 1
    (count,) = struct.unpack_from(order + "H", tiff, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        if entry + 12 > len(tiff):
            break
        tag, kind = struct.unpack_from(order + "HH", tiff, entry)
        if tag == 0x0112:
            (value,) = struct.unpack_from(order + "H", tiff, entry + 8)
            return value if kind == 3 and 1 <= value <= 8 else 1
    return 1


_PILLOW = r"PIL\."


def _silence_pillow() -> None:
    """Leave out its warnings, on odd EXIF and large images: what matters is raised.

    For good, and not within `warnings.catch_warnings`, which in several threads at once swallows the warnings of others
    and may leave all of them ignored.
    """
    if ("ignore", None, Warning, re.compile(_PILLOW), 0) not in warnings.filters:
        warnings.filterwarnings("ignore", module=_PILLOW)


def _open(data: bytes) -> Image.Image:
    _silence_pillow()
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except MemoryError:
        raise
    except Image.UnidentifiedImageError:
        raise ValueError(
            "is not an image of a format that is read here (JPEG, PNG, WebP, BMP, GIF, TIFF, PPM, AVIF)"
        ) from None
    except Exception as error:  # parsers fail on hostile bytes in every way there is
        raise ValueError(f"has a broken header ({_one_line(error)})") from None


def _probe_other(data: bytes) -> Header:
    with _open(data) as image:
        width, height = image.size
        if _orientation(image, data) >= 5:
            width, height = height, width
    return Header(width, height, plain=False)


# Before what says how a PNG is turned. Pillow decodes the whole image to see whether any follows the pixels.
_PNG_SAYS = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")


def _orientation(image: Image.Image, data: bytes) -> int:
    if image.format == "PNG" and not any(word in data for word in _PNG_SAYS):
        return 1
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # a broken EXIF block does not make the image unusable
        return 1


def decode(data: bytes) -> np.ndarray:
    """uint8 [H, W, 3], RGB. `ValueError` where the bytes are no whole image."""
    if not data or data[:2] == b"\xff\xd8":
        header = probe(data)
        if header.plain and simplejpeg is not None:
            try:
                return simplejpeg.decode_jpeg(data, "RGB")
            except (ValueError, RuntimeError):
                pass  # Pillow has the last word: it takes files with harmless flaws
    return _decode_pillow(data)


def decode_grey(data: bytes, least: int) -> np.ndarray:
    """uint8 [h, w], luma; a JPEG at the smallest scale (an eighth and up) that leaves `least` pixels a side.

    `ValueError` where the bytes are no whole image.
    """
    header = probe(data)
    if header.plain and simplejpeg is not None:
        with contextlib.suppress(ValueError, RuntimeError):
            return simplejpeg.decode_jpeg(data, "GRAY", True, True, least, least, 1.0)[..., 0]
    return to_grey(decode(data))


def to_grey(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] -> luma uint8 [H, W], as JPEG has it (ITU-R 601)."""
    return np.asarray(Image.fromarray(image).convert("L"))


def _decode_pillow(data: bytes) -> np.ndarray:
    with _open(data) as image:
        _check_size(*image.size)
        try:
            image.load()
            return _to_rgb(_upright(image, data))
        except MemoryError:
            raise
        except Exception as error:
            raise ValueError(f"cannot be decoded ({_one_line(error)})") from None


def _upright(image: Image.Image, data: bytes) -> Image.Image:
    if _orientation(image, data) == 1:
        return image
    return ImageOps.exif_transpose(image)


def _to_rgb(image: Image.Image) -> np.ndarray:
    mode = image.mode
    if mode.startswith("I"):  # 16 bits a pixel, or 32-bit integers that hold 16
        values = np.asarray(image).astype(np.int64)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise ValueError("32-bit integer pixels outside 0..65535")
        grey = ((values + 128) // 257).astype(np.uint8)  # round(v * 255 / 65535)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if mode == "F":
        raise ValueError("floating point pixels have no agreed range; convert it to 8 bits")
    if mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def fit_square(image: np.ndarray, side: int) -> np.ndarray:
    """Centre crop to a square, then resize: box filter down (Pillow's BOX), bicubic up. uint8 [H, W, 3] -> [side,
    side, 3].
    """
    height, width = image.shape[:2]
    square = min(height, width)
    if height != width:
        top, left = (height - square) // 2, (width - square) // 2
        image = image[top : top + square, left : left + square]
    if square == side:
        return image
    method = Image.Resampling.BOX if square > side else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((side, side), method))


def cut(squares: Sequence[np.ndarray] | np.ndarray, out: np.ndarray, corners: np.ndarray | None) -> None:
    """Squares, or of each the window of out's size at its corner (int32 [n, 2], top and left), into `out`."""
    if corners is None:
        out[...] = squares
        return
    size = out.shape[1]
    for number, (top, left) in enumerate(corners.tolist()):
        out[number] = squares[number][top : top + size, left : left + size]


def decode_windows(
    blobs: list[bytes], side: int, out: np.ndarray, corners: np.ndarray | None
) -> tuple[int, str] | None:
    """`decode_squares` of side x side, or of these the windows at `corners`, as `cut` has them."""
    if corners is None:
        return decode_squares(blobs, out)
    squares = np.empty((len(blobs), side, side, 3), dtype=np.uint8)
    bad = decode_squares(blobs, squares)
    if bad is None:
        cut(squares, out, corners)
    return bad


def decode_squares(blobs: list[bytes], out: np.ndarray) -> tuple[int, str] | None:
    """Decode a chunk of images into `out` uint8 [n, R, R, 3]; (number of the bad one, reason) at the first that fails.

    The common case, a JPEG that is R x R already, is one call an image that writes into its place and holds no GIL.
    """
    side = out.shape[1]
    shape = (side, side, 3)
    for number, blob in enumerate(blobs):
        if simplejpeg is not None and blob[:3] == b"\xff\xd8\xff" and blob.find(b"Exif\0\0", 0, HEAD_BYTES) < 0:
            try:
                height, width, colours, _ = simplejpeg.decode_jpeg_header(blob)
                # CMYK is for Pillow, which rounds otherwise
                if (height, width, 3) == shape and colours in ("YCbCr", "Gray", "RGB"):
                    simplejpeg.decode_jpeg(blob, "RGB", False, False, 0, 0, 1.0, out[number])
                    continue
            except (ValueError, RuntimeError):
                pass  # another size, CMYK, or broken: the general path tells
        try:
            out[number] = fit_square(decode(blob), side)
        except ValueError as error:
            return number, str(error)
    return None
