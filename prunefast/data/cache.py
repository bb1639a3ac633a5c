"""The cache: item tables, and compressed archives expanded once. One folder a source, written by one process at a time.

Everything in it can be deleted at any time and is made again; nothing in it is trusted without a check.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from prunefast.errors import InputError, MachineError, PrunefastError
from prunefast.files import make_folder, remove_leftovers

try:
    import fcntl
except ImportError:  # no such locks on this system: two processes do the work twice, and the last one's file stays
    fcntl = None  # type: ignore[assignment]


def default_cache_folder() -> Path:
    """$PRUNEFAST_CACHE, else $XDG_CACHE_HOME/prunefast, else ~/.cache/prunefast."""
    if own := os.environ.get("PRUNEFAST_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "prunefast"
    except RuntimeError:
        raise InputError(
            "cache_dir: this user has no home folder; set cache_dir= or the variable PRUNEFAST_CACHE"
        ) from None


class CacheEntry:
    """What is kept about the source at one absolute path."""

    def __init__(self, path: str, cache_dir: str | os.PathLike[str] | None):
        base = default_cache_folder() if cache_dir is None else Path(cache_dir)
        readable = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in os.path.basename(path))[
            -40:
        ]
        self.folder = base.absolute() / f"{digest(path)[:16]}-{readable}"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the entry's lock, so that of several processes one does the work and the others find it done.

        Raises InputError where the cache cannot be written. The lock goes with the process, however it ends.
        """
        try:
            make_folder(self.folder)
            descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except (PrunefastError, OSError) as error:
            kind = MachineError if isinstance(error, MachineError) else InputError
            raise kind(
                f"{self.folder}: the cache cannot be written ({error}); set cache_dir= or PRUNEFAST_CACHE"
            ) from None
        try:
            if fcntl is not None:
                with contextlib.suppress(OSError):  # network file systems without locks
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                    remove_leftovers(
                        self.folder
                    )  # of a process that was killed: only the holder of the lock writes here
            yield
        finally:
            os.close(descriptor)


def digest(*parts: str | bytes | memoryview) -> str:
    """128 bits of BLAKE2b in hex; parts are set apart by their lengths."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()


def file_signature(path: str | os.PathLike[str]) -> str:
    """Changes with the path, size, time of last change and inode of a file."""
    status = os.stat(path)
    return digest(os.fspath(path), f"{status.st_size} {status.st_mtime_ns} {status.st_ino} {status.st_dev}")
