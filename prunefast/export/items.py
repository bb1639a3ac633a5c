"""The kept images one after the other, as files: bytes as they lie, or PNG of raw pixels."""

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from prunefast.data import ImageDataset
from prunefast.data.listing import check_member_name
from prunefast.errors import InputError
from prunefast.progress import progress as show_progress
from prunefast.select import Coreset

_AT_ONCE = 16  # files read together: neighbours in an archive cost one system call, and memory stays small


@dataclass(frozen=True)
class Item:
    """index: position in the data set; name: its key with the suffix of its format; label: None without classes."""

    index: int
    key: str
    name: str
    content: bytes
    label: int | None
    weight: float

    @property
    def suffix(self) -> str:
        """``.jpg``, in lower case."""
        return os.path.splitext(self.name)[1].lower()


@dataclass
class Job:
    """What is exported. arguments: what a format adds to export.json; record: what a single file carries inside."""

    data: ImageDataset
    coreset: Coreset
    progress: bool = False
    record: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def names(self) -> list[str]:
        """A file name for every kept image: the key, with .png for raw pixels; none leaves the folder it goes to."""
        suffix = "" if self.data.encoded else ".png"
        keys = self.coreset.keys
        names = [keys[index] + suffix for index in self.coreset.indices]
        for name in names:
            check_member_name(self.data.path or "data", name)
        return names

    def source(self, index: int) -> str:
        """The path of an image's own file, which is there; only for a data set of files."""
        assert self.data.files is not None
        path = self.data.files(index)
        if not os.path.isfile(path):
            raise InputError(f"{path}: no such file any more; open the data set again")
        return path

    def items(self, read: bool = True, places: np.ndarray | None = None) -> Iterator[Item]:
        """The kept images in the order of the data set; `read=False` leaves `content` empty.

        places: int64, of those wanted among the kept ones (where an export that was interrupted goes on); None: all.
        """
        wanted = np.arange(len(self.coreset)) if places is None else places
        with show_progress("exporting", len(wanted), "img", silent=not self.progress) as bar:
            for start in range(0, len(wanted), _AT_ONCE):
                part = wanted[start : start + _AT_ONCE]
                indices = self.coreset.indices[part]
                contents = self._contents(indices) if read else [b""] * len(indices)
                for place, content in zip(part.tolist(), contents, strict=True):
                    yield self.item(place, content)
                bar.advance(len(indices))

    def item(self, place: int, content: bytes = b"") -> Item:
        """The kept image number `place`."""
        index, labels = int(self.coreset.indices[place]), self.coreset.labels
        label = None if labels is None else int(labels[index])
        weight = float(self.coreset.weights[place])
        return Item(index, self.coreset.keys[index], self.names[place], content, label, weight)

    def _contents(self, indices: np.ndarray) -> list[bytes]:
        if self.data.encoded:
            return self.data.read_many(indices)
        return [_png(self.data.image(int(index))) for index in indices]


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
