"""The selection suite on the command line: columns, combinations, the shared graph, targets, comparison."""

from pathlib import Path

import numpy as np
import pytest

from prunefast import Coreset
from prunefast.graph import KnnGraph, build_graph


@pytest.fixture
def run(prunefast, images: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    assert prunefast("embed", images, "-o", folder, "--quiet").status == 0
    return folder


def test_one_graph_serves_scores_and_selections(prunefast, run: Path) -> None:
    assert prunefast("score", run, "--method", "knn").status == 0
    made = (run / "knn.npz").stat().st_mtime_ns
    assert KnnGraph.load(run / "knn.npz").k == 5
    assert prunefast("select", run, "--method", "d2", "--keep", 0.25).status == 0
    assert (run / "knn.npz").stat().st_mtime_ns == made
    assert prunefast("select", run, "--method", "facility-location", "--keep", 0.25).status == 0
    assert KnnGraph.load(run / "knn.npz").k == 40  # more neighbours than there were
    made = (run / "knn.npz").stat().st_mtime_ns
    assert prunefast("score", run, "--method", "density").status == 0
    assert (run / "knn.npz").stat().st_mtime_ns == made
    again = prunefast("select", run, "--method", "facility-location", "--keep", 0.25)
    assert "was there already" in again.out
    coreset = Coreset.load(run / "coreset.parquet")
    assert coreset.manifest["graph"]["recall"] == 1.0
    assert coreset.gains is not None


def test_a_column_of_the_users_is_a_score_like_any_other(prunefast, run: Path, tmp_path: Path) -> None:
    table = tmp_path / "captions.csv"
    table.write_text("aesthetic\n" + "\n".join(str(value) for value in range(96)) + "\n")
    first = prunefast("score", run, "--from", table, "--json")
    assert first.status == 0
    assert first.facts["options"]["source"] == str(table)
    assert "was there already" in prunefast("score", run, "--from", table, "--as", "captions").out
    assert prunefast("score", run).status == 0
    assert prunefast("score", run, "--combine", "gaussian=0.5,captions=2", "--as", "mix").status == 0
    top = prunefast("select", run, "--method", "top", "--score", "captions", "--keep-n", 6, "--global", "--json")
    assert top.facts["kept"] == 6
    assert Coreset.load(run / "coreset.parquet").indices.tolist() == list(range(90, 96))
    assert prunefast("select", run, "--method", "stratified", "--score", "mix", "--keep", 0.25).status == 0
    assert Coreset.load(run / "coreset.parquet").manifest["request"]["score_name"] == "mix"


def test_class_targets(prunefast, run: Path) -> None:
    shares = prunefast("select", run, "--method", "random", "--keep-n", 32, "--class-target", "0=3,2=1", "--json")
    assert shares.facts["counts"] == {"0": [24, 32], "1": [0, 32], "2": [8, 32]}
    assert prunefast("select", run, "--method", "clusters", "--keep-n", 30, "--class-target", "uniform").status == 0


def test_compare_shows_random_and_writes_no_coreset(prunefast, run: Path) -> None:
    call = prunefast(
        "select", run, "--compare", "gaussian,clusters,d2", "--keep", 0.25, "--images-per-second", 100, "--json"
    )
    assert call.status == 0
    assert list(call.facts) == ["gaussian", "clusters", "d2", "random"]
    assert not (run / "coreset.parquet").exists()
    own = call.facts["gaussian"]
    assert own["overlap"]["gaussian"] == 1.0
    assert own["counts"] == {name: [8, 32] for name in ("0", "1", "2")}
    assert own["saved_per_epoch"] == 0.75
    assert own["break_even_epochs"] == pytest.approx(own["seconds"] * 100 / 72)
    assert own["net_seconds_of_one_epoch"] == pytest.approx(72 / 100 - own["seconds"])
    assert 0 <= own["precision"] <= 1
    assert "by chance" in call.out


def test_forced_images_by_key_and_by_index(prunefast, run: Path, tmp_path: Path) -> None:
    plain = prunefast("select", run, "--method", "gaussian", "--keep", 0.25, "--json")
    assert plain.status == 0
    before = Coreset.load(run / "coreset.parquet")
    kept, dropped = before.indices[:3], before.dropped[:2]
    (tmp_path / "drop.txt").write_text("".join(f"{before.keys[i]}\n" for i in kept))
    np.save(tmp_path / "keep.npy", dropped)
    forced = ("--must-drop", tmp_path / "drop.txt", "--must-keep", tmp_path / "keep.npy")
    assert prunefast("select", run, "--method", "gaussian", "--keep", 0.25, *forced).status == 0
    after = Coreset.load(run / "coreset.parquet")
    assert len(after) == len(before)
    assert after.keep[dropped].all()
    assert not after.keep[kept].any()
    again = prunefast("select", run, "--method", "gaussian", "--keep", 0.25, *forced)
    assert "was there already" in again.out
    call = prunefast("select", run, "--compare", "gaussian", "--keep", 0.25, *forced, "--json")
    assert call.facts["gaussian"]["overlap"]["gaussian"] == 1.0
    (tmp_path / "drop.txt").write_text("nobody\n")
    assert "'nobody' is no key of the data set" in prunefast("select", run, *forced).error
    (tmp_path / "keep.npy").write_bytes(b"rubbish")
    assert "neither keys, one a line, nor an .npy" in prunefast("select", run, *forced).error
    assert "no such file" in prunefast("select", run, "--must-keep", tmp_path / "none.txt").error


def test_overlap_is_counted(prunefast, run: Path) -> None:
    prunefast("select", run, "--method", "gaussian", "--keep", 0.25)
    one = Coreset.load(run / "coreset.parquet")
    prunefast("select", run, "--method", "random", "--keep", 0.25)
    two = Coreset.load(run / "coreset.parquet")
    call = prunefast("select", run, "--compare", "gaussian", "--keep", 0.25, "--json")
    assert call.facts["gaussian"]["overlap"]["random"] == len(np.intersect1d(one.indices, two.indices)) / 24


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["select", "--method", "top"], "name it with --score"),
        (["select", "--method", "top", "--score", "none"], "scores.parquet: no such file"),
        (["select", "--method", "clusters", "--score", "gaussian"], "makes its own; leave it out"),
        (["select", "--method", "d2", "--option", "gama=1"], "gama: method 'd2' has no such option"),
        (["select", "--class-target", "0"], 'must be "input", "uniform"'),
        (["select", "--class-target", "0=x"], "'0=x' is not CLASS=SHARE"),
        (["select", "--class-target", "9=1"], "'9' is no class"),
        (["select", "--class-target", "uniform", "--global"], "leave --global out"),
        (["select", "--class-target", "uniform", "--threshold", "1"], "threshold: is the same score"),
        (["score", "--combine", "gaussian"], "--combine gaussian: is not NAME=WEIGHT"),
        (["select", "--method", "loss"], "select with --method top --score loss"),
        (["select", "--compare", "gaussian,best"], "'best' is not a selection"),
        (["select", "--compare", "gaussian", "--option", "k=3"], "--option: means nothing with --compare"),
        (["select", "--compare", "gaussian", "--method", "d2"], "--method and --compare"),
        (["select", "--compare", "top"], "name it with --score"),
        (["select", "--images-per-second", "3"], "means nothing without --compare"),
        (["select", "--compare", "gaussian", "--images-per-second", "0"], "must be a finite number above 0"),
        (["score", "--from", "none.csv"], "none.csv: no such file"),
        (["score", "--from", "a.csv", "--combine", "a=1"], "--from and --combine: give one"),
        (["score", "--combine", "a=x"], "'a' needs a finite number"),
        (["score", "--combine", "gaussian=1"], "scores.parquet"),
        (["score", "--column", "x"], "--column: means nothing to gaussian"),
        (["score", "--as", "x"], "--as: means nothing to gaussian"),
        (["score", "--from", "a.csv", "--option", "k=1"], "--option: means nothing to --from"),
        (["score", "--method", "knn", "--option", "k=96"], "k: must be a whole number from 1 to 95"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(prunefast, run: Path, arguments: list[str], words: str) -> None:
    before = sorted(path.name for path in run.iterdir())
    call = prunefast(arguments[0], run, *arguments[1:])
    assert call.status == 2
    assert words in call.error
    assert sorted(path.name for path in run.iterdir()) == before


def test_a_graph_of_another_run_is_refused(prunefast, run: Path) -> None:
    (run / "knn.npz").write_bytes(b"rubbish")
    call = prunefast("score", run, "--method", "knn")
    assert call.status == 2
    assert "knn.npz: is not a readable kNN graph" in call.error


def files_of(run: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in run.rglob("*") if p.is_file()}


def test_what_a_deduplication_leaves_too_few(prunefast, run: Path) -> None:
    """The message names what the user gave, not what it becomes inside."""
    semantic = ("dedup", run, "--level", "semantic", "--threshold", 2, "--max-threshold", 2)
    assert prunefast(*semantic).status == 0  # everything is a duplicate of one image
    before = files_of(run)
    call = prunefast("select", run, "--method", "random", "--keep-n", 10, "--dedup")
    assert call.status == 2
    assert "--dedup: it leaves" in call.error
    assert "for a budget of 10; lower the budget" in call.error
    assert files_of(run) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--keep-n", 97), "--keep-n: must be between 1 and the number of images, 96, not 97"),
        (("--keep-n", 90, "--class-target", "0=1"), "class '0' has 32 images for a quota of 90"),
        (
            ("--method", "d2", "--score", "broken", "--keep", 0.5),
            "scores.parquet: no such file; run prunefast score first",
        ),
        (("--method", "prototypes", "--keep", 0.5, "--option", "class_floor=0.5"), "class_floor: per_class splits"),
        (("--method", "d2", "--keep", 0.5, "--option", "beta=1.5"), "beta: must be below 1, not 1.5"),
        (("--method", "ppca", "--keep", 0.5, "--option", "components=0"), "components: must be a whole number"),
    ],
)
def test_bad_input_writes_nothing(prunefast, run: Path, options: tuple, words: str) -> None:
    before = files_of(run)
    call = prunefast("select", run, *options)
    assert call.status == 2
    assert words in call.error
    assert {name: facts for name, facts in files_of(run).items() if "scores" not in name} == before


def test_nan_in_a_file_and_a_graph_of_other_data(prunefast, run: Path, tmp_path: Path) -> None:
    table = tmp_path / "mine.csv"
    table.write_text("mine\n" + "\n".join(["1"] * 95 + ["nan"]) + "\n")
    before = files_of(run)
    call = prunefast("score", run, "--from", table)
    assert call.status == 2
    assert "nan for" in call.error
    assert files_of(run) == before
    other = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    build_graph(other, 5).save(run / "knn.npz")
    before = files_of(run)
    call = prunefast("score", run, "--method", "knn")
    assert call.status == 2
    assert "knn.npz: holds 50 rows for 96 images" in call.error
    assert files_of(run) == before
