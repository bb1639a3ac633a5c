"""What every selection promises, whatever its method: one list of methods, so that a new one is held to it too."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefast.errors import InputError
from prunefast.graph import build_graph
from prunefast.score import METHODS, score
from prunefast.select import SELECTIONS, select

ROWS = 60
# what is drawn belongs to a position there, or to the order of the rows in k-means++
DRAWN = {"random", "stratified", "clusters", "hierarchical", "prototypes"}
CLUSTERED = ("clusters", "hierarchical", "prototypes")
GRAPH = ("d2", "facility-location", "knn", "density")
SETTINGS = settings(deadline=None, max_examples=5)


def inputs_of(method, features):
    takes = SELECTIONS[method].takes
    inputs = {"scores": features @ np.sqrt([1.0, 2, 3, 5])} if "scores" in takes else {}  # no two are equal
    return inputs if takes in (("scores",), ()) and method != "moderate" else {**inputs, "features": features}


def mixture(seed, rows=ROWS, columns=4):
    """Multiples of 1/64 in well separated clumps: sums, distances and scaled copies of them are exact."""
    random = np.random.default_rng(seed)
    centres = np.round(64 * 8 * random.normal(size=(5, columns)))
    points = centres[np.arange(rows) % 5] + np.round(64 * random.normal(size=(rows, columns)))
    return (points / 64).astype(np.float32)


# --- permuted, scaled, shifted


@pytest.mark.parametrize("method", [name for name in SELECTIONS if name not in DRAWN])
@SETTINGS
@given(seed=st.integers(0, 99), per_class=st.booleans())
def test_permuting_the_input_permutes_the_answer(make_data, method, seed, per_class):
    """Up to ties, which go by position: two images may be each other's k-th neighbour, or cover each other."""
    features, labels = mixture(seed), np.arange(ROWS) % 3
    order = np.random.default_rng(seed).permutation(ROWS)
    wanted = {"method": method, "keep_n": 6 if method == "facility-location" else 9, "per_class": per_class}
    one = select(make_data(labels=labels), **wanted, **inputs_of(method, features))
    two = select(make_data(labels=labels[order]), **wanted, **inputs_of(method, features[order]))
    if method in ("knn", "density"):
        kept = [np.sort(coreset.scores[coreset.indices]) for coreset in (one, two)]
        np.testing.assert_allclose(*kept, rtol=1e-6)
    else:
        assert sorted(order[two.indices]) == one.indices.tolist()


@pytest.mark.parametrize("method", CLUSTERED)
@SETTINGS
@given(seed=st.integers(0, 99))
def test_permuting_rows_permutes_clusters_that_are_there(make_data, method, seed):
    """k-means starts from drawn rows; where the clumps are plain, every start ends in them."""
    features = 100 * np.eye(4, dtype=np.float32)[np.arange(ROWS) % 4] + mixture(seed) / 64
    order = np.random.default_rng(seed).permutation(ROWS)
    options = {"k": 4} | ({} if method == "prototypes" else {"pick": "nearest"})
    one = select(make_data(total=ROWS), features=features, method=method, keep_n=12, **options)
    two = select(make_data(total=ROWS), features=features[order], method=method, keep_n=12, **options)
    assert sorted(order[two.indices]) == one.indices.tolist()


def test_what_is_drawn_belongs_to_the_position(make_data):
    """random looks at nothing; stratified takes as many of every stratum whatever the order."""
    values = np.random.default_rng(0).normal(size=500)
    order = np.random.default_rng(1).permutation(500)
    data = make_data(total=500)
    assert (select(data, method="random", keep=0.1).indices == select(data, method="random", keep=0.1).indices).all()
    one, two = (
        select(data, scores=v, method="stratified", strata=5, beta=0, keep_n=60) for v in (values, values[order])
    )
    edges = np.linspace(values.min(), values.max(), 6)[1:-1]
    both = ((values, one), (values[order], two))
    first, second = (np.bincount(np.digitize(v[c.indices], edges), minlength=5).tolist() for v, c in both)
    assert first == second


@pytest.mark.parametrize("method", [name for name in METHODS if name not in DRAWN])
@SETTINGS
@given(seed=st.integers(0, 99))
def test_permuting_features_permutes_scores(method, seed):
    features, labels = mixture(seed), np.arange(ROWS) % 3
    order = np.random.default_rng(seed).permutation(ROWS)
    one, two = score(features, labels, method=method), score(features[order], labels[order], method=method)
    np.testing.assert_allclose(two, one[order], rtol=1e-5, atol=1e-6)


SHIFTS = [name for name in SELECTIONS if "features" in inputs_of(name, mixture(0)) and name != "prototypes"]


@pytest.mark.parametrize("method", SHIFTS)
@SETTINGS
@given(seed=st.integers(0, 99), power=st.integers(-3, 3), shift=st.integers(-8, 8))
def test_scale_and_shift_leave_picks_alone(make_data, method, seed, power, shift):
    """Scaled by powers of two and shifted by whole numbers, everything is exact. A ridge is in units of features."""
    features = mixture(seed)
    options = {"ridge": 0.0} if method in ("gaussian", "ppca") else {}
    options |= {"k": 5, "pick": "nearest"} if method in ("clusters", "hierarchical") else {}
    inputs = inputs_of(method, features)
    wanted = {"method": method, "keep_n": 9, **options}
    one = select(make_data(total=ROWS), **wanted, **inputs)
    moved = {**inputs, "features": features * np.float32(2.0**power) + np.float32(shift)}
    assert select(make_data(total=ROWS), **wanted, **moved).indices.tolist() == one.indices.tolist()


@pytest.mark.parametrize("power", [-3, 2])
def test_scale_leaves_prototypes_alone(make_data, power):
    """They are directions from the origin: a shift changes them."""
    features = mixture(0)
    one, two = (
        select(make_data(total=ROWS), features=x, method="prototypes", k=5, keep_n=9)
        for x in (features, features * np.float32(2.0**power))
    )
    assert one.indices.tolist() == two.indices.tolist()


# --- budgets


@pytest.mark.parametrize("method", SELECTIONS)
@SETTINGS
@given(keep=st.floats(0, 0.5), seed=st.integers(0, 99), random=st.data())
def test_kept_and_dropped_are_everything_once(make_data, method, keep, seed, random):
    forced = random.draw(st.lists(st.integers(0, ROWS - 1), max_size=3, unique=True))
    barred = random.draw(st.lists(st.integers(0, ROWS - 1), max_size=3, unique=True))
    barred = [i for i in barred if i not in forced]
    target = random.draw(st.sampled_from([None, "input", "uniform", {"class0": 3, "class2": 1}]))
    coreset = select(
        make_data(labels=np.arange(ROWS) % 3),
        method=method,
        keep_n=round(keep * 24) + 9,
        class_target=target,
        must_keep=None if isinstance(target, dict) else forced,
        must_drop=barred,
        **inputs_of(method, mixture(seed)),
    )
    assert sorted([*coreset.indices, *coreset.dropped]) == list(range(ROWS))
    assert len(coreset) == round(keep * 24) + 9
    assert not set(barred) & set(coreset.indices)
    assert isinstance(target, dict) or set(forced) <= set(coreset.indices)


@pytest.mark.parametrize("method", SELECTIONS)
def test_budgets_that_are_too_large(make_data, method):
    data = make_data(labels=[0] * 50 + [1] * 10)
    inputs = {"method": method, **inputs_of(method, mixture(0))}
    for more, words in (
        ({"keep_n": ROWS + 1}, "keep_n: must be between 1 and the number of images, 60, not 61"),
        ({"keep_n": 30, "class_target": "uniform"}, "class_target: class 'class1' has 10 images for a quota of 15"),
        ({"keep_n": 11, "class_target": {"class1": 1}}, "class_target: class 'class1' has 10 images for a quota of 11"),
        ({"keep_n": 30, "must_drop": np.arange(40)}, "must_drop: leaves 20 images for a budget of 30"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            select(data, **inputs, **more)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", SELECTIONS)
@pytest.mark.parametrize("per_class", [False, True])
def test_a_class_with_one_image(make_data, method, per_class):
    """Its share or, where a model of the class cannot be, one line that names the class."""
    data = make_data(labels=[0] * (ROWS - 1) + [1])
    wanted = {"method": method, "keep_n": 30, "per_class": per_class, **inputs_of(method, mixture(0))}
    if method == "ppca" or (method in ("knn", "density") and per_class):
        with pytest.raises(InputError, match="features of class 1: 1 image") as caught:
            select(data, **wanted)
        assert "\n" not in str(caught.value)
    else:
        assert len(select(data, **wanted)) == 30


@pytest.mark.parametrize("method", SELECTIONS)
@pytest.mark.parametrize("labels", [None, [0, 1] * (ROWS // 2)])
def test_equal_images_and_scores(make_data, method, labels):
    """All the same: the budget is still met; ties go to the smallest index where nothing is drawn."""
    inputs = inputs_of(method, np.ones((ROWS, 4), dtype=np.float32))
    data = make_data(labels=labels, total=ROWS)
    coreset = select(data, method=method, keep_n=20, per_class=labels is not None, **inputs)
    assert len(coreset) == 20
    if method in ("top", "gaussian", "ppca", "k-center", "herding"):
        assert coreset.indices.tolist() == list(range(20))


# --- bad input


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("method", SELECTIONS)
def test_numbers_that_are_not_finite(make_data, method, bad):
    for name, values in inputs_of(method, mixture(0).astype(float)).items():
        broken = {**inputs_of(method, mixture(0)), name: values.copy()}
        broken[name][3] = bad
        with pytest.raises(InputError, match=rf"{name}: (NaN or infinity|nan|inf) in row 3") as caught:
            select(make_data(total=ROWS), method=method, keep=0.5, **broken)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", SELECTIONS)
def test_inputs_of_another_length(make_data, method):
    for name, values in inputs_of(method, mixture(0)).items():
        broken = {**inputs_of(method, mixture(0)), name: values[:-1]}
        with pytest.raises(InputError, match=rf"{name}: .*59.* for 60 images"):
            select(make_data(total=ROWS), method=method, keep=0.5, **broken)


@pytest.mark.parametrize("method", GRAPH)
def test_graphs_that_do_not_fit(make_data, method):
    """Of other data, not square, or with fewer neighbours than the method looks at."""
    scores = {"scores": np.arange(ROWS) / ROWS} if method == "d2" else {}
    features = {"features": mixture(0)} if method in ("knn", "density") else {}
    small, few = build_graph(mixture(0)[:-1], 10), build_graph(mixture(0), 3)

    class Oblong:
        indptr, indices, data, shape = few.indptr, few.indices, few.data, (ROWS, ROWS + 1)

    for graph, words in (
        (small, "graph: has 59 rows for 60 images"),
        (few, "neighbours of a graph that has 3"),
        (Oblong(), r"graph: must be \[N, N\]"),
        (np.eye(ROWS), "graph: ndarray is no CSR matrix"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            select(make_data(total=ROWS), method=method, keep=0.5, k=5, graph=graph, **scores, **features)
        assert "\n" not in str(caught.value)


# --- memory


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("method", ["top", "band", "stratified", "interval", "random"])
def test_memory_of_a_cut(make_data, method, labels):
    """Ten million scores in under 1 GB: at most 60 bytes an image beside the inputs, the coreset included."""
    rows = 500_000
    data = make_data(labels=np.arange(rows) % 100 if labels else None, total=rows, keys=["same"] * rows)
    inputs = {} if method == "random" else {"scores": np.random.default_rng(0).normal(size=rows)}
    tracemalloc.start()
    try:
        select(data, method=method, keep=0.1, per_class=labels, **inputs)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 60 * rows
