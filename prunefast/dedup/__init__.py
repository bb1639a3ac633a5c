"""Duplicates: exact copies, images that look the same, images that mean the same; groups with one survivor each.

found = prunefast.deduplicate(data, level="perceptual")
coreset = prunefast.select(data, scores=scores, keep=0.3, must_drop=found.dropped)
"""

from prunefast.dedup.deduplicate import LEVELS, deduplicate
from prunefast.dedup.groups import Deduplication, Group

__all__ = ["LEVELS", "Deduplication", "Group", "deduplicate"]
