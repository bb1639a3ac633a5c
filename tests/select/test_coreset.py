"""The Coreset and its file."""

import contextlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prunefast.errors import InputError
from prunefast.select import Coreset

SETTINGS = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def data(make_data):
    return make_data(labels=[0, 1, 1, 0, 2, 2])


@pytest.fixture
def coreset(data):
    return Coreset.from_indices(
        data,
        [4, 0, 2],
        [0.5, 2.0, 1.0],
        scores=[6, 5, 4, 3, 2, 1.5],
        clusters=[0, 0, 1, 1, 2, 2],
        manifest={"method": "gaussian", "options": {"ridge": 1e-5}, "direction": "likely first", "seed": 7},
    )


def rewrite(path, change_table=None, change_manifest=None):
    """Write the file again with another content: a valid parquet file that is not a valid coreset."""
    table = pq.read_table(path)
    manifest = json.loads(table.schema.metadata[b"prunefast"])
    if change_manifest is not None:
        change_manifest(manifest)
    if change_table is not None:
        table = change_table(table)
    pq.write_table(table.replace_schema_metadata({"prunefast": json.dumps(manifest)}), path)


def replace(table, column, values):
    number = table.column_names.index(column)
    return table.set_column(number, column, pa.array(values, table.schema.field(column).type))


def test_attributes(coreset):
    assert coreset.indices.dtype == np.int64
    assert coreset.indices.tolist() == [0, 2, 4]
    assert coreset.weights.dtype == np.float32
    assert coreset.weights.tolist() == [2.0, 1.0, 0.5]  # moved with their indices
    assert coreset.scores.dtype == np.float64
    assert coreset.keep.tolist() == [True, False, True, False, True, False]
    assert coreset.dropped.tolist() == [1, 3, 5]
    assert len(coreset) == 3
    assert coreset.total == 6
    assert coreset.counts_per_class() == {"class0": (1, 2), "class1": (1, 2), "class2": (1, 2)}
    assert coreset.manifest["counts_per_class"] == {"class0": [1, 2], "class1": [1, 2], "class2": [1, 2]}
    assert {"format_version", "data_fingerprint", "method", "options", "direction", "seed", "package_version"} <= set(
        coreset.manifest
    )


def test_is_a_value(coreset):
    with pytest.raises(ValueError, match="read-only"):
        coreset.indices[0] = 5


def test_inputs_are_not_changed_or_frozen(data):
    """CCS's mislabel_mask changes the caller's objects (defect 5): ours never does."""
    indices, weights, scores = np.array([3, 1]), np.array([1, 2], np.float32), np.arange(6.0)
    Coreset.from_indices(data, indices, weights, scores=scores)
    indices[0], weights[0], scores[0] = 4, 5, 6
    assert indices.tolist() == [4, 1]


def test_summary_names_classes_and_counts(coreset):
    text = coreset.summary()
    assert "3 of 6" in text
    assert "class2" in text
    assert "50.0%" in text


def test_file_has_all_rows_and_the_promised_columns(coreset, tmp_path):
    coreset.save(tmp_path / "coreset.parquet")
    table = pq.read_table(tmp_path / "coreset.parquet")
    assert table.column_names == ["index", "key", "label", "score", "weight", "cluster", "kept"]
    assert table["index"].to_pylist() == [0, 1, 2, 3, 4, 5]
    assert table["weight"].to_pylist() == [2.0, 0, 1.0, 0, 0.5, 0]
    assert table["kept"].to_pylist() == coreset.keep.tolist()
    assert table["label"].to_pylist() == [0, 1, 1, 0, 2, 2]
    assert json.loads(table.schema.metadata[b"prunefast"])["data_fingerprint"] == "f" * 64


def test_same_coreset_same_bytes(coreset, tmp_path):
    coreset.save(tmp_path / "a.parquet")
    Coreset.load(tmp_path / "a.parquet").save(tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_full(data):
    full = Coreset.full(data)
    assert full.indices.tolist() == list(range(6))
    assert full.weights.tolist() == [1.0] * 6
    assert full.manifest["method"] == "full"


def test_fingerprint_depends_on_data_indices_and_weights(data, make_data):
    one = Coreset.from_indices(data, [0, 1])
    assert one.fingerprint == Coreset.from_indices(data, [1, 0], manifest={"method": "other"}).fingerprint
    assert one.fingerprint != Coreset.from_indices(data, [0, 2]).fingerprint
    assert one.fingerprint != Coreset.from_indices(data, [0, 1], [1, 2]).fingerprint
    other = make_data(labels=data.labels, fingerprint="e" * 64)
    assert one.fingerprint != Coreset.from_indices(other, [0, 1]).fingerprint
    # room for a position and a seed in 100 bytes of JSON
    assert len(one.fingerprint) == 16


@pytest.mark.parametrize(
    ("indices", "weights", "more", "words"),
    [
        ([0, 6], None, {}, "indices: 6 is out of range"),
        ([-1, 2], None, {}, "indices: -1 is out of range"),
        ([1, 1], None, {}, "indices: 1 is listed more than once"),
        ([0.5], None, {}, "indices: must be a list of integers"),
        ([0, 1], [1.0], {}, "weights: has shape"),
        ([0, 1], [1.0, float("nan")], {}, "weights: must be finite"),
        ([0, 1], [1.0, -1], {}, "weights: must be finite and not negative"),
        ([0], None, {"scores": [1.0]}, "scores: has shape"),
        ([0], None, {"scores": [1.0, 2, 3, 4, 5, float("nan")]}, "scores: nan at image 5"),
        ([0], None, {"clusters": [1.5] * 6}, "clusters: must be"),
        ([0], None, {"manifest": {"options": {"x": object()}}}, "options: cannot be written"),
    ],
)
def test_bad_parts_are_refused(data, indices, weights, more, words):
    with pytest.raises((InputError, TypeError), match=words):
        Coreset.from_indices(data, indices, weights, **more)


def test_label_outside_the_classes(make_data):
    with pytest.raises(InputError, match=r"labels: 2 is out of range for 2 classes"):
        Coreset.full(make_data(labels=[0, 1, 2], classes=["a", "b"]))


def test_unlabelled(make_data, tmp_path):
    coreset = Coreset.from_indices(make_data(total=3), [1])
    coreset.save(tmp_path / "c.parquet")
    loaded = Coreset.load(tmp_path / "c.parquet")
    assert loaded.labels is None
    assert loaded.scores is None
    assert loaded.clusters is None
    assert loaded.counts_per_class() == {}
    assert "1 of 3" in loaded.summary()


# --- loading what is no coreset of this data


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.parquet: no such file; select again"):
        Coreset.load(tmp_path / "none.parquet")


def test_other_data_set(coreset, make_data, data, tmp_path):
    """IS-GAN reuses cached indices whatever they were made from (defect 9): a mismatch is an error here."""
    coreset.save(tmp_path / "c.parquet")
    assert Coreset.load(tmp_path / "c.parquet", data).indices.tolist() == [0, 2, 4]
    with pytest.raises(InputError, match="another data set"):
        Coreset.load(tmp_path / "c.parquet", make_data(labels=data.labels, fingerprint="0" * 64))


def test_not_parquet(tmp_path):
    (tmp_path / "c.parquet").write_text("index,key\n0,a\n")
    with pytest.raises(InputError, match=r"c\.parquet: is not a readable parquet file"):
        Coreset.load(tmp_path / "c.parquet")


def test_parquet_of_somebody_else(tmp_path):
    pq.write_table(pa.table({"index": [0]}), tmp_path / "c.parquet")
    with pytest.raises(InputError, match="was not written by prunefast"):
        Coreset.load(tmp_path / "c.parquet")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(format_version=2), "format version 2, this prunefast reads 1"),
        (lambda m: m.update(format_version=True), "format version True"),
        (lambda m: m.pop("format_version"), "format version None"),
        (lambda m: m.pop("data_fingerprint"), "which data set"),
        (lambda m: m.update(images="6"), "which data set"),
        (lambda m: m.update(images=7), "6 rows where 7 are needed"),
        (lambda m: m.update(classes="abc"), "no list of classes"),
        (lambda m: m.update(classes=["one"]), "labels: 2 is out of range"),
        (lambda m: m.update(classes=["a", "b", "b"]), "same name"),
    ],
)
def test_bad_manifest(coreset, tmp_path, change, words):
    coreset.save(tmp_path / "c.parquet")
    rewrite(tmp_path / "c.parquet", change_manifest=change)
    with pytest.raises(InputError, match=words) as caught:
        Coreset.load(tmp_path / "c.parquet")
    assert str(tmp_path / "c.parquet") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.drop_columns(["kept"]), "has 0 columns 'kept'"),
        (lambda t: t.append_column("kept", t["kept"]), "has 2 columns 'kept'"),
        (lambda t: t.set_column(4, "weight", pa.array([1.0] * 6)), "'weight' is double, not float"),
        (lambda t: replace(t, "index", [0, 1, 2, 3, 4, 6]), "index 6 is out of range"),
        (lambda t: replace(t, "index", [0, 1, 2, 3, 4, -1]), "index -1 is out of range"),
        (lambda t: replace(t, "index", [0, 1, 2, 3, 4, 4]), "row 4 is there 2 times"),
        (lambda t: replace(t, "index", [0, 1, 2, 3, 4, None]), "'index' has empty cells"),
        (lambda t: replace(t, "kept", [True, None, True, False, True, False]), "'kept' has empty cells"),
        (lambda t: replace(t, "label", [0, 1, 1, 0, 2, None]), "'label' is filled in part only"),
        (lambda t: replace(t, "label", [0, 1, 1, 0, 2, -1]), "labels: -1 is negative"),
        (lambda t: replace(t, "score", [1, 2, 3, 4, 5, float("inf")]), "scores: inf"),
        (lambda t: replace(t, "weight", [1, 1, float("nan"), 1, 1, 1]), "weights: must be finite"),
        (lambda t: t.slice(0, 5), "has 5 rows where 6 are needed"),
        (lambda t: replace(t, "kept", [True, True, True, False, True, False]), "not those that were written"),
        (lambda t: replace(t, "weight", [2, 0, 1, 0, 0.75, 0]), "not those that were written"),
    ],
)
def test_bad_table(coreset, tmp_path, change, words):
    coreset.save(tmp_path / "c.parquet")
    rewrite(tmp_path / "c.parquet", change_table=change)
    with pytest.raises(InputError, match=words) as caught:
        Coreset.load(tmp_path / "c.parquet")
    assert str(tmp_path / "c.parquet") in str(caught.value)


def test_rows_may_be_in_another_order(coreset, tmp_path):
    coreset.save(tmp_path / "c.parquet")
    rewrite(tmp_path / "c.parquet", change_table=lambda t: t.take([3, 1, 5, 0, 4, 2]))
    loaded = Coreset.load(tmp_path / "c.parquet")
    assert loaded.keys == coreset.keys
    assert loaded.fingerprint == coreset.fingerprint
    assert loaded.scores.tolist() == coreset.scores.tolist()


def test_saving_into_a_file_as_folder(coreset, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file, not a folder"):
        coreset.save(tmp_path / "file" / "c.parquet")


def test_a_failing_write_leaves_the_old_file(coreset, tmp_path, monkeypatch):
    coreset.save(tmp_path / "c.parquet")
    before = (tmp_path / "c.parquet").read_bytes()

    def full_disk(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full_disk)
    with pytest.raises(OSError, match="no space left"):
        coreset.save(tmp_path / "c.parquet")
    assert (tmp_path / "c.parquet").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["c.parquet"]


# --- properties


@SETTINGS
@given(content=st.binary(max_size=300), parquet_magic=st.booleans())
def test_arbitrary_bytes(tmp_path, content, parquet_magic):
    (tmp_path / "c.parquet").write_bytes(b"PAR1" + content + b"PAR1" if parquet_magic else content)
    with pytest.raises(InputError):
        Coreset.load(tmp_path / "c.parquet")


@settings(SETTINGS, max_examples=120)
@given(random=st.data())
def test_damaged_files(coreset, tmp_path, random):
    path = tmp_path / "c.parquet"
    coreset.save(path)
    content = bytearray(path.read_bytes())
    for _ in range(random.draw(st.integers(1, 4))):
        content[random.draw(st.integers(0, len(content) - 1))] = random.draw(st.integers(0, 255))
    if random.draw(st.booleans()):
        content = content[: random.draw(st.integers(0, len(content)))]
    path.write_bytes(bytes(content))
    # anything but InputError fails the test; where the damage does no harm the coreset is the one that was saved
    with contextlib.suppress(InputError):
        loaded = Coreset.load(path)
        assert loaded.indices.tolist() == [0, 2, 4]
        assert loaded.scores.tolist() == coreset.scores.tolist()


@st.composite
def coresets(draw):
    total = draw(st.integers(1, 30))
    classes = draw(st.lists(st.text(max_size=5), unique=True, max_size=4))
    finite = st.floats(allow_nan=False, allow_infinity=False)
    kept = draw(st.lists(st.integers(0, total - 1), unique=True))
    column = lambda values: draw(st.none() | st.lists(values, min_size=total, max_size=total))  # noqa: E731
    weight = st.floats(0, 100, width=32)
    return Coreset(
        indices=kept,
        keys=draw(st.lists(st.text(max_size=8), min_size=total, max_size=total)),
        labels=column(st.integers(0, len(classes) - 1)) if classes else None,
        classes=classes,
        data_fingerprint=draw(st.text(max_size=10)),
        weights=draw(st.none() | st.lists(weight, min_size=len(kept), max_size=len(kept))),
        scores=column(finite),
        clusters=column(st.integers(-(2**63), 2**63 - 1)),
        manifest={
            "method": draw(st.text()),
            "options": draw(st.dictionaries(st.text(), finite | st.text())),
            "seed": 0,
        },
    )


@SETTINGS
@given(before=coresets())
def test_round_trip(tmp_path, before):
    before.save(tmp_path / "c.parquet")
    after = Coreset.load(tmp_path / "c.parquet")
    for name in ("indices", "weights", "scores", "clusters", "labels", "keep", "dropped"):
        one, two = getattr(before, name), getattr(after, name)
        assert (one is None) == (two is None), name
        if one is not None:
            assert one.dtype == two.dtype
            np.testing.assert_array_equal(one, two)
    for name in ("keys", "classes", "manifest", "fingerprint", "data_fingerprint"):
        assert getattr(before, name) == getattr(after, name)
    assert before.summary() == after.summary()


def test_a_folder_is_no_coreset(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        Coreset.load(tmp_path)


def test_the_way_out_of_a_broken_file_is_named(tmp_path):
    path = tmp_path / "coreset.parquet"
    path.write_bytes(b"rubbish")
    with pytest.raises(InputError, match=r"coreset\.parquet: is not a readable parquet file .*; delete it and select"):
        Coreset.load(path)
