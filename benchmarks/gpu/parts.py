"""Files too large to travel whole: cut into NAME.part-00, NAME.part-01, ... and joined again on the machine."""

import shutil
from pathlib import Path

PART_BYTES = 30 << 20  # of 64 MB a call, beside the tree and the data


def split_file(path: Path, size: int = PART_BYTES) -> list[Path]:
    """Replaces a file by its parts; one that is small enough stays."""
    if path.stat().st_size <= size:
        return [path]
    parts = []
    with open(path, "rb") as whole:
        chunk = None
        while chunk is None or len(chunk) == size:  # the last part is shorter than the others, if need be empty
            chunk = whole.read(size)
            part = path.with_name(f"{path.name}.part-{len(parts):02d}")
            part.write_bytes(chunk)
            parts.append(part)
    path.unlink()
    return parts


def join_parts(folder: Path, target: Path) -> Path:
    """Copies of the files of `folder` in `target`, parts joined. Parts may come in several calls: a file of which some
    are missing waits in `target`, which is kept, and is not joined yet."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.iterdir()):
        if path.is_file():
            shutil.copy2(path, target / path.name)
    for first in sorted(target.glob("*.part-00")):
        whole = first.with_name(first.name.removesuffix(".part-00"))
        parts = sorted(target.glob(f"{whole.name}.part-*"))
        numbers = [int(part.name.rpartition("-")[2]) for part in parts]
        # a part that is shorter than the first is the last one: then the file is complete
        if numbers == list(range(len(parts))) and parts[-1].stat().st_size < first.stat().st_size:
            with open(whole, "wb") as file:
                for part in parts:
                    file.write(part.read_bytes())
            for part in parts:
                part.unlink()
    return target
