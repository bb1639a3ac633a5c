"""A folder of images, flat or with class sub-folders, with or without train/ and test/ above them."""

import os
import stat

import numpy as np

from prunefast.data.listing import MAX_LABEL_FILE_BYTES, Listing, is_hidden, is_image_name, is_label_file
from prunefast.data.storage import explain_read_error
from prunefast.errors import InputError


def list_folder(path: str) -> Listing:
    """Every image file below `path` with its size and time of last change, in a fixed order.

    Hidden files and what is no image by its suffix are left out; links are followed, and a loop of them ends.
    """
    names: list[str] = []
    sizes: list[int] = []
    times: list[int] = []
    label_files: dict[str, bytes] = {}
    linked: set[tuple[int, int]] = set()
    pending = [""]
    root = path.rstrip("/") + "/"
    while pending:
        relative = pending.pop()
        here = root + relative
        rows: list[tuple[str, int, int]] = []
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    name = entry.name
                    if entry.is_dir():
                        if is_hidden(f"{name}/"):
                            continue
                        if entry.is_symlink():
                            status = entry.stat()
                            if (status.st_dev, status.st_ino) in linked:
                                continue
                            linked.add((status.st_dev, status.st_ino))
                        pending.append(f"{relative}{name}/")
                    elif is_image_name(name):
                        here = entry.path
                        status = entry.stat()
                        if not stat.S_ISREG(status.st_mode):
                            raise InputError(f"{here}: is a pipe or device, not a file; remove it")
                        rows.append((name, status.st_size, status.st_mtime_ns))
                    elif is_label_file(relative + name):
                        here = entry.path
                        with open(here, "rb") as file:
                            label_files[relative + name] = file.read(MAX_LABEL_FILE_BYTES)
        except FileNotFoundError as error:
            if os.path.islink(here):
                raise InputError(f"{here}: is a link to nothing; remove or repair it") from None
            raise explain_read_error(error, here) from None
        except OSError as error:
            raise explain_read_error(error, here) from None
        if rows:
            rows.sort()
            name_column, size_column, time_column = zip(*rows, strict=True)
            names.extend([relative + name for name in name_column])
            sizes.extend(size_column)
            times.extend(time_column)
        pending.sort(reverse=True)
    return Listing(
        names=names,
        length=np.array(sizes, dtype=np.int64),
        root=path,
        mtime_ns=np.array(times, dtype=np.int64),
        label_files=label_files,
    )
