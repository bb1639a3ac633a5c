"""What a source of images holds, before any image is looked at: names and places of bytes.

Every format (folder.py, tar.py, zip.py, cifar.py, arrays.py) ends in a `Listing`; from there on all are alike. The
rules that turn names into splits, labels and keys are here, so that a folder and the tar made of it give the same data
set.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from prunefast.errors import InputError

_JPEG_SUFFIXES = [".jpg", ".jpeg", ".jpe", ".jfif"]
_OTHER_SUFFIXES = [".png", ".bmp", ".dib", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".avif"]
IMAGE_SUFFIXES = frozenset(_JPEG_SUFFIXES + _OTHER_SUFFIXES)
SPLIT_NAMES = ("train", "test", "val", "valid", "validation")
LABEL_FILE = "dataset.json"  # EDM's: {"labels": [["00000/img00000000.png", 6], ...]} or {"labels": null}
MAX_LABEL_FILE_BYTES = 1 << 28
_IGNORED_FOLDERS = frozenset(["__MACOSX", "@eaDir"])

Layout = Literal["encoded", "hwc", "chw"]
"""How the bytes of an item make an image: a file of some image format, or raw uint8 rows."""


@dataclass
class Listing:
    """Items of a source in columns: one Python string an item, everything else in arrays.

    `container[i]` numbers the file of `containers` (absolute paths) that holds item i's bytes [offset, offset +
    length); without `container`, item i is the file `root/names[i]`. `expanded[i]` is the size after raw deflate, or -1
    where the bytes lie as they are. `split` and `label` (indices into `classes`) are None where names decide.
    """

    names: list[str]
    length: np.ndarray  # int64 [N], bytes
    root: str = ""
    containers: list[str] = field(default_factory=list)
    container: np.ndarray | None = None  # int32 [N]
    offset: np.ndarray | None = None  # int64 [N]
    expanded: np.ndarray | None = None  # int64 [N]
    mtime_ns: np.ndarray | None = None  # int64 [N]: part of the fingerprint
    label_files: dict[str, bytes] = field(default_factory=dict)  # EDM's dataset.json by name, where there is one
    layout: Layout = "encoded"
    height: int = 0  # raw layouts: one shape for all
    width: int = 0
    channels: int = 3
    label: np.ndarray | None = None  # int64 [N]
    caption: Sequence[str | None] | None = None
    all_images: bool = False  # every row is an image, whatever its name
    source: Any = None  # a `Source` that reads the items, and their numbers in it, int64 [N]
    rows: np.ndarray | None = None
    sums: np.ndarray | None = None  # uint64 [N], xxh3 of the items, where they are known already
    classes: list[str] = field(default_factory=list)
    split: str | None = None
    content: str = ""  # a digest of the pixels, where the format can give one

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: Sequence[int] | np.ndarray) -> "Listing":
        """The listing of some rows, in that order."""
        rows = np.asarray(rows, dtype=np.int64)

        def cut(column: np.ndarray | None) -> np.ndarray | None:
            return None if column is None else column[rows]

        values = dict(self.__dict__)
        values.update(
            names=[self.names[row] for row in rows.tolist()],
            length=self.length[rows],
            container=cut(self.container),
            offset=cut(self.offset),
            expanded=cut(self.expanded),
            mtime_ns=cut(self.mtime_ns),
            label=cut(self.label),
            caption=None if self.caption is None else [self.caption[row] for row in rows.tolist()],
            rows=cut(self.rows),
            sums=cut(self.sums),
        )
        return Listing(**values)


def is_image_name(name: str) -> bool:
    """Whether a relative path names an image: by suffix; hidden files and folders are none."""
    return name[name.rfind(".") :].lower() in IMAGE_SUFFIXES and not is_hidden(name)


def is_hidden(name: str) -> bool:
    """Dot files, and what macOS and NAS systems leave in folders and archives."""
    if name[0] == ".":
        return True
    return "/" in name and ("/." in name or not _IGNORED_FOLDERS.isdisjoint(name.split("/")[:-1]))


def is_label_file(name: str) -> bool:
    """EDM's dataset.json, at the top or in the one wrapping folder."""
    return name.rpartition("/")[2] == LABEL_FILE and name.count("/") <= 1


def check_member_name(archive: str, name: str) -> None:
    """Refuse a name that would leave the folder the archive stands for."""
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or (len(parts[0]) == 2 and parts[0][1] == ":"):
        raise InputError(
            f"{archive}: member {name!r} points outside the archive; do not use this file, or pack it again without it"
        )
    if "\0" in name:
        raise InputError(f"{archive}: member {name!r} has a zero byte in its name; pack the archive again")


def last_of_each_name(names: Sequence[str]) -> list[int] | None:
    """Rows that remain when of members of one name the last counts, as unpacking would have it; None where all are
    different.
    """
    last = {name: row for row, name in enumerate(names)}
    return None if len(last) == len(names) else sorted(last.values())


def wrapping_folder(names: Sequence[str]) -> str:
    """The one top folder that wraps everything, with its slash, or "".

    It is looked through when class folders or splits lie in it; a lone folder of images is a class, and a lone split a
    split.
    """
    if not names:
        return ""
    top, slash, _ = names[0].partition("/")
    prefix = top + slash
    if not slash or top in SPLIT_NAMES:
        return ""
    if not all(name.startswith(prefix) for name in names):
        return ""
    skip = len(prefix)
    return prefix if any("/" in name[skip:] for name in names) else ""


def splits_of(names: Sequence[str]) -> list[str]:
    """The splits whose folders make up the whole top level, or []."""
    tops = {name.partition("/")[0] if "/" in name else "" for name in names}
    return [split for split in SPLIT_NAMES if split in tops] if tops and tops <= set(SPLIT_NAMES) else []


def choose_split(source: str, splits: Sequence[str], split: str | None) -> str:
    """The split to open out of those there are: the one asked for, or "train", or everything."""
    if split is None:
        return "train" if "train" in splits else "all"
    if split == "all" or split in splits:
        return split
    there = f"it has {', '.join(splits)}" if splits else "it has no train/ and test/ folders"
    raise InputError(
        f"split={split!r}: {source} has no such split ({there}); choose one of those, 'all', or leave split out"
    )


def labels_from_names(source: str, names: Sequence[str], split: str) -> tuple[np.ndarray | None, list[str], list[int]]:
    """Labels of items by their class folder.

    Returns (labels int64 [N] or None for a flat folder, sorted class names, rows that lie beside the class folders and
    get -1).
    """
    splits = SPLIT_NAMES if splits_of(names) else ()
    folders: list[str | None] = []
    for name in names:
        parts = name.split("/")
        depth = 1 if parts[0] in splits and len(parts) > 1 else 0
        folders.append(parts[depth] if len(parts) > depth + 1 else None)
    classes = sorted({folder for folder in folders if folder is not None})
    if not classes:
        return None, [], []
    number: dict[str | None, int] = {folder: k for k, folder in enumerate(classes)}
    labels = np.fromiter((number.get(folder, -1) for folder in folders), dtype=np.int64, count=len(folders))
    return labels, classes, np.flatnonzero(labels < 0).tolist()
