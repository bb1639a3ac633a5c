"""Options of the methods that work on the kNN graph: how it is built where none is given."""

from dataclasses import dataclass
from typing import Any

from prunefast.graph import METHODS, KnnGraph, build_graph
from prunefast.graph.build import METRICS
from prunefast.graph.knn import as_graph
from prunefast.select.request import check_choice, check_whole


@dataclass(frozen=True)
class GraphOptions:
    """k             neighbours of every image
    metric        "l2" or "cosine"
    graph_method  "auto", "exact", "ivf", "faiss-ivf" or "faiss-hnsw" (`prunefast.graph.build`)
    """

    k: int = 10
    metric: str = "l2"
    graph_method: str = "auto"

    def __post_init__(self) -> None:
        check_whole("k", self.k, 1, 1023)
        check_choice("metric", self.metric, METRICS)
        check_choice("graph_method", self.graph_method, METHODS)


def graph_of(options: GraphOptions, features: Any, graph: Any, total: int, seed: int) -> KnnGraph:
    """The first k neighbours of the graph given, or of one built from the features (fewer where there are fewer
    images)."""
    k = min(options.k, total - 1)
    if graph is not None:
        return as_graph(graph, total).first(k)
    return build_graph(features, k, metric=options.metric, method=options.graph_method, seed=seed)
