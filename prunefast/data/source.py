"""Images of any format by number: the protocol, and reading through it.

Formats whose records lie as they are in some file (folders, tars, zips, arrays, Arrow) end in a `Listing` of places and
are read natively. Everything else is a `Source`: Parquet and LMDB here, and any that a user writes.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from prunefast.data.storage import Storage
from prunefast.errors import InputError, PrunefastError


@runtime_checkable
class Source(Protocol):
    """What `open_dataset` needs of a format it does not know.

        class Jsonl:  # {"id": ..., "image": base64, "label": ...} a line
            def __init__(self, path):
                self.rows = [json.loads(line) for line in open(path)]
                self.keys = [row["id"] for row in self.rows]
                self.labels = [row["label"] for row in self.rows]
                self.signature = str(os.stat(path).st_mtime_ns)

            def read(self, item):
                return base64.b64decode(self.rows[item]["image"])

        data = pf.open_dataset(Jsonl("images.jsonl"))

    keys       N different names
    read       the bytes of image `item`, as a file of some image format would have them; called from several threads
    Optional attributes:
    labels     whole numbers [N] from 0 on, -1: none; classes: their names, default the numbers
    captions   N texts
    name       for messages, default the class' name
    signature  text that changes when the images do: the item table is then kept between openings
    read_many  (items: list of numbers) -> list of bytes, where reading several at once is cheaper
    """

    @property
    def keys(self) -> Sequence[str]: ...

    def read(self, item: int) -> bytes: ...


class SourceStorage(Storage):
    """The bytes of a source's items; `rows` int64 [N] are their numbers in the source.

    Raises InputError naming the item for whatever the source fails with, and for anything but bytes.
    """

    native = False

    def __init__(
        self,
        source: Source,
        names: Sequence[str],
        rows: np.ndarray,
        length: np.ndarray,
        sums: np.ndarray | None = None,
    ):
        super().__init__(names, "", [], None, None, length, None, sums)
        self.source = source
        self.rows = rows

    def describe(self, item: int) -> str:
        return f"{source_name(self.source)}: {self.names[item]}"

    def read_raw(self, item: int) -> bytes:
        data = self._ask(self.describe(item), self.source.read, int(self.rows[item]))
        return self._check(item, self._checked_bytes(item, data))

    def head(self, item: int, limit: int) -> bytes:
        return self.read_raw(item)[:limit]

    def read_many(self, items: np.ndarray) -> list[bytes]:
        many = getattr(self.source, "read_many", None)
        if many is None or len(items) < 2:
            return [self.read_raw(item) for item in items.tolist()]
        first = f"{self.describe(int(items[0]))} and {len(items) - 1:,} more"
        blobs = self._ask(first, many, self.rows[items].tolist())
        if len(blobs) != len(items):
            raise InputError(
                f"{first}: read_many gave {len(blobs):,} for {len(items):,} images; it has to give each one"
            )
        return [
            self._check(item, self._checked_bytes(item, blob)) for item, blob in zip(items.tolist(), blobs, strict=True)
        ]

    def _ask(self, what: str, read: Callable[[Any], Any], asked: Any) -> Any:
        """read(asked), its failure said of `what`."""
        try:
            return read(asked)
        except (PrunefastError, MemoryError):
            raise
        except Exception as error:  # whatever a user's reader fails with belongs to what was read
            text = " ".join(str(error).split())[:200] or "no text"
            name = getattr(read, "__qualname__", "read")
            raise InputError(f"{what}: cannot be read ({name}: {type(error).__name__}: {text})") from error

    def _checked_bytes(self, item: int, data: Any) -> bytes:
        if not isinstance(data, bytes | bytearray | memoryview):
            raise InputError(
                f"{self.describe(item)}: its source gave {type(data).__name__}; `read` has to give the bytes of an "
                "image file"
            )
        return bytes(data)


def source_name(source: Source) -> str:
    return os.fspath(getattr(source, "name", "") or type(source).__name__)
