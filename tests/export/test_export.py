"""Every format read back by the tool it is for where that is installed, else by its documented form."""

import csv
import io
import json
import os
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import prunefast
from prunefast.data import from_arrays, open_dataset
from prunefast.errors import InputError, InputTypeError
from prunefast.export import FORMATS, export
from prunefast.select import Coreset


def jpeg(seed: int, size=(24, 24)) -> bytes:
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def files() -> dict[str, bytes]:
    return {
        f"{name}/{k}.{'jpeg' if k == 3 else 'jpg'}": jpeg(10 * k + len(name))
        for name in ("cat", "mouse")
        for k in range(6)
    }


@pytest.fixture
def folder(files, tmp_path):
    root = tmp_path / "photos"
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.fixture
def archive(files, tmp_path):
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return tmp_path / "photos.tar"


@pytest.fixture
def raw(tmp_path):
    rng = np.random.default_rng(3)
    np.savez(tmp_path / "raw.npz", images=rng.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8), labels=np.arange(12) % 3)
    return tmp_path / "raw.npz"


def chosen(data) -> Coreset:
    return Coreset.from_indices(data, [1, 3, 4, 7, 10], weights=[1.0, 0.5, 2.0, 1.0, 1.0])


@pytest.fixture(params=["folder", "archive", "raw"])
def data(request):
    return open_dataset(request.getfixturevalue(request.param))


def test_folder_as_imagefolder_reads_it(data, tmp_path):
    """torchvision's rule: the class is the folder, classes are sorted by name, files by path."""
    coreset = chosen(data)
    out = export(data, coreset, tmp_path / "out", to="folder", link="copy")
    paths = sorted(
        path.relative_to(out).as_posix() for path in out.glob("*/*") if path.suffix in (".jpg", ".jpeg", ".png")
    )
    assert len(paths) == 5
    by_class = sorted((data.classes[data.labels[i]], data.keys[i]) for i in coreset.indices)
    assert [path.split("/")[0] for path in paths] == [name for name, _ in by_class]
    for path, (_, key) in zip(paths, by_class, strict=True):
        pixels = np.asarray(Image.open(out / path).convert("RGB"))
        assert np.abs(pixels.astype(int) - data.image(list(data.keys).index(key))).max() <= 1
    datasets = pytest.importorskip("torchvision.datasets")
    found = datasets.ImageFolder(str(out))
    assert [os.path.relpath(path, out) for path, _ in found.samples] == paths


@pytest.mark.parametrize("link", ["auto", "symlink", "hardlink", "copy"])
def test_links_hold_the_bytes_and_nothing_is_encoded_again(folder, files, tmp_path, link):
    data = open_dataset(folder)
    out = export(data, chosen(data), tmp_path / "out", to="folder", link=link)
    found = sorted(path for path in out.rglob("*.jp*g"))
    assert [path.relative_to(out).as_posix() for path in found] == [data.keys[i] for i in (1, 3, 4, 7, 10)]
    for path in found:
        name = path.relative_to(out).as_posix()
        assert path.read_bytes() == files[name]
        assert path.is_symlink() == (link in ("auto", "symlink"))
        assert (not path.is_symlink() and os.path.samefile(path, folder / name)) == (link == "hardlink")


def test_webdataset_by_its_own_reader(data, tmp_path):
    wds = pytest.importorskip("webdataset")
    coreset = chosen(data)
    out = export(data, coreset, tmp_path / "out", to="webdataset")
    samples = list(wds.WebDataset(str(out / "shard-000000.tar"), shardshuffle=False))
    assert [int(sample["__key__"]) for sample in samples] == coreset.indices.tolist()
    for sample, weight in zip(samples, coreset.weights, strict=True):
        index = int(sample["__key__"])
        assert int(sample["cls"]) == data.labels[index]
        assert json.loads(sample["json"]) == {"key": data.keys[index], "index": index, "weight": weight}
        image = next(sample[kind] for kind in ("jpg", "jpeg", "png") if kind in sample)
        if data.encoded:
            assert image == data.read(index)
        else:
            assert (np.asarray(Image.open(io.BytesIO(image))) == data.image(index)).all()


def test_shards_are_cut_and_dalis_index_points_at_the_bytes(tmp_path):
    """The format of DALI's wds2idx: "v1.2 SAMPLES", then extension, offset, size and name of each file of a sample."""
    rng = np.random.default_rng(0)
    data = from_arrays(rng.integers(0, 256, (30, 200, 200, 3), dtype=np.uint8))
    out = export(data, Coreset.full(data), tmp_path / "out", to="webdataset", shard_megabytes=1)
    shards = sorted(out.glob("*.tar"))
    assert len(shards) == json.loads((out / "export.json").read_text())["shards"] > 2
    seen = []
    for shard in shards:
        assert shard.stat().st_size < 1_200_000
        first, *lines = shard.with_suffix(".idx").read_text().splitlines()
        assert first == f"v1.2 {len(lines)}"
        content = shard.read_bytes()
        with tarfile.open(shard) as tar:
            members = {member.name: member for member in tar}
        for line in lines:
            words = line.split(" ")
            for extension, offset, size, name in zip(*[iter(words)] * 4, strict=True):
                assert members[name].offset_data == int(offset)
                assert members[name].size == int(size)
                if extension == "png":
                    seen.append(int(name.split(".")[0]))
                    assert content[int(offset) :][:4] == b"\x89PNG"
    assert seen == list(range(30))


def test_the_same_coreset_gives_the_same_bytes(folder, tmp_path):
    data = open_dataset(folder)
    for to, name in (("webdataset", "shard-000000.tar"), ("edm", ""), ("hf", "data-00000.parquet")):
        one, two = (export(data, chosen(data), tmp_path / f"{to}-{k}.zip", to=to) for k in (1, 2))
        assert (one / name).read_bytes() == (two / name).read_bytes() if name else one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("copy", [True, False])
def test_hf_by_datasets(data, tmp_path, copy, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    coreset = chosen(data)
    if not copy and data.files is None:
        with pytest.raises(InputError, match="copy=True"):
            export(data, coreset, tmp_path / "out", to="hf", copy=copy)
        assert not (tmp_path / "out").exists()
        return
    out = export(data, coreset, tmp_path / "out", to="hf", copy=copy)
    files = [str(path) for path in out.glob("*.parquet")]
    found = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))["train"]
    assert found["index"][:] == coreset.indices.tolist()
    assert found["key"][:] == [data.keys[i] for i in coreset.indices]
    assert found["weight"][:] == coreset.weights.tolist()
    assert found.features["label"].names == data.classes
    for row, index in zip(found, coreset.indices, strict=True):
        assert (np.asarray(row["image"].convert("RGB")) == np.asarray(_pillow(data, int(index)))).all()
    # the indices alone, for a data set that is there already
    whole = datasets.Dataset.from_dict({"row": list(range(len(data)))})
    assert whole.select(np.load(out / "indices.npy"))["row"][:] == coreset.indices.tolist()
    with pa.OSFile(str(out / "indices.arrow")) as file:
        table = pa.ipc.open_stream(file).read_all()
    assert table.schema.field("indices").type == pa.uint64()
    mapped = datasets.Dataset(whole.data, indices_table=datasets.table.InMemoryTable(table))
    assert mapped["row"][:] == coreset.indices.tolist()


def _pillow(data, index: int) -> Image.Image:
    return (
        Image.open(io.BytesIO(data.read(index))).convert("RGB") if data.encoded else Image.fromarray(data.image(index))
    )


def test_edm_as_its_loader_reads_it(data, tmp_path):
    """ImageFolderDataset of EDM: names from the zip by suffix, labels from dataset.json by name."""
    coreset = chosen(data)
    out = export(data, coreset, tmp_path / "out.zip", to="edm")
    with zipfile.ZipFile(out) as archive:
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
        names = sorted(name for name in archive.namelist() if os.path.splitext(name)[1] in (".jpg", ".jpeg", ".png"))
        labels = dict(json.loads(archive.read("dataset.json"))["labels"])
        assert [labels[name] for name in names] == data.labels[coreset.indices].tolist()
        for name, index in zip(names, coreset.indices, strict=True):
            if data.encoded:
                assert archive.read(name) == data.read(int(index))
    again = open_dataset(out)
    assert len(again) == 5
    assert again.labels.tolist() == data.labels[coreset.indices].tolist()


def test_edm_without_classes_and_with_several_sizes(tmp_path):
    for name, size in (("a", (10, 10)), ("b", (12, 10))):
        (tmp_path / "flat").mkdir(exist_ok=True)
        (tmp_path / "flat" / f"{name}.jpg").write_bytes(jpeg(1, size))
    data = open_dataset(tmp_path / "flat")
    with pytest.warns(UserWarning, match="not squares of one size"):
        out = export(data, Coreset.full(data), tmp_path / "out.zip", to="edm")
    assert json.loads(zipfile.ZipFile(out).read("dataset.json")) == {"labels": None}


def test_txt_and_npy(data, tmp_path):
    coreset = chosen(data)
    text = export(data, coreset, tmp_path / "keys.txt", to="txt").read_text()
    assert text.splitlines() == [data.keys[i] for i in coreset.indices]
    out = export(data, coreset, tmp_path / "arrays", to="npy")
    assert np.load(out / "indices.npy").tolist() == coreset.indices.tolist()
    assert np.load(out / "weights.npy").tolist() == coreset.weights.tolist()
    record = json.loads((out / "export.json").read_text())
    assert record["coreset"] == coreset.fingerprint
    assert record["data"]["fingerprint"] == data.fingerprint


def test_dali_lists(folder, archive, tmp_path):
    data = open_dataset(folder)
    out = export(data, chosen(data), tmp_path / "folder-list", to="dali")
    record = json.loads((out / "export.json").read_text())
    rows = list(csv.reader((out / record["file_list"]).read_text().splitlines(), delimiter=" "))
    assert rows == [[data.keys[i], str(data.labels[i])] for i in (1, 3, 4, 7, 10)]
    assert all(os.path.isfile(os.path.join(record["file_root"], name)) for name, _ in rows)

    data = open_dataset(archive)
    out = export(data, chosen(data), tmp_path / "tar-index", to="dali")
    record = json.loads((out / "export.json").read_text())
    assert record["paths"] == [str(archive)]
    assert record["ext"] == "jpeg;jpg"
    first, *lines = (out / record["index_paths"][0]).read_text().splitlines()
    assert first == "v1.2 5"
    content = archive.read_bytes()
    for line, index in zip(lines, (1, 3, 4, 7, 10), strict=True):
        _, offset, size, name = line.split(" ")
        assert name == data.keys[index]
        assert content[int(offset) : int(offset) + int(size)] == data.read(index)


def test_dali_says_what_it_cannot_read(raw, folder, tmp_path):
    data = open_dataset(raw)
    with pytest.raises(InputError, match="export to webdataset"):
        export(data, chosen(data), tmp_path / "out", to="dali")
    (folder / "cat" / "1.jpg").rename(folder / "cat" / "1 1.jpg")
    data = open_dataset(folder)
    with pytest.raises(InputError, match="space"):
        export(data, Coreset.full(data), tmp_path / "out", to="dali")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", FORMATS)
def test_again_does_nothing_and_anything_else_is_refused(folder, tmp_path, to):
    data = open_dataset(folder)
    out = tmp_path / ("out.zip" if to == "edm" else "out")

    def state():
        paths = [out, *sorted(out.rglob("*"))] if out.is_dir() else [out]
        return [(path, path.lstat().st_mtime_ns, path.lstat().st_ino) for path in paths]

    export(data, chosen(data), out, to=to)
    before = state()
    assert export(data, chosen(data), out, to=to) == out
    assert state() == before
    with pytest.raises(InputError, match="another export"):
        export(data, Coreset.full(data), out, to=to)
    assert state() == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("a user's own")
    with pytest.raises(InputError, match=r"another export|is a folder"):
        export(data, chosen(data), other, to=to)
    assert (other / "mine.txt").read_text() == "a user's own"


class Stopped(KeyboardInterrupt):
    """As Ctrl-C."""


@pytest.mark.parametrize("to", ["folder", "webdataset", "hf", "edm"])
def test_an_interrupted_export_goes_on(folder, tmp_path, monkeypatch, to):
    """Stopped half way and called again: the bytes of one go, and what was finished is not read again."""
    from prunefast.export import hf, items, webdataset

    data = open_dataset(folder)
    coreset = Coreset.full(data)
    monkeypatch.setattr(items, "_AT_ONCE", 1)
    monkeypatch.setattr(hf, "_ROWS", 1)
    for kind in (webdataset.WebdatasetOptions, hf.HfOptions):  # a shard an image
        monkeypatch.setattr(kind, "__post_init__", lambda self: object.__setattr__(self, "shard_megabytes", 1e-6))
    options = {"link": "copy"} if to == "folder" else {}
    whole = export(data, coreset, tmp_path / "whole", to=to, **options)
    stop, read, real = len(data) // 2, [], items.Job._contents

    def contents(self, indices):
        read.extend(indices.tolist())
        if len(read) > stop:
            raise Stopped
        return real(self, indices)

    monkeypatch.setattr(items.Job, "_contents", contents)
    with pytest.raises(Stopped):
        export(data, coreset, tmp_path / "again", to=to, **options)
    assert not (tmp_path / "again").exists()
    stop, read = 10 * len(data), []
    again = export(data, coreset, tmp_path / "again", to=to, **options)
    assert len(read) < len(data)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []
    files = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file()] if whole.is_dir() else [""]
    assert files
    for name in files:
        assert (again / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize("to", FORMATS)
def test_a_failure_leaves_nothing(folder, tmp_path, to):
    """A file that went away after the data set was opened; formats that do not read it do not mind."""
    data = open_dataset(folder)
    coreset = chosen(data)
    (folder / data.keys[7]).unlink()
    out = tmp_path / "place" / "out"
    if to in ("txt", "npy"):
        assert export(data, coreset, out, to=to).exists()
        return
    with pytest.raises(InputError, match="no such file"):
        export(data, coreset, out, to=to)
    assert list((tmp_path / "place").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"to": "tfrecord"}, InputError, "to: 'tfrecord' is not one of hf, webdataset"),
        ({"to": "folder", "link": "soft"}, InputError, "link: 'soft'"),
        ({"to": "folder", "shards": 3}, InputError, "shards: method 'folder' has no such option"),
        ({"to": "webdataset", "shard_megabytes": 0}, InputError, "shard_megabytes"),
        ({"to": "hf", "copy": "yes"}, InputTypeError, "copy"),
    ],
)
def test_bad_options(folder, tmp_path, options, error, text):
    data = open_dataset(folder)
    with pytest.raises(error, match=text):
        export(data, chosen(data), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_bad_arguments(folder, raw, tmp_path):
    data, other = open_dataset(folder), open_dataset(raw)
    with pytest.raises(InputError, match="another data set"):
        export(data, chosen(other), tmp_path / "out", to="txt")
    with pytest.raises(InputTypeError, match="Coreset"):
        export(data, [1, 2], tmp_path / "out", to="txt")
    with pytest.raises(InputError, match="keeps no image"):
        export(data, Coreset.from_indices(data, []), tmp_path / "out", to="txt")
    with pytest.raises(InputError, match="out"):
        prunefast.export(data, chosen(data), "", to="txt")
    with pytest.raises(InputError, match="link='copy'"):
        export(other, chosen(other), tmp_path / "out", to="folder", link="symlink")
    escaping = from_arrays(np.zeros((2, 4, 4, 3), np.uint8), keys=["../a", "b"])
    for to in ("folder", "hf", "webdataset"):
        with pytest.raises(InputError, match="outside"):
            export(escaping, Coreset.full(escaping), tmp_path / "out", to=to)
    lines = from_arrays(np.zeros((2, 4, 4, 3), np.uint8), keys=["a\nb", "b"])
    with pytest.raises(InputError, match="line break"):
        export(lines, Coreset.full(lines), tmp_path / "out", to="txt")
    assert not (tmp_path / "out").exists()
