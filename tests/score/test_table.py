"""scores.parquet."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prunefast.errors import InputError
from prunefast.score.table import load_manifests, load_scores, save_scores

SETTINGS = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Data:
    def __init__(self, total=4, fingerprint="a" * 64, labelled=True):
        self.labels = np.arange(total) % 2 if labelled else None
        self.keys = [f"{i}.png" for i in range(total)]
        self.fingerprint = fingerprint

    def __len__(self):
        return len(self.keys)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "scores.parquet"


def test_columns_are_added_and_replaced(path):
    data = Data()
    save_scores(path, data, "gaussian", [1.0, 2, 3, 4], {"ridge": 1e-5, "seed": np.int64(3)})
    save_scores(path, data, "random", np.array([0.5, 0.25, 0, 1]), {"seed": 0})
    save_scores(path, data, "gaussian", [4.0, 3, 2, 1], {"ridge": 1.0})
    assert load_scores(path, "gaussian", data).tolist() == [4, 3, 2, 1]
    assert load_scores(path, "random").tolist() == [0.5, 0.25, 0, 1]
    manifests = load_manifests(path)
    assert manifests["gaussian"]["ridge"] == 1.0
    assert "seed" not in manifests["gaussian"]
    table = pq.read_table(path)
    assert table.column_names == ["index", "key", "label", "gaussian", "random"]
    assert table["key"].to_pylist() == ["0.png", "1.png", "2.png", "3.png"]
    assert table["label"].to_pylist() == [0, 1, 0, 1]
    assert json.loads(table.schema.metadata[b"prunefast"])["data_fingerprint"] == "a" * 64


def test_unlabelled(path):
    save_scores(path, Data(labelled=False), "random", np.zeros(4))
    assert pq.read_table(path)["label"].to_pylist() == [None] * 4


def test_torch_scores(path):
    import torch

    save_scores(path, Data(), "own", torch.arange(4))
    assert load_scores(path, "own").tolist() == [0, 1, 2, 3]


def test_another_data_set_is_refused_and_the_file_kept(path):
    save_scores(path, Data(), "random", np.zeros(4))
    before = path.read_bytes()
    other = Data(fingerprint="b" * 64)
    for act in (
        lambda: save_scores(path, other, "gaussian", np.zeros(4)),
        lambda: load_scores(path, "random", other),
        lambda: load_manifests(path, other),
    ):
        with pytest.raises(InputError, match="scores of another data set"):
            act()
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("column", "scores", "words"),
    [
        ("gaussian", [1, 2, 3, float("nan")], r"scores: nan for '3.png' \(row 3\)"),
        ("gaussian", [1, float("-inf"), 3, 4], "scores: -inf for '1.png'"),
        ("gaussian", [1, 2, 3], r"scores: shape \[3\] for 4 images"),
        ("label", [1, 2, 3, 4], "column: 'label' cannot be the name"),
        ("", [1, 2, 3, 4], "column: '' cannot be"),
    ],
)
def test_bad_scores(path, column, scores, words):
    with pytest.raises(InputError, match=words):
        save_scores(path, Data(), column, scores)
    assert not path.exists()


def test_missing(path):
    with pytest.raises(InputError, match="no such file; run prunefast score first"):
        load_scores(path, "gaussian")
    save_scores(path, Data(), "random", np.zeros(4))
    with pytest.raises(InputError, match="has no scores 'gaussian'; there are random; name one"):
        load_scores(path, "gaussian")


def _changed(path, change):
    table = pq.read_table(path)
    manifest = json.loads(table.schema.metadata[b"prunefast"])
    table = change(table, manifest) or table
    pq.write_table(table.replace_schema_metadata({"prunefast": json.dumps(manifest)}), path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t, m: m.update(format_version=9), "format version 9"),
        (lambda t, m: m.update(columns=[]), "is not a table of scores"),
        (lambda t, m: m.update(columns={"random": 3}), "is not a table of scores"),
        (lambda t, m: m.update(columns={"lost": {}}), "has 0 columns 'lost'"),
        (lambda t, m: t.slice(1), "index 3 is out of range for 3 images"),
        (lambda t, m: t.set_column(3, "random", pa.array([1.0, None, 2, 3])), "no finite number"),
        (lambda t, m: t.set_column(3, "random", pa.array([1, 2, 3, 4])), "'random' is int64, not double"),
    ],
)
def test_changed_files(path, change, words):
    save_scores(path, Data(), "random", np.zeros(4))
    _changed(path, change)
    with pytest.raises(InputError, match=words):
        load_scores(path, "random")


def test_rows_in_another_order(path):
    save_scores(path, Data(), "random", np.arange(4.0))
    _changed(path, lambda t, m: t.take([2, 0, 3, 1]))
    assert load_scores(path, "random", Data()).tolist() == [0, 1, 2, 3]


def test_a_failing_write_leaves_the_old_file(path, monkeypatch):
    save_scores(path, Data(), "random", np.zeros(4))
    before = path.read_bytes()

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", killed)
    with pytest.raises(KeyboardInterrupt):
        save_scores(path, Data(), "gaussian", np.ones(4))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@SETTINGS
@given(content=st.binary(max_size=200))
def test_arbitrary_bytes(path, content):
    path.write_bytes(content)
    with pytest.raises(InputError):
        load_scores(path, "random")


@SETTINGS
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20), st.text(min_size=1))
def test_round_trip(path, scores, name):
    path.unlink(missing_ok=True)
    data = Data(len(scores))
    if name in ("index", "key", "label"):
        name += "_"
    save_scores(path, data, name, scores)
    np.testing.assert_array_equal(load_scores(path, name, data), scores)
