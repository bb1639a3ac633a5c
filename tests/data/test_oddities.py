"""Every sort of odd image in one data set, through the loader: what is kept has Pillow's pixels, the rest a reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from prunefast.data import open_dataset
from prunefast.errors import InputError
from prunefast.select import Coreset
from prunefast.stream import CoresetLoader

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
WHOLE = Image.fromarray(PIXELS)


def saved(image=WHOLE, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def rotated(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return saved(exif=exif)


def bomb():
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000)))


GREY16 = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
FRAMES = [WHOLE, Image.fromarray(255 - PIXELS)]
KEPT = {
    "animated.gif": saved(kind="GIF", save_all=True, append_images=FRAMES[1:]),
    "animated.webp": saved(kind="WEBP", save_all=True, append_images=FRAMES[1:], lossless=True),
    "cmyk.jpg": saved(WHOLE.convert("CMYK")),
    "grey.jpg": saved(WHOLE.convert("L")),
    "plain.jpg": saved(),
    "progressive.jpg": saved(progressive=True),
    "really-a-png.jpg": saved(kind="PNG"),
    "really-a-jpeg.png": saved(),
    "rotated.jpg": rotated(6),
    "sixteen-bits.png": saved(Image.fromarray(GREY16), "PNG"),
    "tailed.jpg": saved() + b"rubbish behind the end" * 9,
}
LEFT = {
    "bomb.png": (bomb(), "bomb"),
    "empty.jpg": (b"", "0 bytes"),
    "header-only.jpg": (saved()[:200], ""),
    "text.jpg": (b"<html>404 Not Found</html>" * 20, "not an image"),
    "truncated.jpg": (saved()[:-200], ""),
    "truncated.png": (saved(kind="PNG")[:-200], ""),
}


def expected(name):
    """By Pillow, first frames and upright; 16 bits by hand."""
    if name == "sixteen-bits.png":
        return np.repeat((GREY16 // 257).astype(np.uint8)[:, :, None], 3, axis=2)
    image = Image.open(io.BytesIO(KEPT[name]))
    image.load()
    if name == "rotated.jpg":
        image = image.transpose(Image.Transpose.ROTATE_270)
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("placement", ["memory", "pack", "disk"])
def test_all_of_them_at_once(write_folder, placement):
    root = write_folder({**KEPT, **{name: blob for name, (blob, _) in LEFT.items()}})
    data = open_dataset(root, on_error="skip")
    assert list(data.keys) == sorted(KEPT)
    reasons = dict(data.skipped)
    assert sorted(reasons) == sorted(LEFT)
    for name, (_, words) in LEFT.items():
        assert words in reasons[name]
        assert "\n" not in reasons[name]
    loader = CoresetLoader(data, Coreset.full(data), batch_size=4, epochs=1, shuffle=False, placement=placement)
    images = np.concatenate([batch.images.permute(0, 2, 3, 1).numpy() for batch in loader])
    for name, image in zip(data.keys, images, strict=True):
        np.testing.assert_array_equal(image, expected(name), err_msg=name)
    for item, name in enumerate(data.keys):
        np.testing.assert_array_equal(data.image(item), expected(name), err_msg=name)


@pytest.mark.parametrize("name", LEFT)
def test_each_of_the_broken_ones_is_named(write_folder, name):
    root = write_folder({"a.jpg": KEPT["plain.jpg"], name: LEFT[name][0]})
    with pytest.raises(InputError, match=name) as caught:
        open_dataset(root).images([0, 1])
    assert "\n" not in str(caught.value)
