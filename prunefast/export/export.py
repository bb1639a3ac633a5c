"""`export`: checks, the table of formats, and that a target is written whole or not at all."""

import dataclasses
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import prunefast
from prunefast.data import ImageDataset
from prunefast.errors import InputError, InputTypeError
from prunefast.export import dali, edm, folder, hf, plain, webdataset
from prunefast.export.items import Job
from prunefast.files import resumable_file, resumable_folder, write_json
from prunefast.score.options import make_options
from prunefast.score.parquet_file import to_json
from prunefast.select import Coreset

RECORD = "export.json"


@dataclasses.dataclass(frozen=True)
class Format:
    """write(job, target, options) makes the file or folder `target`; `use` says how to read it."""

    write: Callable[[Job, Path, Any], None]
    options: type
    single_file: bool
    use: str


FORMATS = {
    "hf": Format(
        hf.write,
        hf.HfOptions,
        False,
        'datasets.load_dataset("parquet", data_files="{out}/*.parquet"); or, for a datasets.Dataset of the same images '
        'in the same order: dataset.select(numpy.load("{out}/indices.npy"))',
    ),
    "webdataset": Format(
        webdataset.write,
        webdataset.WebdatasetOptions,
        False,
        'webdataset.WebDataset("{out}/shard-{{000000..{last:06d}}}.tar").decode("pil"); DALI: readers.webdataset with '
        "the .idx files beside the shards",
    ),
    "folder": Format(folder.write, folder.FolderOptions, False, 'torchvision.datasets.ImageFolder("{out}")'),
    "edm": Format(edm.write, edm.EdmOptions, True, "EDM's train.py --data={out} (--cond=1 with labels)"),
    "txt": Format(plain.write_txt, plain.PlainOptions, True, "one key a line, in the order of the data set"),
    "npy": Format(
        plain.write_npy,
        plain.PlainOptions,
        False,
        'torch.utils.data.Subset(dataset, numpy.load("{out}/indices.npy"))',
    ),
    "dali": Format(
        dali.write,
        dali.DaliOptions,
        False,
        "fn.readers.file(file_root=..., file_list=...) or fn.readers.webdataset(paths=..., index_paths=...): the "
        "arguments are in {out}/export.json",
    ),
}


def export(
    data: ImageDataset,
    coreset: Coreset,
    out: str | os.PathLike[str],
    *,
    to: str,
    progress: bool = False,
    **options: Any,
) -> Path:
    """Write what `coreset` keeps of `data` to `out` in the format `to`, and return the path.

    to   "hf"          Hugging Face datasets: parquet with image, label, index, key, weight (copy=True puts the bytes of
                       files into it, False their paths), and indices.npy, indices.arrow
         "webdataset"  tar shards of at most shard_megabytes (256): NNN.jpg, NNN.cls, NNN.json; a DALI index beside each
         "folder"      link="symlink", "hardlink" or "copy" (default "auto": symlinks where there are files)
         "edm"         a zip, stored, with dataset.json
         "txt", "npy"  keys; a folder with indices.npy and weights.npy
         "dali"        file_list.txt for a folder, index files over the tars where they lie

    `out` is written under a temporary name first, and an export that was interrupted goes on where it was when it is
    called again. Where `out` holds the same export nothing is done; anything else there is an InputError. So are a
    coreset of other data and a source that the format cannot be made from.
    """
    if to not in FORMATS:
        raise InputError(f"to: {to!r} is not one of {', '.join(FORMATS)}")
    chosen = FORMATS[to]
    made: Any = make_options(chosen.options, to, options)
    if not isinstance(coreset, Coreset):
        raise InputTypeError(f"coreset: a Coreset is needed, not {type(coreset).__name__}; Coreset.load reads one")
    if coreset.data_fingerprint != data.fingerprint:
        raise InputError("coreset: was selected from another data set; open the data it was made from")
    if not len(coreset):
        raise InputError("coreset: keeps no image, there is nothing to export")
    if not os.fspath(out):
        raise InputError("out: is empty; give the name of a file or folder")
    target = Path(out)
    job = Job(data, coreset, progress)
    record = to_json(
        {
            "format": to,
            "options": dataclasses.asdict(made),
            "images": len(coreset),
            "of": coreset.total,
            "classes": coreset.classes,
            "coreset": coreset.fingerprint,
            "data": {"path": data.path, "split": data.split, "fingerprint": data.fingerprint},
            "manifest": coreset.manifest,
            "package_version": prunefast.__version__,
        }
    )
    if already(target, record, job):
        return target
    work = json.dumps(record, sort_keys=True)
    if chosen.single_file:
        with resumable_file(target, work) as temporary:
            job.record = record
            chosen.write(job, temporary, made)
    else:
        with resumable_folder(target, work) as temporary:
            chosen.write(job, temporary, made)
            write_json(temporary / RECORD, {**record, **job.arguments})
    return target


def already(target: Path, record: dict[str, Any], job: Job) -> bool:
    """Whether `target` holds this very export; InputError where it holds anything else."""
    if not target.exists() and not target.is_symlink():
        return False
    if target.is_dir():
        if FORMATS[record["format"]].single_file:
            raise InputError(f"{target}: is a folder where a file is to be written; name a file")
        if not any(target.iterdir()):
            return False
        found = _read(lambda: (target / RECORD).read_text(encoding="utf-8"))
    elif record["format"] == "txt":
        if target.read_bytes() == plain.keys_text(job).encode():
            return True
        found = None
    else:
        found = _read(lambda: zipfile.ZipFile(target).read(RECORD).decode())
    if isinstance(found, dict) and all(found.get(key) == value for key, value in record.items()):
        return True
    raise InputError(f"{target}: exists and is another export, or none; choose another name or delete it")


def _read(text: Callable[[], str]) -> Any:
    try:
        return json.loads(text())
    except (OSError, ValueError, KeyError, RecursionError, zipfile.BadZipFile):
        return None


def usage(to: str, out: Path) -> str:
    """How the export at `out` is read, for people."""
    last = len(list(out.glob("shard-*.tar"))) - 1 if to == "webdataset" else 0
    return FORMATS[to].use.format(out=out, last=last)
