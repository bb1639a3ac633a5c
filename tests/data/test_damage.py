"""A random tenth of 2,000 images damaged, in every format: none of the rest is lost, and each of the tenth is named."""

import io
import os
import re
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from prunefast.data import from_arrays, open_dataset
from prunefast.errors import InputError
from prunefast.select import Coreset
from prunefast.stream import CoresetLoader

COUNT, SIDE = 2000, 8
BAD = np.sort(np.random.default_rng(7).permutation(COUNT)[: COUNT // 10])
GOOD = np.setdiff1d(np.arange(COUNT), BAD)
KEYS = [f"{k:04}" for k in range(COUNT)]
RAW = ("npy", "cifar")
FORMATS = ("folder", "tar", "zip", "deflated zip", "webdataset", "parquet", "arrow", "lmdb", "source", *RAW)


@pytest.fixture(scope="module")
def blobs():
    """PNGs and JPEGs of 8 x 8, no two alike."""
    out = []
    for k in range(COUNT):
        pixels = np.random.default_rng(k).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG" if k % 2 else "JPEG")
        out.append(file.getvalue())
    return out


@pytest.fixture(scope="module")
def truth(blobs):
    return np.stack([np.asarray(Image.open(io.BytesIO(blob)).convert("RGB")) for blob in blobs])


class Blobs:
    def __init__(self, blobs):
        self.keys, self.blobs = KEYS, blobs

    def read(self, item):
        return self.blobs[item]


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, blob in members:
            info = tarfile.TarInfo(name)
            info.size = len(blob)
            archive.addfile(info, io.BytesIO(blob))


def write(kind, root, blobs):
    """The images in a format; what `open_dataset` opens."""
    names = [f"{key}.{'png' if k % 2 else 'jpg'}" for k, key in enumerate(KEYS)]
    path = root / "data"
    if kind == "source":
        return Blobs(list(blobs))
    if kind == "folder":
        path.mkdir()
        for name, blob in zip(names, blobs, strict=True):
            (path / name).write_bytes(blob)
    elif kind == "tar":
        write_tar(path, zip(names, blobs, strict=True))
    elif kind == "webdataset":
        path.mkdir()
        members = [pair for k in range(COUNT) for pair in ((names[k], blobs[k]), (f"{KEYS[k]}.cls", b"%d" % (k % 5)))]
        for shard in range(4):
            write_tar(path / f"{shard:06}.tar", members[shard * COUNT // 2 : (shard + 1) * COUNT // 2])
    elif kind in ("zip", "deflated zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED if kind == "zip" else zipfile.ZIP_DEFLATED) as archive:
            for name, blob in zip(names, blobs, strict=True):
                archive.writestr(name, blob)
    elif kind in ("parquet", "arrow"):
        images = pa.array([{"bytes": blob, "path": None} for blob in blobs])
        table = pa.table({"image": images, "label": pa.array(np.arange(COUNT) % 5)})
        if kind == "parquet":
            pq.write_table(table, path, compression="none", use_dictionary=False, row_group_size=300)
        else:
            path.mkdir()
            with pa.ipc.new_stream(path / "data-00000-of-00001.arrow", table.schema) as writer:
                writer.write_table(table, max_chunksize=700)
            (path / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    elif kind == "lmdb":
        lmdb = pytest.importorskip("lmdb", reason="the package is not installed")
        with lmdb.open(str(path), map_size=1 << 26) as environment, environment.begin(write=True) as transaction:
            for key, blob in zip(KEYS, blobs, strict=True):
                transaction.put(key.encode(), blob)
    elif kind == "npy":
        with path.open("wb") as file:
            np.save(
                file, np.stack([np.frombuffer(blob[:192].ljust(192), np.uint8) for blob in blobs]).reshape(-1, 8, 8, 3)
            )
    elif kind == "cifar":
        path.mkdir()
        rows = np.random.default_rng(0).integers(0, 10, (COUNT, 3073), dtype=np.uint8)
        for k in range(5):
            (path / f"data_batch_{k + 1}.bin").write_bytes(rows[k::5].tobytes())
        (path / "test_batch.bin").write_bytes(rows[:1].tobytes())
    return path


def spoiled(blob, k):
    """Damage of one of five sorts, all of which the decoder notices."""
    return [b"", blob[: len(blob) // 2], b"no image at all " * 9, blob[:20], bytes(len(blob))][k % 5]


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind not in RAW])
def test_damage_before_the_first_opening(kind, tmp_path, blobs, truth):
    """on_error="skip" sets exactly the tenth aside."""
    broken = {item: spoiled(blobs[item], number) for number, item in enumerate(BAD.tolist())}
    if kind == "lmdb":  # by the rule of that format what does not begin as an image is none
        broken = {item: blobs[item][: len(blobs[item]) // 2] for item in broken}
    source = write(kind, tmp_path, [broken.get(item, blob) for item, blob in enumerate(blobs)])
    with pytest.raises(InputError) as caught:  # at the opening, or of a body that follows a good header
        open_dataset(source).images(range(COUNT))
    assert "\n" not in str(caught.value)
    data = open_dataset(source, on_error="skip")
    assert len(data) == len(GOOD)
    assert len(data.skipped) == len(BAD)
    assert all(reason and "\n" not in reason for _, reason in data.skipped)
    np.testing.assert_array_equal(data.images(range(len(data))), truth[GOOD])
    loader = CoresetLoader(data, Coreset.full(data), batch_size=64, epochs=1, shuffle=False, placement="disk")
    np.testing.assert_array_equal(np.concatenate([b.images.permute(0, 2, 3, 1).numpy() for b in loader]), truth[GOOD])


def flip(source, data, items):
    """One bit of each item's bytes as they lie, and the time of change as it was."""
    if isinstance(source, Blobs):
        for item in items:
            blob = bytearray(source.blobs[item])
            blob[len(blob) // 2] ^= 4
            source.blobs[item] = bytes(blob)
        return
    files = sorted(source.rglob("*")) if source.is_dir() else [source]
    content = {file: bytearray(file.read_bytes()) for file in files}
    states = {file: os.stat(file) for file in files}
    for item in items:
        row = data.table.slice(item, 1).to_pylist()[0]
        if row["container"]:
            file, at = type(source)(row["container"]), row["offset"]
        elif data.root:
            file, at = source / row["key"], 0
        else:  # by content: LMDB keeps old copies of its pages beside the valid one
            blob = data.read(item)
            for raw in content.values():
                for found in re.finditer(re.escape(blob), bytes(raw)):
                    raw[found.start() + len(blob) // 2] ^= 4
            continue
        content[file][at + row["length"] // 2] ^= 4
    for file in files:
        with open(file, "r+b") as handle:
            handle.write(content[file])
        os.utime(file, ns=(states[file].st_atime_ns, states[file].st_mtime_ns))


@pytest.mark.parametrize("kind", FORMATS)
def test_damage_afterwards(kind, tmp_path, blobs):
    """In silence, one bit each, which most decoders would not notice: each of the tenth is an error when it is read."""
    source = write(kind, tmp_path, blobs)
    data = open_dataset(source)
    before = data.images(range(COUNT))
    flip(source, data, BAD.tolist())
    if kind == "parquet":
        data = open_dataset(source)  # the row group read last is kept
    np.testing.assert_array_equal(data.images(GOOD), before[GOOD])
    for item in BAD.tolist():
        with pytest.raises(InputError, match=r"checksum differs|expands|compressed data is broken") as caught:
            data.images([item])
        assert data.keys[item] in str(caught.value)
        assert "\n" not in str(caught.value)
    one_bad = np.sort(np.concatenate([GOOD[:500], BAD[:1]]))  # within what may be replaced
    loader = CoresetLoader(
        data, Coreset.from_indices(data, one_bad), batch_size=64, epochs=1, placement="disk", on_error="replace"
    )
    with pytest.warns(UserWarning, match="shown in its place"):
        seen = np.concatenate([batch.index.numpy() for batch in loader])
    assert sorted(seen.tolist()) == one_bad.tolist()
    assert [one.key for one in loader.replaced] == [data.keys[int(BAD[0])]]


def test_arrays_in_memory_have_nothing_to_lose(truth):
    assert (from_arrays(truth).images(GOOD) == truth[GOOD]).all()
