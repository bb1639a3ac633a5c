"""Writing files so that nothing half-written is ever left in place, and the layout of a run folder."""

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prunefast.errors import InputError, MachineError

TEMPORARY_PREFIX = ".prunefast-tmp-"
_PART_PREFIX = ".prunefast-part-"  # folders that the same work, started again, goes on in


def explain_os_error(error: OSError, path: Path) -> Exception:
    """The error to raise instead of `error`, met while writing `path`: says whose fault it is and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MachineError(f"{path}: no space left on the disk; free some or choose another output folder")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InputError(f"{path}: cannot be written ({error.strerror}); choose a folder you may write to")
    if error.errno == errno.EISDIR:
        return InputError(f"{path}: is a folder where a file is needed; remove it or choose another name")
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


def _sync_files(folder: Path) -> None:
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    _sync_folder(folder)


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
        _sync_files(temporary)
        before = path.with_name(f"{temporary.name}-before")
        if path.is_dir():
            os.replace(path, before)  # not removed: no time passes until the other has its name
        try:
            os.replace(temporary, path)
        except OSError:
            if before.exists():
                os.replace(before, path)
            raise
        _sync_folder(path.parent)
        shutil.rmtree(before, ignore_errors=True)
    except OSError as error:
        raise explain_os_error(error, path) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def resumable_folder(path: str | os.PathLike[str], work: str) -> Iterator[Path]:
    """Like `atomic_folder`, but what an interrupt or a kill leaves is found again by the same `work` (any text that
    names it) on the same `path`. An error removes it.

    So whoever fills the folder writes each file in it whole (`atomic_path`), and looks first what is there.
    """
    path = Path(path)
    with _resumable_part(path, work) as part:
        yield part
        _sync_files(part)
        if path.exists():
            shutil.rmtree(path)
        os.replace(part, path)
        _sync_folder(path.parent)


@contextlib.contextmanager
def resumable_file(path: str | os.PathLike[str], work: str) -> Iterator[Path]:
    """`resumable_folder` for one file: whoever writes it looks first how much of it is there, and is whole."""
    path = Path(path)
    with _resumable_part(path, work) as part:
        temporary = part / "part"
        yield temporary
        _sync_files(part)
        os.replace(temporary, path)
        shutil.rmtree(part, ignore_errors=True)
        _sync_folder(path.parent)


@contextlib.contextmanager
def _resumable_part(path: Path, work: str) -> Iterator[Path]:
    """The folder beside `path`, held for this process, in which `work` begins or goes on; removed on an error."""
    make_folder(path.parent)
    digest = hashlib.sha256(f"{path.name}\n{work}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
    part = path.parent / f"{_PART_PREFIX}{digest}"
    try:
        part.mkdir(exist_ok=True)
    except OSError as error:
        raise explain_os_error(error, path) from None
    with lock_folder(part, "writing"):
        try:
            for folder in [part, *(p for p in part.rglob("*") if p.is_dir())]:
                remove_leftovers(folder)
            yield part
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            raise explain_os_error(error, path) from error
        except Exception:
            shutil.rmtree(part, ignore_errors=True)
            raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    write_text(path, json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """`value` with null for NaN and infinity, which JSON does not have and strict readers refuse."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    return [finite(entry) for entry in value] if isinstance(value, list | tuple) else value


def read_json(path: str | os.PathLike[str]) -> Any:
    """Parse a JSON file; `InputError` naming the file where it is missing or broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:  # RecursionError: brackets nested by the thousand
        raise InputError(
            f"{path}: is not readable JSON ({error}); if prunefast wrote it, delete it and run the step again"
        ) from None


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Delete what a killed process left unfinished in `folder` (temporary names only)."""
    for path in Path(folder).glob(TEMPORARY_PREFIX + "*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def remove_folder(folder: str | os.PathLike[str]) -> None:
    """Delete a folder at once: a process killed in the middle leaves a temporary name, never half a folder."""
    folder = Path(folder)
    doomed = folder.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    try:
        os.replace(folder, doomed)
    except OSError as error:
        raise explain_os_error(error, folder) from None
    shutil.rmtree(doomed, ignore_errors=True)


@contextlib.contextmanager
def lock_folder(folder: str | os.PathLike[str], work: str) -> Iterator[None]:
    """Hold `folder` (which exists) for one process; the system lets go of it when that ends, however it ends.

    InputError where another process holds it; `work` says what it is doing there. The lock is on the folder itself:
    nothing is written, and it goes with nothing that is copied.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise explain_os_error(error, Path(folder)) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{folder}: another process is {work} there; wait for it or choose another folder"
            ) from None
        except OSError:
            pass  # a file system without locks: go on without
        yield
    finally:
        os.close(descriptor)


def folder_names(classes: Sequence[str], taken: Sequence[str] = ()) -> list[str]:
    """A folder name for each class: the class name where it is one (and not `taken`), and no path out of the folder."""
    names: list[str] = []
    for number, name in enumerate(classes):
        plain = "".join("_" if c in '/\\:*?"<>|' or ord(c) < 32 else c for c in name).strip(" .")
        free = plain and plain not in names and plain not in taken
        names.append(plain if free else f"{plain or 'class'}-{number}")
    return names


class RunFolder:
    """Names of the files of a run (design: "Files out"). Creating the object touches nothing on disk."""

    def __init__(self, path: str | os.PathLike[str]):
        if not os.fspath(path):  # an unset shell variable, most likely: not a wish for the working directory
            raise InputError("the run folder has an empty name; name it, or give . for the working directory")
        self.path = Path(path)
        self.items = self.path / "items.parquet"
        self.features = self.path / "features.npy"
        self.features_manifest = self.path / "features.json"
        self.knn = self.path / "knn.npz"
        self.scores = self.path / "scores.parquet"
        self.groups = self.path / "groups.parquet"
        self.pairs = self.path / "pairs.parquet"
        self.coreset = self.path / "coreset.parquet"
        self.class_weights = self.path / "class_weights.json"
        self.reweight = self.path / "reweight"  # the proxy's training folder
        self.train = self.path / "train"
        self.samples = self.path / "samples"
        self.metrics = self.path / "metrics.json"
        self.report = self.path / "report.html"

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"
