"""`KnnGraph`: k neighbours of every image, as arrays [N, k] and as CSR.

The contract is that of cleanlab's `knn_graph`: a square CSR matrix of distances in which

    every row has the same number k of entries, nearest first,
    no row holds itself,
    a duplicate is there with an explicit zero.

So a graph of prunefast goes into cleanlab, and one made elsewhere (`KnnGraph.from_csr`) goes into every method here.
The file is an .npz that `scipy.sparse.load_npz` reads as well, with the manifest beside the arrays.
"""

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prunefast.errors import InputError
from prunefast.files import atomic_path

FORMAT_VERSION = 1
REMAKE = "delete it and run the step again"
_MANIFEST = "prunefast"  # array of the .npz that holds the manifest as UTF-8 JSON


class KnnGraph:
    """The k nearest neighbours of N images; a value, nothing changes it.

    index     int32 [N, k] (int64 where N >= 2^31): neighbours, nearest first, never the image itself
    distance  float32 [N, k], not negative: Euclidean ("l2"), or 1 - cosine similarity ("cosine")
    metric    "l2", "cosine", or "given" for a graph made elsewhere
    manifest  JSON-able: how it was built, with the recall measured where it is approximate
    """

    def __init__(self, index: Any, distance: Any, metric: str, manifest: Mapping[str, Any] | None = None):
        index, distance = np.asarray(index), np.asarray(distance)
        _check(index, distance)
        small = len(index) < 2**31
        self.index = np.ascontiguousarray(index, dtype=np.int32 if small else np.int64)
        self.distance = np.ascontiguousarray(distance, dtype=np.float32)
        self.metric = metric
        self.manifest: dict[str, Any] = dict(manifest or {})
        for array in (self.index, self.distance):
            array.flags.writeable = False

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        return f"KnnGraph({len(self):,} images, k={self.k}, {self.metric})"

    @property
    def k(self) -> int:
        return self.index.shape[1]

    def first(self, k: int) -> "KnnGraph":
        """The graph of the k nearest of the neighbours that are there."""
        if not 1 <= k <= self.k:
            raise InputError(f"k: {k} neighbours of a graph that has {self.k}; build it with more")
        return self if k == self.k else KnnGraph(self.index[:, :k], self.distance[:, :k], self.metric, self.manifest)

    # --- as CSR

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), len(self)

    @property
    def indptr(self) -> np.ndarray:
        wide = self.index.size >= 2**31
        return np.arange(0, self.index.size + 1, self.k, dtype=np.int64 if wide else self.index.dtype)

    @property
    def indices(self) -> np.ndarray:
        return self.index.reshape(-1)

    @property
    def data(self) -> np.ndarray:
        return self.distance.reshape(-1)

    @classmethod
    def from_csr(cls, matrix: Any) -> "KnnGraph":
        """The graph in a `scipy.sparse.csr_matrix` (or anything with indptr, indices, data and shape), checked.

        InputError for rows of different length, not sorted by distance, with themselves, a neighbour twice, out of
        range, or with distances that are negative or not finite.
        """
        try:
            indptr, indices, data = (np.asarray(getattr(matrix, name)) for name in ("indptr", "indices", "data"))
            shape = tuple(matrix.shape)
        except (AttributeError, TypeError):
            raise InputError(f"graph: {type(matrix).__name__} is no CSR matrix (no indptr, indices, data)") from None
        if len(shape) != 2 or shape[0] != shape[1] or len(indptr) != shape[0] + 1:
            raise InputError(f"graph: must be [N, N] with N + 1 row pointers, not {list(shape)} with {len(indptr)}")
        lengths = np.diff(indptr)
        k = int(lengths[0]) if len(lengths) else 0
        if k < 1 or (lengths != k).any():
            row = int((lengths != k).argmax()) if k else 0
            raise InputError(
                f"graph: row {row} has {lengths[row] if k else 0} neighbours where every row needs the same k"
            )
        if indptr[0] != 0 or len(indices) != shape[0] * k or len(data) != len(indices):
            raise InputError(f"graph: {len(indices)} indices and {len(data)} distances for {shape[0]} rows of {k}")
        return cls(indices.reshape(-1, k), data.reshape(-1, k), "given", {"method": "given", "k": k})

    # --- on disk

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an .npz, atomically: the CSR arrays as SciPy has them, and the manifest."""
        manifest = {**self.manifest, "format_version": FORMAT_VERSION, "metric": self.metric, "k": self.k}
        text = json.dumps(manifest, allow_nan=False).encode()
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(
                file,
                indices=self.indices,
                indptr=self.indptr,
                data=self.data,
                shape=np.array(self.shape),
                format=np.array(b"csr"),
                prunefast=np.frombuffer(text, dtype=np.uint8),
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str], data: Any = None) -> "KnnGraph":
        """Read a graph; with `data`, refuse that of another data set. A SciPy .npz without manifest is checked too."""
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path}: no such file; build the graph first")
        try:
            with np.load(path, allow_pickle=False) as arrays:
                parts = {name: arrays[name] for name in arrays.files}
            manifest = json.loads(parts[_MANIFEST].tobytes()) if _MANIFEST in parts else {}
        except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: is not a readable kNN graph ({_first_line(error)}); {REMAKE}") from None
        if not isinstance(manifest, dict) or manifest.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
            raise InputError(f"{path}: has another format than version {FORMAT_VERSION}; {REMAKE}")
        try:
            graph = cls.from_csr(_Parts(parts))
        except (InputError, KeyError) as error:
            raise InputError(f"{path}: {_first_line(error)}; {REMAKE}") from None
        if data is not None and manifest.get("data_fingerprint", data.fingerprint) != data.fingerprint:
            raise InputError(f"{path}: holds the graph of another data set; use another output folder, or delete it")
        if data is not None and len(graph) != len(data):
            raise InputError(f"{path}: holds {len(graph)} rows for {len(data)} images; {REMAKE}")
        graph.metric = manifest.get("metric", graph.metric)
        graph.manifest = manifest or graph.manifest
        return graph


class _Parts:
    """Arrays of an .npz by attribute, as `from_csr` looks at them."""

    def __init__(self, parts: dict[str, np.ndarray]):
        for name in ("indptr", "indices", "data", "shape"):
            setattr(self, name, parts[name])


def _first_line(error: BaseException) -> str:
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return "no .npz of arrays" if "pickle" in line else line  # NumPy offers to run what is in it


def _check(index: np.ndarray, distance: np.ndarray) -> None:
    if index.ndim != 2 or index.dtype.kind not in "iu" or 0 in index.shape:
        raise InputError(f"graph: index must be integers [N, k], not {index.dtype} {list(index.shape)}")
    if distance.shape != index.shape or distance.dtype.kind != "f":
        raise InputError(
            f"graph: distance must be floats {list(index.shape)}, not {distance.dtype} {list(distance.shape)}"
        )
    rows = len(index)
    for start in range(0, rows, 65_536):
        part, far = index[start : start + 65_536], distance[start : start + 65_536]
        own = np.arange(start, start + len(part))[:, None]
        for wrong, words in (
            (~np.isfinite(far) | (far < 0), "has a distance that is negative, NaN or infinite"),
            ((part < 0) | (part >= rows), f"has a neighbour out of range for {rows} images"),
            (part == own, "is its own neighbour"),
            (far[:, 1:] < far[:, :-1], "is not sorted by distance"),
        ):
            if wrong.any():
                raise InputError(f"graph: row {start + int(wrong.any(axis=1).argmax())} {words}")
        ordered = np.sort(part, axis=1)
        twice = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
        if twice.any():
            raise InputError(f"graph: row {start + int(twice.argmax())} has a neighbour twice")


def as_graph(graph: Any, rows: int) -> KnnGraph:
    """`graph` (a `KnnGraph` or a CSR matrix) as one of `rows` images, checked."""
    found = graph if isinstance(graph, KnnGraph) else KnnGraph.from_csr(graph)
    if len(found) != rows:
        raise InputError(f"graph: has {len(found)} rows for {rows} images; build it on this data set")
    return found
