"""Scores: features -> one number an image, higher = keep for every method without exception.

    scores = prunefast.score(features, data.labels, method="gaussian")

One file a method; `METHODS` is the registry, `table` reads and writes scores.parquet.
"""

from prunefast.score.methods import METHODS, Method, score

__all__ = ["METHODS", "Method", "score"]
