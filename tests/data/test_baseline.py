"""Which records a foreign decoder is given: whole upright baseline JPEGs of the size in the table, and nothing else."""

import io
import tarfile
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from prunefast.data import native, open_dataset

pytestmark = pytest.mark.skipif(not native.available(), reason="the native module _images does not load")

WIDTH, HEIGHT = 53, 41


def encoded(kind: str = "JPEG", mode: str = "RGB", size=(WIDTH, HEIGHT), orientation: int | None = None, **options):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    if orientation is not None:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def segment(blob: bytes, marker: int) -> int:
    """Where the first segment with this marker begins."""
    position = 2
    while blob[position + 1] != marker:
        position += 2 + (blob[position + 2] << 8 | blob[position + 3])
    return position


def changed(blob: bytes, place: int, value: int) -> bytes:
    return blob[:place] + bytes([value]) + blob[place + 1 :]


SOUND = {
    "4:4:4": encoded(subsampling=0),
    "4:2:2": encoded(subsampling=1),
    "4:2:0": encoded(subsampling=2),
    "grey": encoded(mode="L"),
    "own Huffman codes": encoded(optimize=True),
    "restart markers": encoded(restart_marker_blocks=5),
    "EXIF, upright": encoded(orientation=1),
    "comment": encoded(comment=b"hello"),
}
WHOLE = SOUND["4:2:0"]
SCAN = segment(WHOLE, 0xDA)
OTHERS = {
    "progressive": encoded(progressive=True),
    "CMYK": encoded(mode="CMYK"),
    "RGB": encoded(keep_rgb=True),
    "turned": encoded(orientation=6),
    "PNG": encoded("PNG"),
    "WebP": encoded("WEBP"),
    "other size": encoded(size=(HEIGHT, WIDTH)),
    "empty": b"",
    "start alone": b"\xff\xd8",
    "start and end": b"\xff\xd8\xff\xd9",
    "no scan": WHOLE[:SCAN] + b"\xff\xd9",
    "empty scan": WHOLE[: SCAN + 14] + b"\xff\xd9",
    "scan too short for its blocks": WHOLE[: SCAN + 14] + b"\0" * 5 + b"\xff\xd9",
    "text": b"this is no image" * 9,
    "right magic": b"\xff\xd8\xff\xe0" + np.random.default_rng(1).bytes(999),
    "something behind it": WHOLE + b"\0",
    "two in one": WHOLE + WHOLE,
    "12 bits": changed(WHOLE, segment(WHOLE, 0xC0) + 4, 12),
    "no such quantisation table": changed(WHOLE, segment(WHOLE, 0xC0) + 12, 3),
    "no such Huffman table": changed(WHOLE, SCAN + 6, 0x33),
    "too many codes of one bit": changed(WHOLE, segment(WHOLE, 0xC4) + 5, 3),
    "part of the spectrum": changed(WHOLE, SCAN + 12, 62),
    "restart where none was announced": WHOLE[:-2] + b"\xff\xd0\xff\xd9",
    "restart missing": SOUND["restart markers"].replace(b"\xff\xd1", b"\x11\x11"),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_ones(name):
    blob = SOUND[name]
    assert native.is_baseline_jpeg(blob, WIDTH, HEIGHT)
    assert not native.is_baseline_jpeg(blob, WIDTH, HEIGHT + 1)
    for end in range(len(blob)):  # cut anywhere
        assert not native.is_baseline_jpeg(blob[:end], WIDTH, HEIGHT)


@pytest.mark.parametrize("name", OTHERS)
def test_others(name):
    assert not native.is_baseline_jpeg(OTHERS[name], WIDTH, HEIGHT)


@settings(deadline=None, max_examples=300)
@given(
    kind=st.sampled_from(sorted(SOUND)),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_what_passes_has_the_header_that_pillow_reads(kind, flips):
    blob = bytearray(SOUND[kind])
    for share, value in flips:
        blob[int(share * (len(blob) - 1))] = value
    if native.is_baseline_jpeg(bytes(blob), WIDTH, HEIGHT):
        with Image.open(io.BytesIO(blob)) as image:
            assert image.size == (WIDTH, HEIGHT)
            assert image.mode in ("L", "RGB")
            assert not image.info.get("progressive")


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=400), st.booleans())
def test_rubbish(blob, magic):
    assert not native.is_baseline_jpeg((b"\xff\xd8\xff" if magic else b"") + blob, WIDTH, HEIGHT)


@pytest.fixture(params=["folder", "tar", "zip", "deflated", "source"])
def blobs_and_data(request, tmp_path):
    """Ten images, every other one a baseline JPEG; the last is broken once the data set is open."""
    blobs = [encoded("JPEG" if k % 2 == 0 else "PNG", size=(20 + k, 30)) for k in range(10)]
    names = [f"{k}.jpg" for k in range(10)]
    path = tmp_path / request.param
    if request.param == "folder":
        path.mkdir()
        for name, blob in zip(names, blobs, strict=True):
            (path / name).write_bytes(blob)
    elif request.param == "tar":
        path = path.with_suffix(".tar")
        with tarfile.open(path, "w") as tar:
            for name, blob in zip(names, blobs, strict=True):
                info = tarfile.TarInfo(name)
                info.size = len(blob)
                tar.addfile(info, io.BytesIO(blob))
    elif request.param == "source":

        class Memory:
            keys = names

            def read(self, item):
                return blobs[item]

        path = Memory()
    else:
        path = path.with_suffix(".zip")
        method = zipfile.ZIP_STORED if request.param == "zip" else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, blob in zip(names, blobs, strict=True):
                archive.writestr(name, blob)
    return blobs, open_dataset(path, image_size=16, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("threads", [1, 3])
def test_bytes_of_any_source(blobs_and_data, threads):
    blobs, data = blobs_and_data
    items = np.array([8, 1, 0, 3, 2, 2, 9])
    for item, got in zip(items.tolist(), data.jpegs(items, threads), strict=True):
        assert (got is None) == (item % 2 == 1)
        assert got is None or got.tobytes() == blobs[item]


def test_a_file_that_is_gone_or_another_is_left_to_who_can_say_so(tmp_path):
    for k in range(4):
        (tmp_path / f"{k}.jpg").write_bytes(encoded(size=(20, 20 + k)))
    data = open_dataset(tmp_path, image_size=16, cache_dir=tmp_path / "cache")
    (tmp_path / "1.jpg").unlink()
    (tmp_path / "2.jpg").write_bytes(encoded(size=(20, 20)))
    blob = bytearray((tmp_path / "3.jpg").read_bytes())
    blob[-20] ^= 1
    (tmp_path / "3.jpg").write_bytes(blob)
    got = data.jpegs(range(4))
    assert [part is None for part in got] == [False, True, True, True]  # the last one's sum is another
