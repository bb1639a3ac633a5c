"""Contact sheets of clusters: what an encoder takes for one kind of image, and what is kept of it."""

from typing import Any

import numpy as np

from prunefast.report.sections.options import SEED
from prunefast.report.selection import Row, gallery
from prunefast.report.text import number, share, short
from prunefast.report.thumbnails import Thumbnails
from prunefast.select import Coreset

SHEETS = 12  # clusters: the largest and the smallest
IMAGES = 8  # a row


class Chosen:
    """(cluster, its images, its rows of pictures), before the pictures are read."""

    def __init__(self, coreset: Coreset):
        clusters = coreset.clusters
        self.sheets: list[tuple[int, np.ndarray, list[Row]]] = []
        if clusters is None:
            return
        size = np.bincount(clusters)
        order = np.argsort(-size, kind="stable")
        order = order[size[order] > 0]
        self.count = len(order)
        shown = order if len(order) <= SHEETS else np.concatenate([order[: SHEETS // 2], order[-SHEETS // 2 :]])
        for cluster in shown.tolist():
            members = np.flatnonzero(clusters == cluster)
            rows = gallery(members, coreset.keep, None, IMAGES // 2, seed=SEED + 1 + cluster)
            self.sheets.append((cluster, members, rows))

    @property
    def pictures(self) -> list[int]:
        return [index for _, _, rows in self.sheets for row in rows for index in row.indices]


def section(chosen: Chosen, coreset: Coreset, pictures: Thumbnails | None) -> dict[str, Any] | None:
    if not chosen.sheets:
        return None
    sheets = []
    for cluster, members, rows in chosen.sheets:
        kept = int(coreset.keep[members].sum())
        views = []
        for row in rows:
            state = "kept" if row.kept else "dropped"
            images = [
                {
                    "uri": pictures[index] if pictures is not None else None,
                    "alt": f"{short(coreset.keys[index])}, {state}",
                }
                for index in row.indices
            ]
            views.append({"title": row.title, "kept": row.kept, "images": images})
        sheets.append(
            {
                "name": f"Cluster {number(cluster)}",
                "kept": f"{kept:,}",
                "total": f"{len(members):,}",
                "share": share(kept, len(members)),
                "rows": views,
            }
        )
    left_out = chosen.count - len(sheets)
    return {"groups": sheets, "left_out": left_out, "count": chosen.count}
