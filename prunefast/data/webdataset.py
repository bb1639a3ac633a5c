"""WebDataset shards: tars whose members of one stem are a sample (000.jpg, 000.cls, 000.txt, 000.json).

Images are read by their place, as in any tar; labels (.cls: a number, .json: its "label" or "cls") and captions (.txt,
.json: its "caption" or "text") come along.
"""

import json
import os
from collections.abc import Sequence

import numpy as np

from prunefast.data.listing import Listing, is_hidden, is_image_name
from prunefast.data.storage import Storage
from prunefast.data.tar import list_tar
from prunefast.errors import InputError

_LABEL, _TEXT, _JSON = ".cls", ".txt", ".json"
MAX_SIDE_FILE_BYTES = 1 << 16


def shard_files(folder: str) -> list[str]:
    """The tars of a folder that holds nothing but shards (and hidden or text files), or []."""
    names = sorted(name for name in os.listdir(folder) if not is_hidden(name))
    tars = [name for name in names if name.endswith(".tar")]
    if not tars or any(is_image_name(name) or os.path.isdir(os.path.join(folder, name)) for name in names):
        return []
    return [os.path.join(folder, name) for name in tars]


def list_shards(source: str, files: Sequence[str]) -> Listing:
    """The members of several tars as one listing. A sample's name may occur in one shard only."""
    parts = [list_tar(file) for file in files]
    names = [name for part in parts for name in part.names]
    if len(set(names)) != len(names):
        seen: dict[str, str] = {}
        for file, part in zip(files, parts, strict=True):
            for name in part.names:
                if name in seen:
                    raise InputError(
                        f"{source}: {name!r} is in {os.path.basename(seen[name])} and in {os.path.basename(file)}; "
                        "give every sample a name of its own"
                    )
                seen[name] = file
    return Listing(
        names=names,
        length=np.concatenate([part.length for part in parts]),
        containers=list(files),
        container=np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts]),
        offset=np.concatenate([part.offset for part in parts if part.offset is not None]),
        mtime_ns=np.concatenate([part.mtime_ns for part in parts if part.mtime_ns is not None]),
    )


def with_side_files(source: str, listing: Listing, containers: list[tuple[str, int, int]]) -> Listing:
    """The listing with the labels and captions that lie beside its images; as it is where there are none.

    Every image needs a label where one has one.
    """
    place = {name: row for row, name in enumerate(listing.names) if name.endswith((_LABEL, _TEXT, _JSON))}
    if not place:
        return listing
    images = [row for row, name in enumerate(listing.names) if is_image_name(name)]
    storage = Storage(
        listing.names, listing.root, containers, listing.container, listing.offset, listing.length, listing.expanded
    )

    def beside(row: int, suffix: str) -> bytes | None:
        name = listing.names[row]
        at = place.get(_stem(name) + suffix)
        if at is None:
            return None
        if listing.length[at] > MAX_SIDE_FILE_BYTES:
            raise InputError(
                f"{source}: {listing.names[at]} has {int(listing.length[at]):,} bytes; too many for a note"
            )
        return storage.read(at)

    labels: list[int | None] = []
    captions: list[str | None] = []
    for row in images:
        number, text = beside(row, _LABEL), beside(row, _TEXT)
        note = None if number is not None and text is not None else beside(row, _JSON)
        values = _json(source, listing.names[row], note) if note is not None else {}
        labels.append(_label(source, listing.names[row], number, values))
        caption = values.get("caption", values.get("text"))
        if text is not None:
            caption = text.decode("utf-8", "replace").strip()
        captions.append(caption if isinstance(caption, str) else None)
    listing = listing.take(images)
    found = [label for label in labels if label is not None]
    if found:
        if len(found) < len(labels):
            missing = listing.names[labels.index(None)]
            raise InputError(f"{source}: {missing} has no label beside it, others have; add {_stem(missing)}{_LABEL}")
        listing.label = np.array(found, dtype=np.int64)
        listing.classes = [str(k) for k in range(int(listing.label.max()) + 1)]
    if any(caption is not None for caption in captions):
        listing.caption = captions
    return listing


def _stem(name: str) -> str:
    """Up to the first dot of the file's name, as WebDataset has it."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _json(source: str, name: str, note: bytes) -> dict:
    try:
        value = json.loads(note)
    except (ValueError, RecursionError):
        raise InputError(f"{source}: {_stem(name)}{_JSON} is not readable JSON") from None
    return value if isinstance(value, dict) else {}


def _label(source: str, name: str, number: bytes | None, values: dict) -> int | None:
    label = values.get("label", values.get("cls"))
    if number is not None:
        try:
            label = int(number)
        except ValueError:
            raise InputError(f"{source}: {_stem(name)}{_LABEL} holds {number[:20]!r}, no whole number") from None
    if label is None or isinstance(label, bool) or not isinstance(label, int):
        return None
    if not 0 <= label < 1 << 16:
        raise InputError(f"{source}: the label of {name} is {label}; labels are whole numbers from 0 to 65,535")
    return label
