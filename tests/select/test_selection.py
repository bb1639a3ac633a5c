"""`select`: every method, every kind of budget, and the mistakes other implementations make."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from prunefast.errors import InputError
from prunefast.score import score
from prunefast.select import SELECTIONS, Coreset, select
from prunefast.select.selection import check_selection

SETTINGS = settings(deadline=None, max_examples=60)


def blobs(sizes, dim=4, seed=0, distance=50.0):
    """Well separated clusters: (features, true cluster)."""
    random = np.random.default_rng(seed)
    truth = np.repeat(np.arange(len(sizes)), sizes)
    centres = distance * np.eye(len(sizes), dim)
    return (centres[truth] + random.normal(size=(len(truth), dim))).astype(np.float32), truth


@pytest.fixture
def labelled(make_data):
    """60 images of 3 unequal classes, shuffled, and features."""
    random = np.random.default_rng(3)
    labels = random.permutation(np.repeat([0, 1, 2], [30, 20, 10]))
    features = (random.normal(size=(60, 5)) + labels[:, None]).astype(np.float32)
    return make_data(labels=labels), features


# --- top


def test_highest_scores_are_kept(make_data):
    coreset = select(make_data(total=5), scores=[1.0, 5, 3, 4, 2], keep=0.4)
    assert coreset.indices.tolist() == [1, 3]
    assert coreset.manifest["method"] == "top"
    assert coreset.scores.tolist() == [1.0, 5, 3, 4, 2]


def test_ties_go_to_the_smallest_index_and_the_size_is_exact(make_data):
    """IS-GAN's strict percentile misses the budget on ties (defect 9)."""
    coreset = select(make_data(total=10), scores=np.zeros(10), keep=0.3)
    assert coreset.indices.tolist() == [0, 1, 2]


def test_all_negative_scores(make_data):
    """CCS loses the best item when all scores are negative (defect 4)."""
    scores = -np.arange(1.0, 11)
    assert select(make_data(total=10), scores=scores, keep_n=1).indices.tolist() == [0]


def test_per_class_counts_follow_the_classes(make_data):
    """CCS's class_balanced gives [50, 50] of 900 / 100 (defect 3); the share of each class is right here."""
    data = make_data(labels=[0] * 900 + [1] * 100)
    scores = np.r_[np.zeros(900), np.ones(100)]
    assert select(data, scores=scores, keep=0.5, per_class=True).counts_per_class() == {
        "class0": (450, 900),
        "class1": (50, 100),
    }
    assert select(data, scores=scores, keep=0.1).counts_per_class() == {"class0": (0, 900), "class1": (100, 100)}


def test_threshold_keeps_what_reaches_it(make_data):
    data = make_data(total=4)
    assert select(data, scores=[1.0, 2, 3, 2], threshold=2).indices.tolist() == [1, 2, 3]
    assert select(data, scores=[1.0, 2, 3, 2], threshold=2, must_drop=[2], must_keep=[0]).indices.tolist() == [0, 1, 3]
    with pytest.raises(InputError, match=r"no image scores 4 or more \(the highest is 3\)"):
        select(data, scores=[1.0, 2, 3, 2], threshold=4)


def test_torch_scores(make_data):
    import torch

    assert select(make_data(total=3), scores=torch.tensor([1.0, 3.0, 2.0]), keep_n=1).indices.tolist() == [1]


# --- forced choices


def test_must_keep_and_must_drop_within_the_budget(make_data):
    data = make_data(total=10)
    coreset = select(data, scores=np.arange(10.0), keep_n=4, must_keep=[0, 1], must_drop=[9])
    assert coreset.indices.tolist() == [0, 1, 7, 8]
    assert coreset.manifest["must_keep"] == 2


def test_masks_are_the_same_as_indices(make_data):
    data = make_data(total=6)
    mask = np.array([True, False, False, False, False, False])
    by_mask = select(data, scores=np.arange(6.0), keep_n=2, must_keep=mask)
    assert by_mask.indices.tolist() == select(data, scores=np.arange(6.0), keep_n=2, must_keep=[0]).indices.tolist()


def test_more_forced_images_than_the_class_quota(make_data):
    data = make_data(labels=[0] * 10 + [1] * 10)
    coreset = select(data, scores=np.arange(20.0), keep_n=6, per_class=True, must_keep=range(5))
    assert coreset.counts_per_class() == {"class0": (5, 10), "class1": (1, 10)}
    assert coreset.indices.tolist() == [0, 1, 2, 3, 4, 19]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"must_keep": [1, 2], "must_drop": [2]}, "must_keep, must_drop: image 2 is in both"),
        ({"must_keep": range(4)}, "must_keep: 4 images are more than the budget of 3"),
        ({"must_drop": range(8)}, "must_drop: leaves 2 images for a budget of 3"),
        ({"must_keep": [10]}, "must_keep: 10 is out of range"),
    ],
)
def test_forced_choices_that_cannot_be(make_data, options, words):
    with pytest.raises(InputError, match=words):
        select(make_data(total=10), scores=np.arange(10.0), keep_n=3, **options)


# --- random


def test_random_is_seeded_and_leaves_the_global_generator_alone(make_data):
    """InfoBatch reseeds NumPy's global generator every epoch (defect 8)."""
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    data = make_data(total=1000)
    one = select(data, method="random", keep=0.1, seed=1)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert one.indices.tolist() == select(data, method="random", keep=0.1, seed=1).indices.tolist()
    assert one.indices.tolist() != select(data, method="random", keep=0.1, seed=2).indices.tolist()
    assert len(one) == 100


def test_random_budgets_are_nested(make_data):
    data = make_data(total=100)
    few = set(select(data, method="random", keep=0.1).indices)
    assert few < set(select(data, method="random", keep=0.5).indices)


def test_random_is_uniform(make_data):
    data = make_data(total=20)
    times = np.zeros(20)
    for seed in range(400):
        times[select(data, method="random", keep=0.5, seed=seed).indices] += 1
    # 400 draws of probability 1/2: standard deviation 10
    assert np.abs(times - 200).max() < 45


# --- gaussian


def test_gaussian_from_features_is_gaussian_from_scores(labelled):
    data, features = labelled
    scores = score(features, data.labels, method="gaussian")
    from_features = select(data, features=features, method="gaussian", keep=0.3, per_class=True)
    from_scores = select(data, scores=scores, method="gaussian", keep=0.3, per_class=True)
    assert from_features.indices.tolist() == from_scores.indices.tolist()
    assert from_features.manifest["direction"] == from_scores.manifest["direction"]
    assert from_features.counts_per_class() == {"class0": (9, 30), "class1": (6, 20), "class2": (3, 10)}


def test_gaussian_keeps_the_centre_and_drops_the_outlier(make_data):
    """FiftyOne's representativeness ranks the far points first (defect 1)."""
    features = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    features[7] = 100
    features[9] = np.delete(features, 7, axis=0).mean(axis=0)
    coreset = select(make_data(total=50), features=features, method="gaussian", keep_n=25)
    assert 9 in coreset.indices
    assert 7 not in coreset.indices


def test_permuted_input_permuted_answer(labelled, make_data):
    data, features = labelled
    order = np.random.default_rng(1).permutation(60)
    moved = make_data(labels=data.labels[order])
    for method, options in (("gaussian", {}), ("moderate", {}), ("clusters", {"k": 1})):
        for per_class in (False, True):
            chosen = {"method": method, "keep": 0.4, "per_class": per_class, **options}
            one = select(data, features=features, **chosen)
            two = select(moved, features=features[order], **chosen)
            assert set(order[two.indices]) == set(one.indices), (method, per_class)


# --- moderate


def test_moderate_keeps_the_middle_band(make_data):
    """A copy of Moderate-DS in D2 keeps the list of images to prune, 0 % of them in the middle half (defect 2)."""
    distances = np.random.default_rng(0).permutation(1000).astype(float)
    coreset = select(make_data(total=1000), method="moderate", distances=distances, keep=0.2)
    assert sorted(distances[coreset.indices]) == list(range(400, 600))


def test_moderate_from_features(make_data):
    # on a line, prototype (median) at 0: the distance is |x|
    x = np.array([-9, -4, -3, -1, 0, 2, 5, 6, 8.0])
    coreset = select(make_data(total=9), method="moderate", features=x[:, None], keep_n=3)
    assert sorted(np.abs(x[coreset.indices])) == [3, 4, 5]


@SETTINGS
@given(total=st.integers(1, 40), data=st.data())
def test_moderate_band_is_as_long_above_as_below(make_data, total, data):
    n = data.draw(st.integers(1, total))
    distances = np.array(data.draw(st.permutations(range(total))), dtype=float)
    kept = np.sort(distances[select(make_data(total=total), method="moderate", distances=distances, keep_n=n).indices])
    assert kept.tolist() == list(range(int(kept[0]), int(kept[0]) + n))
    below, above = kept[0], total - 1 - kept[-1]
    assert 0 <= above - below <= 1


def test_moderate_is_global_and_per_class_by_choice(make_data):
    """The source sorts all samples at once, so a class of large distances is lost; per class keeps each one's
    middle."""
    data = make_data(labels=[0] * 10 + [1] * 10)
    distances = np.r_[np.arange(10.0), 100 + np.arange(10.0)]
    every = select(data, method="moderate", distances=distances, keep=0.2)
    assert every.indices.tolist() == [8, 9, 10, 11]
    each = select(data, method="moderate", distances=distances, keep=0.2, per_class=True)
    assert each.indices.tolist() == [4, 5, 14, 15]


# --- clusters


@pytest.mark.parametrize("quota", ["proportional", "equal"])
@pytest.mark.parametrize("pick", ["nearest", "furthest", "middle", "random"])
def test_clusters_fill_their_quotas_with_the_right_images(make_data, quota, pick):
    sizes = [40, 20, 7, 3]
    features, truth = blobs(sizes)
    data = make_data(total=70)
    coreset = select(data, features=features, method="clusters", k=4, quota=quota, pick=pick, keep_n=31)
    assert len(coreset) == 31
    # the clusters found are the true ones, up to their numbers
    pairs = {(int(t), int(c)) for t, c in zip(truth, coreset.clusters, strict=True)}
    assert len(pairs) == 4
    # proportional shares 17.7, 8.9, 3.1, 1.3; equal: 7, 8, 8, 8 capped at sizes, the rest where most is left
    counts = np.bincount(truth[coreset.indices], minlength=4)
    if quota == "proportional":
        assert counts.tolist() == [18, 9, 3, 1]
    else:
        assert counts[2:].tolist() == [7, 3]
        assert counts.sum() == 31
        assert counts[1] >= 7
    for number in range(4):
        members = np.flatnonzero(truth == number)
        rows = features[members].astype(float)
        distance = np.linalg.norm(rows - rows.mean(axis=0), axis=1)
        rank = np.argsort(np.argsort(distance))[np.isin(members, coreset.indices)]
        n, size = len(rank), len(members)
        if pick == "nearest":
            assert sorted(rank) == list(range(n))
        elif pick == "furthest":
            assert sorted(rank) == list(range(size - n, size))
        elif pick == "middle":
            assert sorted(rank) == list(range((size - n) // 2, (size - n) // 2 + n))


def test_equal_quota_redistributes_the_deficit_exactly(make_data):
    features, truth = blobs([50, 30, 4])
    coreset = select(make_data(total=84), features=features, method="clusters", k=3, quota="equal", keep_n=40)
    # 40 / 3: 14, 13, 13 -> the small one has 4; the 9 or 10 it lacks go one by one to the cluster with most to spare
    counts = np.bincount(truth[coreset.indices])
    assert counts[2] == 4
    assert counts.sum() == 40
    assert counts[0] >= counts[1] > 0
    assert counts.tolist() in ([22, 14, 4], [23, 13, 4])


def test_clusters_match_scikit_learn(make_data):
    features, _ = blobs([30, 30, 30], seed=5)
    peer = KMeans(3, n_init=5, random_state=0).fit(features)
    distance = np.linalg.norm(features - peer.cluster_centers_[peer.labels_], axis=1)
    expected = []
    for number in range(3):
        members = np.flatnonzero(peer.labels_ == number)
        expected += list(members[np.argsort(distance[members])[:10]])
    coreset = select(make_data(total=90), features=features, method="clusters", k=3, keep_n=30)
    assert coreset.indices.tolist() == sorted(expected)
    np.testing.assert_allclose(coreset.scores, -distance, rtol=1e-4)


def test_clusters_per_class(labelled):
    data, features = labelled
    coreset = select(data, features=features, method="clusters", k=2, keep=0.5, per_class=True, quota="equal")
    assert coreset.counts_per_class() == {"class0": (15, 30), "class1": (10, 20), "class2": (5, 10)}
    assert coreset.manifest["options"]["clusters"] == 6
    for number in range(6):  # no cluster is shared by two classes
        assert len(set(data.labels[coreset.clusters == number])) == 1


def test_every_row_is_clustered(make_data):
    """The published k-means drops the rows after the last full chunk (defect 12)."""
    features = np.random.default_rng(0).normal(size=(4096 * 2 + 17, 2)).astype(np.float32)
    features[-17:] += 1000
    coreset = select(make_data(total=len(features)), features=features, method="clusters", k=2, keep_n=2, quota="equal")
    assert (coreset.clusters[-17:] == coreset.clusters[-1]).all()
    assert (coreset.clusters[:-17] != coreset.clusters[-1]).all()
    assert (coreset.indices >= len(features) - 17).sum() == 1


def test_clusters_respect_forced_choices(make_data):
    features, truth = blobs([20, 20])
    coreset = select(
        make_data(total=40), features=features, method="clusters", k=2, keep_n=10, must_keep=range(8), must_drop=[39]
    )
    assert len(coreset) == 10
    assert set(range(8)) <= set(coreset.indices)
    assert 39 not in coreset.indices
    assert np.bincount(truth[coreset.indices]).tolist() == [8, 2]


def test_more_clusters_than_images_of_a_class(make_data):
    data = make_data(labels=[0] * 9 + [1])
    features = np.random.default_rng(0).normal(size=(10, 2)).astype(np.float32)
    assert len(select(data, features=features, method="clusters", k=4, keep=0.5, per_class=True)) == 5
    with pytest.raises(InputError, match="k: 11 clusters for 10 images"):
        select(data, features=features, method="clusters", k=11, keep=0.5)


def test_spherical_clusters_ignore_length(make_data):
    random = np.random.default_rng(0)
    direction = np.repeat([[1.0, 0.0], [0.0, 1.0]], 10, axis=0) + random.normal(size=(20, 2)) * 0.01
    features = (direction * random.uniform(1, 100, (20, 1))).astype(np.float32)
    found = select(make_data(total=20), features=features, method="clusters", k=2, keep=0.5, spherical=True).clusters
    assert len(set(found[:10])) == len(set(found[10:])) == 1
    assert found[0] != found[-1]
    features[3] = 0
    with pytest.raises(InputError, match="row 3 is all zero"):
        select(make_data(total=20), features=features, method="clusters", k=2, keep=0.5, spherical=True)


# --- every method


@SETTINGS
@given(
    sizes=st.lists(st.integers(2, 15), min_size=1, max_size=4),
    method=st.sampled_from(list(SELECTIONS)),
    per_class=st.booleans(),
    random=st.data(),
)
def test_budgets_are_exact_for_every_method(make_data, sizes, method, per_class, random):
    total = sum(sizes)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    features = np.random.default_rng(total).normal(size=(total, 3)).astype(np.float32)
    n = random.draw(st.integers(1, total))
    forced = random.draw(st.lists(st.integers(0, total - 1), max_size=n, unique=True))
    given_data = _inputs(method, features)
    if method in ("stratified", "interval"):
        given_data |= {"stratified": {"beta": 0.0}, "interval": {"interval": 1}}[method]
    options = {"k": min(3, total), "quota": random.draw(st.sampled_from(["equal", "proportional"]))}
    coreset = select(
        make_data(labels=labels),
        method=method,
        keep_n=n,
        per_class=per_class,
        must_keep=forced,
        **given_data,
        **(options if method == "clusters" else {}),
    )
    assert len(coreset) == n
    assert set(forced) <= set(coreset.indices.tolist())
    assert coreset.manifest["direction"]
    if per_class and not forced:
        for kept, count in coreset.counts_per_class().values():
            assert abs(kept - n * count / total) < 1


def _inputs(method, features):
    """What `method` takes: scores, features or both."""
    takes = SELECTIONS[method].takes
    inputs = {"scores": features[:, 0]} if "scores" in takes else {}
    return inputs if takes == ("scores",) or method == "random" else {**inputs, "features": features}


def test_manifest_says_how_it_was_made(labelled, tmp_path):
    data, features = labelled
    coreset = select(data, features=features, method="clusters", k=3, pick="middle", keep=0.5, seed=9)
    coreset.save(tmp_path / "c.parquet")
    manifest = Coreset.load(tmp_path / "c.parquet", data).manifest
    assert manifest["method"] == "clusters"
    assert manifest["seed"] == 9
    assert manifest["budget"] == {"keep": 0.5, "keep_n": None, "threshold": None}
    assert manifest["options"]["pick"] == "middle"
    assert manifest["options"]["clusters"] == 3
    assert "middle" in manifest["direction"]


def test_same_arguments_same_coreset(labelled):
    data, features = labelled
    for method in SELECTIONS:
        given_data = _inputs(method, features)
        one, two = (select(data, method=method, keep=0.5, seed=5, **given_data) for _ in range(2))
        assert one.fingerprint == two.fingerprint


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "gaussian", "keep": 0.5}, "features: method 'gaussian' needs them"),
        ({"keep": 0.5}, "give scores=, or a method"),
        ({"method": "top", "keep": 0.5}, "scores: method 'top'"),
        ({"method": "best", "keep": 0.5}, "method: 'best' is not a selection; there are top, random"),
        ({"method": "random", "keep": 0.5, "k": 3}, "k: method 'random' has no such option; it has no options"),
        ({"method": "clusters", "keep": 0.5, "K": 3}, "its options are k, iterations"),
        ({"method": "clusters", "keep": 0.5, "features": np.ones((6, 2)), "k": 0}, "k: must be"),
        ({"method": "clusters", "keep": 0.5, "features": np.ones((6, 2)), "pick": "best"}, "pick: must be one of"),
        ({"method": "clusters", "keep": 0.5, "features": np.ones((6, 2)), "quota": "half"}, "quota: must be one of"),
        ({"method": "clusters", "keep": 0.5, "scores": np.ones(6)}, "'clusters' makes its own"),
        ({"method": "clusters", "threshold": 0.5, "features": np.ones((6, 2))}, "use keep or keep_n"),
        ({"method": "gaussian", "keep": 0.5, "features": np.ones((5, 2))}, "features: 5 rows for 6 images"),
        ({"scores": np.ones(5), "keep": 0.5}, r"scores: shape \[5\] for 6 images"),
        ({"scores": [1, 2, 3, 4, 5, float("nan")], "keep": 0.5}, "scores: nan in row 5"),
        ({"scores": np.ones(6), "features": np.ones((6, 2)), "keep": 0.5}, "scores, features: give one"),
        ({"scores": np.ones(6), "keep": 0.5, "ridge": 1}, "ridge: is an option of scoring"),
        ({"scores": np.ones(6)}, "exactly one"),
        ({"scores": np.ones(6), "keep": 0.5, "threshold": 1}, "exactly one"),
        ({"scores": np.ones(6), "threshold": float("nan")}, "threshold: must be finite"),
        ({"scores": np.ones(6), "keep": 0.5, "per_class": True}, "per_class: this data has no classes"),
        ({"method": "random", "keep": 0.5, "seed": -1}, "seed: must be a whole number"),
        ({"method": "moderate", "keep": 0.5, "distances": np.ones(5)}, "distances: shape"),
        ({"method": "moderate", "keep": 0.5, "prototype": "mode"}, "prototype: must be"),
    ],
)
def test_bad_arguments(make_data, options, words):
    with pytest.raises(InputError, match=words) as caught:
        select(make_data(total=6), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"keep": 0.0},
        {"keep": float("nan")},
        {"keep": 1e-9},
        {"keep_n": 61},
        {"keep": 0.5, "keep_n": 3},
        {"keep": 0.5, "seed": -1},
        {"keep": 0.5, "rigde": 1},
        {"keep": 0.5, "method": "magic"},
        {"threshold": float("inf")},
        {"threshold": 1.0, "method": "clusters"},
    ],
)
def test_what_select_refuses_is_known_without_features(labelled, wrong):
    data, features = labelled
    arguments = {"method": "gaussian", **wrong}
    with pytest.raises(InputError) as early:
        check_selection(data, **arguments)
    with pytest.raises(InputError) as late:
        select(data, features=features, **arguments)
    assert str(early.value).split(";")[0] == str(late.value).split(";")[0]


def test_what_select_takes_is_not_refused_before(labelled):
    data, features = labelled
    for method in ("random", "gaussian", "moderate", "clusters"):
        check_selection(data, method, keep=0.5)
        select(data, features=None if method == "random" else features, method=method, keep=0.5)
    check_selection(data, "gaussian", threshold=-1e9, ridge=1e-3)
    with pytest.raises(InputError, match="per_class"):
        check_selection(_without_classes(data), "random", keep=0.5, per_class=True)


def _without_classes(data):
    class Plain:
        labels = None

        def __len__(self):
            return len(data)

    return Plain()
