"""Arbitrary bytes into every reader: success or InputError, and nothing else comes out."""

import bz2
import gzip
import io
import lzma
import os
import pickle
import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from prunefast.data import cifar, decode, open_dataset, open_run_dataset
from prunefast.errors import InputError

EXAMPLES = settings(
    deadline=None,
    max_examples=int(os.environ.get("PRUNEFAST_FUZZ_EXAMPLES", 60)),
    suppress_health_check=list(HealthCheck),
)


def image_bytes(kind, size=12, **options):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(size).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


EXIF = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
IMAGES = {
    "jpg": image_bytes("JPEG", exif=EXIF),
    "progressive.jpg": image_bytes("JPEG", progressive=True),
    "png": image_bytes("PNG"),
    "gif": image_bytes("GIF"),
    "webp": image_bytes("WEBP"),
    "tiff": image_bytes("TIFF"),
    "lzw.tiff": image_bytes("TIFF", compression="tiff_lzw"),
    "bmp": image_bytes("BMP"),
    "ppm": image_bytes("PPM"),
}


def tar_bytes(format=tarfile.PAX_FORMAT):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for k, name in enumerate(["a/0.jpg", f"b/{'long' * 30}.jpg", "b/ä.jpg"]):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(IMAGES["jpg"]), k + 0.5
            archive.addfile(info, io.BytesIO(IMAGES["jpg"]))
    return buffer.getvalue()


def zip_bytes(method):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name in ("a/0.jpg", "b/1.jpg", "b/2.jpg"):
            archive.writestr(name, IMAGES["jpg"])
        archive.writestr("dataset.json", '{"labels": [["a/0.jpg", 1], ["b/1.jpg", 0], ["b/2.jpg", 0]]}')
    return buffer.getvalue()


def array_bytes(save, *arrays, **named):
    buffer = io.BytesIO()
    save(buffer, *arrays, **named)
    return buffer.getvalue()


PIXELS = np.random.default_rng(0).integers(0, 256, (3, 5, 5, 3), dtype=np.uint8)
LABELS = np.array([1, 0, 1])
CIFAR = pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]}, protocol=3)


def cifar_tar():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]:
            info = tarfile.TarInfo(name)
            info.size = len(CIFAR)
            archive.addfile(info, io.BytesIO(CIFAR))
    return buffer.getvalue()


def table_bytes(kind):
    rows = [{"bytes": IMAGES[name], "path": None} for name in ("jpg", "png", "webp", "bmp")]
    table = pa.table({"image": pa.array(rows), "label": pa.array([0, 1, 1, 0]), "caption": pa.array(list("abcd"))})
    buffer = io.BytesIO()
    if kind == "parquet":
        pq.write_table(table, buffer, row_group_size=2, compression="none", use_dictionary=False)
    else:
        make = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
        with make(buffer, table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    return buffer.getvalue()


def webdataset_tar():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for k in range(3):
            for suffix, blob in (("jpg", IMAGES["jpg"]), ("cls", b"1"), ("txt", b"text"), ("json", b'{"a": 1}')):
                info = tarfile.TarInfo(f"{k}.{suffix}")
                info.size = len(blob)
                archive.addfile(info, io.BytesIO(blob))
    return buffer.getvalue()


def write_arrow(folder, content):
    """A data set that Hugging Face's library saved, with one file."""
    folder.mkdir(exist_ok=True)
    (folder / "data.arrow").write_bytes(content)
    (folder / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')


CONTAINERS = {
    "parquet": table_bytes("parquet"),
    "webdataset.tar": webdataset_tar(),
    "pax.tar": tar_bytes(),
    "gnu.tar": tar_bytes(tarfile.GNU_FORMAT),
    "tar.gz": gzip.compress(tar_bytes()),
    "tar.bz2": bz2.compress(tar_bytes()),
    "tar.xz": lzma.compress(tar_bytes()),
    "stored.zip": zip_bytes(zipfile.ZIP_STORED),
    "deflated.zip": zip_bytes(zipfile.ZIP_DEFLATED),
    "npy": array_bytes(np.save, PIXELS),
    "npz": array_bytes(np.savez, images=PIXELS, labels=LABELS),
    "compressed.npz": array_bytes(np.savez_compressed, images=PIXELS, labels=LABELS),
    "cifar.tar": cifar_tar(),
}


@st.composite
def mutations(draw, content):
    """A valid file with bytes overwritten, cut out, doubled, or cut off; small numbers and extremes are drawn often."""
    raw = bytearray(content)
    # archives are read from their ends, formats from their heads: both get more than their share
    place = st.one_of(
        st.integers(0, len(raw) - 1),
        st.integers(0, min(600, len(raw) - 1)),
        st.integers(max(0, len(raw) - 200), len(raw) - 1),
    )
    for _ in range(draw(st.integers(1, 6))):
        at = min(draw(place), max(len(raw) - 1, 0))
        kind = draw(st.sampled_from(["set", "set", "set", "word", "cut", "repeat", "insert", "truncate"]))
        if kind == "set":
            raw[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == "word":
            raw[at : at + 4] = draw(
                st.sampled_from(
                    [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80"]
                )
            )
        elif kind == "cut":
            del raw[at : at + draw(st.integers(1, 64))]
        elif kind == "repeat":
            raw[at:at] = raw[at : at + draw(st.integers(1, 64))]
        elif kind == "insert":
            raw[at:at] = draw(st.binary(max_size=16))
        else:
            del raw[at:]
    return bytes(raw)


@st.composite
def tar_headers(draw):
    """Tars whose headers have any bytes in any field, and a checksum that is right again."""
    raw = bytearray(tar_bytes(draw(st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))))
    starts = [at for at in range(0, len(raw), 512) if raw[at + 257 : at + 262] == b"ustar"]
    fields = [(0, 100), (124, 12), (136, 12), (156, 1), (257, 8), (345, 155)]
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.sampled_from(starts))
        begin, size = draw(st.sampled_from(fields))
        text = st.integers(0, 1 << 36).map(lambda value: b"%011o\0" % value)
        kinds = st.sampled_from([b"x", b"g", b"L", b"K", b"0", b"5", b"S", b"\0"])
        new = draw(st.one_of(st.binary(max_size=size), text, kinds, st.just(b"\x80" + b"\xff" * 11)))[:size]
        raw[at + begin : at + begin + len(new)] = new
        raw[at + 148 : at + 156] = b"        "
        raw[at + 148 : at + 156] = b"%06o\0 " % sum(raw[at : at + 512])
    return bytes(raw)


def one_line(error):
    assert "\n" not in str(error)


def survives(path, folder):
    """Open and read everything; InputError is the only thing that may come out."""
    try:
        data = open_dataset(path, cache_dir=folder / "cache")
    except InputError as error:
        one_line(error)
        return
    for k in range(min(len(data), 10)):
        try:
            image = data.image(k)
        except InputError as error:
            one_line(error)
            continue
        assert image.dtype == np.uint8
        assert image.shape == (data.heights[k], data.widths[k], 3)


@pytest.fixture
def scratch():
    folder = Path(tempfile.mkdtemp())
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", CONTAINERS)
def test_mutated_containers(name, scratch):
    @EXAMPLES
    @given(mutations(CONTAINERS[name]))
    def check(content):
        path = scratch / "file"
        path.write_bytes(content)
        survives(path, scratch)

    check()


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_mutated_arrow(kind, scratch):
    whole = table_bytes(kind)
    write_arrow(scratch / "data", whole)
    assert len(open_dataset(scratch / "data", cache_dir=scratch / "cache").images(range(4))) == 4

    @EXAMPLES
    @given(st.one_of(mutations(whole), st.binary(max_size=500)))
    def check(content):
        write_arrow(scratch / "data", content)
        survives(scratch / "data", scratch)

    check()


def test_rubbish_lmdb(scratch):
    """Rubbish only: the library maps its file and trusts what it finds, so that a page that somebody changed can end
    the process; docs/data.md says so.
    """
    pytest.importorskip("lmdb", reason="the package is not installed")

    @EXAMPLES
    @given(st.binary(max_size=300), st.integers(0, 3))
    def check(content, pages):
        folder = Path(tempfile.mkdtemp(dir=scratch))
        (folder / "data.mdb").write_bytes(content + bytes(4096 * pages))
        survives(folder, scratch)

    check()


@settings(EXAMPLES, max_examples=25)
@given(st.binary(max_size=64), st.integers(0, 5))
def test_sources_of_users_that_give_anything(content, item):
    class Own:
        keys = tuple("abcdef")

        def read(self, number):
            return content if number == item else IMAGES["png"]

    folder = Path(tempfile.mkdtemp())
    try:
        survives(Own(), folder)
        data = open_dataset(Own(), cache_dir=folder, on_error="skip")
        assert len(data) == 6 - len(data.skipped)
    finally:
        shutil.rmtree(folder)


def test_tar_headers_of_any_content(scratch):
    @EXAMPLES
    @given(tar_headers())
    def check(content):
        path = scratch / "file"
        path.write_bytes(content)
        survives(path, scratch)

    check()


@pytest.mark.parametrize("name", CONTAINERS)
def test_unchanged_containers_open(name, scratch):
    (scratch / "file").write_bytes(CONTAINERS[name])
    data = open_dataset(scratch / "file", cache_dir=scratch / "cache")
    assert len(data.images(range(len(data)))) == len(data) > 0


MAGICS = [
    b"",
    b"PK\x03\x04",
    b"PK\x05\x06",
    b"\x1f\x8b\x08\0",
    b"BZh9",
    b"\xfd7zXZ\0",
    b"\x93NUMPY\x01\0",
    b"\x93NUMPY\x03\0",
    b"\0" * 512,
]


def test_rubbish_files(scratch):
    @EXAMPLES
    @given(st.sampled_from(MAGICS), st.binary(max_size=2000))
    def check(magic, rest):
        path = scratch / "file"
        path.write_bytes(magic + rest)
        survives(path, scratch)

    check()


@pytest.mark.parametrize("name", IMAGES)
def test_mutated_images(name):
    """In squares and alone: ValueError with a reason, or an image of the size its header says."""

    @EXAMPLES
    @given(mutations(IMAGES[name]))
    def check(content):
        try:
            image = decode.decode(content)
        except ValueError as error:
            one_line(error)
        else:
            header = decode.probe(content)
            assert image.shape == (header.height, header.width, 3)
            assert image.dtype == np.uint8
        out = np.empty((2, 12, 12, 3), np.uint8)
        bad = decode.decode_squares([IMAGES["jpg"], content], out)
        assert bad is None or bad[0] == 1

    check()


@EXAMPLES
@given(st.one_of(mutations(CIFAR), st.binary(max_size=300).map(lambda rest: b"\x80\x02" + rest)))
def test_mutated_pickles(content):
    try:
        value = cifar.read_plain_pickle(content, "x")
    except InputError as error:
        one_line(error)
    else:
        assert isinstance(
            value, dict | list | tuple | str | int | float | bool | type(None) | cifar.PickledArray | cifar._Name
        )


def test_mutated_cache_tables_and_run_tables(scratch):
    """A table that is damaged is built again (cache) or refused (run folder)."""
    root = scratch / "images"
    root.mkdir()
    for k in range(3):
        (root / f"{k}.jpg").write_bytes(IMAGES["jpg"])
    good = open_dataset(root, cache_dir=scratch / "cache")
    (table,) = (scratch / "cache").rglob("*.parquet")
    good.save_items(scratch / "items.parquet")
    stored, saved = table.read_bytes(), (scratch / "items.parquet").read_bytes()

    @EXAMPLES
    @given(st.data())
    def check(draw):
        table.write_bytes(draw.draw(mutations(stored)))
        again = open_dataset(root, cache_dir=scratch / "cache")
        assert again.table.equals(good.table)
        assert (again.fingerprint, again.skipped, again.classes) == (good.fingerprint, [], [])
        (scratch / "items.parquet").write_bytes(draw.draw(mutations(saved)))
        try:
            open_run_dataset(scratch / "items.parquet")
        except InputError as error:
            one_line(error)

    check()
