"""Groups of duplicates: who stands for whom, and the pairs where the threshold would err first."""

from typing import Any

from prunefast.data import ImageDataset
from prunefast.dedup import Deduplication
from prunefast.dedup.groups import describe_threshold
from prunefast.report.text import number, share, short
from prunefast.report.thumbnails import Thumbnails

GROUPS = 24  # shown, the largest
MEMBERS = 7  # of a group, beside the survivor: a row of eight
FURTHEST = 18  # pairs


class Chosen:
    """What is shown of a deduplication, before its pictures are read."""

    def __init__(self, found: Deduplication):
        self.found = found
        self.groups = sorted(found, key=lambda group: -len(group.dropped))[:GROUPS]
        self.furthest = [pair for pair in found.least_similar(FURTHEST) if pair[2] > 0]

    @property
    def pictures(self) -> list[int]:
        shown = [index for group in self.groups for index in (group.kept, *group.dropped[:MEMBERS].tolist())]
        return shown + [index for dropped, kept, _ in self.furthest for index in (dropped, kept)]


def section(chosen: Chosen, data: ImageDataset, pictures: Thumbnails | None) -> dict[str, Any]:
    found = chosen.found

    def image(index: int, text: str) -> dict[str, Any]:
        name = f"{short(data.keys[index])}, {int(data.widths[index])} × {int(data.heights[index])}, {text}"
        return {"uri": pictures[index] if pictures is not None else None, "alt": name}

    groups = []
    for group in chosen.groups:
        rest = len(group.dropped) - MEMBERS
        dropped = [
            image(int(index), f"dropped, distance {number(float(distance), 3)}")
            for index, distance in zip(group.dropped[:MEMBERS], group.distance[:MEMBERS], strict=True)
        ]
        count = f"{len(group.dropped) + 1:,} images"
        groups.append(
            {
                "title": count + (f", {rest:,} of them not shown" if rest > 0 else ""),
                "kept": [image(group.kept, "kept")],
                "dropped": dropped,
            }
        )
    pairs = []
    if pictures is not None:
        pairs = [
            {"left": pictures[a], "right": pictures[b], "name": short(data.keys[a]), "text": f"distance {number(d, 3)}"}
            for a, b, d in chosen.furthest
        ]
    outside = int((found.against >= 0).sum())
    return {
        "text": f"{len(found.dropped):,} of {found.total:,} images ({share(len(found.dropped), found.total)}) have a "
        f"duplicate that is kept ({found.level}, {describe_threshold(found.level, found.threshold)}), in "
        f"{found.group_count:,} groups"
        + (f"; {outside:,} of them one in the other data set." if "against" in found.manifest else "."),
        "groups": groups,
        "left_out": max(0, found.group_count - len(groups)),
        "pairs": pairs,
    }
