"""Writing files so that nothing half-written is ever left in place, and the layout of a run folder."""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prunefast.errors import InputError, MachineError

TEMPORARY_PREFIX = ".prunefast-tmp-"


def explain_os_error(error: OSError, path: Path) -> Exception:
    """The error to raise instead of `error`, met while writing `path`: says whose fault it is and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MachineError(f"{path}: no space left on the disk; free some or choose another output folder")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InputError(f"{path}: cannot be written ({error.strerror}); choose a folder you may write to")
    if error.errno == errno.ENOTDIR:
        return InputError(f"{path}: a file stands where a folder is needed; choose another output folder")
    if isinstance(error, MachineError | InputError):
        return error
    return MachineError(f"{path}: {error.strerror or error}")


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Create a folder and its parents; a clear error where that cannot be done."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(f"{path}: is a file, not a folder; choose another output folder") from None
    except OSError as error:
        raise explain_os_error(error, path) from None
    return path


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path`; on success it is flushed to disk and renamed to `path`, on any error removed."""
    path = Path(path)
    make_folder(path.parent)
    try:
        descriptor, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, suffix=path.suffix, dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
    except OSError as error:
        raise explain_os_error(error, path) from None
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        # mkstemp makes private files; the result gets the permissions any new file would
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise explain_os_error(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Like `atomic_path` for a folder with files in it. A folder that stands at `path` is replaced."""
    path = Path(path)
    make_folder(path.parent)
    try:
        temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=path.parent))
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
    except OSError as error:
        raise explain_os_error(error, path) from None
    try:
        yield temporary
        for file_path in sorted(p for p in temporary.rglob("*") if p.is_file()):
            with open(file_path, "rb") as file:
                os.fsync(file.fileno())
        _sync_folder(temporary)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise explain_os_error(error, path) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Parse a JSON file; `InputError` naming the file where it is missing or broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: is not readable JSON ({error}); delete it and run the step again") from None


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Delete what a killed process left unfinished in `folder` (temporary names only)."""
    for path in Path(folder).glob(TEMPORARY_PREFIX + "*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


class RunFolder:
    """Names of the files of a run (design: "Files out"). Creating the object touches nothing on disk."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.items = self.path / "items.parquet"
        self.features = self.path / "features.npy"
        self.features_manifest = self.path / "features.json"
        self.scores = self.path / "scores.parquet"
        self.coreset = self.path / "coreset.parquet"
        self.train = self.path / "train"
        self.samples = self.path / "samples"
        self.metrics = self.path / "metrics.json"
        self.report = self.path / "report.html"

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"
