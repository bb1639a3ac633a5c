"""Sources by a protocol and the formats of others: written by their own libraries, read by ours, and back."""

import io
import json
import pickle
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prunefast.data import open_dataset, open_run_dataset
from prunefast.errors import InputError
from prunefast.stream import CoresetLoader


@pytest.fixture
def samples(make_picture, encode):
    """24 images of 16 px: (key, bytes, label, caption)."""
    return [
        (f"s{k:03}", encode(make_picture(k, 16, 16), "PNG" if k % 3 else "JPEG"), k % 4, f"picture {k}")
        for k in range(24)
    ]


@pytest.fixture
def truth(samples):
    from PIL import Image

    return np.stack([np.asarray(Image.open(io.BytesIO(blob)).convert("RGB")) for _, blob, _, _ in samples])


def check(data, samples, truth, *, labels=True, captions=True):
    assert len(data) == len(samples)
    np.testing.assert_array_equal(data.images(range(len(data))), truth)
    order = np.random.default_rng(0).permutation(len(data))
    np.testing.assert_array_equal(data.images(order), truth[order])
    got = [images for _, images in data.batches(order, batch_size=7, threads=3)]
    np.testing.assert_array_equal(np.concatenate(got), truth[order])
    assert data.read(5) == samples[5][1]
    if labels:
        assert data.labels.tolist() == [label for _, _, label, _ in samples]
    else:
        assert data.labels is None
    if captions:
        assert list(data.captions) == [caption for _, _, _, caption in samples]
    else:
        assert data.captions is None
    again = open_dataset(data.path) if data.path else data
    assert again.fingerprint == data.fingerprint
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(again)).images([3, 1]), truth[[3, 1]])


# --- one's own format ---


class Jsonl:
    """The example of the documentation: an image a line."""

    def __init__(self, path):
        self.rows = [json.loads(line) for line in open(path, encoding="utf-8")]  # noqa: SIM115
        self.keys = [row["id"] for row in self.rows]
        self.labels = [row["label"] for row in self.rows]
        self.captions = [row["caption"] for row in self.rows]

    def read(self, item):
        return bytes.fromhex(self.rows[item]["image"])


@pytest.fixture
def jsonl(tmp_path, samples):
    lines = [
        json.dumps({"id": key, "image": blob.hex(), "label": label, "caption": text})
        for key, blob, label, text in samples
    ]
    (tmp_path / "images.jsonl").write_text("\n".join(lines))
    return Jsonl(tmp_path / "images.jsonl")


def test_a_format_of_ones_own(jsonl, samples, truth):
    data = open_dataset(jsonl)
    np.testing.assert_array_equal(data.images(range(24)), truth)
    assert list(data.keys) == [key for key, *_ in samples]
    assert data.labels.tolist() == jsonl.labels
    assert list(data.captions) == jsonl.captions
    assert open_dataset(jsonl).fingerprint == data.fingerprint
    jsonl.rows[3] = jsonl.rows[4] | {"id": jsonl.rows[3]["id"]}
    assert open_dataset(jsonl).fingerprint != data.fingerprint
    with pytest.raises(InputError, match=r"Jsonl: s003.*checksum differs"):
        data.images([3])


def test_the_loader_reads_a_format_of_ones_own(jsonl, truth):
    from prunefast.select import Coreset

    data = open_dataset(jsonl)
    for placement in ("disk", "pack", "memory"):
        loader = CoresetLoader(data, Coreset.full(data), batch_size=5, epochs=1, placement=placement)
        for batch in loader:
            np.testing.assert_array_equal(batch.images.permute(0, 2, 3, 1).numpy(), truth[batch.index.numpy()])


def test_a_run_cannot_open_a_format_of_ones_own_again_and_says_so(jsonl, tmp_path):
    for signature in ("", "v1", "v1"):  # not kept, kept, from the cache
        jsonl.signature = signature
        open_dataset(jsonl).save_items(tmp_path / "items.parquet")
        with pytest.raises(
            InputError, match=r"items.parquet: its images came from a Source of your own \(Jsonl\)"
        ) as caught:
            open_run_dataset(tmp_path / "items.parquet")
        assert "\n" not in str(caught.value)


def test_a_kept_table_spares_the_reading(jsonl):
    jsonl.signature = "v1"
    jsonl.name = "my-images"
    open_dataset(jsonl)
    real, count = jsonl.read, []
    jsonl.read = lambda item: count.append(item) or real(item)
    open_dataset(jsonl)
    assert not count
    jsonl.signature = "v2"
    open_dataset(jsonl)
    assert count


def test_what_a_reader_does_wrong_is_its_own(jsonl):
    data = open_dataset(jsonl)

    def fail(item):
        raise KeyError("no such thing")

    jsonl.read = fail
    with pytest.raises(InputError, match=r"Jsonl: s002: cannot be read \(.*fail: KeyError: 'no such thing'\)"):
        data.images([2])
    with pytest.raises(InputError, match="KeyError"):
        open_dataset(jsonl)
    jsonl.read = lambda item: "text"
    with pytest.raises(InputError, match="gave str"):
        open_dataset(jsonl)
    jsonl.read = lambda item: b"rubbish"
    with pytest.raises(InputError, match=r"s000.*is not an image"):
        open_dataset(jsonl)


def test_reading_many_at_once_may_fail_too(jsonl, truth):
    jsonl.read_many = lambda items: [jsonl.read(item) for item in items]
    data = open_dataset(jsonl)
    np.testing.assert_array_equal(data.images([5, 1]), truth[[5, 1]])
    jsonl.read_many = lambda items: [jsonl.read(items[0])]
    with pytest.raises(InputError, match="s005 and 1 more: read_many gave 1 for 2 images"):
        data.images([5, 1])

    def fail(items):
        raise OSError("disk gone")

    jsonl.read_many = fail
    with pytest.raises(InputError, match=r"s005 and 1 more: cannot be read \(.*fail: OSError: disk gone\)"):
        data.images([5, 1])


def test_two_sources_of_one_signature_are_two(jsonl, tmp_path, truth):
    jsonl.signature = "v1"
    open_dataset(jsonl)
    rows = [row | {"id": f"other-{row['id']}"} for row in jsonl.rows[:5]]
    (tmp_path / "other.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    other = Jsonl(tmp_path / "other.jsonl")
    other.signature = "v1"
    data = open_dataset(other)
    assert list(data.keys) == other.keys
    np.testing.assert_array_equal(data.images(range(5)), truth[:5])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": []}, "has no images"),
        ({"keys": ["a"] * 24}, "two keys are the same"),
        ({"labels": [0] * 23}, "23 labels for 24 images"),
        ({"labels": [-2] * 24}, "labels go from -2"),
        ({"labels": [5] * 24, "classes": ["a", "b"]}, "there are 2 classes"),
        ({"labels": [2**62] * 24}, "there are at most 65,536 classes"),  # a name for each filled the memory
        ({"captions": ["x"]}, "1 captions for 24 images"),
    ],
)
def test_what_a_source_says_is_checked(jsonl, change, message):
    for name, value in change.items():
        setattr(jsonl, name, value)
    with pytest.raises(InputError, match=message):
        open_dataset(jsonl)


def test_broken_images_of_a_source_are_set_aside(jsonl, truth):
    jsonl.rows[4]["image"] = "00ff"
    with pytest.raises(InputError, match="s004"):
        open_dataset(jsonl)
    data = open_dataset(jsonl, on_error="skip")
    assert [key for key, _ in data.skipped] == ["s004"]
    np.testing.assert_array_equal(data.images(range(23)), np.delete(truth, 4, axis=0))


# --- Parquet and saved Hugging Face data ---

FEATURES = {"image": {"_type": "Image"}, "label": {"names": ["ant", "bee", "cat", "dog"], "_type": "ClassLabel"}}


def table_of(samples, *, nested=True) -> pa.Table:
    image = [{"bytes": blob, "path": None} for _, blob, _, _ in samples] if nested else [s[1] for s in samples]
    columns = {"image": image, "label": [s[2] for s in samples], "caption": [s[3] for s in samples]}
    table = pa.table(columns)
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": FEATURES}})})


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("groups", [3, 100])
def test_a_parquet_file(tmp_path, samples, truth, nested, groups):
    pq.write_table(table_of(samples, nested=nested), tmp_path / "a.parquet", row_group_size=groups)
    data = open_dataset(tmp_path / "a.parquet")
    check(data, samples, truth)
    assert data.classes == ["ant", "bee", "cat", "dog"]


def test_a_folder_of_parquet_files_with_splits(tmp_path, samples, truth):
    (tmp_path / "data").mkdir()
    for name, part in (("train-0", samples[:10]), ("train-1", samples[10:20]), ("test-0", samples[20:])):
        pq.write_table(table_of(part), tmp_path / "data" / f"{name}000-of-00002.parquet", row_group_size=4)
    np.testing.assert_array_equal(open_dataset(tmp_path).images(range(20)), truth[:20])
    assert open_dataset(tmp_path).split == "train"
    np.testing.assert_array_equal(open_dataset(tmp_path, split="test").images(range(4)), truth[20:])
    assert len(open_dataset(tmp_path, split="all")) == 24
    with pytest.raises(InputError, match="no such split"):
        open_dataset(tmp_path, split="val")


def test_a_saved_data_set(tmp_path, samples, truth):
    datasets = pytest.importorskip("datasets", reason="the peer is not installed")
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=list("abcd")), caption=datasets.Value("string")
    )
    rows = {
        "image": [{"bytes": blob, "path": None} for _, blob, _, _ in samples],
        "label": [s[2] for s in samples],
        "caption": [s[3] for s in samples],
    }
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved", num_shards=3)
    data = open_dataset(tmp_path / "saved")
    check(data, samples, truth)
    assert data.classes == list("abcd")
    assert data._records.handles(np.arange(24))  # by place, not through Arrow


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_arrow_files_by_hand(tmp_path, samples, truth, kind):
    table = table_of(samples)
    opened = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
    with pa.OSFile(str(tmp_path / "d.arrow"), "wb") as file, opened(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "d.arrow"}]}))
    check(open_dataset(tmp_path), samples, truth)


def test_parquet_that_cannot_be_read(tmp_path, samples):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": [1, 2]}), path)
    with pytest.raises(InputError, match=r"which column holds the images.*x \(int64\)"):
        open_dataset(path)
    pq.write_table(pa.table({"one": [b"a"], "two": [b"b"]}), path)
    with pytest.raises(InputError, match="which column"):
        open_dataset(path)
    pq.write_table(table_of(samples), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not readable Parquet"):
        open_dataset(path)
    pq.write_table(table_of(samples).slice(0, 0), path)
    with pytest.raises(InputError, match="has no rows"):
        open_dataset(path)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("{}", "does not name the data files"),
        ("rubbish", "does not name the data files"),
        ('{"_data_files": [{"filename": "../a.arrow"}]}', "outside its folder"),
        ('{"_data_files": [{"filename": "no.arrow"}]}', "no.arrow"),
    ],
)
def test_a_saved_data_set_that_lies(tmp_path, state, message):
    (tmp_path / "state.json").write_text(state)
    with pytest.raises(InputError, match=message):
        open_dataset(tmp_path)


# --- WebDataset ---


def write_shards(root, samples, *, count=3, json_notes=False):
    root.mkdir(exist_ok=True)
    for shard in range(count):
        with tarfile.open(root / f"shard-{shard:04}.tar", "w") as archive:
            for key, blob, label, text in samples[shard::count]:
                notes = {"cls": str(label).encode(), "txt": text.encode()}
                if json_notes:
                    notes = {"json": json.dumps({"label": label, "caption": text}).encode()}
                suffix = "jpg" if blob[:2] == b"\xff\xd8" else "png"
                for ending, content in {suffix: blob, **notes}.items():
                    info = tarfile.TarInfo(f"{key}.{ending}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return root


@pytest.mark.parametrize("json_notes", [False, True])
def test_webdataset_shards(tmp_path, samples, truth, json_notes):
    check(open_dataset(write_shards(tmp_path / "shards", samples, json_notes=json_notes)), samples, truth)


def test_one_webdataset_tar(tmp_path, samples, truth):
    root = write_shards(tmp_path / "shards", samples, count=1)
    check(open_dataset(root / "shard-0000.tar"), samples, truth)


def test_shards_written_by_webdataset(tmp_path, samples, truth):
    webdataset = pytest.importorskip("webdataset", reason="the peer is not installed")
    (tmp_path / "shards").mkdir()
    with webdataset.ShardWriter(str(tmp_path / "shards" / "%05d.tar"), maxcount=9, verbose=0) as writer:
        for key, blob, label, text in samples:
            suffix = "jpg" if blob[:2] == b"\xff\xd8" else "png"
            writer.write({"__key__": key, suffix: blob, "cls": label, "txt": text})
    check(open_dataset(tmp_path / "shards"), samples, truth)


def test_shards_that_cannot_be_used(tmp_path, samples):
    root = write_shards(tmp_path / "twice", samples)
    (root / "shard-0009.tar").write_bytes((root / "shard-0000.tar").read_bytes())
    with pytest.raises(InputError, match=r"s000\.jpg.*shard-0000\.tar.*shard-0009\.tar"):
        open_dataset(root)
    for content, message in ((b"dog", "no whole number"), (b"-1", "from 0"), (b"9" * 9, "from 0")):
        root = tmp_path / "bad.tar"
        with tarfile.open(root, "w") as archive:
            for name, data in (("a.jpg", samples[0][1]), ("a.cls", content)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        with pytest.raises(InputError, match=message):
            open_dataset(root)


# --- LMDB ---


def test_lmdb(tmp_path, samples, truth):
    lmdb = pytest.importorskip("lmdb", reason="the package is not installed")
    with lmdb.open(str(tmp_path / "db"), map_size=1 << 26) as environment, environment.begin(write=True) as transaction:
        for key, blob, *_ in samples:
            transaction.put(key.encode(), blob)
        transaction.put(b"__len__", b"24")
    data = open_dataset(tmp_path / "db")
    check(data, samples, truth, labels=False, captions=False)
    assert list(data.keys) == [key for key, *_ in samples]


def test_an_lmdb_that_takes_the_place_of_another(tmp_path, samples, truth):
    lmdb = pytest.importorskip("lmdb", reason="the package is not installed")
    for name, shift in (("db", 0), ("new", 1)):
        folder = str(tmp_path / name)
        with lmdb.open(folder, map_size=1 << 26) as environment, environment.begin(write=True) as transaction:
            for place, (key, *_) in enumerate(samples):
                transaction.put(key.encode(), samples[(place + shift) % 24][1])
    before = open_dataset(tmp_path / "db")
    np.testing.assert_array_equal(before.images(range(24)), truth)
    (tmp_path / "db").rename(tmp_path / "old")
    (tmp_path / "new").rename(tmp_path / "db")
    after = open_dataset(tmp_path / "db")
    np.testing.assert_array_equal(after.images(range(24)), np.roll(truth, -1, axis=0))
    assert after.fingerprint != before.fingerprint


def test_lmdb_without_images_or_broken(tmp_path):
    lmdb = pytest.importorskip("lmdb", reason="the package is not installed")
    with lmdb.open(str(tmp_path / "db"), map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"a", b"text")
    with pytest.raises(InputError, match="no value is an image"):
        open_dataset(tmp_path / "db")
    (tmp_path / "rubbish").mkdir()
    (tmp_path / "rubbish" / "data.mdb").write_bytes(b"\0" * 8192)
    with pytest.raises(InputError, match="not a readable LMDB"):
        open_dataset(tmp_path / "rubbish")
