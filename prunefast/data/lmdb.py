"""LMDB environments whose values are image files, by key. Needs the package lmdb (`prunefast[lmdb]`)."""

import os
import threading
from typing import Any

from prunefast.data.cache import digest, file_signature
from prunefast.data.decode import FORMATS
from prunefast.errors import InputError, MissingDependencyError

DATA_FILE = "data.mdb"
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"BM", b"GIF8", b"RIFF", b"II*\0", b"MM\0*", b"P5", b"P6")


_ENVIRONMENTS: dict[tuple[tuple[int, int], int], Any] = {}
_LOCK = threading.Lock()


class LmdbSource:
    """Images of an LMDB folder: every key whose value begins as an image file does, in the order of the keys."""

    def __init__(self, path: str):
        self.name = path
        self.signature = digest(file_signature(os.path.join(path, DATA_FILE)))
        status = os.stat(os.path.join(path, DATA_FILE))
        self._file = (status.st_dev, status.st_ino)  # not the path: another environment may take its place
        self._names: list[bytes] = []
        with self._open().begin(buffers=True) as transaction:
            for key, value in transaction.cursor():
                if bytes(value[:4]).startswith(_MAGIC):
                    self._names.append(bytes(key))
        if not self._names:
            raise InputError(f"{path}: no value is an image file ({', '.join(FORMATS)}); keep files as they are in it")
        self.keys = [name.decode("utf-8", "backslashreplace") for name in self._names]

    def read(self, item: int) -> bytes:
        with self._open().begin() as transaction:
            data = transaction.get(self._names[item])
        if data is None:
            raise InputError(f"{self.name}: {self.keys[item]}: is gone since the data set was opened; open it again")
        return data

    def _open(self) -> Any:
        """The environment, one a process: LMDB's may neither be opened twice nor be used after a fork."""
        key = (self._file, os.getpid())
        with _LOCK:
            if key not in _ENVIRONMENTS:
                try:
                    import lmdb
                except ImportError:
                    raise MissingDependencyError(
                        f"{self.name}: is an LMDB environment; reading it needs lmdb (pip install 'prunefast[lmdb]')"
                    ) from None
                try:
                    _ENVIRONMENTS[key] = lmdb.open(self.name, readonly=True, lock=False, readahead=False)
                except lmdb.Error as error:
                    raise InputError(f"{self.name}: is not a readable LMDB environment ({error})") from None
            return _ENVIRONMENTS[key]


def is_lmdb(folder: str) -> bool:
    return os.path.isfile(os.path.join(folder, DATA_FILE))
