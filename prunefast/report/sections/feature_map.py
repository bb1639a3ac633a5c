"""The map of the features."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from prunefast.report import charts
from prunefast.report.gather import Run
from prunefast.report.projection import Projection, project, spread
from prunefast.report.sections.options import SEED
from prunefast.report.sections.scores import Scored
from prunefast.report.text import number, short
from prunefast.report.thumbnails import Thumbnails
from prunefast.select import Coreset

MAP_POINTS = 2400  # 0.4 MB of page
MAP_CLASSES = 20  # that can be switched to
SMALL_MAP_POINTS = 1500
MOSAIC = (16, 11)  # columns and rows of pictures on the map


@dataclass
class MapData:
    """The points of the map, before their pictures are read. Shared by all arms."""

    indices: NDArray[np.int64]
    xy: NDArray[np.float64]
    inside: NDArray[np.bool_]
    axes: tuple[str, str]
    tiles: NDArray[np.int64]  # positions within `indices`
    total: int


def map_points(run: Run, full: bool) -> MapData | None:
    """A seeded draw of the features, projected on two axes."""
    features = run.features
    if features is None or len(features) == 0:
        return None
    most = MAP_POINTS if full else SMALL_MAP_POINTS
    indices = np.arange(len(features), dtype=np.int64)
    if len(indices) > most:
        generator = np.random.Generator(np.random.Philox(key=[SEED, 1]))
        indices = generator.permutation(len(features))[:most]  # drawn in this order: neither kind covers the other
    order = np.argsort(indices)
    rows = np.empty((len(indices), features.shape[1]), dtype=features.dtype)
    rows[order] = features[indices[order]]  # a memory map is read in its own order
    labels = None if run.data is None or run.data.labels is None else np.asarray(run.data.labels)[indices]
    found = project(rows, labels)
    tiles = np.flatnonzero(found.inside)
    tiles = tiles[spread(found.xy[tiles], *MOSAIC)]
    return MapData(indices.astype(np.int64), found.xy, found.inside, _axis_texts(found), tiles, len(features))


def _axis_texts(found: Projection) -> tuple[str, str]:
    first, second = (f"{100 * value:.1f} % of the variance" for value in found.variance)
    if found.kind == "class means":
        return (
            f"the direction along which the class means differ most ({first}; these features are whitened, so no "
            "direction has much more)",
            f"the one of second most ({second})",
        )
    if found.kind == "features":
        return f"the encoder's first feature ({first})", f"its second ({second})"
    return f"first principal component of the features ({first})", f"the second ({second})"


def map_section(map_: MapData, coreset: Coreset, scores: Scored | None, pictures: Thumbnails | None) -> dict[str, Any]:
    """The map of a run by itself: points, pictures, and classes to switch."""
    labels = coreset.labels
    shown = np.flatnonzero(map_.inside)
    points = [_map_point(map_, i, coreset, scores, None) for i in shown.tolist()]
    tiles = []
    if pictures is not None:
        tiles = [_map_point(map_, i, coreset, scores, pictures[int(map_.indices[i])]) for i in map_.tiles.tolist()]
    kept = int(coreset.keep[map_.indices[shown]].sum())
    label = (
        f"Map of {len(shown):,} images by two directions in their features; {kept:,} are kept, "
        f"{len(shown) - kept:,} dropped."
    )
    classes = []
    if labels is not None and 2 <= len(coreset.classes) <= MAP_CLASSES:
        classes = [{"number": i, "name": short(name, 24)} for i, name in enumerate(coreset.classes)]
    return {
        "points": charts.scatter(points, label),
        "pictures": charts.mosaic(tiles, f"The same map with {len(tiles)} of its images as pictures.")
        if tiles
        else None,
        "tiles": len(tiles),
        "classes": classes,
        "label": label,
        "drawn": f"{len(map_.indices):,}",
        "all": f"{map_.total:,}",
        "sampled": len(map_.indices) < map_.total,
        "outside": len(map_.indices) - len(shown),
        "axes": map_.axes,
    }


def _map_point(map_: MapData, i: int, coreset: Coreset, scores: Scored | None, image: str | None) -> charts.MapPoint:
    index = int(map_.indices[i])
    kept = bool(coreset.keep[index])
    group = int(coreset.labels[index]) if coreset.labels is not None else -1
    value = f", {scores.name} {number(float(scores.values[index]))}" if scores is not None else ""
    tip = f"{short(coreset.keys[index])}, {'kept' if kept else 'dropped'}{value}"
    return charts.MapPoint(float(map_.xy[i, 0]), float(map_.xy[i, 1]), kept, group, tip, image)


def small_map(map_: MapData, coreset: Coreset, name: str) -> Markup:
    points = [_map_point(map_, i, coreset, None, None) for i in np.flatnonzero(map_.inside).tolist()]
    return charts.small_map(points, f"Map of the features with what {name or 'the selection'} keeps.")
