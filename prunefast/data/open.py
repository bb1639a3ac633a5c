"""Opening a data set: which format lies at a path, and its item table, from the cache or built."""

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from prunefast.data import arrays, arrow, cifar, expand, lmdb, native, tar, webdataset
from prunefast.data import zip as zip_format
from prunefast.data.cache import CacheEntry, digest, file_signature
from prunefast.data.dataset import ImageDataset, check_image_size
from prunefast.data.folder import list_folder
from prunefast.data.latent_files import is_latent_file, open_latent_file
from prunefast.data.latents import holds_latents, open_latents
from prunefast.data.listing import Listing, choose_split
from prunefast.data.parquet import open_parquet, parquet_files
from prunefast.data.source import Source, SourceStorage, source_name
from prunefast.data.storage import explain_read_error, open_for_reading, read_exactly
from prunefast.data.table import build_table, load_cached, load_table, save_table
from prunefast.errors import InputError, MachineError

FORMATS = (
    "an image folder, a tar (.gz, .xz, .bz2) or zip of images, a folder of WebDataset shards, Parquet or saved Hugging "
    "Face data, LMDB, CIFAR batches, or uint8 arrays (.npy, .npz)"
)


_READ_CHUNK = 256  # images of a source read at a time


@dataclass
class _Source:
    """A recognised source: a name for its state that is cheap to get ("": none, nothing is kept), its listing, which
    may not be, and what reads its items where their places do not.
    """

    signature: str
    listing: Callable[[], Listing]
    reader: Source | None = None


def open_dataset(
    path: str | os.PathLike[str] | Source,
    *,
    split: str | None = None,
    image_size: int | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = False,
    verify: bool | None = None,
) -> ImageDataset:
    """Open images at `path`: a folder, a tar or zip, WebDataset shards, a Hugging Face data set (Parquet or saved to
    disk), LMDB, CIFAR batches, or arrays, told apart by content, not by name; or a `Source` of your own.

    split       "train", "test", ...: of a source whose top level is such folders (or a CIFAR archive); "all" takes
                everything; None: "train" where there is one. The name is in `.split`.
    image_size  side R of the squares that `images` gives, pixels; None: the size all images share, if they do
    on_error    "raise": the first image with a broken header is an InputError, and so is one whose body proves broken
                when it is read. "skip": every image is decoded in full at the first opening, and those that fail are
                left out, into `.skipped`.
    cache_dir   for item tables and expanded archives; default $PRUNEFAST_CACHE, else $XDG_CACHE_HOME/prunefast, else
                ~/.cache/prunefast
    progress    show it on standard error
    verify      check every record that is read against the checksum (xxh3) taken when the data set was first opened:
                decoders give wrong pixels and no error for most single wrong bytes. None: where there are checksums;
                they are taken unasked where all records have at most 4 GiB together. True: take them in any case (every
                byte is then read once). False: neither taken nor checked.

    The first opening reads every image's header and keeps the item table in the cache; later ones check that nothing
    changed.
    Raises InputError naming the file and the fix.
    """
    if on_error not in ("raise", "skip"):
        raise InputError(f"on_error={on_error!r}: choose 'raise' or 'skip'")
    if split is not None and (not isinstance(split, str) or not split):
        raise InputError(f"split={split!r}: give the name of a split, 'all', or leave it out")
    if verify not in (None, True, False):
        raise InputError(f"verify={verify!r}: give True, False or None")
    if verify and not native.available():
        raise MachineError(
            "verify=True: the native module prunefast._images does not load here; install prunefast again"
        )
    side = check_image_size(image_size)
    if isinstance(path, Source):
        place = source_name(path)
        entry = CacheEntry(place, cache_dir)
        source = _own(path, split)
    else:
        place = _absolute(path)
        if holds_latents(place):
            latents = open_latents(place).with_image_size(side)
            if split not in (None, latents.split):
                raise InputError(f"split={split!r}: {place} holds latents of the split {latents.split!r}; leave it out")
            return latents
        if is_latent_file(place):
            if split not in (None, "all"):
                raise InputError(f"split={split!r}: {place} has no splits; leave split out")
            return open_latent_file(place, cache_dir).with_image_size(side)
        entry = CacheEntry(place, cache_dir)
        source = _recognise(place, split, entry, progress)
    signature = digest(source.signature, split or "", on_error)
    table_path = entry.folder / f"items-{digest(split or '')[:8]}-{on_error}.parquet"
    found = load_cached(table_path, signature, summed=verify is True) if source.signature else None
    if found is None:
        found = build_table(
            place,
            source.listing(),
            split=split,
            on_error=on_error,
            signature=signature,
            progress=progress,
            verify=verify,
        )
        try:
            if source.signature:
                with entry.locked():
                    save_table(table_path, *found)
        except (InputError, OSError) as error:
            warnings.warn(f"the item table is not kept, every opening will take as long: {error}", stacklevel=2)
    table, info = found
    info = replace(info, own_source=isinstance(path, Source))
    notices = [
        f"{place}: read from its expanded copy {file} ({size / 1e6:,.1f} MB)"
        for file, size, _ in info.containers
        if os.path.dirname(file) == str(entry.folder)
    ]
    verify = verify is not False
    return ImageDataset(table, info, image_size=side, notices=notices, verify=verify, source=source.reader)


def open_run_dataset(items_parquet: str | os.PathLike[str]) -> ImageDataset:
    """Open again the data set that `ImageDataset.save_items` recorded; InputError if it is not the same any more."""
    _, info = load_table(items_parquet)
    if not info.path:
        raise InputError(f"{items_parquet}: its images were arrays in memory; save them as .npz and open that instead")
    if info.own_source:
        raise InputError(
            f"{items_parquet}: its images came from a Source of your own ({info.path}), which no path opens; open "
            "it in Python and pass it, or save the images as files"
        )
    data = open_dataset(
        info.path, split=info.split, image_size=info.image_size, on_error="skip" if info.on_error == "skip" else "raise"
    )
    if data.fingerprint != info.fingerprint:
        raise InputError(
            f"{info.path}: is not what {items_parquet} was made from (files changed since); start a new run folder"
        )
    return data


def _absolute(path: str | os.PathLike[str]) -> str:
    try:
        text = os.fspath(path)
        if not isinstance(text, str):
            raise TypeError
    except TypeError:
        raise InputError(f"path={path!r}: give the path of {FORMATS}") from None
    if not text or "\0" in text:
        raise InputError(f"path={text!r}: give the path of {FORMATS}")
    return os.path.abspath(os.path.expanduser(text))


def _recognise(path: str, split: str | None, entry: CacheEntry, progress: bool) -> _Source:
    try:
        if os.path.isdir(path):
            return _recognise_folder(path, split)
        status = os.stat(path)
    except OSError as error:
        raise explain_read_error(error, path) from None
    if not os.path.isfile(path):
        raise InputError(f"{path}: is neither a file nor a folder; give {FORMATS}")
    if not status.st_size:
        raise InputError(f"{path}: is empty (0 bytes); copy or download it again")
    signature = file_signature(path)
    head = _head(path)
    if kind := expand.compression_of(head):
        return _Source(signature, lambda: _archive(path, _compressed_tar(path, kind, entry, progress), split))
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return _Source(signature, lambda: _zip(path, split, entry, progress))
    if head[:4] == b"PAR1":
        return _parquet(path, [path], split)
    if head[:6] == arrays.NPY_MAGIC:
        return _Source(signature, lambda: arrays.list_npy(path))
    if tar.is_tar_header(head):
        return _Source(signature, lambda: _archive(path, tar.list_tar(path), split))
    raise InputError(f"{path}: is none of the formats that are read here; give {FORMATS}")


def _compressed_tar(path: str, kind: str, entry: CacheEntry, progress: bool) -> Listing:
    def check(first: bytes) -> str | None:
        return None if tar.is_tar_header(first[: tar.BLOCK]) else f"is compressed, but not a tar inside; give {FORMATS}"

    return tar.list_tar(expand.expand_once(path, kind, ".tar", check, entry, progress), path)


def _zip(path: str, split: str | None, entry: CacheEntry, progress: bool) -> Listing:
    listing = zip_format.list_zip(path)
    if arrays.is_npz(listing):
        return arrays.list_npz(path, listing, entry, progress)
    return _archive(path, listing, split)


def _own(source: Source, split: str | None) -> _Source:
    """What a `Source` says of itself, checked."""
    name = source_name(source)
    keys = [str(key) for key in source.keys]
    if len(set(keys)) != len(keys) or not keys:
        raise InputError(f"{name}: {'two keys are the same' if keys else 'has no images'}; give every image a name")
    if split not in (None, "all"):
        raise InputError(f"split={split!r}: {name} has no splits; leave split out")
    said = getattr(source, "signature", "")  # not enough alone: another source of this class may say the same
    signature = digest(str(said), "\0".join(keys)) if said else ""
    return _Source(signature, lambda: _listing_of(source, keys, "all"), source)


def _listing_of(source: Source, keys: Sequence[str], split: str) -> Listing:
    """Every image of a source; each is read once, for its length and sum."""
    name, count = source_name(source), len(keys)
    labels, captions = getattr(source, "labels", None), getattr(source, "captions", None)
    if captions is not None and len(captions) != count:
        raise InputError(f"{name}: has {len(captions):,} captions for {count:,} images")
    storage = SourceStorage(source, keys, np.arange(count), np.zeros(count, dtype=np.int64))
    length, sums = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.uint64)
    for start in range(0, count, _READ_CHUNK):
        items = np.arange(start, min(start + _READ_CHUNK, count))
        for item, blob in zip(items.tolist(), storage.read_many(items), strict=True):
            length[item] = len(blob)
            sums[item] = native.xxh3(blob) if native.available() else 0
    return Listing(
        names=list(keys),
        length=length,
        label=None if labels is None else np.asarray(labels).astype(np.int64),
        classes=[str(name) for name in getattr(source, "classes", ())],
        caption=captions,
        split=split,
        content=digest(sums.tobytes()),
        all_images=True,
        source=source,
        rows=np.arange(count),
        sums=sums if native.available() else None,
    )


def _refuse_run(path: str) -> None:
    """A run holds tables about images, no images; Parquet of somebody else's may have the same name."""
    try:
        _, info = load_table(os.path.join(path, "items.parquet"))
    except InputError:
        return
    raise InputError(f"{path}: is a run on (or unfinished latents of) {info.path}, not a data set; give that")


def _parquet(path: str, files: list[str], split: str | None) -> _Source:
    source, chosen = open_parquet(path, files, split)
    return _Source(source.signature, lambda: _listing_of(source, source.keys, chosen), source)


def _recognise_folder(path: str, split: str | None) -> _Source:
    batches = cifar.list_batch_files(path)
    if batches is not None:
        signature = digest(*(file_signature(os.path.join(path, name)) for name in batches.names))
        return _Source(signature, lambda: cifar.list_cifar(path, batches, split))
    if shards := webdataset.shard_files(path):
        signature = digest("shards", *map(file_signature, shards))
        return _Source(signature, lambda: webdataset.list_shards(path, shards))
    if files := arrow.arrow_files(path):
        choose_split(path, (), split)
        return _Source(digest("arrow", *map(file_signature, files)), lambda: arrow.list_arrow(path, files))
    if lmdb.is_lmdb(path):
        choose_split(path, (), split)
        source = lmdb.LmdbSource(path)
        return _Source(source.signature, lambda: _listing_of(source, source.keys, "all"), source)
    if files := parquet_files(path):
        _refuse_run(path)
        return _parquet(path, files, split)
    listing = list_folder(path)
    signature = digest(
        "folder",
        path,
        "\0".join(listing.names),
        listing.length.tobytes(),
        _bytes(listing),
        *listing.label_files.values(),
    )
    return _Source(signature, lambda: listing)


def _bytes(listing: Listing) -> bytes:
    assert listing.mtime_ns is not None
    return listing.mtime_ns.tobytes()


def _archive(path: str, listing: Listing, split: str | None) -> Listing:
    """An archive's listing as it is, or its CIFAR batches."""
    batches = cifar.batch_members(listing)
    return listing if batches is None else cifar.list_cifar(path, batches, split)


def _head(path: str) -> bytes:
    descriptor = open_for_reading(path)
    try:
        return read_exactly(descriptor, min(tar.BLOCK, os.fstat(descriptor).st_size), 0, path)
    finally:
        os.close(descriptor)
