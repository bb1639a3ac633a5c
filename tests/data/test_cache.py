"""The cache: fast second openings, never a stale or broken table, safe with several processes."""

import io
import json
import lzma
import multiprocessing
import os
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from prunefast.data import open as opening
from prunefast.data import open_dataset, open_run_dataset, table
from prunefast.data.cache import digest
from prunefast.errors import InputError


@pytest.fixture
def builds(monkeypatch):
    """Counts how often an item table is built."""
    calls = []
    real = opening.build_table

    def counted(*arguments, **options):
        calls.append(arguments[0])
        return real(*arguments, **options)

    monkeypatch.setattr(opening, "build_table", counted)
    return calls


def tables_in(cache):
    return sorted(Path(cache).rglob("*.parquet"))


def test_the_second_opening_builds_nothing(write_folder, files, builds, tmp_path):
    root, cache = write_folder(files), tmp_path / "cache"
    first = open_dataset(root, cache_dir=cache)
    second = open_dataset(root, cache_dir=cache)
    assert len(builds) == 1
    assert second.table.equals(first.table)
    assert second.fingerprint == first.fingerprint
    assert pq.read_schema(tables_in(cache)[0]).names == [
        "key",
        "label",
        "container",
        "offset",
        "length",
        "width",
        "height",
        "expanded",
        "sum",
        "caption",
    ]
    open_dataset(root, split="test", cache_dir=cache)
    open_dataset(root, on_error="skip", cache_dir=cache)
    assert len(builds) == 3  # other questions, other tables
    for _ in range(2):
        for options in ({}, {"split": "test"}, {"on_error": "skip"}):
            open_dataset(root, cache_dir=cache, **options)
    assert len(builds) == 3


@pytest.mark.parametrize("change", ["size", "time", "new", "gone", "renamed"])
def test_a_changed_folder_is_another_data_set(write_folder, files, builds, change):
    root = write_folder(files)
    before = open_dataset(root).fingerprint
    target = root / "train/cat/0.jpg"
    if change == "size":
        times = target.stat()
        target.write_bytes(target.read_bytes() + b"\0")
        os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))
    elif change == "time":
        os.utime(target, ns=(1, 1_234_567_890_123_456_789))
    elif change == "new":
        (root / "train/cat/9.jpg").write_bytes(target.read_bytes())
    elif change == "gone":
        target.unlink()
    else:
        target.rename(root / "train/cat/7.jpg")
    after = open_dataset(root)
    assert len(builds) == 2
    assert after.fingerprint != before
    assert set(after.keys) == {str(p.relative_to(root)) for p in (root / "train").rglob("*.*")}


def test_a_moved_folder_is_the_same_data_set(write_folder, files, tmp_path):
    root = write_folder(files)
    before = open_dataset(root)
    root.rename(tmp_path / "elsewhere")
    after = open_dataset(tmp_path / "elsewhere")
    assert after.fingerprint == before.fingerprint
    assert after.path == str(tmp_path / "elsewhere")


def archive_of(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return lzma.compress(buffer.getvalue())


def test_an_expanded_archive(tmp_path, files, builds):
    path, cache = tmp_path / "a.tar.xz", tmp_path / "cache"
    path.write_bytes(archive_of(files))
    data = open_dataset(path, cache_dir=cache)
    (expanded,) = cache.rglob("*.tar")
    assert str(expanded) in data.notices[0]
    assert "MB" in data.notices[0]
    stamp = expanded.stat().st_mtime_ns
    first = data.images([0])
    assert open_dataset(path, cache_dir=cache).notices == data.notices
    assert (len(builds), expanded.stat().st_mtime_ns) == (1, stamp)
    # other splits share the expanded copy
    open_dataset(path, cache_dir=cache, split="test")
    assert [expanded] == list(cache.rglob("*.tar"))
    assert expanded.stat().st_mtime_ns == stamp
    # a copy that somebody deleted or damaged is made again
    for damage in (expanded.unlink, lambda: os.truncate(next(cache.rglob("*.tar")), 700)):
        damage()
        np.testing.assert_array_equal(open_dataset(path, cache_dir=cache).images([0]), first)
    np.testing.assert_array_equal(open_dataset(path, cache_dir=cache).images([0]), first)
    # a new archive at the path replaces the old copy
    (cache / "unrelated").write_bytes(b"")
    path.write_bytes(archive_of({name: files[name] for name in list(files)[:6]}))
    changed = open_dataset(path, cache_dir=cache)
    assert len(changed) == 6
    assert len(list(cache.rglob("*.tar"))) == 1
    assert (cache / "unrelated").exists()


@pytest.mark.parametrize("damage", ["empty", "rubbish", "cut", "no metadata", "other version", "other columns"])
def test_a_damaged_table_is_built_again_without_a_word(write_folder, files, builds, tmp_path, damage):
    root, cache = write_folder(files), tmp_path / "cache"
    good = open_dataset(root, cache_dir=cache)
    (path,) = tables_in(cache)
    content = path.read_bytes()
    stored = pq.read_table(path)
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "rubbish":
        path.write_bytes(os.urandom(5000))
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "no metadata":
        pq.write_table(stored.replace_schema_metadata({}), path)
    elif damage == "other version":
        text = json.dumps(json.loads(stored.schema.metadata[b"prunefast"]) | {"version": 0}).encode()
        metadata = {b"prunefast": text, b"prunefast-digest": digest(text).encode()}
        pq.write_table(stored.replace_schema_metadata(metadata), path)
    else:
        pq.write_table(stored.drop_columns(["offset"]), path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = open_dataset(root, cache_dir=cache)
    assert len(builds) == 2
    assert again.table.equals(good.table)
    open_dataset(root, cache_dir=cache)
    assert len(builds) == 2


def test_a_cache_that_cannot_be_written(write_folder, files, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.warns(UserWarning, match="cache_dir"):
            data = open_dataset(write_folder(files), cache_dir=place)
        data.images([0])
    (tmp_path / "a.tar.xz").write_bytes(archive_of(files))
    with pytest.raises(InputError, match="cache_dir"):  # needs a place to expand to
        open_dataset(tmp_path / "a.tar.xz", cache_dir=tmp_path / "file")


def test_where_the_cache_is(monkeypatch, tmp_path):
    from prunefast.data.cache import default_cache_folder

    monkeypatch.setenv("PRUNEFAST_CACHE", str(tmp_path / "own"))
    assert default_cache_folder() == tmp_path / "own"
    monkeypatch.delenv("PRUNEFAST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_folder() == tmp_path / "xdg" / "prunefast"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / ".cache" / "prunefast"


def open_and_sum(arguments):
    path, cache, barrier = arguments
    barrier.wait()
    data = open_dataset(path, cache_dir=cache)
    return data.fingerprint, int(data.images(range(len(data))).astype(np.int64).sum())


def test_processes_at_once(tmp_path, files):
    """Four processes open a compressed archive at the same moment; all see the same, one copy remains, nothing half-
    written.
    """
    path, cache = tmp_path / "a.tar.xz", tmp_path / "cache"
    path.write_bytes(archive_of(files))
    context = multiprocessing.get_context("fork")
    with context.Manager() as manager, context.Pool(4) as pool:
        barrier = manager.Barrier(4)
        results = pool.map(open_and_sum, [(str(path), str(cache), barrier)] * 4, chunksize=1)
    assert len(set(results)) == 1
    assert len(list(cache.rglob("*.tar"))) == 1
    assert not [name for name in cache.rglob(".*") if name.is_file()]


def test_leftovers_of_a_killed_process_are_cleared(write_folder, files, tmp_path):
    root, cache = write_folder(files), tmp_path / "cache"
    open_dataset(root, cache_dir=cache)
    (path,) = tables_in(cache)
    left = path.parent / ".prunefast-tmp-abc.tar"
    left.write_bytes(b"half")
    path.unlink()
    open_dataset(root, cache_dir=cache)
    assert not left.exists()


def test_save_items_and_open_again(write_folder, files, tmp_path):
    root = write_folder(files)
    data = open_dataset(root, split="test", image_size=8)
    data.save_items(tmp_path / "run" / "items.parquet")
    again = open_run_dataset(tmp_path / "run" / "items.parquet")
    assert (again.split, again.image_size, again.fingerprint) == ("test", 8, data.fingerprint)
    np.testing.assert_array_equal(again.images(range(3)), data.images(range(3)))
    stored, info = table.load_table(tmp_path / "run" / "items.parquet")
    assert stored.equals(data.table)
    assert info.path == str(root)
    (root / "test/cat/0.jpg").write_bytes(files["test/dog/0.jpg"])
    with pytest.raises(InputError, match="files changed"):
        open_run_dataset(tmp_path / "run" / "items.parquet")
    with pytest.raises(InputError, match="no such file"):
        open_run_dataset(tmp_path / "run" / "nothing.parquet")
    (tmp_path / "run" / "items.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="not an item table"):
        open_run_dataset(tmp_path / "run" / "items.parquet")


def test_arrays_cannot_be_opened_again(tmp_path):
    from prunefast.data import from_arrays

    from_arrays(np.zeros((2, 4, 4), np.uint8)).save_items(tmp_path / "items.parquet")
    with pytest.raises(InputError, match="npz"):
        open_run_dataset(tmp_path / "items.parquet")


def test_progress_goes_to_standard_error_and_only_when_asked(write_folder, files, capfd, tmp_path):
    root = write_folder(files)
    open_dataset(root, cache_dir=tmp_path / "one")
    assert capfd.readouterr() == ("", "")
    open_dataset(root, cache_dir=tmp_path / "two", progress=True)
    assert capfd.readouterr().out == ""
