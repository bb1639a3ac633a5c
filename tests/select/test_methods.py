"""The selection methods against plain implementations, hand calculations and the defects of peers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefast.errors import InputError
from prunefast.graph import build_graph
from prunefast.select import SELECTIONS, Coreset, select
from prunefast.select.facility import columns_of
from prunefast.select.hierarchical import fill_evenly
from prunefast.select.k_center import farthest_points

SETTINGS = settings(deadline=None, max_examples=30)
ROWS = 120


@pytest.fixture
def features():
    random = np.random.default_rng(0)
    centres = 4 * random.normal(size=(6, 5))
    return (centres[random.integers(6, size=ROWS)] + random.normal(size=(ROWS, 5))).astype(np.float32)


@pytest.fixture
def labels():
    return np.random.default_rng(1).permutation(np.repeat([0, 1, 2], [70, 40, 10]))


# --- band


def test_the_band_is_in_the_middle_of_the_scores(make_data):
    scores = np.random.default_rng(0).permutation(100).astype(float)
    kept = scores[select(make_data(total=100), scores=scores, method="band", keep=0.2).indices]
    assert sorted(kept) == list(range(40, 60))


@SETTINGS
@given(total=st.integers(1, 30), centre=st.floats(0, 1), random=st.data())
def test_a_band_is_neighbouring_ranks_anywhere(make_data, total, centre, random):
    n = random.draw(st.integers(1, total))
    scores = np.array(random.draw(st.permutations(range(total))), dtype=float)
    coreset = select(make_data(total=total), scores=scores, method="band", keep_n=n, centre=centre)
    kept = np.sort(scores[coreset.indices])
    assert kept.tolist() == list(range(int(kept[0]), int(kept[0]) + n))
    # as near to the centre as the ends allow
    best = min(max(centre * (total - 1) - (n - 1) / 2, 0), total - n)
    assert abs(kept[0] - best) <= 0.5 + 1e-9


def test_the_ends_of_the_band_are_top_and_bottom(make_data):
    scores = np.array([3.0, 1, 2, 2, 5])
    data = make_data(total=5)
    top = select(data, scores=scores, keep_n=2).indices.tolist()
    assert select(data, scores=scores, method="band", keep_n=2, centre=1).indices.tolist() == top == [0, 4]
    assert select(data, scores=scores, method="band", keep_n=1, centre=0).indices.tolist() == [1]
    ties = np.zeros(4)
    assert select(make_data(total=4), scores=ties, method="band", keep_n=1, centre=1).indices.tolist() == [0]


# --- stratified (CCS)


def plain_ccs(scores, n, strata, beta):
    """Budgets as the source computes them: (stratum of every image or -1, {stratum: budget})."""
    order = np.argsort(scores, kind="stable")
    rest = order[int(beta * len(scores)) :]
    edges = np.linspace(scores[rest].min(), scores[rest].max(), strata + 1)
    stratum = np.full(len(scores), -1)
    stratum[rest] = np.clip(np.searchsorted(edges, scores[rest], side="right") - 1, 0, strata - 1)
    sizes = {s: int((stratum == s).sum()) for s in set(stratum[rest].tolist())}
    budgets, left = {}, n
    for place, s in enumerate(sorted(sizes, key=lambda s: (sizes[s], s))):
        budgets[s] = min(sizes[s], left // (len(sizes) - place))
        left -= budgets[s]
    return stratum, budgets


@pytest.mark.parametrize("shift", [0.0, -1000.0])
def test_stratified_budgets_are_those_of_ccs(make_data, shift):
    """All-negative scores put the best image outside every bin of the source (defect 4)."""
    scores = np.random.default_rng(0).gamma(2, size=1000) + shift
    coreset = select(make_data(total=1000), scores=scores, method="stratified", keep=0.3, beta=0.1, strata=20)
    stratum, budgets = plain_ccs(scores, 300, 20, 0.1)
    kept = np.bincount(stratum[coreset.indices], minlength=20)
    assert {s: int(kept[s]) for s in budgets} == budgets
    assert scores[coreset.indices].min() >= np.sort(scores)[100]


def test_stratified_is_random_within_strata_and_seeded(make_data):
    data = make_data(total=200)
    scores = np.linspace(0, 1, 200)
    one, two, other = (
        select(data, scores=scores, method="stratified", keep=0.2, beta=0, seed=seed).indices.tolist()
        for seed in (1, 1, 2)
    )
    assert one == two != other


def test_stratified_per_class_budgets_are_each_class_s(make_data):
    """CCS's class_balanced gives [50, 50] of 900 and 100 (defect 3) and changes the scores given (defect 5)."""
    data = make_data(labels=[0] * 900 + [1] * 100)
    scores = np.random.default_rng(0).normal(size=1000)
    before = scores.copy()
    coreset = select(data, scores=scores, method="stratified", keep=0.5, per_class=True)
    assert coreset.counts_per_class() == {"class0": (450, 900), "class1": (50, 100)}
    np.testing.assert_array_equal(scores, before)


def test_stratified_ends_and_equal_scores(make_data):
    data, scores = make_data(total=100), np.arange(100.0)
    high = select(data, scores=scores, method="stratified", keep_n=10, beta=0.5, hard="high")
    assert high.indices.max() < 50
    assert len(select(data, scores=np.zeros(100), method="stratified", keep_n=10)) == 10
    ranked = select(data, scores=np.exp(scores), method="stratified", keep_n=50, strata=5, beta=0, scale="rank")
    assert np.bincount(ranked.indices // 20).tolist() == [10] * 5
    with pytest.raises(InputError, match=r"beta: 0.5 of 100 images leaves 50 for a budget of 60"):
        select(data, scores=scores, method="stratified", keep_n=60, beta=0.5)


# --- interval (D2C)


def test_interval_takes_every_kth_from_the_easiest(make_data):
    scores = -np.random.default_rng(0).permutation(100).astype(float)  # minus the difficulty
    coreset = select(make_data(total=100), scores=scores, method="interval", keep_n=5, interval=7)
    assert sorted(-scores[coreset.indices]) == [0, 7, 14, 21, 28]
    default = select(make_data(total=100), scores=scores, method="interval", keep_n=5)
    assert sorted(-scores[default.indices]) == [0, 14, 28, 42, 56]
    hard = select(make_data(total=100), scores=scores, method="interval", keep_n=2, interval=3, hard="high")
    assert sorted(scores[hard.indices]) == [-99, -96]
    with pytest.raises(InputError, match="interval: every 30th of 100 images gives 4, not 5; lower interval"):
        select(make_data(total=100), scores=scores, method="interval", keep_n=5, interval=30)


def test_interval_within_classes(make_data):
    data = make_data(labels=[0] * 10 + [1] * 10)
    coreset = select(data, scores=-np.arange(20.0), method="interval", keep_n=6, per_class=True, interval=3)
    assert coreset.indices.tolist() == [0, 3, 6, 10, 13, 16]


# --- D2


def plain_d2(scores, features, n, k, gamma, gamma_forward):
    """The formula on the dense N x N matrix."""
    distance = np.linalg.norm(features[:, None].astype(float) - features[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    near = np.argsort(distance, axis=1, kind="stable")[:, :k]
    far = np.take_along_axis(distance, near, axis=1)
    far = far / far.mean()
    value = scores + (np.exp(-gamma_forward * far) * scores[near]).sum(axis=1)
    picks = []
    for _ in range(n):
        i = int(np.where(np.isin(np.arange(len(scores)), picks), -np.inf, value).argmax())
        picks.append(i)
        value[near[i]] -= np.exp(-gamma * far[i]) * value[i]
    return picks


def test_d2_is_the_dense_formula(make_data, features):
    scores = np.random.default_rng(2).random(ROWS)
    coreset = select(
        make_data(total=ROWS), scores=scores, features=features, method="d2", keep_n=40, k=4, scale="score"
    )
    assert coreset.ranking.tolist() == plain_d2(scores, features, 40, 4, 0.1, 1.0)


def test_d2_from_a_graph_is_d2_from_features(make_data, features):
    data, scores = make_data(total=ROWS), np.random.default_rng(2).random(ROWS)
    graph = build_graph(features, 9)
    one = select(data, scores=scores, features=features, method="d2", keep=0.3)
    two = select(data, scores=scores, graph=graph, method="d2", keep=0.3)
    assert one.indices.tolist() == two.indices.tolist()
    assert two.manifest["graph"]["method"] == "exact"


def test_d2_pushes_copies_down(make_data):
    """Ten copies of the best image, and nine others: after the first copy the others come before the next copy."""
    features = np.r_[np.zeros((10, 2)), 100 + 10 * np.arange(18.0).reshape(9, 2)]
    scores = np.r_[np.full(10, 1.0), np.full(9, 0.9)]
    coreset = select(
        make_data(total=19), scores=scores, features=features, method="d2", keep_n=5, k=9, scale="score", gamma=1.0
    )
    assert (coreset.indices < 10).sum() <= 2


def test_d2_in_strata_without_the_hardest(make_data, features):
    """The budget of every stratum is CCS's, the cut is never picked, and within a stratum it is D2 of that stratum."""
    scores = np.linspace(0, 1, ROWS)
    data = make_data(total=ROWS)
    wanted = {"scores": scores, "features": features, "method": "d2", "scale": "score"}
    coreset = select(data, **wanted, keep_n=40, strata=5, beta=0.25)
    assert coreset.indices.min() >= ROWS // 4
    edges = np.linspace(scores[30], scores[-1], 6)[1:-1]
    assert np.bincount(np.digitize(scores[coreset.indices], edges), minlength=5).tolist() == [8] * 5
    hard = select(data, **wanted, keep_n=40, strata=5, beta=0.25, hard="high")
    assert hard.indices.max() < ROWS - ROWS // 4
    forced = select(data, **wanted, keep_n=41, strata=5, beta=0.25, must_keep=[0], must_drop=[119])
    assert 0 in forced.indices
    assert len(forced) == 41
    assert 119 not in forced.indices
    one = select(data, **wanted, keep_n=30, beta=0.5, gamma=1e9)
    assert set(one.indices) == set(select(data, **wanted, keep_n=30, must_drop=np.arange(60), gamma=1e9).indices)
    with pytest.raises(InputError, match="leaves 12 for a budget of 40"):
        select(data, **wanted, keep_n=40, beta=0.9)


def test_prototypes_have_a_floor_under_every_class(make_data, features, labels):
    """By hand: floor(f n N_c / N) of each class first, then the highest of all that are left."""
    data = make_data(labels=labels)
    wanted = {"features": features, "method": "prototypes", "k": 6, "keep_n": 36}
    plain, floored = select(data, **wanted), select(data, **wanted, class_floor=0.5)
    own = plain.scores
    first: list[int] = []
    for number, count in ((0, 10), (1, 6), (2, 1)):
        first += sorted(np.flatnonzero(labels == number), key=lambda i: -own[i])[:count]
    rest = sorted(set(range(ROWS)) - set(first), key=lambda i: -own[i])[: 36 - len(first)]
    assert set(floored.indices) == set(first) | set(rest)
    assert floored.manifest["class_floor_kept"] == [10, 6, 1]
    for more, words in (
        ({"per_class": True}, "class_floor: per_class splits the budget already"),
        ({"class_floor": 2}, "class_floor: must be a finite number"),
        ({"must_keep": np.flatnonzero(labels == 1)[:36]}, "class_floor: with what must be kept it makes 47 images"),
    ):
        with pytest.raises(InputError, match=words):
            select(data, **wanted, **{"class_floor": 0.5, **more})
    with pytest.raises(InputError, match="class_floor: this data has no classes"):
        select(make_data(total=ROWS), **wanted, class_floor=0.5)


def test_d2_refuses_negative_scores_as_they_are(make_data, features):
    data = make_data(total=ROWS)
    with pytest.raises(InputError, match="d2 needs scores of at least 0, or scale='rank'"):
        select(data, scores=-np.ones(ROWS), features=features, method="d2", keep=0.3, scale="score")
    assert len(select(data, scores=-np.arange(ROWS), features=features, method="d2", keep=0.3)) == 36


# --- k-center


def plain_k_center(x, n, first):
    picks = list(first)
    while len(picks) < n:
        squared = ((x[:, None].astype(float) - x[None, picks]) ** 2).sum(-1).min(axis=1)
        squared[picks] = -1
        picks.append(int(squared.argmax()))
    return picks


@SETTINGS
@given(rows=st.integers(2, 60), dim=st.integers(1, 4), random=st.data())
def test_k_center_is_the_greedy_algorithm(rows, dim, random):
    """On small integers, where distances are exact and often equal, with any number of active rows."""
    from prunefast.select import k_center

    x = np.random.default_rng(random.draw(st.integers(0, 999))).integers(-3, 4, (rows, dim)).astype(np.float32)
    n = random.draw(st.integers(1, rows))
    start = random.draw(st.integers(0, rows - 1))
    before = k_center._ACTIVE
    try:
        k_center._ACTIVE = random.draw(st.integers(1, rows + 1))
        picks, radius = farthest_points(x, n, np.array([start]), np.ones(rows, dtype=bool))
    finally:
        k_center._ACTIVE = before
    assert picks.tolist() == plain_k_center(x, n, [start])
    assert (np.diff(radius) <= 0).all()


def test_k_center_covers_within_its_last_gain(make_data, features):
    coreset = select(make_data(total=ROWS), features=features, method="k-center", keep_n=20)
    nearest = np.linalg.norm(features[:, None].astype(float) - features[None, coreset.indices], axis=2).min(axis=1)
    gains = coreset.gains[np.argsort(-coreset.scores[coreset.indices], kind="stable")]
    assert gains[0] == np.inf
    assert nearest.max() <= gains[-1] + 1e-5
    centre = np.linalg.norm(features - features.mean(axis=0), axis=1).argmin()
    assert coreset.ranking[0] == centre


def test_k_center_starts_from_what_must_be_kept(make_data, features):
    coreset = select(make_data(total=ROWS), features=features, method="k-center", keep_n=9, must_keep=[5, 3])
    assert coreset.ranking.tolist() == plain_k_center(features, 9, [3, 5])


# --- herding


def test_herding_is_the_formula(make_data, features):
    wide = features.astype(np.float64)
    mean = wide.mean(axis=0)
    picks = []
    for t in range(15):
        target = (t + 1) * mean - wide[picks].sum(axis=0)
        distance = np.linalg.norm(wide - target, axis=1)
        distance[picks] = np.inf
        picks.append(int(distance.argmin()))
    coreset = select(make_data(total=ROWS), features=features, method="herding", keep_n=15)
    assert coreset.ranking.tolist() == picks


def test_herding_keeps_the_mean_better_than_chance(make_data, features):
    data = make_data(total=ROWS)
    mean = features.mean(axis=0)

    def off(coreset):
        return np.linalg.norm(features[coreset.indices].mean(axis=0) - mean)

    chance = [off(select(data, method="random", keep_n=20, seed=seed)) for seed in range(20)]
    assert off(select(data, features=features, method="herding", keep_n=20)) < min(chance)


# --- facility location


def dense_similarity(features, graph):
    """N x N of what the sparse graph holds, for the plain greedy algorithm."""
    similarity = np.eye(len(graph))
    h = np.median(graph.distance[:, -1].astype(float))
    near = np.exp(-((graph.distance / h) ** 2) / 2)
    rows = np.repeat(np.arange(len(graph)), graph.k)
    similarity[rows, graph.indices] = near.ravel()
    return np.maximum(similarity, similarity.T)


def test_facility_location_is_the_greedy_algorithm(make_data, features):
    graph = build_graph(features, 8)
    similarity = dense_similarity(features, graph)
    covered, picks, gains = np.zeros(ROWS), [], []
    for _ in range(25):
        gain = np.maximum(similarity - covered[:, None], 0).sum(axis=0)
        gain[picks] = -1
        picks.append(int(gain.argmax()))
        gains.append(gain[picks[-1]])
        covered = np.maximum(covered, similarity[:, picks[-1]])
    coreset = select(make_data(total=ROWS), graph=graph, method="facility-location", keep_n=25, k=8)
    assert coreset.ranking.tolist() == picks
    order = np.argsort(-coreset.scores[coreset.indices])
    np.testing.assert_allclose(coreset.gains[order], gains, rtol=1e-5)
    assert coreset.manifest["objective"] == pytest.approx(covered.sum(), rel=1e-5)


def test_columns_hold_each_pair_once(features):
    graph = build_graph(features, 5)
    columns = columns_of(graph)
    dense = dense_similarity(features, graph)
    found = np.zeros((ROWS, ROWS))
    for j in range(ROWS):
        part = slice(columns.start[j], columns.start[j + 1])
        assert len(set(columns.rows[part])) == part.stop - part.start
        found[columns.rows[part], j] = columns.similarity[part]
    np.testing.assert_allclose(found, dense, rtol=1e-5)


def test_cleanlabs_graph_will_do(make_data, features):
    import scipy.sparse as sp
    from sklearn.neighbors import NearestNeighbors

    distance, index = NearestNeighbors(n_neighbors=10).fit(features).kneighbors()
    matrix = sp.csr_matrix((distance.ravel(), index.ravel(), np.arange(0, 10 * ROWS + 1, 10)), (ROWS, ROWS))
    data = make_data(total=ROWS)
    theirs = select(data, graph=matrix, method="facility-location", keep_n=20, k=10)
    ours = select(data, features=features, method="facility-location", keep_n=20, k=10)
    assert theirs.indices.tolist() == ours.indices.tolist()


# --- every method that picks one after the other


@pytest.mark.parametrize("method", ["d2", "k-center", "herding", "facility-location"])
def test_one_run_gives_every_smaller_budget(make_data, features, labels, tmp_path, method):
    inputs = {"scores": features[:, 0]} if method == "d2" else {}
    data = make_data(total=ROWS)
    whole = select(data, features=features, method=method, keep_n=60, **inputs)
    for n in (1, 7, 30):
        direct = select(data, features=features, method=method, keep_n=n, **inputs)
        assert set(whole.ranking[:n]) == set(direct.indices)
        assert select(data, scores=whole.scores, keep_n=n).indices.tolist() == direct.indices.tolist()
    whole.save(tmp_path / "c.parquet")
    again = Coreset.load(tmp_path / "c.parquet", data)
    np.testing.assert_array_equal(again.gains, whole.gains)
    assert again.ranking.tolist() == whole.ranking.tolist()
    assert again.fingerprint == whole.fingerprint


@pytest.mark.parametrize("method", ["k-center", "herding"])
def test_per_class_is_each_class_by_itself(make_data, features, labels, method):
    whole = select(make_data(labels=labels), features=features, method=method, keep=0.2, per_class=True)
    for number in range(3):
        own = np.flatnonzero(labels == number)
        alone = select(make_data(total=len(own)), features=features[own], method=method, keep=0.2)
        assert set(own[alone.indices]) == set(whole.indices[labels[whole.indices] == number])


# --- hierarchical


def test_many_clusters_of_one_kind_count_as_one_kind(make_data):
    """Nine clusters side by side and one far away: equal clusters give the far one a tenth, the hierarchy a half."""
    random = np.random.default_rng(0)
    near = 10 * np.repeat(np.arange(9.0), 20)[:, None] * [1, 0] + random.normal(size=(180, 2))
    features = np.r_[near, random.normal([5000, 0], size=(20, 2))].astype(np.float32)
    coreset = select(make_data(total=200), features=features, method="hierarchical", keep_n=30, k=10, shrink=5)
    assert (coreset.indices >= 180).sum() == 15
    flat = select(make_data(total=200), features=features, method="clusters", keep_n=30, k=10, quota="equal")
    assert (flat.indices >= 180).sum() <= 6
    assert coreset.manifest["options"]["clusters"] == 10


@SETTINGS
@given(random=st.data())
def test_filling_is_even(random):
    upper = np.array(random.draw(st.lists(st.integers(0, 20), min_size=1, max_size=8)))
    lower = np.array([random.draw(st.integers(0, int(u))) for u in upper])
    n = random.draw(st.integers(int(lower.sum()), int(upper.sum())))
    quota = fill_evenly(n, lower, upper, np.random.Generator(np.random.Philox(0)))
    assert quota.sum() == n
    assert (quota >= lower).all()
    assert (quota <= upper).all()
    free = quota[(quota > lower) & (quota < upper)]
    assert free.max(initial=0) - free.min(initial=99) <= 1 or not len(free)
    if len(free):  # nobody who could have more has less than they have
        assert quota[quota < upper].min() >= free.max() - 1


# --- class targets


def test_class_targets(make_data, labels):
    data, scores = make_data(labels=labels), np.random.default_rng(0).random(ROWS)
    uniform = select(data, scores=scores, keep_n=30, class_target="uniform")
    assert [kept for kept, _ in uniform.counts_per_class().values()] == [10, 10, 10]
    same = select(data, scores=scores, keep_n=30, class_target="input")
    assert same.indices.tolist() == select(data, scores=scores, keep_n=30, per_class=True).indices.tolist()
    shares = select(data, scores=scores, keep_n=31, class_target={"class0": 3, 1: 1})
    assert [kept for kept, _ in shares.counts_per_class().values()] == [23, 8, 0]
    assert shares.manifest["class_target"] == {"class0": 3, "1": 1}
    assert shares.manifest["per_class"] is True


@pytest.mark.parametrize(
    ("target", "n", "words"),
    [
        ("uniform", 33, r"class 'class2' has 10 images for a quota of 11; keep at most 30 images"),
        ({"class2": 1}, 11, r"class 'class2' has 10 images for a quota of 11; keep at most 10 images"),
        ({"cat": 1}, 3, "'cat' is no class with images; there are class0, class1, class2"),
        ({"class0": -1}, 3, "the share of 'class0' must be a finite number"),
        ({"class0": 0}, 3, "all shares are 0"),
        ("equal", 3, 'must be "input", "uniform" or a share for each class'),
        (0.5, 3, 'must be "input", "uniform" or a share for each class'),
    ],
)
def test_class_targets_that_cannot_be_met(make_data, labels, target, n, words):
    with pytest.raises((InputError, TypeError), match=words) as caught:
        select(make_data(labels=labels), method="random", keep_n=n, class_target=target)
    assert "\n" not in str(caught.value)


def test_class_target_and_what_must_be_kept(make_data, labels):
    forced = np.flatnonzero(labels == 2)[:5]
    data = make_data(labels=labels)
    coreset = select(data, method="random", keep_n=30, class_target="uniform", must_keep=forced)
    assert set(forced) <= set(coreset.indices)
    with pytest.raises(InputError, match="class 'class2' has 3 images that must be kept for a quota of 1"):
        select(data, method="random", keep_n=3, class_target="uniform", must_keep=forced[:3])


# --- properties of all methods


def inputs_of(method, features):
    takes = SELECTIONS[method].takes
    inputs = {"scores": features[:, 0].astype(float)} if "scores" in takes else {}
    return inputs if takes in (("scores",), ()) and method != "moderate" else {**inputs, "features": features}


ORDER_FREE = ["top", "band", "interval", "d2", "k-center", "herding", "facility-location", "gaussian", "ppca", "knn"]
ORDER_FREE += ["density", "moderate"]


@pytest.mark.parametrize("method", ORDER_FREE)
@pytest.mark.parametrize("per_class", [False, True])
def test_permuting_the_input_permutes_the_answer(make_data, features, labels, method, per_class):
    """Methods that draw nothing; a draw belongs to a position. Facility location ties where two images that are left
    cover each other (both gain 1 - c_i + s - c_j), and ties go by position: fewer are picked.
    """
    order = np.random.default_rng(3).permutation(ROWS)
    wanted = {"method": method, "keep_n": 12 if method == "facility-location" else 40, "per_class": per_class}
    one = select(make_data(labels=labels), **wanted, **inputs_of(method, features))
    two = select(make_data(labels=labels[order]), **wanted, **inputs_of(method, features[order]))
    assert set(order[two.indices]) == set(one.indices)


@pytest.mark.parametrize("method", ["gaussian", "ppca", "clusters", "hierarchical", "knn", "density", "k-center"])
@settings(deadline=None, max_examples=5)
@given(power=st.integers(-3, 3), shift=st.integers(-50, 50))
def test_scale_and_shift_leave_picks_alone(make_data, method, power, shift):
    """Multiples of 1/8, scaled by powers of two and shifted by whole numbers, are exact: distances scale exactly."""
    random = np.random.default_rng(5)
    features = (np.round(8 * random.normal(size=(60, 4))) / 8).astype(np.float32)
    options = {"k": 4, "pick": "nearest"} if method in ("clusters", "hierarchical") else {}
    if method in ("gaussian", "ppca"):
        options["ridge"] = 0.0
    data = make_data(total=60)
    one = select(data, features=features, method=method, keep_n=20, **options)
    two = select(data, features=features * 2.0**power + shift, method=method, keep_n=20, **options)
    assert one.indices.tolist() == two.indices.tolist()


@SETTINGS
@given(method=st.sampled_from(list(SELECTIONS)), keep=st.floats(0.1, 0.5), random=st.data())
def test_kept_and_dropped_are_everything_once(make_data, method, keep, random):
    features = np.random.default_rng(random.draw(st.integers(0, 99))).normal(size=(40, 3)).astype(np.float32)
    labels = np.arange(40) % 3
    forced = random.draw(st.lists(st.integers(0, 39), max_size=3, unique=True))
    barred = [i for i in random.draw(st.lists(st.integers(0, 39), max_size=3, unique=True)) if i not in forced]
    coreset = select(
        make_data(labels=labels),
        method=method,
        keep=keep,
        per_class=random.draw(st.booleans()),
        must_keep=forced,
        must_drop=barred,
        **inputs_of(method, features),
    )
    assert sorted([*coreset.indices, *coreset.dropped]) == list(range(40))
    assert set(forced) <= set(coreset.indices)
    assert not set(barred) & set(coreset.indices)


# --- bad input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "band"}, "scores: method 'band' works on scores; pass scores="),
        ({"method": "d2", "scores": np.ones(6)}, "features: method 'd2' needs them, or graph="),
        ({"method": "facility-location"}, "features: method 'facility-location' needs them, or graph="),
        ({"method": "k-center", "scores": np.ones(6)}, "scores: method 'k-center' makes its own"),
        (
            {"method": "band", "scores": np.ones(6), "centre": 2},
            "centre: must be a finite number at least 0, at most 1",
        ),
        ({"method": "band", "scores": np.ones(6), "threshold": 1, "keep": None}, "'band' is about shares"),
        ({"method": "stratified", "scores": np.ones(6), "strata": 0}, "strata: must be a whole number"),
        ({"method": "stratified", "scores": np.ones(6), "beta": 1.0}, "beta: must be below 1"),
        ({"method": "stratified", "scores": np.ones(6), "hard": "up"}, "hard: must be one of low, high"),
        ({"method": "stratified", "scores": [1, 2, 3, 4, 5, np.nan]}, "scores: nan in row 5"),
        ({"method": "interval", "scores": np.ones(6), "interval": 0}, "interval: must be a whole number"),
        ({"method": "d2", "scores": np.ones(6), "features": np.ones((6, 2)), "k": 0}, "k: must be a whole number"),
        ({"method": "d2", "scores": np.ones(6), "features": np.ones((6, 2)), "gamma": -1}, "gamma: must be"),
        ({"method": "d2", "scores": np.ones(6), "graph": np.eye(6)}, "graph: ndarray is no CSR matrix"),
        ({"method": "gaussian", "features": np.ones((6, 2)), "graph": 1}, "graph: method 'gaussian' does not look"),
        ({"method": "k-center", "features": np.ones((6, 2)), "start": "end"}, "start: must be one of mean, random"),
        ({"method": "hierarchical", "features": np.ones((6, 2)), "k": 7}, "k: 7 clusters for 6 images"),
        ({"method": "hierarchical", "features": np.ones((6, 2)), "shrink": 1}, "shrink: must be a whole number"),
    ],
)
def test_bad_arguments(make_data, options, words):
    with pytest.raises(InputError, match=words) as caught:
        select(make_data(total=6), **{"keep": 0.5, **options})
    assert "\n" not in str(caught.value)


def test_a_graph_of_other_data_is_refused(make_data, features):
    graph = build_graph(features, 5)
    with pytest.raises(InputError, match="graph: has 120 rows for 6 images"):
        select(make_data(total=6), graph=graph, method="facility-location", keep=0.5, k=5)
