"""Compressed files expanded once into the cache, so that every item can be read by its offset afterwards."""

import bz2
import contextlib
import gzip
import lzma
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from prunefast.data.cache import CacheEntry, file_signature
from prunefast.errors import InputError, MachineError
from prunefast.files import atomic_path
from prunefast.progress import progress as show_progress

_CHUNK = 4 << 20
_BOMB_RATIO = 250  # no archive of images shrinks so far ...
_BOMB_BYTES = 1 << 30  # ... and below this size it does not matter
_KEPT_FREE = 256 << 20  # bytes left free on the disk of the cache


class ByteStream(Protocol):
    """What is read from: `gzip`, `bz2`, `lzma` files and their like."""

    def read(self, size: int, /) -> bytes: ...
    def close(self) -> None: ...


Check = Callable[[bytes], str | None]
"""Looks at the first bytes that come out; a reason to stop, or None."""


def compression_of(head: bytes) -> str | None:
    if head[:2] == b"\x1f\x8b":
        return "gzip"
    if head[:3] == b"BZh":
        return "bzip2"
    if head[:6] == b"\xfd7zXZ\0":
        return "xz"
    return None


def expand_once(path: str, kind: str, suffix: str, check: Check, entry: CacheEntry, progress: bool) -> str:
    """Path of the expanded copy of `path`, made if it is not there."""

    def opened() -> ByteStream:
        if kind == "gzip":
            return gzip.open(path, "rb")
        if kind == "bzip2":
            return bz2.open(path, "rb")
        return lzma.open(path, "rb")

    return expand_stream(path, opened, file_signature(path), suffix, check, entry, progress)


def expand_stream(
    path: str,
    opened: Callable[[], ByteStream],
    signature: str,
    suffix: str,
    check: Check,
    entry: CacheEntry,
    progress: bool,
) -> str:
    """Like `expand_once` for any stream of bytes that belongs to `path`; `signature` names its state."""
    found = _whole_copy(entry.folder, signature, suffix)
    if found is None:
        with entry.locked():
            found = _whole_copy(entry.folder, signature, suffix)  # by another process, while this one waited
            if found is None:
                for old in entry.folder.glob(f"*{suffix}"):  # of an earlier state of this source, or damaged
                    old.unlink(missing_ok=True)
                fresh = entry.folder / f"fresh{suffix}"
                size = _write(path, opened, fresh, check, progress)
                found = entry.folder / f"{signature}-{size}{suffix}"
                fresh.rename(found)
    return str(found)


def _whole_copy(folder: Path, signature: str, suffix: str) -> Path | None:
    """The expanded copy that has the size its name says."""
    for file in folder.glob(f"{signature}-*{suffix}"):
        if file.name == f"{signature}-{file.stat().st_size}{suffix}":
            return file
    return None


def _write(path: str, opened: Callable[[], ByteStream], target: Path, check: Check, progress: bool) -> int:
    """Write the expanded bytes to `target`; how many there were."""
    packed = max(os.stat(path).st_size, 1)
    written = 0
    broken = (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError)
    title = f"expanding {os.path.basename(path)} into {target}"
    with (
        atomic_path(target) as temporary,
        open(temporary, "wb") as out,
        show_progress(title, None, "MB", silent=not progress) as bar,
    ):
        try:
            stream = opened()
        except broken as error:
            raise InputError(f"{path}: cannot be expanded ({error}); the file is damaged, copy it again") from None
        with contextlib.closing(stream):
            while True:
                try:
                    chunk = stream.read(_CHUNK)
                except broken as error:
                    raise InputError(
                        f"{path}: cannot be expanded ({error}); the file is damaged, copy it again"
                    ) from None
                if not written and (reason := check(chunk)):
                    raise InputError(f"{path}: {reason}")
                if not chunk:
                    break
                written += len(chunk)
                if written > _BOMB_BYTES and written > _BOMB_RATIO * packed:
                    raise InputError(
                        f"{path}: expands to over {_BOMB_RATIO} times its size, likely a decompression bomb; do not "
                        "use it"
                    )
                if shutil.disk_usage(target.parent).free < _KEPT_FREE + len(chunk):
                    raise MachineError(
                        f"{target.parent}: no space left to expand {path}; free some, or set cache_dir= to another disk"
                    )
                out.write(chunk)
                bar.advance(round(len(chunk) / 1e6))
    return written
