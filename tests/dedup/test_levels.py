"""Exact, perceptual and semantic duplicates of pictures whose copies are known."""

import io

import numpy as np
import pytest
import scipy.fft
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import prunefast
from prunefast.data import from_arrays, open_dataset
from prunefast.dedup import Deduplication, deduplicate
from prunefast.dedup import semantic as semantic_level
from prunefast.dedup.perceptual import _cosines, _frequencies, hash_grey
from prunefast.errors import InputError, InputTypeError


@pytest.fixture
def data(folder):
    return open_dataset(folder)


def groups_by_name(data, found):
    return {frozenset(data.keys[i].split("/")[1] for i in (group.kept, *group.dropped)) for group in found}


def test_exact_copies_are_the_same_bytes(data):
    found = deduplicate(data, "exact")
    assert groups_by_name(data, found) == {frozenset({"01a.jpg", "01copy.jpg"}), frozenset({"02a.jpg", "02copy.jpg"})}
    assert found.rethreshold(0).kept.tolist() == found.kept.tolist()


def test_exact_pixels_see_through_the_encoding(tmp_path, make_picture, encode):
    image = make_picture(3)
    (tmp_path / "a.png").write_bytes(encode(image, "PNG", compress_level=0))
    (tmp_path / "b.png").write_bytes(encode(image, "PNG", compress_level=9))
    (tmp_path / "c.bmp").write_bytes(encode(image, "BMP"))
    (tmp_path / "d.png").write_bytes(encode(make_picture(4), "PNG"))
    data = open_dataset(tmp_path)
    assert len(deduplicate(data, "exact")) == 4
    assert groups_by_name_flat(data, deduplicate(data, "exact", pixels=True)) == {
        frozenset({"a.png", "b.png", "c.bmp"})
    }


def groups_by_name_flat(data, found):
    return {frozenset(data.keys[i] for i in (group.kept, *group.dropped)) for group in found}


@pytest.mark.parametrize("bits", [64, 256])
def test_perceptual_finds_re_encoded_and_resized_copies(data, bits):
    found = deduplicate(data, "perceptual", bits=bits)
    assert groups_by_name(data, found) == {
        frozenset({"01a.jpg", "01copy.jpg", "01q.jpg"}),
        frozenset({"02a.jpg", "02copy.jpg"}),
        frozenset({"03a.jpg", "03q.jpg"}),
        frozenset({"04a.jpg", "04small.png"}),
        frozenset({"05a.jpg", "05small.png"}),
    }
    # the larger of two sizes survives
    assert all("small" not in data.keys[i] for i in found.kept)


def test_mirrored_images_are_the_same_when_asked(data):
    plain, mirrored = deduplicate(data), deduplicate(data, mirrored=True)
    extra = groups_by_name(data, mirrored) - groups_by_name(data, plain)
    assert extra == {frozenset({"06a.jpg", "06mirror.jpg"})}


def test_the_hash_is_the_sign_of_the_cosine_coefficients():
    """At one pixel a cell the coefficients are those of the DCT-II, but for a positive factor a frequency."""
    rng = np.random.default_rng(5)
    image = rng.integers(0, 256, (64, 48), dtype=np.uint8)
    transform = scipy.fft.dctn(image.astype(np.float64))
    rows, columns = _frequencies(64)
    expected = transform[rows, columns] > 0
    assert (np.unpackbits(hash_grey(image, 64)[0].view(np.uint8), bitorder="little").astype(bool) == expected).all()
    mirrored = scipy.fft.dctn(image[:, ::-1].astype(np.float64))[rows, columns] > 0
    assert (np.unpackbits(hash_grey(image, 64)[1].view(np.uint8), bitorder="little").astype(bool) == mirrored).all()


def test_the_lowest_frequencies_and_exact_integrals():
    rows, columns = _frequencies(64)
    chosen = set(zip(rows.tolist(), columns.tolist(), strict=True))
    assert len(chosen) == 64
    assert (0, 0) not in chosen
    radius = max(i * i + j * j for i, j in chosen)
    inside = {(i, j) for i in range(20) for j in range(20) if 0 < i * i + j * j < radius}
    assert inside <= chosen
    fine = np.cos(np.pi * 3 * (np.arange(70_000) + 0.5) / 70_000).reshape(7, -1).mean(1) / 7
    np.testing.assert_allclose(_cosines(4, 7)[3], fine, atol=1e-7)


def test_images_without_structure_are_told_apart_by_brightness():
    images = np.full((6, 16, 16, 3), [[[[0]]], [[[0]]], [[[80]]], [[[128]]], [[[255]]], [[[255]]]], dtype=np.uint8)
    assert deduplicate(from_arrays(images)).kept.tolist() == [0, 2, 3, 4]


def test_a_rotated_jpeg_is_hashed_upright(tmp_path, make_picture):
    image = make_picture(8)
    image.save(tmp_path / "a.jpg", quality=90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "b.jpg", quality=90, exif=exif)
    assert len(deduplicate(open_dataset(tmp_path))) == 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (3, 2), (500, 3)])
def test_small_and_thin_images_have_a_hash(tmp_path, shape):
    rng = np.random.default_rng(2)
    for name in "ab":
        Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}copy.png").write_bytes((tmp_path / f"{name}.png").read_bytes())
    found = deduplicate(open_dataset(tmp_path), "perceptual")
    assert len(found) <= 2
    assert found.survivor[1] in (0, 2)


def test_survivors(data, tmp_path):
    by_size = deduplicate(data, "exact", survivor="size")
    assert len(by_size) == len(deduplicate(data, "exact"))
    names = [key.split("/")[1] for key in data.keys]
    likes_small = np.array(["small" in name for name in names], dtype=float)
    chosen = deduplicate(data, survivor=likes_small)
    assert {names[i] for i in chosen.kept} >= {"04small.png", "05small.png"}
    first = deduplicate(data, "exact", survivor="first")
    assert [names[i] for i in first.dropped] == ["01copy.jpg", "02copy.jpg"]


def test_against_a_second_data_set(folder, tmp_path, data):
    """Leakage: the test set has a re-encoded copy of a training image."""
    (tmp_path / "test" / "x").mkdir(parents=True)
    image = Image.open(folder / "cat" / "07a.jpg")
    image.resize((100, 75)).save(tmp_path / "test" / "x" / "leak.jpg", quality=70)
    other = open_dataset(tmp_path / "test", split="all")
    alone = deduplicate(data, against=other, within=False)
    assert [data.keys[i] for i in alone.dropped] == ["cat/07a.jpg"]
    assert alone.survivor[alone.dropped].tolist() == [-1]
    assert alone.against[alone.dropped].tolist() == [0]
    both = deduplicate(data, against=other)
    assert len(both) == len(deduplicate(data)) - 1
    (tmp_path / "test" / "x" / "copy.jpg").write_bytes((folder / "cat" / "09a.jpg").read_bytes())
    exact = deduplicate(data, "exact", against=open_dataset(tmp_path / "test", split="all"), within=False)
    assert [data.keys[i] for i in exact.dropped] == ["cat/09a.jpg"]


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 60), st.integers(1, 5), st.integers(0, 2**31), st.sampled_from([0.0, 0.01, 0.2, 0.7]))
def test_semantic_pairs_are_all_pairs(rows, columns, seed, most):
    rng = np.random.default_rng(seed)
    features = rng.integers(-3, 4, (rows, columns)).astype(np.float64)
    features[(features == 0).all(1)] = 1
    x = np.unique(semantic_level.unit_rows(features), axis=0)
    first, second, distance = semantic_level.close_pairs(x, most)
    wide = x.astype(np.float64)
    i, j = np.triu_indices(len(x), 1)
    apart = np.square(wide[i] - wide[j]).sum(1) / 2
    near = apart.astype(np.float32) <= np.float32(most)
    assert set(zip(first.tolist(), second.tolist(), strict=True)) >= set(
        zip(i[near & (apart < most - 1e-6)].tolist(), j[near & (apart < most - 1e-6)].tolist(), strict=True)
    )
    assert len(set(zip(first.tolist(), second.tolist(), strict=True))) == len(first)
    np.testing.assert_allclose(distance, np.square(wide[first] - wide[second]).sum(1) / 2, atol=1e-6)
    assert (distance <= most + 1e-6).all()


def test_semantic_rows_with_many_neighbours():
    """More than a row's largest k: the products decide, and no pair is lost."""
    rng = np.random.default_rng(0)
    x = semantic_level.unit_rows(np.concatenate([1 + 1e-3 * rng.normal(size=(1300, 4)), rng.normal(size=(100, 4))]))
    first, _, _ = semantic_level.close_pairs(x, 0.01)
    wide = x.astype(np.float64)
    cosine = wide @ wide.T
    expected = int((np.triu(cosine, 1) >= 0.99).sum())
    assert abs(len(first) - expected) <= 2  # at the very limit float32 may decide otherwise
    assert expected > 1300 * 1299 // 2 - 1


def test_semantic_rows_with_many_neighbours_block_by_block(monkeypatch):
    """Blocks of ten rows with all their products, and of nine pairs of 1,200 columns."""
    monkeypatch.setattr(semantic_level, "_CHUNK_VALUES", 11_000)
    x = semantic_level.unit_rows(1 + 1e-3 * np.random.default_rng(0).normal(size=(1100, 1200)))
    found = list(semantic_level._neighbours(x, np.arange(5, 37), 0.01))
    rows, others = (np.concatenate([part[column] for part in found]) for column in (0, 1))
    assert len(set(zip(rows.tolist(), others.tolist(), strict=True))) == len(rows) == 32 * 1100


def test_semantic_groups_and_other_data(data):
    rng = np.random.default_rng(1)
    features = rng.normal(size=(len(data), 16))
    features[3] = 5 * features[2]  # the same direction
    features[9] = features[8] + 0.05 * rng.normal(size=16)
    found = deduplicate(data, "semantic", features=features)
    assert [(group.kept, group.dropped.tolist()) for group in found] == [(2, [3]), (8, [9])] or len(found) == len(
        data
    ) - 2
    other = deduplicate(data, "semantic", features=features, against=data, against_features=features, within=False)
    assert len(other) == 0
    assert (other.against >= 0).all()


def test_a_graph_made_elsewhere_gives_the_same_groups(data):
    class Graph:
        metric = "cosine"

        def __init__(self, x, k):
            cosine = x @ x.T
            np.fill_diagonal(cosine, -2)
            self.index = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
            self.distance = np.maximum(1 - np.take_along_axis(cosine, self.index, 1), 0)

        def __len__(self):
            return len(self.index)

    rng = np.random.default_rng(4)
    features = np.repeat(rng.normal(size=(5, 8)), 4, axis=0)[: len(data)] + 0.02 * rng.normal(size=(len(data), 8))
    x = semantic_level.unit_rows(features).astype(np.float64)
    plain = deduplicate(data, "semantic", features=features)
    for k in (2, 5):  # with two neighbours rows have to be searched again
        given_ = deduplicate(data, "semantic", features=features, graph=Graph(x, k))
        assert (given_.keep == plain.keep).all()
    graph = Graph(x, 2)
    graph.metric = "l2"
    with pytest.raises(InputError, match="cosine"):
        deduplicate(data, "semantic", features=features, graph=graph)


def test_the_coreset_of_a_deduplication(data):
    found = deduplicate(data)
    coreset = found.coreset(data)
    assert coreset.indices.tolist() == found.kept.tolist()
    assert coreset.groups.tolist() == found.groups.tolist()
    assert coreset.rethreshold(0).indices.tolist() == found.rethreshold(0).kept.tolist()
    with pytest.raises(InputError, match="another data set"):
        found.coreset(from_arrays(np.zeros((2, 4, 4, 3), np.uint8)))


def test_select_starts_from_what_is_kept(data, tmp_path):
    found = deduplicate(data)
    coreset = prunefast.select(data, method="random", keep_n=8, must_drop=found.dropped, groups=found.groups)
    assert found.keep[coreset.indices].all()
    coreset.save(tmp_path / "coreset.parquet")
    assert prunefast.Coreset.load(tmp_path / "coreset.parquet", data).groups.tolist() == found.groups.tolist()
    with pytest.raises(InputError, match="must_drop"):
        prunefast.select(data, method="random", keep=1.0, must_drop=found.dropped)


def test_data_in_memory_and_raw_arrays(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    images[7] = images[2]
    np.savez(tmp_path / "images.npz", images=images)
    for data in (from_arrays(images), open_dataset(tmp_path / "images.npz")):
        for level in ("exact", "perceptual"):
            assert deduplicate(data, level, threshold=0).dropped.tolist() == [7]


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"level": "fuzzy"}, InputError, "level: 'fuzzy' is not one of exact, perceptual, semantic"),
        ({"threshold": -1}, InputError, "threshold"),
        ({"threshold": 65}, InputError, "threshold"),
        ({"threshold": float("nan")}, InputError, "threshold"),
        ({"threshold": 5, "max_threshold": 3}, InputError, "max_threshold"),
        ({"level": "exact", "threshold": 1}, InputError, "threshold"),
        ({"bits": 128}, InputError, "bits"),
        ({"level": "exact", "bits": 64}, InputError, "no such option"),
        ({"mirrored": 1}, InputTypeError, "mirrored"),
        ({"features": np.zeros((3, 3))}, InputError, "features"),
        ({"level": "semantic"}, InputError, "features"),
        ({"level": "semantic", "features": np.ones((3, 3))}, InputError, "3 rows"),
        ({"survivor": "best"}, InputError, "survivor"),
        ({"survivor": [1.0, 2.0]}, InputError, "survivor"),
        ({"within": False}, InputError, "within"),
    ],
)
def test_bad_arguments(data, arguments, error, text):
    with pytest.raises(error, match=text):
        deduplicate(data, **arguments)


def test_bad_features_and_images(data, folder, tmp_path):
    features = np.ones((len(data), 3))
    features[4] = 0
    with pytest.raises(InputError, match="row 4 is all zeros"):
        deduplicate(data, "semantic", features=features)
    features[4] = np.nan
    with pytest.raises(InputError, match="row 4"):
        deduplicate(data, "semantic", features=features)
    with pytest.raises(InputError, match="columns"):
        deduplicate(
            data, "semantic", features=np.ones((len(data), 3)), against=data, against_features=np.ones((len(data), 2))
        )
    broken = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(broken, "PNG")
    (tmp_path / "a.png").write_bytes(broken.getvalue()[:80])
    (tmp_path / "b.png").write_bytes(broken.getvalue())
    with pytest.raises(InputError, match=r"a\.png"):
        deduplicate(open_dataset(tmp_path))


def test_saved_and_loaded(data, tmp_path):
    found = deduplicate(data, against=data, within=True, threshold=3)
    for one in (found, deduplicate(data)):
        one.save(tmp_path, data)
        back = Deduplication.load(tmp_path, data)
        for name in ("keep", "groups", "survivor", "distance", "against"):
            assert (getattr(back, name) == getattr(one, name)).all(), name
        assert (back.level, back.threshold, back.max_threshold) == (one.level, one.threshold, one.max_threshold)
        assert (back.rethreshold(9).keep == one.rethreshold(9).keep).all()


def test_files_that_are_not_those_that_were_written(data, tmp_path):
    deduplicate(data).save(tmp_path / "a", data)
    deduplicate(data, "exact").save(tmp_path / "b", data)
    (tmp_path / "b" / "pairs.parquet").write_bytes((tmp_path / "a" / "pairs.parquet").read_bytes())
    with pytest.raises(InputError, match="does not belong to"):
        Deduplication.load(tmp_path / "b", data)
    with pytest.raises(InputError, match="another data set"):
        Deduplication.load(tmp_path / "a", from_arrays(np.zeros((2, 4, 4, 3), np.uint8)))
    content = (tmp_path / "a" / "groups.parquet").read_bytes()
    for cut in (0, 10, len(content) // 2, len(content) - 4):
        (tmp_path / "a" / "groups.parquet").write_bytes(content[:cut])
        with pytest.raises(InputError, match=r"groups\.parquet"):
            Deduplication.load(tmp_path / "a", data)
    (tmp_path / "a" / "groups.parquet").unlink()
    with pytest.raises(InputError, match="no such file"):
        Deduplication.load(tmp_path / "a", data)
