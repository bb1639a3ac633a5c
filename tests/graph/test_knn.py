"""The kNN graph against brute force and peers; the contract; graphs from outside."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from prunefast.errors import InputError, MissingDependencyError
from prunefast.graph import KnnGraph, build, build_graph
from prunefast.graph.knn import as_graph


def mixture(rows=2000, dim=16, seed=0):
    random = np.random.default_rng(seed)
    centres = 3 * random.normal(size=(20, dim))
    return (centres[random.integers(20, size=rows)] + random.normal(size=(rows, dim))).astype(np.float32)


def brute(x, k):
    """index, distance in float64; ties to the smallest index."""
    wide = x.astype(np.float64)
    squared = ((wide[:, None] - wide[None]) ** 2).sum(-1)
    np.fill_diagonal(squared, np.inf)
    index = np.argsort(squared, axis=1, kind="stable")[:, :k]
    return index, np.sqrt(np.take_along_axis(squared, index, axis=1))


@settings(deadline=None, max_examples=25)
@given(rows=st.integers(2, 40), dim=st.integers(1, 4), random=st.data())
def test_small_integers_are_exact_with_ties_and_duplicates(rows, dim, random):
    """Small integers have exact distances, many of them equal, many zero."""
    seed = random.draw(st.integers(0, 1000))
    k = random.draw(st.integers(1, rows - 1))
    x = np.random.default_rng(seed).integers(-2, 3, (rows, dim)).astype(np.float32)
    graph = build_graph(x, k)
    index, distance = brute(x, k)
    np.testing.assert_array_equal(graph.index, index)
    np.testing.assert_allclose(graph.distance, distance, rtol=1e-6)


def test_neighbours_are_scikit_learns():
    x = mixture()
    graph = build_graph(x, 7)
    distance, index = NearestNeighbors(n_neighbors=7, algorithm="brute").fit(x.astype(np.float64)).kneighbors()
    assert (graph.index == index).mean() > 0.999  # float32 rows: the two differ where distances are equal to rounding
    np.testing.assert_allclose(graph.distance, distance, rtol=1e-5)


def test_cosine_is_one_minus_the_similarity():
    x = mixture()
    graph = build_graph(x, 5, metric="cosine")
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    expected = 1 - np.einsum("nd,nkd->nk", unit.astype(np.float64), unit[graph.index].astype(np.float64))
    np.testing.assert_allclose(graph.distance, expected, atol=1e-6)


def test_more_blocks_than_one_give_the_same_graph(monkeypatch):
    x = mixture(500)
    whole = build_graph(x, 4)
    monkeypatch.setattr(build, "_BLOCK", 64)
    parts = build_graph(x, 4)
    np.testing.assert_array_equal(whole.index, parts.index)
    np.testing.assert_array_equal(whole.distance, parts.distance)


@pytest.mark.parametrize("method", ["ivf", "faiss-ivf", "faiss-hnsw"])
def test_approximate_graphs_report_their_true_recall(method):
    if method.startswith("faiss"):
        pytest.importorskip("faiss")
    x = mixture(3000)
    exact, found = build_graph(x, 10), build_graph(x, 10, method=method, probes=8)
    recall = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(exact.index, found.index, strict=True)])
    assert recall > 0.9
    assert found.manifest["method"] == method
    assert found.manifest["recall"] == pytest.approx(recall, abs=0.02)
    # what was found has its true distance
    rows = np.arange(3000)[:, None]
    direct = np.linalg.norm(x[rows].astype(np.float64) - x[found.index], axis=2)
    np.testing.assert_allclose(found.distance, direct, rtol=1e-5, atol=1e-6)


def test_low_recall_warns_and_is_measured():
    x = np.random.default_rng(0).normal(size=(3000, 64)).astype(np.float32)
    with pytest.warns(UserWarning, match=r"the recall is \d+\.\d% \(measured\); raise probes"):
        found = build_graph(x, 10, method="ivf", probes=1)
    assert found.manifest["recall"] < 0.9


def test_auto_is_exact_until_the_limit(monkeypatch):
    x = mixture(300)
    assert build_graph(x, 3).manifest["method"] == "exact"
    monkeypatch.setattr(build, "EXACT_OPERATIONS", 1.0)
    graph = build_graph(x, 3)
    assert graph.manifest["method"] == "ivf"
    assert graph.manifest["cells"] == 17


def test_more_duplicates_than_neighbours():
    x = np.zeros((50, 3), np.float32)
    x[40:] = 5
    for method in ("exact", "ivf"):
        graph = build_graph(x, 4, method=method)
        assert (graph.distance == 0).all()
        assert (graph.index != np.arange(50)[:, None]).all()


def test_threads_do_not_matter():
    x = mixture(800)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append([build_graph(x, 5, method=method).index for method in ("exact", "ivf")])
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(found[0], found[1])


def test_scipy_reads_the_file_and_the_graph_comes_back(tmp_path):
    graph = build_graph(mixture(200), 6)
    graph.save(tmp_path / "knn.npz")
    matrix = sp.load_npz(tmp_path / "knn.npz")
    assert matrix.shape == (200, 200)
    np.testing.assert_array_equal(matrix.indices.reshape(200, 6), graph.index)
    again = KnnGraph.load(tmp_path / "knn.npz")
    np.testing.assert_array_equal(again.distance, graph.distance)
    assert again.metric == "l2"
    assert again.manifest["recall"] == 1.0
    sp.save_npz(tmp_path / "theirs.npz", matrix)
    np.testing.assert_array_equal(KnnGraph.load(tmp_path / "theirs.npz").index, graph.index)


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_csr_from_outside(kind):
    """apricot refuses CSR with int64 indices (defect 11)."""
    distance, index = NearestNeighbors(n_neighbors=3).fit(mixture(100)).kneighbors()
    matrix = sp.csr_matrix((distance.ravel(), index.ravel().astype(kind), np.arange(0, 301, 3, dtype=kind)), (100, 100))
    graph = as_graph(matrix, 100)
    np.testing.assert_array_equal(graph.index, index)
    assert graph.first(1).k == 1
    with pytest.raises(InputError, match="graph: has 100 rows for 99 images"):
        as_graph(matrix, 99)


def wrong(change):
    index = np.array([[1, 2], [0, 2], [0, 1], [0, 1]])
    distance = np.array([[1.0, 2.0]] * 4)
    parts = {"indices": index, "data": distance, "indptr": np.arange(0, 9, 2), "shape": (4, 4)}
    parts.update(change(index, distance) or {})

    class Matrix:
        indices, data = np.ravel(parts["indices"]), np.ravel(parts["data"])
        indptr, shape = parts["indptr"], parts["shape"]

    return Matrix()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda i, d: {"shape": (4, 5)}, r"must be \[N, N\]"),
        (lambda i, d: {"indptr": np.array([0, 2, 4, 5, 8])}, "row 2 has 1 neighbours"),
        (lambda i, d: {"indptr": np.arange(0, 13, 3)}, "8 indices and 8 distances for 4 rows of 3"),
        (lambda i, d: d.__setitem__((1, 0), 3.0), "row 1 is not sorted by distance"),
        (lambda i, d: d.__setitem__((3, 1), np.nan), "row 3 has a distance that is negative, NaN or infinite"),
        (lambda i, d: d.__setitem__((2, 0), -1.0), "row 2 has a distance that is negative"),
        (lambda i, d: i.__setitem__((2, 1), 4), "row 2 has a neighbour out of range"),
        (lambda i, d: i.__setitem__((2, 1), 2), "row 2 is its own neighbour"),
        (lambda i, d: i.__setitem__((0, 1), 1), "row 0 has a neighbour twice"),
    ],
)
def test_graphs_that_break_the_contract(change, words):
    with pytest.raises(InputError, match=words) as caught:
        KnnGraph.from_csr(wrong(change))
    assert "\n" not in str(caught.value)


def test_files_that_are_no_graph(tmp_path):
    path = tmp_path / "knn.npz"
    with pytest.raises(InputError, match=r"knn\.npz: no such file"):
        KnnGraph.load(path)
    path.write_bytes(b"rubbish")
    with pytest.raises(InputError, match=r"knn\.npz: is not a readable kNN graph"):
        KnnGraph.load(path)
    np.savez(path, a=1)
    with pytest.raises(InputError, match=r"knn\.npz: "):
        KnnGraph.load(path)
    graph = build_graph(mixture(100), 3)
    graph.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is not a readable kNN graph"):
        KnnGraph.load(path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"k": 0}, "k: must be a whole number from 1 to 9"),
        ({"k": 10}, "k: must be a whole number from 1 to 9 for 10 images"),
        ({"k": 2.0}, "k: must be a whole number"),
        ({"metric": "l1"}, "metric: 'l1' is not one of"),
        ({"method": "annoy"}, "graph method: 'annoy' is not one of"),
        ({"probes": 0}, "probes: must be"),
        ({"seed": -1}, "seed: must be"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(InputError, match=words):
        build_graph(np.zeros((10, 2)), **{"k": 2, **arguments})


def test_without_faiss_the_error_names_the_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingDependencyError, match=r"prunefast\[faiss\]"):
        build_graph(mixture(50), 3, method="faiss-ivf")
