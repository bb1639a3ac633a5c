"""Decoding against Pillow and hand-made numbers."""

import io
import struct
import threading
import time
import warnings

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from prunefast.data import decode, open_dataset


def jpeg_of(pixels, mode="RGB", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", quality=92, **options)
    return buffer.getvalue()


def test_jpeg_equals_pillow(make_picture):
    for mode, options in [
        ("RGB", {}),
        ("L", {}),
        ("RGB", {"subsampling": 0}),
        ("RGB", {"progressive": True}),
        ("CMYK", {}),
    ]:
        data = jpeg_of(make_picture(1, 37, 21), mode, **options)
        np.testing.assert_array_equal(decode.decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
        header = decode.probe(data)
        assert (header.width, header.height) == (37, 21)
        assert header.plain == (mode != "CMYK")


def test_without_simplejpeg_the_pixels_are_the_same(make_picture, monkeypatch):
    blobs = [jpeg_of(make_picture(k, 24, 24)) for k in range(3)]
    fast = np.empty((3, 24, 24, 3), np.uint8)
    assert decode.decode_squares(blobs, fast) is None
    monkeypatch.setattr(decode, "simplejpeg", None)
    slow = np.empty_like(fast)
    assert decode.decode_squares(blobs, slow) is None
    np.testing.assert_array_equal(fast, slow)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_rotation(make_picture, orientation, order):
    """The eight orientations by their definition (row 0 is ..., column 0 is ...), on top of Pillow's decoding."""
    tiff = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(
        order + "IHHHIHxxI", 8, 1, 0x0112, 3, 1, orientation, 0
    )
    data = jpeg_of(make_picture(3, 20, 12), exif=b"Exif\0\0" + tiff)
    stored = np.asarray(Image.open(io.BytesIO(data)))
    turned = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: stored.transpose(1, 0, 2)[:, ::-1],
        7: stored.transpose(1, 0, 2)[::-1, ::-1],
        8: stored.transpose(1, 0, 2)[::-1],
    }[orientation]
    np.testing.assert_array_equal(decode.decode(data), turned)
    header = decode.probe(data)
    assert (header.height, header.width) == turned.shape[:2]


def test_rotated_squares_take_the_general_path(make_picture):
    tiff = b"II*\0" + struct.pack("<IHHHIHxxI", 8, 1, 0x0112, 3, 1, 3, 0)
    plain, turned = jpeg_of(make_picture(3, 16, 16)), jpeg_of(make_picture(3, 16, 16), exif=b"Exif\0\0" + tiff)
    out = np.empty((2, 16, 16, 3), np.uint8)
    assert decode.decode_squares([plain, turned], out) is None
    np.testing.assert_array_equal(out[1], out[0][::-1, ::-1])


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_alpha_is_laid_over_white():
    rgba = np.array([[[200, 100, 0, 0], [200, 100, 0, 255], [200, 100, 0, 128]]], np.uint8)
    out = decode.decode(saved(Image.fromarray(rgba), "PNG"))
    assert out[0, 0].tolist() == [255, 255, 255]
    assert out[0, 1].tolist() == [200, 100, 0]
    expected = np.array([200, 100, 0]) * (128 / 255) + 255 * (1 - 128 / 255)
    assert np.abs(out[0, 2] - expected).max() <= 1
    grey = Image.fromarray(np.array([[0, 0]], np.uint8)).convert("LA")
    grey.putalpha(Image.fromarray(np.array([[0, 255]], np.uint8)))
    assert decode.decode(saved(grey, "PNG"))[0].tolist() == [[255] * 3, [0] * 3]


def test_palette_with_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert decode.decode(saved(image, "PNG", transparency=0))[0].tolist() == [[255, 255, 255], [40, 50, 60]]
    assert decode.decode(saved(image, "PNG"))[0].tolist() == [[10, 20, 30], [40, 50, 60]]


def test_sixteen_bits_are_rounded():
    values = np.array([[0, 128, 129, 257, 32767, 32768, 65535]], np.uint16)
    for kind in ("PNG", "TIFF"):
        out = decode.decode(saved(Image.fromarray(values), kind))
        assert out[0, :, 0].tolist() == np.round(values[0] * 255.0 / 65535).astype(int).tolist()
        assert (out == out[:, :, :1]).all()


def test_bilevel_and_grey():
    grey = np.array([[0, 255], [255, 0]], np.uint8)
    for image in (Image.fromarray(grey), Image.fromarray(grey).convert("1")):
        np.testing.assert_array_equal(decode.decode(saved(image, "PNG")), np.repeat(grey[:, :, None], 3, axis=2))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM"])
def test_other_formats(make_picture, kind):
    picture = make_picture(5, 18, 14)
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(Image.fromarray(picture), kind, **options)
    header = decode.probe(data)
    assert (header.width, header.height) == (18, 14)
    np.testing.assert_array_equal(decode.decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_float_images_are_refused():
    with pytest.raises(ValueError, match="floating point"):
        decode.decode(saved(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF"))


def test_postscript_is_never_run():
    with pytest.raises(ValueError, match="not an image"):
        decode.decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")


def test_fit_square_by_hand():
    ramp = np.arange(24, dtype=np.uint8).reshape(4, 6, 1).repeat(3, axis=2) * 10
    np.testing.assert_array_equal(decode.fit_square(ramp, 4), ramp[:, 1:5])  # centre crop alone changes nothing
    halved = decode.fit_square(ramp, 2)[:, :, 0]
    means = ramp[:, 1:5, 0].reshape(2, 2, 2, 2).mean(axis=(1, 3))
    np.testing.assert_array_equal(halved, np.floor(means + 0.5))
    constant = np.full((3, 5, 3), 77, np.uint8)
    np.testing.assert_array_equal(decode.fit_square(constant, 8), np.full((8, 8, 3), 77))  # bicubic up, no edge
    odd = np.arange(5, dtype=np.uint8).reshape(1, 5, 1).repeat(3, axis=2)
    assert decode.fit_square(odd, 1)[0, 0].tolist() == [2, 2, 2]


def test_header_beyond_the_first_read(write_folder, make_picture):
    """A JPEG whose frame header lies behind 200 KB of comments."""
    data = jpeg_of(make_picture(1, 16, 16))
    comment = b"\xff\xfe" + struct.pack(">H", 65_535) + bytes(65_533)
    long = data[:2] + comment * 3 + data[2:]
    opened = open_dataset(write_folder({"a.jpg": long}))
    assert (opened.widths[0], opened.heights[0]) == (16, 16)
    np.testing.assert_array_equal(opened.image(0), decode.decode(data))


def test_different_sizes_need_an_image_size(write_folder, make_picture):
    root = write_folder(
        {
            "a.png": saved(Image.fromarray(make_picture(1, 30, 20)), "PNG"),
            "b.png": saved(Image.fromarray(make_picture(2, 12, 12)), "PNG"),
        }
    )
    data = open_dataset(root)
    assert data.image_size is None
    assert data.widths.tolist() == [30, 12]
    assert data.heights.tolist() == [20, 12]
    with pytest.raises(ValueError, match="image_size"):
        data.images([0])
    with pytest.raises(ValueError, match="image_size"):
        data.batches()
    sized = data.with_image_size(10)
    assert sized.fingerprint == data.fingerprint
    expected = Image.fromarray(make_picture(1, 30, 20)).crop((5, 0, 25, 20)).resize((10, 10), Image.Resampling.BOX)
    np.testing.assert_array_equal(sized.images([0])[0], np.asarray(expected))
    expected = Image.fromarray(make_picture(2, 12, 12)).resize((16, 16), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(open_dataset(root, image_size=16).images([1])[0], np.asarray(expected))
    assert data.image(0).shape == (20, 30, 3)


def test_decoding_in_threads_leaves_warnings_alone(tmp_path):
    """`warnings.catch_warnings` in several threads loses other people's, and may leave every warning ignored."""
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\0\x12\x01"  # Pillow warns of it
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "WEBP", exif=exif)
    stop = threading.Event()

    def decode_on():
        while not stop.is_set():
            decode.decode(file.getvalue())

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        threads = [threading.Thread(target=decode_on) for _ in range(3)]
        for thread in threads:
            thread.start()
        for k in range(200):
            warnings.warn(f"mine {k}", stacklevel=1)
            time.sleep(0.001)
        stop.set()
        for thread in threads:
            thread.join()
        warnings.warn("after", stacklevel=1)
    assert [str(one.message) for one in caught] == [*(f"mine {k}" for k in range(200)), "after"]


def png_chunks(blob):
    at = 8
    while at < len(blob):
        length = int.from_bytes(blob[at : at + 4], "big")
        yield blob[at : at + 12 + length]
        at += 12 + length


@pytest.mark.parametrize("where", ["before the pixels", "behind the pixels", "XMP"])
def test_a_png_that_is_turned(make_picture, where):
    """A PNG without any of these is not decoded to see how it lies (`probe` took as long as `decode`)."""
    stored, blob = make_picture(3, 20, 12), io.BytesIO()
    exif, info = Image.Exif(), PngInfo()
    exif[0x0112] = 6
    info.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="6"/>', zip=True)
    Image.fromarray(stored).save(blob, "PNG", **({"pnginfo": info} if where == "XMP" else {"exif": exif}))
    data = blob.getvalue()
    if where == "behind the pixels":
        chunks = list(png_chunks(data))
        said = next(chunk for chunk in chunks if chunk[4:8] == b"eXIf")
        data = data[:8] + b"".join(chunk for chunk in chunks[:-1] if chunk != said) + said + chunks[-1]
    np.testing.assert_array_equal(decode.decode(data), np.rot90(stored, -1))
    assert decode.probe(data) == decode.Header(12, 20, plain=False)


def test_a_png_is_decoded_once(make_picture, monkeypatch):
    blob = io.BytesIO()
    Image.fromarray(make_picture(3, 20, 12)).save(blob, "PNG")
    decoded = []
    real = PngImageFile.load_end
    monkeypatch.setattr(PngImageFile, "load_end", lambda self: (decoded.append(1), real(self))[1])
    decode.probe(blob.getvalue())
    assert decoded == []
    decode.decode(blob.getvalue())
    assert decoded == [1]
