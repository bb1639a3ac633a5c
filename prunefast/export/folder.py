"""A folder of links to the kept files, or of copies, by class."""

import errno
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prunefast.errors import InputError
from prunefast.export.items import Item, Job
from prunefast.files import TEMPORARY_PREFIX, folder_names

LINKS = ("auto", "symlink", "hardlink", "copy")


@dataclass(frozen=True)
class FolderOptions:
    """link  "symlink", "hardlink" or "copy"; "auto" makes symlinks where the data set is a folder, else copies"""

    link: str = "auto"

    def __post_init__(self) -> None:
        if self.link not in LINKS:
            raise InputError(f"link: {self.link!r} is not one of {', '.join(LINKS)}")


def write(job: Job, target: Path, options: FolderOptions) -> None:
    files = job.data.files
    link = options.link if options.link != "auto" else ("copy" if files is None else "symlink")
    if link != "copy" and files is None:
        raise InputError(f"link: {job.data.path or 'data in memory'} is no folder of files to link to; use link='copy'")
    classes = folder_names(job.coreset.classes)
    missing = [
        place
        for place in range(len(job.coreset))
        if not os.path.lexists(target / _place(job.item(place), job.coreset.classes, classes))
    ]
    for item in job.items(read=link == "copy", places=np.array(missing, dtype=np.int64)):
        place = target / _place(item, job.coreset.classes, classes)
        place.parent.mkdir(parents=True, exist_ok=True)
        if link == "copy":
            temporary = target / f"{TEMPORARY_PREFIX}copy"
            temporary.write_bytes(item.content)
            os.replace(temporary, place)  # whole or not there; flushed with all others at the end
            continue
        source = job.source(item.index)
        if link == "symlink":
            place.symlink_to(source)
        else:
            _hardlink(source, place)


def _place(item: Item, classes: list[str], folders: list[str]) -> str:
    """The item's key, below a folder of its class where the key does not lie in one."""
    if item.label is None or classes[item.label] in item.name.split("/")[:-1]:
        return item.name
    return f"{folders[item.label]}/{item.name}"


def _hardlink(source: str, place: Path) -> None:
    try:
        os.link(source, place)
    except OSError as error:
        if error.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK):
            raise InputError(
                f"link: {source} cannot be hard-linked from {place.parent} ({error.strerror}); use link='symlink'"
            ) from None
        raise
