"""Class weights at the loader: exact counts, and one expected objective wherever they act."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefast.data import from_arrays
from prunefast.errors import InputError, InputTypeError
from prunefast.stream import CoresetLoader, CoresetSampler
from prunefast.stream.draw import ClassDraw, WeightedOrder, make_draw, systematic_counts

# 3 classes of 80, 15 and 5 images, and what each should count for
LABELS = np.repeat([0, 1, 2], [80, 15, 5])
WEIGHTS = np.array([0.2, 0.5, 0.3])


@pytest.fixture
def skewed(make_coreset):
    pixels = np.random.default_rng(0).integers(0, 256, (100, 4, 4, 3), dtype=np.uint8)
    data = from_arrays(pixels, LABELS, classes=["a", "b", "c"])
    return data, make_coreset(np.arange(100), weights=np.ones(100, np.float32), labels=LABELS)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=12).filter(lambda w: sum(w) > 1e-3),
    st.integers(1, 500),
    st.floats(0, 1, exclude_max=True),
)
def test_counts_are_within_one_of_what_is_due(weights, n, u):
    due = n * np.array(weights) / np.sum(weights)
    counts = systematic_counts(due / n, n, u)
    assert counts.sum() == n
    assert (np.abs(counts - due) < 1 + 1e-6).all()
    assert (counts[np.array(weights) == 0] == 0).all()


def test_counts_are_right_on_average():
    grid = (np.arange(1000) + 0.5) / 1000
    mean = np.mean([systematic_counts(WEIGHTS, 7, u) for u in grid], axis=0)
    np.testing.assert_allclose(mean, 7 * WEIGHTS, atol=2e-3)


def test_an_epoch_has_exact_counts_and_images_take_turns():
    order = WeightedOrder(ClassDraw(LABELS, WEIGHTS), seed=3, shuffle=True)
    for epoch in range(5):
        drawn = order.at(np.arange(epoch * 100, (epoch + 1) * 100))
        assert np.bincount(LABELS[drawn]).tolist() == [20, 50, 30]
        times = np.bincount(drawn, minlength=100)
        for c in range(3):
            assert np.ptp(times[c == LABELS]) <= 1
    other = WeightedOrder(ClassDraw(LABELS, WEIGHTS), seed=4, shuffle=True)
    assert (other.at(np.arange(100)) != order.at(np.arange(100))).any()


def test_every_image_of_a_class_comes_in_time():
    order = WeightedOrder(ClassDraw(LABELS, WEIGHTS), seed=0, shuffle=True)
    drawn = order.at(np.arange(200 * 100))
    expected = 200 * 100 * WEIGHTS[LABELS] / np.bincount(LABELS)[LABELS]
    assert (np.abs(np.bincount(drawn, minlength=100) - expected) < 5 * np.sqrt(expected) + 1).all()


def test_the_order_depends_on_seed_and_position_only(skewed):
    data, coreset = skewed
    more = {"seed": 7, "class_weights": WEIGHTS, "class_weights_in": "sampler"}
    whole = CoresetLoader(data, coreset, batch_size=40, **more)
    stream = np.concatenate([batch.index.numpy() for batch, _ in zip(whole, range(8), strict=False)])
    sampler = CoresetSampler(coreset, seed=7, epochs=None, class_weights=WEIGHTS)
    assert [index for index, _ in zip(sampler, range(320), strict=False)] == stream.tolist()
    for rank in range(4):
        mine = CoresetLoader(data, coreset, batch_size=10, rank=rank, world_size=4, placement="disk", **more)
        part = np.concatenate([batch.index.numpy() for batch, _ in zip(mine, range(8), strict=False)])
        np.testing.assert_array_equal(part, stream[rank::4])
    late = CoresetLoader(data, coreset, batch_size=40, start=120, **more)
    assert next(iter(late)).index.tolist() == stream[120:160].tolist()
    resumed = CoresetLoader(data, coreset, batch_size=40, **more)
    resumed.load_state_dict(whole.state_dict())
    assert resumed.position == whole.position


def test_a_saved_position_belongs_to_the_weights(skewed):
    data, coreset = skewed
    one = CoresetLoader(data, coreset, batch_size=4, class_weights=WEIGHTS, class_weights_in="sampler")
    for other in ({}, {"class_weights": WEIGHTS[::-1], "class_weights_in": "sampler"}):
        with pytest.raises(InputError, match="state: was saved with another coreset"):
            CoresetLoader(data, coreset, batch_size=4, **other).load_state_dict(one.state_dict())
    with pytest.raises(InputError, match="state"):
        CoresetSampler(coreset).load_state_dict(one.state_dict())


def test_loss_and_sampler_have_the_same_expected_objective(skewed):
    """sum over classes of weight x mean loss of the class, on unbalanced classes: both, over whole epochs."""
    data, coreset = skewed
    losses = np.random.default_rng(1).random(100) + LABELS
    wanted = sum(weight * losses[c == LABELS].mean() for c, weight in enumerate(WEIGHTS))
    means = {}
    for place, epochs in (("loss", 1), ("sampler", 40)):
        loader = CoresetLoader(
            data, coreset, batch_size=50, epochs=epochs, class_weights=WEIGHTS, class_weights_in=place
        )
        total = sum(float((batch.weight.double().numpy() * losses[batch.index.numpy()]).sum()) for batch in loader)
        means[place] = total / (100 * epochs)
    assert means["loss"] == pytest.approx(wanted, rel=1e-6)
    # in one epoch the class counts are exact, so only which images of class 0 come is left to chance
    assert means["sampler"] == pytest.approx(wanted, rel=2e-3)
    assert losses.mean() != pytest.approx(wanted, rel=0.2)


def test_the_coresets_own_weights_stay(skewed, make_coreset):
    data, _ = skewed
    own = np.linspace(0.5, 1.5, 100).astype(np.float32)
    coreset = make_coreset(np.arange(100), weights=own)
    factor = WEIGHTS / (np.bincount(LABELS) / 100)
    for place, expected in (("loss", own * factor[LABELS]), ("sampler", own)):
        loader = CoresetLoader(data, coreset, batch_size=100, epochs=1, class_weights=WEIGHTS, class_weights_in=place)
        (batch,) = loader
        np.testing.assert_allclose(batch.weight.numpy(), expected[batch.index.numpy()], rtol=1e-6)


def test_clusters_stand_in_for_classes(data, make_coreset):
    clusters = np.arange(100) % 2
    unlabelled = from_arrays(data.images(np.arange(100)))
    coreset = make_coreset(np.arange(0, 100, 3))
    loader = CoresetLoader(
        unlabelled, coreset, batch_size=34, epochs=1, class_weights=[0.0, 1.0], class_weights_in="sampler",
        groups=clusters,
    )  # fmt: skip
    (batch,) = loader
    assert (clusters[batch.index.numpy()] == 1).all()
    with pytest.raises(InputError, match="give groups"):
        CoresetLoader(unlabelled, coreset, batch_size=4, class_weights=[0.5, 0.5])


def test_a_class_without_images_gives_its_weight_to_the_others():
    with pytest.warns(UserWarning, match="no image of class 1 is in the coreset"):
        draw = make_draw([0.25, 0.5, 0.25], np.array([0, 2, 2, 1]), np.array([0, 1, 2]))
    np.testing.assert_allclose(draw.weights, [0.5, 0, 0.5])
    assert draw.image_factors().mean() == pytest.approx(1)
    with pytest.raises(InputError, match="only classes without images"):
        make_draw([0.0, 1.0], np.array([0, 0]), np.array([0, 1]))


@pytest.mark.parametrize(
    ("values", "kind", "said"),
    [
        ({"class_weights": [0.5, 0.4, 0.0]}, InputError, "class_weights must sum to 1"),
        ({"class_weights": [0.5, 0.5]}, InputError, "2 weights, and an image of class 2"),
        ({"class_weights": WEIGHTS, "groups": np.zeros(99)}, InputTypeError, "groups: must be integers"),
        ({"class_weights": WEIGHTS, "groups": np.zeros(99, int)}, InputError, "groups: has 99 entries"),
        ({"class_weights": WEIGHTS, "groups": np.full(100, -1)}, InputError, "must not be negative"),
        ({"class_weights": WEIGHTS, "class_weights_in": "both"}, InputError, "choose one of loss, sampler"),
        ({"class_weights": WEIGHTS, "class_weights_in": "sampler", "shuffle": False}, InputError, "shuffle=False"),
    ],
)
def test_bad_input(skewed, values, kind, said):
    data, coreset = skewed
    with pytest.raises(kind, match=said):
        CoresetLoader(data, coreset, batch_size=4, **values)
