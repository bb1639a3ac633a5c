"""The section on class weights: what it says is what the file holds."""

import re

import numpy as np
import pytest

from prunefast.report.sections.class_weights import MOST_ROWS, class_weights_section
from prunefast.reweight import ClassWeights


def make(classes: int = 3, points: int = 5) -> ClassWeights:
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(classes), points)
    excess = rng.random((points, classes))
    excess[-1, 0] = np.nan
    history = {"images": np.arange(points) * 100, "weights": weights, "average": weights, "excess": excess}
    names = [f"class <{k}>" for k in range(classes)]
    return ClassWeights(weights.mean(0), names, "classes", history, {"step_size": 1.0, "smoothing": 1e-3})


def test_rows_are_the_weights_heaviest_first():
    weights = make()
    section = class_weights_section(weights)
    order = np.argsort(-weights.average)
    assert [row["name"] for row in section["rows"]] == [f"class <{k}>" for k in order]
    assert [float(row["times"]) for row in section["rows"]] == pytest.approx(weights.average[order] * 3, abs=0.006)
    assert section["rows"][0]["width"] == 100
    assert {row["excess"] for row in section["rows"] if row["name"] == "class <0>"} == {"—"}
    assert ("step_size", "1.0") in section["options"]
    assert section["trajectory"]["chart"].count("class &lt;1&gt;") > 0


def test_many_classes_are_cut_and_no_history_is_no_chart():
    section = class_weights_section(make(100))
    assert len(section["rows"]) == MOST_ROWS
    assert section["left_out"] == 100 - MOST_ROWS
    assert len(section["trajectory"]["names"]) == 6
    plain = ClassWeights(np.array([0.5, 0.5]), ["a", "b"])
    assert class_weights_section(plain)["trajectory"] is None
    assert class_weights_section(None) is None


def test_the_page_shows_them(tmp_path):
    from prunefast import open_dataset
    from prunefast.report import report
    from prunefast.select import Coreset

    images = np.zeros((6, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(6) % 3)
    data = open_dataset(tmp_path / "images.npz")
    data.save_items(tmp_path / "run" / "items.parquet")
    Coreset.full(data).save(tmp_path / "run" / "coreset.parquet")
    assert "Class weights" not in report(tmp_path / "run").read_text()
    make().save(tmp_path / "run" / "class_weights.json")
    page = report(tmp_path / "run").read_text()
    assert re.search(r'<h2 id="class-weights">Class weights</h2>', page)
    assert "class &lt;2&gt;" in page
    assert "class <2>" not in page
    (tmp_path / "run" / "class_weights.json").write_text("{")
    page = report(tmp_path / "run").read_text()
    assert "is not readable JSON" in page
