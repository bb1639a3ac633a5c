"""prunefast dedup and prunefast export from the command line: what they write, again, and what they refuse."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prunefast.cli import main
from prunefast.data import open_dataset
from prunefast.dedup import Deduplication
from prunefast.select import Coreset


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """24 smooth pictures in two classes; every fourth has a copy of half the size."""
    root = tmp_path_factory.mktemp("photos") / "photos"
    rng = np.random.default_rng(0)
    for k in range(24):
        place = root / "ab"[k % 2]
        place.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(
            (64, 64), Image.Resampling.BICUBIC
        )
        image.save(place / f"{k:02}.jpg", quality=90)
        if k % 4 == 0:
            image.resize((32, 32)).save(place / f"{k:02}-small.jpg", quality=80)
    return root


@pytest.fixture
def run(photos, tmp_path) -> Path:
    assert main(["embed", str(photos), "-o", str(tmp_path / "run"), "--image-size", "16", "--quiet"]) == 0
    return tmp_path / "run"


def call(capsys, *words) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return status, out, err


def test_a_data_set_starts_a_run_and_a_threshold_is_moved(photos, tmp_path, capsys, monkeypatch):
    run = tmp_path / "new"
    status, out, _ = call(capsys, "dedup", photos, "-o", run, "--json")
    facts = json.loads(out.splitlines()[-1])
    assert (status, facts["dropped"], facts["groups"], facts["max_threshold"]) == (0, 6, 6, 11)
    data = open_dataset(photos)
    found = Deduplication.load(run, data)
    assert all("small" in data.keys[i] for i in found.dropped)

    def compare(*_args, **_options):
        raise AssertionError("images were compared again")

    monkeypatch.setattr("prunefast.pipeline.deduplicate", compare)
    status, out, _ = call(capsys, "dedup", run)
    assert (status, "was there already" in out) == (0, True)
    for threshold in (0, 10, 7):
        status, out, _ = call(capsys, "dedup", run, "--threshold", threshold)
        assert status == 0
        assert Deduplication.load(run, data).threshold == threshold
    assert (Deduplication.load(run, data).keep == found.keep).all()
    status, _, err = call(capsys, "dedup", run, "--threshold", "20")  # past what pairs were looked for
    assert (status, "compared again" in err) == (1, True)


def test_levels_survivors_and_another_data_set(run, photos, tmp_path, capsys):
    assert call(capsys, "dedup", run, "--level", "exact")[0] == 0
    assert len(Deduplication.load(run).dropped) == 0
    assert call(capsys, "dedup", run, "--level", "semantic", "--threshold", "0.01")[0] == 0
    assert main(["score", str(run), "--quiet"]) == 0
    assert call(capsys, "dedup", run, "--survivor", "score:gaussian")[0] == 0
    np.save(tmp_path / "mine.npy", np.arange(30))
    assert call(capsys, "dedup", run, "--survivor", tmp_path / "mine.npy")[0] == 0
    (tmp_path / "test").mkdir()
    shutil.copy(photos / "a" / "02.jpg", tmp_path / "test" / "leak.jpg")
    status, out, _ = call(capsys, "dedup", run, "--against", tmp_path / "test", "--only-against", "--json")
    facts = json.loads(out.splitlines()[-1])
    assert (status, facts["dropped"], facts["dropped_for_other"]) == (0, 1, 1)
    shutil.copytree(photos, tmp_path / "more")
    for name in ("other", "different"):  # "pixels" is fitted to the data: the same images give the same encoder
        assert main(["embed", str(tmp_path / "more"), "-o", str(tmp_path / name), "--image-size", "16", "--quiet"]) == 0
        shutil.rmtree(tmp_path / "more" / "b", ignore_errors=True)
    semantic = ("dedup", run, "--level", "semantic", "--threshold", "0.001", "--against")
    status, _, err = call(capsys, *semantic, tmp_path / "other")
    assert (status, "changed since" in err) == (2, True)  # its images are gone
    shutil.copytree(photos / "b", tmp_path / "more" / "b")
    status, out, _ = call(capsys, *semantic, tmp_path / "other", "--json")
    assert (status, json.loads(out.splitlines()[-1])["dropped_for_other"]) == (0, 30)
    shutil.rmtree(tmp_path / "more" / "b")
    status, _, err = call(capsys, *semantic, tmp_path / "different")
    assert (status, "another encoder" in err) == (2, True)


def test_select_run_and_export(run, photos, tmp_path, capsys):
    assert call(capsys, "dedup", run)[0] == 0
    for repeated in (False, True):
        status, out, _ = call(capsys, "select", run, "--dedup", "--method", "random", "--keep-n", 10)
        assert (status, "was there already" in out) == (0, repeated)
    data = open_dataset(photos, image_size=16)
    coreset = Coreset.load(run / "coreset.parquet", data)
    assert not any("small" in data.keys[i] for i in coreset.indices)
    assert coreset.groups is not None
    for repeated in (False, True):
        status, out, _ = call(capsys, "export", run, "--to", "txt", "-o", tmp_path / "keys.txt")
        assert (status, "was there already" in out) == (0, repeated)
    assert (tmp_path / "keys.txt").read_text().splitlines() == [data.keys[i] for i in coreset.indices]
    status, out, _ = call(capsys, "export", run, "--to", "webdataset", "--dedup", "--json")
    facts = json.loads(out.splitlines()[-1])
    assert (status, facts["images"], Path(facts["out"])) == (0, 24, run / "export-webdataset")
    before = sorted(path.name for path in run.iterdir())
    status, out, _ = call(capsys, "export", run, "--to", "folder", "--dry-run", "--option", "link=hardlink", "--json")
    assert (status, json.loads(out.splitlines()[-1])["images"]) == (0, 10)
    assert sorted(path.name for path in run.iterdir()) == before
    status, out, _ = call(capsys, "dedup", run, "--threshold", "3", "--dry-run")
    assert (status, Deduplication.load(run).threshold) == (0, 7)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("dedup nowhere", "give -o FOLDER"),
        ("dedup nowhere -o {tmp}/x", "nowhere: no such file or folder"),
        ("dedup {run} -o {tmp}/x", "is a run already"),
        ("dedup {run} --image-size 8", "has its data already"),
        ("dedup {run} --level loose", "level: 'loose'"),
        ("dedup {run} --threshold -1", "threshold"),
        ("dedup {run} --threshold 9 --max-threshold 8", "larger max_threshold"),
        ("dedup {run} --option bits=65", "bits"),
        ("dedup {run} --option bits", "KEY=VALUE"),
        ("dedup {run} --survivor nice", "survivor: 'nice'"),
        ("dedup {run} --survivor score:nice", "scores.parquet"),
        ("dedup {run} --survivor {tmp}/none.npy", "no such file"),
        ("dedup {run} --only-against", "--against DATA2"),
        ("dedup {run} --against {tmp}/none", "no such file or folder"),
        ("dedup {run} --level semantic --against {photos}", "needs its features"),
        ("export {run} --to tfrecord", "hf, webdataset"),
        ("export {run} --to txt", "coreset.parquet: no such file"),
        ("export {run} --to txt --dedup", "groups.parquet: no such file"),
        ("export {run} --to hf --option depth=3", "no such option"),
        ("export {tmp}/none --to hf", "holds no run"),
        ("select {run} --dedup", "groups.parquet: no such file"),
    ],
)
def test_one_line_and_status_2(words, text, run, photos, tmp_path, capsys):
    before = sorted(path.name for path in run.iterdir())
    status, _, err = call(capsys, *(word.format(run=run, tmp=tmp_path, photos=photos) for word in words.split()))
    assert status == 2
    assert text in err
    assert len(err.strip().splitlines()) == 1
    assert sorted(path.name for path in run.iterdir()) == before
    assert not (tmp_path / "x").exists()
