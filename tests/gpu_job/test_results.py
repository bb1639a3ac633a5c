"""What may come back from the machine, what is committed of it, and the tables made from that."""

import json
from pathlib import Path

import pytest
from gpu import collect, results
from gpu.parts import join_parts, split_file

ROOT = Path(__file__).parents[2]


def content(**changes):
    row = {"unit": "copy", "status": "ok", "what": "copy", "mb": 64, "ms": 1.0, "GB/s": 4000.0}
    entry = {"started": "2030-01-02T03:04:05+00:00", "limit": 120, "finished": True, "seconds": 3.5, "rows": [row]}
    machine = {"gpu": "NVIDIA Test", "driver": "1.2", "packages": {"torch": "2"}, "commit": "a" * 40, "tree": "b"}
    return {"schema": 1, "rehearsal": False, "machine": machine, "stages": {"ceilings": entry}} | changes


def write(folder, value):
    folder.mkdir(exist_ok=True)
    (folder / results.NAME).write_text(json.dumps(value))
    return folder


def test_a_good_file_has_no_problems(tmp_path):
    assert results.problems(write(tmp_path / "out", content())) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: c.pop("machine"),
        lambda c: c.update(schema=2),
        lambda c: c["stages"]["ceilings"].pop("limit"),
        lambda c: c["stages"]["ceilings"]["rows"][0].pop("unit"),
        lambda c: c["stages"]["ceilings"]["rows"][0].update(status="great"),
        lambda c: c["stages"]["ceilings"]["rows"][0].update(status="failed"),  # without a reason
    ],
)
def test_the_schema_is_checked(tmp_path, spoil):
    value = content()
    spoil(value)
    assert results.problems(write(tmp_path / "out", value))


def test_the_limits_are_checked(tmp_path):
    out = write(tmp_path / "out", content())
    (out / "a" / "b").mkdir(parents=True)
    (out / "a" / "b" / "fine").write_text("x")
    assert results.problems(out) == []
    (out / "a" / "b" / "c").mkdir()
    (out / "a" / "b" / "c" / "deep").write_text("x")
    (out / "odd name").write_text("x")
    for i in range(8):
        (out / str(i)).write_text("x")
    with open(out / "0", "wb") as file:
        file.truncate(results.FILE_BYTES + 1)
    text = " ".join(results.problems(out))
    for part in ("files", "16 MB", "deeper", "letters"):
        assert part in text


def test_artefacts_stay_within_the_limits(tmp_path):
    out, work = tmp_path / "out", tmp_path / "work"
    out.mkdir()
    work.mkdir()
    with pytest.raises(results.LimitError, match="MB"):
        results.put(out, "large", bytes(results.FILE_BYTES + 1), work)
    for i in range(6):
        results.put(out, f"{i}", b"x", work)
    results.put(out, "0", b"again", work)  # in the place of the first
    with pytest.raises(results.LimitError, match="8 files"):  # results.json and the log have their places
        results.put(out, "seventh", b"x", work)
    (out / "1").write_bytes(bytes(results.FILE_BYTES))
    (out / "2").write_bytes(bytes(results.FILE_BYTES))
    (out / "3").write_bytes(bytes(results.FILE_BYTES))
    with pytest.raises(results.LimitError, match="together"):
        results.put(out, "0", bytes(results.FILE_BYTES - 1), work)


def test_values_that_json_lacks_become_text():
    assert results.clean({"a": float("inf"), 1: (2, None), "path": Path("x")}) == {
        "a": "inf",
        "1": [2, None],
        "path": "x",
    }


@pytest.mark.parametrize("size", [0, 5, 10, 20, 23])
def test_parts_give_the_file_back(tmp_path, size):
    whole = tmp_path / "in" / "name.whl"
    whole.parent.mkdir()
    whole.write_bytes(bytes(range(size)))
    parts = split_file(whole, size=10)
    assert all(part.stat().st_size <= 10 for part in parts)
    joined = join_parts(whole.parent, tmp_path / "joined")
    assert (joined / "name.whl").read_bytes() == bytes(range(size))
    assert [path.name for path in joined.iterdir()] == ["name.whl"]


def test_parts_of_several_calls_wait_for_each_other(tmp_path):
    whole = tmp_path / "in" / "name.whl"
    whole.parent.mkdir()
    whole.write_bytes(bytes(range(25)))
    parts = split_file(whole, size=10)
    late = parts[2].read_bytes()
    parts[2].unlink()
    joined = join_parts(whole.parent, tmp_path / "joined")
    assert not (joined / "name.whl").exists()
    for part in parts[:2]:
        part.unlink()
    parts[2].write_bytes(late)
    assert (join_parts(whole.parent, joined) / "name.whl").read_bytes() == bytes(range(25))


def test_results_are_kept_under_the_name_of_the_gpu(tmp_path):
    out = write(tmp_path / "out", content())
    (out / "grid.png").write_bytes(b"x")
    target = collect.keep(out, tmp_path / "results")
    assert target == tmp_path / "results" / "NVIDIA-Test" / "20300102T030405.json"
    assert (target.with_suffix("") / "grid.png").exists()
    table = collect.table("ceilings", collect.load(tmp_path / "results"))
    assert "| copy | 64 MB | 4,000 GB/s |" in table
    assert "NVIDIA Test, driver 1.2" in table
    for stage in collect.TABLES.keys() - {"ceilings"}:
        assert collect.table(stage, collect.load(tmp_path / "results")) == "not measured yet"


@pytest.mark.parametrize("change", [{"rehearsal": True}, {"stages": {}}, {"machine": {"gpu": None}}])
def test_rehearsals_and_nothings_are_not_kept(tmp_path, change):
    with pytest.raises(SystemExit):
        collect.keep(write(tmp_path / "out", content(**change)), tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_losing_and_failed_rows_are_shown():
    case = {"unit": "case 0", "status": "ok", "case": "loss", "who": "prunefast"}
    rows = [
        case | {"ms": 1.0, "call_ms": 1.5, "of copy": 0.5, "TFLOP/s": 3.0, "of product": 0.1, "error": 1e-3},
        case | {"prediction": "of copy", "predicted": 0.85, "measured": 0.5, "met": False},
        {"unit": "case 1", "status": "failed", "reason": "RuntimeError: out of memory"},
    ]
    text = collect.micro(rows)
    assert "**missed**" in text
    assert "failed: RuntimeError: out of memory" in text
    assert "not captured" not in text


def test_the_newest_call_counts():
    old, new = (content() for _ in range(2))
    new["stages"]["ceilings"]["rows"][0]["GB/s"] = 5000.0
    assert "5,000" in collect.table("ceilings", {"g": [old, new]})
    assert "4,000" not in collect.table("ceilings", {"g": [old, new]})


@pytest.mark.parametrize("page", collect.PAGES, ids=lambda page: page.name)
def test_the_pages_show_what_is_committed(page):
    assert "<!-- gpu: " in page.read_text()
    assert collect.rewritten(page.read_text(), collect.load()) == page.read_text()
