"""Scores: features -> one number an image, higher = keep for every method without exception.

    scores = prunefast.score(features, data.labels, method="gaussian")

One file a method (`neighbours` has the two of the kNN graph), `column_scores` for one of the user's, `combine` for
several as one; `METHODS` is the registry, `table` reads and writes scores.parquet.
"""

from prunefast.score.column import column_scores
from prunefast.score.combine import combine
from prunefast.score.methods import METHODS, Method, score

__all__ = ["METHODS", "Method", "column_scores", "combine", "score"]
