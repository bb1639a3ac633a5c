"""The result of a selection: which images are kept, with what weight, and how that came about.

A `Coreset` knows all images of its data set, not only the kept ones: the report shows what was dropped, and another cut
of the same scores needs no new scoring. It is a value: nothing changes it after it was made.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

import prunefast
from prunefast.errors import InputError, InputTypeError
from prunefast.score.parquet_file import check_columns, check_rows, check_version, read_parquet, to_json, write_parquet

FORMAT_VERSION = 1
REMAKE = "delete it and select again"  # the same file in its place would be refused again

_COLUMNS = {
    "index": pa.int64(),
    "key": pa.string(),
    "label": pa.int64(),  # null: the data set has no classes
    "score": pa.float64(),  # null: the method has no score
    "weight": pa.float32(),  # 0 for a dropped image
    "cluster": pa.int64(),  # null: the method has no clusters
    "kept": pa.bool_(),
}
_GROUP = "group"  # int64, -1: no duplicates; only in the file of a coreset that knows them
_GAIN = "gain"  # float64, null for a dropped image; only in the file of a method that picks one after the other


class LabelledData(Protocol):
    """The part of a data set that a selection looks at; `prunefast.data.ImageDataset` is one."""

    @property
    def labels(self) -> Any: ...  # int64 [N], or None: no classes
    @property
    def keys(self) -> Any: ...  # N texts
    @property
    def classes(self) -> Any: ...  # names of the classes
    @property
    def fingerprint(self) -> Any: ...  # hex

    def __len__(self) -> int: ...


class Coreset:
    """The kept images of one data set.

    indices        int64 [n], sorted: positions of the kept images in the data set
    weights        float32 [n], in the order of `indices`; finite and not negative
    scores         float64 [N] for all images, higher = keep; None where the method has none
    clusters       int64 [N] for all images; None where the method has none
    groups         int64 [N], the group of duplicates of each image, -1 for one without; None where duplicates were not
                   looked for
    gains          float64 [n], what each kept image added when it was picked (k-center: its distance to the picks
                   before, facility location: coverage); None where the method does not pick one after the other
    keep, dropped  bool [N], and the int64 positions that are not kept
    labels, keys, classes, data_fingerprint    as the data set has them
    manifest       JSON-able: method, options, direction, seed, counts per class, versions
    fingerprint    16 hex digits over data set, indices and weights; the same for the same training input

    Make one with `prunefast.select`, `Coreset.from_indices` (a list of your own) or `Coreset.full`.
    """

    def __init__(
        self,
        *,
        indices: Any,
        keys: Any,
        labels: Any = None,
        classes: Sequence[str] = (),
        data_fingerprint: str,
        weights: Any = None,
        scores: Any = None,
        clusters: Any = None,
        groups: Any = None,
        gains: Any = None,
        rethresholder: Callable[[float], "Coreset"] | None = None,  # of a deduplication
        manifest: Mapping[str, Any] | None = None,
    ):
        self._keys = _string_array(keys)
        total = len(self._keys)
        self.indices = _indices(indices, total)
        self.weights = _weights(weights, len(self.indices), np.argsort(np.asarray(indices), kind="stable"))
        self.labels = _labels(labels, total)
        self.classes = _class_names(classes, self.labels)
        self.scores = _scores(scores, total)
        self.clusters = _integers("clusters", clusters, total)
        self.groups = _integers("groups", groups, total)
        self._rethresholder = rethresholder
        self.data_fingerprint = str(data_fingerprint)
        self.gains = _gains(gains, len(self.indices), np.argsort(np.asarray(indices), kind="stable"))
        for array in (self.indices, self.weights, self.labels, self.scores, self.clusters, self.groups, self.gains):
            if array is not None:
                array.flags.writeable = False
        given = {"method": "given", "options": {}, "direction": "as listed", "seed": None, **(manifest or {})}
        self.manifest: dict[str, Any] = to_json(
            given
            | {
                "format_version": FORMAT_VERSION,
                "data_fingerprint": self.data_fingerprint,
                "fingerprint": self.fingerprint,
                "classes": self.classes,
                "counts_per_class": self.counts_per_class(),
                "kept": len(self),
                "images": total,
                "package_version": given.get("package_version", prunefast.__version__),
            }
        )

    # --- made from a data set

    @classmethod
    def from_indices(cls, data: LabelledData, indices: Any, weights: Any = None, **more: Any) -> "Coreset":
        """The coreset of the images listed in `indices` (any order, no doubles), `weights` in the same order."""
        return cls(
            indices=indices,
            weights=weights,
            keys=data.keys,
            labels=data.labels,
            classes=data.classes,
            data_fingerprint=data.fingerprint,
            **more,
        )

    @classmethod
    def full(cls, data: LabelledData) -> "Coreset":
        """All images of `data` with weight 1: what a training run without selection uses."""
        return cls.from_indices(data, np.arange(len(data)), manifest={"method": "full", "direction": "all are kept"})

    # --- looked at

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        return f"Coreset({len(self):,} of {self.total:,} images, {self.manifest['method']})"

    @property
    def total(self) -> int:
        """Number of images of the whole data set."""
        return len(self._keys)

    @cached_property
    def keys(self) -> list[str]:
        return self._keys.to_pylist()

    @cached_property
    def keep(self) -> np.ndarray:
        mask = np.zeros(self.total, dtype=bool)
        mask[self.indices] = True
        mask.flags.writeable = False
        return mask

    @cached_property
    def dropped(self) -> np.ndarray:
        return np.flatnonzero(~self.keep)

    @cached_property
    def ranking(self) -> np.ndarray:
        """int64 [n]: the kept images, the highest score first, ties to the smallest index; in the order of `indices`
        where there are no scores. For a method that cuts or picks one after the other, the first m are its coreset of m
        images (of one group; `select(scores=coreset.scores, keep_n=m, per_class=True)` for classes)."""
        if self.scores is None:
            return self.indices
        return self.indices[np.argsort(-self.scores[self.indices], kind="stable")]

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.data_fingerprint.encode("utf-8", "surrogatepass"))
        digest.update(self.indices.astype("<i8").tobytes())
        digest.update(self.weights.astype("<f4").tobytes())
        return digest.hexdigest()[:16]

    def counts_per_class(self) -> dict[str, tuple[int, int]]:
        """Class name -> (kept, total), in class order; empty for data without classes."""
        if self.labels is None:
            return {}
        kept = np.bincount(self.labels[self.indices], minlength=len(self.classes))
        total = np.bincount(self.labels, minlength=len(self.classes))
        return {name: (int(k), int(t)) for name, k, t in zip(self.classes, kept, total, strict=True)}

    def summary(self) -> str:
        """A few lines for people: what was kept, by which method, and how much of each class."""
        share = f" ({len(self) / self.total:.1%})" if self.total else ""
        lines = [f"{len(self):,} of {self.total:,} images kept{share}, method {self.manifest['method']}"]
        counts = self.counts_per_class()
        width = max((len(name) for name in counts), default=0)
        for name, (kept, total) in counts.items():
            lines.append(f"  {name:<{width}}  {kept:>9,} of {total:>9,}" + (f"  {kept / total:6.1%}" if total else ""))
        return "\n".join(lines)

    # --- made into another

    def rethreshold(self, threshold: float) -> "Coreset":
        """The coreset of another threshold, without computing anything again.

        One that `Deduplication.coreset` made moves the distance between duplicates (up to its max_threshold); one with
        scores keeps the images that score `threshold` or more, whatever its budget was. InputError for others.
        """
        if self._rethresholder is not None:
            return self._rethresholder(threshold)
        if self.scores is None:
            raise InputError(
                "rethreshold: this coreset has no scores to cut; a deduplication that was loaded is moved by "
                "Deduplication.load(run, data).rethreshold(threshold)"
            )
        if self.manifest.get("must_keep") or self.manifest.get("must_drop"):
            raise InputError(
                "rethreshold: images were forced into or out of this coreset; select again with threshold="
            )
        kept = np.flatnonzero(self.scores >= threshold)
        if not len(kept):
            raise InputError(f"threshold: no image scores {threshold!r} or more (the highest is {self.scores.max():g})")
        budget = {"keep": None, "keep_n": None, "threshold": float(threshold)}
        return Coreset(
            indices=kept,
            keys=self._keys,
            labels=self.labels,
            classes=self.classes,
            data_fingerprint=self.data_fingerprint,
            scores=self.scores,
            clusters=self.clusters,
            groups=self.groups,
            manifest={**self.manifest, "budget": budget, "per_class": False},
        )

    def subset(self, dataset: Any) -> Any:
        """The kept items of a map-style dataset (such as torchvision's) of the same images in the same order.

        A torch.utils.data.Subset. InputError where `dataset` has another number of items.
        """
        from torch.utils.data import Subset

        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise InputTypeError(f"dataset: {type(dataset).__name__} has no items by index; give a map-style dataset")
        if len(dataset) != self.total:
            raise InputError(f"dataset: has {len(dataset):,} items, this coreset is of {self.total:,} images")
        return Subset(dataset, self.indices.tolist())

    # --- on disk

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `coreset.parquet`: one row an image of the data set, the manifest in the metadata. Atomic."""
        weight = np.zeros(self.total, dtype=np.float32)
        weight[self.indices] = self.weights
        arrays = {
            "index": np.arange(self.total),
            "key": self._keys,
            "label": self.labels,
            "score": self.scores,
            "weight": weight,
            "cluster": self.clusters,
            "kept": self.keep,
        }
        columns = [
            pa.nulls(self.total, dtype) if arrays[name] is None else _arrow(arrays[name], dtype)
            for name, dtype in _COLUMNS.items()
        ]
        schema = pa.schema([pa.field(name, dtype) for name, dtype in _COLUMNS.items()])
        table = pa.Table.from_arrays(columns, schema=schema)
        if self.groups is not None:
            table = table.append_column(_GROUP, pa.array(self.groups, pa.int64()))
        if self.gains is not None:
            gain = np.full(self.total, np.nan)
            gain[self.indices] = self.gains
            table = table.append_column(_GAIN, pa.array(gain, mask=~self.keep))
        write_parquet(path, table, self.manifest)

    @classmethod
    def load(cls, path: str | os.PathLike[str], data: LabelledData | None = None) -> "Coreset":
        """Read what `save` wrote. With `data`, refuse a coreset of another data set.

        Raises `InputError`, naming the file, for anything that is not a whole and consistent coreset.
        """
        table, manifest = read_parquet(path, REMAKE)
        check_version(path, manifest, FORMAT_VERSION, REMAKE)
        fingerprint, classes = manifest.get("data_fingerprint"), manifest.get("classes")
        rows = manifest.get("images")
        if not isinstance(fingerprint, str) or type(rows) is not int:
            raise InputError(f"{path}: its manifest does not say which data set it belongs to; {REMAKE}")
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise InputError(f"{path}: its manifest has no list of classes; {REMAKE}")
        if data is not None and fingerprint != data.fingerprint:
            raise InputError(
                f"{path}: was selected from another data set (its fingerprint is {fingerprint[:12]}, this data has "
                f"{str(data.fingerprint)[:12]}); open the data it was made from or {REMAKE}"
            )
        check_columns(path, table, _COLUMNS, REMAKE)
        for name in ("index", "key", "weight", "kept"):
            if table[name].null_count:
                raise InputError(f"{path}: column {name!r} has empty cells; {REMAKE}")
        check_rows(path, table["index"].to_numpy(), rows, REMAKE)
        order = np.argsort(table["index"].to_numpy())
        if (order[1:] < order[:-1]).any():  # rows in another order are fine
            table = table.take(pa.array(order))
        kept = np.flatnonzero(table["kept"].to_numpy())
        try:
            coreset = cls(
                indices=kept,
                weights=table["weight"].to_numpy()[kept],
                keys=table["key"],
                labels=_optional(table, "label"),
                classes=classes,
                data_fingerprint=fingerprint,
                scores=_optional(table, "score"),
                clusters=_optional(table, "cluster"),
                groups=_groups(table),
                gains=_kept_gains(table, kept),
                manifest=manifest,
            )
        except InputError as error:
            raise InputError(f"{path}: {error}; {REMAKE}") from None
        if manifest.get("fingerprint") != coreset.fingerprint:
            raise InputError(f"{path}: its images or weights are not those that were written; {REMAKE}")
        return coreset


def _optional(table: pa.Table, name: str) -> np.ndarray | None:
    column = table[name]
    if column.null_count == len(column):
        return None
    if column.null_count:
        raise InputError(f"column {name!r} is filled in part only")
    return column.to_numpy()


def _groups(table: pa.Table) -> np.ndarray | None:
    if _GROUP not in table.column_names:
        return None
    if table[_GROUP].type != pa.int64():
        raise InputError(f"column {_GROUP!r} is {table[_GROUP].type}, not int64")
    return _optional(table, _GROUP)


def _kept_gains(table: pa.Table, kept: np.ndarray) -> np.ndarray | None:
    if _GAIN not in table.column_names:
        return None
    if table[_GAIN].type != pa.float64():
        raise InputError(f"column {_GAIN!r} is {table[_GAIN].type}, not double")
    return table[_GAIN].to_numpy()[kept]


def _arrow(array: Any, dtype: pa.DataType) -> Any:
    return array if isinstance(array, pa.Array | pa.ChunkedArray) else pa.array(array, dtype)


def _string_array(keys: Any) -> Any:
    if isinstance(keys, pa.Array | pa.ChunkedArray) and keys.type == pa.string():
        return keys
    try:
        return pa.array(list(keys), pa.string())
    except (pa.ArrowException, TypeError, UnicodeError) as error:
        raise InputError(f"keys: must be texts that UTF-8 can hold ({error})") from None


def _integers(name: str, values: Any, total: int) -> np.ndarray | None:
    if values is None:
        return None
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise InputTypeError(f"{name}: must be a list of integers, not {array.dtype} of shape {array.shape}")
    if len(array) != total:
        raise InputError(f"{name}: has {len(array)} entries for {total} images")
    return array.astype(np.int64)


def _indices(indices: Any, total: int) -> np.ndarray:
    array = np.asarray(indices)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise InputTypeError(f"indices: must be a list of integers, not {array.dtype} of shape {array.shape}")
    array = np.sort(array.astype(np.int64))
    if array.size and (array[0] < 0 or array[-1] >= total):
        bad = array[0] if array[0] < 0 else array[-1]
        raise InputError(f"indices: {bad} is out of range for {total} images")
    twice = array[1:] == array[:-1]
    if twice.any():
        raise InputError(f"indices: {array[1:][twice][0]} is listed more than once")
    return array


def _weights(weights: Any, count: int, order: np.ndarray) -> np.ndarray:
    if weights is None:
        return np.ones(count, dtype=np.float32)
    array = np.asarray(weights, dtype=np.float32)
    if array.shape != (count,):
        raise InputError(f"weights: has shape {array.shape} for {count} kept images")
    if not np.isfinite(array).all() or (array < 0).any():
        raise InputError("weights: must be finite and not negative")
    return array[order]


def _gains(gains: Any, count: int, order: np.ndarray) -> np.ndarray | None:
    if gains is None:
        return None
    array = np.asarray(gains, dtype=np.float64)
    if array.shape != (count,):
        raise InputError(f"gains: has shape {array.shape} for {count} kept images")
    if np.isnan(array).any():
        raise InputError("gains: NaN for a kept image")
    return array[order]


def _scores(scores: Any, total: int) -> np.ndarray | None:
    if scores is None:
        return None
    array = np.array(scores, dtype=np.float64)
    if array.shape != (total,):
        raise InputError(f"scores: has shape {array.shape} for {total} images")
    if not np.isfinite(array).all():
        bad = int(np.flatnonzero(~np.isfinite(array))[0])
        raise InputError(f"scores: {array[bad]} at image {bad}; scores must be finite")
    return array


def _labels(labels: Any, total: int) -> np.ndarray | None:
    array = _integers("labels", labels, total)
    if array is not None and array.size and array.min() < 0:
        raise InputError(f"labels: {array.min()} is negative; data without classes has labels None")
    return array


def _class_names(classes: Any, labels: np.ndarray | None) -> list[str]:
    names = [str(name) for name in classes] if classes is not None else []
    largest = int(labels.max()) if labels is not None and labels.size else -1
    if not names and largest >= 0:
        if largest > len(labels) + 65_536:  # type: ignore[arg-type]  # labels that are no class numbers
            raise InputError(f"labels: {largest} is too large for a class number; number the classes from 0")
        return [str(number) for number in range(largest + 1)]
    if largest >= len(names):
        raise InputError(f"labels: {largest} is out of range for {len(names)} classes")
    if len(set(names)) != len(names):
        raise InputError("classes: two classes have the same name")
    return names
