"""A folder of images, flat or with class sub-folders, with or without train/ and test/ above them."""

import os
import stat

import numpy as np

from prunefast.data.listing import MAX_LABEL_FILE_BYTES, Listing, is_hidden, is_image_name, is_label_file
from prunefast.data.storage import explain_read_error
from prunefast.errors import InputError

_COMMON_SUFFIXES = frozenset([".jpg", ".png"])
_KIND, _REGULAR = 0o170000, 0o100000  # of st_mode


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
        here_names: list[str] = []  # three lists, not one of tuples: those would keep the garbage collector busy
        here_sizes: list[int] = []
        here_times: list[int] = []
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    name = entry.name
                    # this line runs for every image and every opening: no call before the common case is settled
                    if (name[-4:] in _COMMON_SUFFIXES and name[0] != ".") or is_image_name(name):
                        status = entry.stat()
                        if status.st_mode & _KIND == _REGULAR:
                            here_names.append(name)
                            here_sizes.append(status.st_size)
                            here_times.append(status.st_mtime_ns)
                            continue
                        if not stat.S_ISDIR(status.st_mode):
                            raise InputError(f"{entry.path}: is a pipe or device, not a file; remove it")
                    if entry.is_dir():
                        if is_hidden(f"{name}/"):
                            continue
                        if entry.is_symlink():
                            status = entry.stat()
                            if (status.st_dev, status.st_ino) in linked:
                                continue
                            linked.add((status.st_dev, status.st_ino))
                        pending.append(f"{relative}{name}/")
                    elif is_label_file(relative + name):
                        with open(entry.path, "rb") as file:
                            label_files[relative + name] = file.read(MAX_LABEL_FILE_BYTES)
        except OSError as error:
            place = error.filename or here
            if os.path.islink(place) and not os.path.exists(place):
                raise InputError(f"{place}: is a link to nothing; remove or repair it") from None
            raise explain_read_error(error, place) from None
        order = sorted(range(len(here_names)), key=here_names.__getitem__)
        names += [relative + here_names[row] for row in order]
        sizes += map(here_sizes.__getitem__, order)
        times += map(here_times.__getitem__, order)
        pending.sort(reverse=True)
    return Listing(
        names=names,
        length=np.array(sizes, dtype=np.int64),
        root=path,
        mtime_ns=np.array(times, dtype=np.int64),
        label_files=label_files,
    )
