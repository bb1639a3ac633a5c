"""The kNN graph: built once, shared by the scores `knn` and `density`, by D2, facility location and deduplication.

graph = prunefast.graph.build_graph(features, k=10)
graph.index, graph.distance       # [N, k], nearest first
graph.save("run/knn.npz"); graph = KnnGraph.load("run/knn.npz", data)
"""

from prunefast.graph.build import METHODS, build_graph, exact_operations
from prunefast.graph.knn import KnnGraph

__all__ = ["METHODS", "KnnGraph", "build_graph", "exact_operations"]
