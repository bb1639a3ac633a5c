"""The zip that EDM's and StyleGAN's loaders read: files of at most 1,000 a folder, stored, and dataset.json."""

import json
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

from prunefast.export.items import Job

_MADE = (1980, 1, 1, 0, 0, 0)  # the same export gives the same bytes
_A_FOLDER = 1000


@dataclass(frozen=True)
class EdmOptions:
    """No options."""


def write(job: Job, target: Path, options: EdmOptions) -> None:
    indices = job.coreset.indices
    sizes = set(zip(job.data.widths[indices].tolist(), job.data.heights[indices].tolist(), strict=True))
    if len(sizes) > 1 or any(width != height for width, height in sizes):
        warnings.warn(
            "edm: the images are not squares of one size, which EDM's loader refuses; its dataset_tool.py makes them "
            "so from this zip (--source)",
            stacklevel=4,
        )
    labels: list[list[str | int]] = []
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for number, item in enumerate(job.items()):
            name = f"{number // _A_FOLDER:05d}/img{number:08d}{item.suffix}"
            archive.writestr(zipfile.ZipInfo(name, _MADE), item.content)
            if item.label is not None:
                labels.append([name, item.label])
        for name, value in (("dataset.json", {"labels": labels or None}), ("export.json", job.record)):
            archive.writestr(zipfile.ZipInfo(name, _MADE), json.dumps(value, ensure_ascii=False))
