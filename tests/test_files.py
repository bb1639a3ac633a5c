"""Atomic writing: whole or not at all, and nothing left over."""

import errno
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prunefast.errors import InputError, MachineError
from prunefast.files import (
    TEMPORARY_PREFIX,
    RunFolder,
    atomic_folder,
    atomic_path,
    lock_folder,
    read_json,
    remove_folder,
    remove_leftovers,
    write_json,
)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})

    def write_and_fail() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_and_fail()
    assert read_json(path) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["value.json"]


def test_a_failed_folder_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with atomic_folder(path) as temporary:
        (temporary / "file").write_text("old")

    def write_and_fail() -> None:
        with atomic_folder(path) as temporary:
            (temporary / "file").write_text("new")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_and_fail()
    assert (path / "file").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]
    with atomic_folder(path) as temporary:
        (temporary / "other").write_text("new")
    assert [entry.name for entry in path.iterdir()] == ["other"]


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, MachineError), (errno.EROFS, InputError), (errno.EIO, MachineError)]
)
def test_errors_of_the_disk_name_the_file(tmp_path: Path, number: int, kind: type[Exception]) -> None:
    path = tmp_path / "file.bin"

    def write_and_fail() -> None:
        with atomic_path(path):
            raise OSError(number, "reason")

    with pytest.raises(kind, match=r"file\.bin"):
        write_and_fail()
    assert not list(tmp_path.iterdir())


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_json(tmp_path / "ours", 1)
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_leftovers_of_a_killed_process_go(tmp_path: Path) -> None:
    (tmp_path / f"{TEMPORARY_PREFIX}abc.json").write_text("half")
    (tmp_path / f"{TEMPORARY_PREFIX}folder").mkdir()
    (tmp_path / "kept").write_text("")
    remove_leftovers(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"a": 1'])
def test_broken_json_names_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.json").write_bytes(content)
    with pytest.raises(InputError, match=r"broken\.json"):
        read_json(tmp_path / "broken.json")


def test_json_is_strict(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"a": float("nan"), "b": [1.5, float("-inf"), (float("nan"),)], "c": {"d": 1}})
    assert read_json(path) == {"a": None, "b": [1.5, None, [None]], "c": {"d": 1}}
    assert "NaN" not in path.read_text()


@pytest.mark.parametrize("content", [b"[" * 100_000, b"{", b"\xff\xfe", b""])
def test_json_that_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "value.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"value\.json: is not readable JSON"):
        read_json(path)


def test_a_folder_where_a_file_should_go(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match="taken: is a folder where a file is needed"):
        write_json(tmp_path / "taken", 1)
    with pytest.raises(InputError, match="taken: cannot be read"):
        read_json(tmp_path / "taken")
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken"]


def test_a_folder_is_removed_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_text("")

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove_folder(folder)
    assert not folder.exists()
    remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_held_by_one(tmp_path: Path) -> None:
    with lock_folder(tmp_path, "working"), pytest.raises(InputError, match="another process is working there"):
        lock_folder(tmp_path, "working").__enter__()
    with lock_folder(tmp_path, "working"):
        pass
    assert not list(tmp_path.iterdir())


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from prunefast.files import lock_folder\n"
        "with lock_folder(sys.argv[1], 'working'): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-P", "-c", script, str(tmp_path)], check=False).returncode == -9
    with lock_folder(tmp_path, "working"):
        pass


def test_an_empty_name_is_not_the_working_directory() -> None:
    with pytest.raises(InputError, match="empty name"):
        RunFolder("")
    assert RunFolder(".").items == Path("items.parquet")
