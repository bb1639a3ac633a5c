"""Selection beside its peers: `pytest benchmarks/bench_select.py --benchmark-group-by=group`.

Add `--benchmark-timer=time.process_time` on a machine that others use. Where a peer's package cannot be used (D2's
needs a GPU, DeepCore's a training run), its algorithm stands here in plain NumPy or torch as it does the work. What is
measured in a group is also compared: the same picks, or an objective that is no smaller (`extra_info`, shown with
`--benchmark-columns`). Peers that are not installed are left out. benchmarks/select_memory.py has the memory.
"""

import sys
import types

import numpy as np
import pytest

from prunefast.graph import build_graph
from prunefast.select import budget, select
from prunefast.select.k_center import farthest_points

pytest.importorskip("pytest_benchmark")


class Data:
    labels = None
    classes = ()
    fingerprint = "benchmark"

    def __init__(self, total):
        self.keys = [str(i) for i in range(total)]

    def __len__(self):
        return len(self.keys)


def mixture(rows, columns, centres=200):
    generator = np.random.default_rng(0)
    middle = generator.normal(size=(centres, columns))
    return (middle[generator.integers(centres, size=rows)] + generator.normal(size=(rows, columns))).astype(np.float32)


# --- k-center, 50,000 x 512, 1,000 picks


def deepcore_k_center(x, n):
    """DeepCore: every pick's distances into an n x N matrix, and the minimum over all its rows again for each pick."""
    torch = pytest.importorskip("torch")
    rows = torch.from_numpy(x)
    distance = torch.full((n, len(x)), torch.inf)
    picks = [0]
    for step in range(n - 1):
        distance[step] = (rows - rows[picks[-1]]).square().sum(1)
        nearest = distance.min(dim=0).values
        nearest[picks] = -1
        picks.append(int(nearest.argmax()))
    return picks


def running_k_center(x, n):
    """The same picks with a running minimum: what a careful NumPy version does."""
    nearest, picks = np.full(len(x), np.inf, np.float32), [0]
    for _ in range(n - 1):
        nearest = np.minimum(nearest, np.square(x - x[picks[-1]]).sum(axis=1))
        nearest[picks] = -1
        picks.append(int(nearest.argmax()))
    return picks


def our_k_center(x, n):
    return farthest_points(x, n, np.array([0]), np.ones(len(x), dtype=bool))[0].tolist()


K_CENTER = {"prunefast": our_k_center, "full matrix (DeepCore)": deepcore_k_center, "running minimum": running_k_center}


@pytest.fixture(scope="module")
def many():
    return mixture(50_000, 512)


@pytest.mark.parametrize("who", K_CENTER)
def test_k_center(benchmark, who, many):
    benchmark.group = "k-center, 50000 x 512, 1000 picks"
    picks = benchmark.pedantic(K_CENTER[who], (many, 1000), rounds=3 if who == "prunefast" else 1)
    if who != "prunefast":
        assert picks == our_k_center(many, 1000)


# --- D2, 15,000 x 512, 30 % kept


def dense_d2(x, scores, n, k=5, gamma=0.1):
    """D2's code: all N x N distances, sorted row by row for the graph; then an argmax over everything for each pick."""
    square = np.square(x).sum(axis=1)
    distance = np.sqrt(np.maximum(square[:, None] + square - 2 * x @ x.T, 0))
    np.fill_diagonal(distance, np.inf)
    near = np.argsort(distance, axis=1)[:, :k]
    far = np.take_along_axis(distance, near, axis=1)
    far = far / far.mean()
    value = scores + (np.exp(-far) * scores[near]).sum(axis=1)
    open_, picks = np.ones(len(x), dtype=bool), []
    for _ in range(n):
        i = int(np.where(open_, value, -np.inf).argmax())
        open_[i] = False
        picks.append(i)
        value[near[i]] -= np.exp(-gamma * far[i]) * value[i]
    return picks


def our_d2(x, scores, n):
    return select(Data(len(x)), scores=scores, features=x, method="d2", keep_n=n, scale="score").ranking.tolist()


D2 = {"prunefast": our_d2, "dense graph": dense_d2}


@pytest.mark.parametrize("who", D2)
def test_d2(benchmark, who):
    benchmark.group = "D2, 15000 x 512, 4500 picks"
    x, scores = mixture(15_000, 512), np.random.default_rng(1).random(15_000)
    picks = benchmark.pedantic(D2[who], (x, scores, 4500), rounds=2)
    if who != "prunefast":  # float32 products round: two neighbours may change places
        benchmark.extra_info["also picked"] = len(np.intersect1d(picks, our_d2(x, scores, 4500))) / 4500


# --- facility location, 10,000 x 128, 1,000 picks


def our_facility(x, n):
    coreset = select(Data(len(x)), features=x, method="facility-location", keep_n=n, metric="cosine")
    return coreset.ranking


def apricot_facility(x, n):
    sys.modules.setdefault("nose", types.ModuleType("nose"))
    apricot = pytest.importorskip("apricot")
    return apricot.FacilityLocationSelection(n, metric="cosine", optimizer="lazy").fit(x).ranking


FACILITY = {"prunefast": our_facility, "apricot": apricot_facility}


@pytest.mark.parametrize("who", FACILITY)
def test_facility_location(benchmark, who):
    benchmark.group = "facility location, cosine, 10000 x 128, 1000 picks"
    x = mixture(10_000, 128)
    picks = benchmark.pedantic(FACILITY[who], (x, 1000), rounds=2, warmup_rounds=1)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    similarity = np.maximum(unit @ unit[picks].T, 0).max(axis=1)  # dense: every pair counts
    benchmark.extra_info["objective"] = float(similarity.sum(dtype=np.float64))


# --- the kNN graph, 20,000 x 256, k = 10


def faiss_exact(x):
    faiss = pytest.importorskip("faiss")
    return faiss.knn(x, x, 11)


GRAPH = {
    "prunefast, exact": lambda x: build_graph(x, 10, method="exact"),
    "prunefast, ivf": lambda x: build_graph(x, 10, method="ivf"),
    "faiss, exact": faiss_exact,
    "faiss-ivf": lambda x: build_graph(x, 10, method="faiss-ivf"),
    "faiss-hnsw": lambda x: build_graph(x, 10, method="faiss-hnsw"),
}


@pytest.mark.parametrize("who", GRAPH)
def test_graph(benchmark, who):
    benchmark.group = "kNN graph, 20000 x 256, k = 10"
    if who.startswith("faiss"):
        pytest.importorskip("faiss")
    found = benchmark.pedantic(GRAPH[who], (mixture(20_000, 256),), rounds=2)
    if hasattr(found, "manifest"):
        benchmark.extra_info["recall"] = found.manifest["recall"]


# --- 10 million scores


def sorted_top(scores, groups, quota):
    """By sorting everything: the usual way."""
    order = np.lexsort((np.arange(len(scores)), -scores, groups))
    sizes = np.bincount(groups)
    rank = np.arange(len(scores)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[rank < np.repeat(quota, sizes)])


def our_top(scores, groups, quota):
    nothing = np.zeros(len(scores), dtype=bool)
    return budget.top_of_groups(scores, groups, quota, nothing, nothing)


TOP = {"prunefast": our_top, "lexsort": sorted_top}


@pytest.mark.parametrize("who", TOP)
@pytest.mark.parametrize("classes", [1, 1000])
def test_top(benchmark, who, classes):
    benchmark.group = f"top tenth of 10 million scores, {classes} classes"
    scores, groups = np.random.default_rng(0).normal(size=10_000_000), np.arange(10_000_000) % classes
    quota = np.full(classes, 1_000_000 // classes)
    found = benchmark.pedantic(TOP[who], (scores, groups, quota), rounds=2)
    assert len(found) == 1_000_000
