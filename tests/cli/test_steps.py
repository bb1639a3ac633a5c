"""The commands one by one on a small run, and the chain of them."""

from pathlib import Path

import numpy as np
import pytest

TRAINING = ("--model", "unet-tiny", "--images", 64, "--batch-size", 16, "--set", "status_every_images=32")
SAMPLING = ("--steps", 2)


@pytest.fixture
def run(prunefast, images: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    assert prunefast("embed", images, "-o", folder, "--quiet").status == 0
    return folder


def test_step_by_step(prunefast, run: Path, images: Path, tmp_path: Path) -> None:
    assert (run / "features.npy").is_file()
    scored = prunefast("score", run, "--method", "gaussian", "--json")
    assert scored.status == 0
    assert "higher = keep" in scored.out
    selected = prunefast("select", run, "--method", "gaussian", "--keep", 0.25, "--json")
    assert selected.facts["kept"] == 24
    assert selected.facts["counts"] == {name: [8, 32] for name in ("0", "1", "2")}
    trained = prunefast("train", run, *TRAINING, "--json")
    assert trained.facts["images"] == 64
    assert trained.facts["finished"] is True
    sampled = prunefast("sample", run, "-n", 6, "-o", tmp_path / "samples", *SAMPLING)
    assert sampled.status == 0
    assert len(list((tmp_path / "samples").rglob("*.png"))) == 6
    metrics = tmp_path / "metrics.json"
    evaluated = prunefast(
        "evaluate",
        tmp_path / "samples",
        "--reference",
        run,
        "--coreset",
        run / "coreset.parquet",
        "-o",
        metrics,
        "--json",
    )
    assert evaluated.status == 0
    assert np.isfinite(evaluated.facts["metrics"]["frechet_distance"])
    assert evaluated.facts["protocol"]
    assert metrics.is_file()
    reported = prunefast("report", run, "-o", tmp_path / "page.html")
    assert reported.status == 0
    assert "<html" in (tmp_path / "page.html").read_text()


def test_the_score_decides_what_is_kept(prunefast, run: Path) -> None:
    from prunefast import Coreset

    prunefast("select", run, "--method", "gaussian", "--keep-n", 30, "--global")
    coreset = Coreset.load(run / "coreset.parquet")
    assert len(coreset) == 30
    assert coreset.scores[coreset.indices].min() >= coreset.scores[coreset.dropped].max()


def test_run_repeats_nothing_that_is_done(prunefast, images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ("run", images, "-o", run, "--keep", 0.5, *TRAINING, *SAMPLING, "--samples", 12, "--json")
    first = prunefast(*command)
    assert first.status == 0, first.err
    assert first.facts["evaluate"]["metrics"]["denoising_gap"]["images"] == [48, 48]
    steps = ["embed", "select", "train", "sample", "evaluate"]
    assert [first.facts[step]["repeated"] for step in steps] == [False] * 5
    names = ["items.parquet", "features.npy", "scores.parquet", "coreset.parquet", "metrics.json", "train/summary.json"]
    before = {name: (run / name).stat().st_mtime_ns for name in names}
    second = prunefast(*command)
    assert [second.facts[step]["repeated"] for step in steps] == [True] * 5
    assert {name: (run / name).stat().st_mtime_ns for name in names} == before
    assert (run / "report.html").is_file()


def test_run_finishes_what_is_missing(prunefast, images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ("run", images, "-o", run, "--keep", 0.5, *TRAINING, *SAMPLING, "--samples", 12, "--json")
    prunefast(*command)
    weights = next(run.glob("train/checkpoint-*/model.safetensors")).read_bytes()
    (run / "metrics.json").unlink()
    (run / "features.npy").unlink()
    removed = next(run.glob("samples/*/*.png"))
    pixels = removed.read_bytes()
    removed.unlink()
    again = prunefast(*command)
    assert again.status == 0, again.err
    assert not again.facts["embed"]["repeated"]
    assert again.facts["train"]["repeated"]
    assert removed.read_bytes() == pixels
    assert next(run.glob("train/checkpoint-*/model.safetensors")).read_bytes() == weights


def test_a_longer_run_trains_on_and_samples_anew(prunefast, images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("--keep", 0.5, "--model", "unet-tiny", "--batch-size", 16, *SAMPLING, "--samples", 12, "--json")
    prunefast("run", images, "-o", run, *options, "--images", 32)
    longer = prunefast("run", images, "-o", run, *options, "--images", 64)
    assert longer.status == 0, longer.err
    assert longer.facts["train"]["images"] == 64
    assert not longer.facts["sample"]["repeated"]
    assert not longer.facts["evaluate"]["repeated"]


def test_another_budget_does_not_replace_a_trained_coreset(prunefast, images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = (*TRAINING, *SAMPLING, "--samples", 12)
    prunefast("run", images, "-o", run, "--keep", 0.5, *options)
    before = (run / "coreset.parquet").read_bytes()
    other = prunefast("run", images, "-o", run, "--keep", 0.25, *options)
    assert other.status == 2
    assert "coreset.parquet" in other.error
    assert "another -o folder" in other.error
    assert (run / "coreset.parquet").read_bytes() == before


@pytest.mark.parametrize("command", ["run", "embed"])
def test_dry_run_writes_nothing(prunefast, command: str, images: Path, tmp_path: Path) -> None:
    call = prunefast(command, images, "-o", tmp_path / "new", "--dry-run", "--json")
    assert call.status == 0
    assert call.facts["dry_run"] is True
    assert call.facts["images"] == 96
    assert not (tmp_path / "new").exists()


def test_dry_run_of_train(prunefast, run: Path) -> None:
    prunefast("select", run)
    call = prunefast("train", run, *TRAINING, "--dry-run", "--json")
    assert call.facts["config"]["images"] == 64
    assert not (run / "train").exists()


def test_train_without_a_run(prunefast, images: Path, tmp_path: Path) -> None:
    call = prunefast("train", "--data", images, "-o", tmp_path / "all", *TRAINING, "--json")
    assert call.status == 0, call.err
    assert call.facts["images"] == 64


def test_doctor_names_every_backend(prunefast) -> None:
    call = prunefast("doctor", "--json")
    assert call.status == 0
    for backend in call.facts["backends"].values():
        assert isinstance(backend["live"], bool)
        assert backend["detail"]
    assert call.facts["backends"]["cpu"]["live"] is True
    assert {"sklearn", "triton", "transformers", "diffusers", "torch_pruning", "optuna", "lmdb"} <= set(
        call.facts["packages"]
    )


@pytest.mark.parametrize("record", ["null", "[]", "{}", '{"protocol": null}', "{", "[" * 100_000])
def test_a_broken_record_of_samples(prunefast, images: Path, tmp_path: Path, record: str) -> None:
    run = tmp_path / "run"
    (run / "samples").mkdir(parents=True)
    (run / "samples" / "samples.json").write_text(record)
    call = prunefast("run", images, "-o", run, "--keep", 0.5, *TRAINING, *SAMPLING, "--samples", 4, "--quiet")
    assert call.status == 2
    assert "samples.json" in call.error
    assert "delete" in call.error


def test_old_samples_are_removed_at_once(prunefast, images: Path, tmp_path: Path, monkeypatch) -> None:
    import shutil

    run = tmp_path / "run"
    options = ("--keep", 0.5, "--model", "unet-tiny", "--batch-size", 16, *SAMPLING, "--samples", 4, "--quiet")
    assert prunefast("run", images, "-o", run, *options, "--images", 16).status == 0

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        assert prunefast("run", images, "-o", run, *options, "--images", 32).status == 130
    assert prunefast("run", images, "-o", run, *options, "--images", 32).status == 0
    assert not list(run.glob(".prunefast-tmp-*"))


def test_select_cuts_the_scores_that_are_there(prunefast, run: Path) -> None:
    from prunefast.score.table import load_scores

    prunefast("score", run, "--option", "ridge=0.5", "--global")
    scores = load_scores(run / "scores.parquet", "gaussian")
    assert prunefast("select", run, "--keep", 0.5).status == 0
    np.testing.assert_array_equal(load_scores(run / "scores.parquet", "gaussian"), scores)


def test_scores_of_other_features_are_made_anew(prunefast, run: Path, images: Path) -> None:
    import json

    from prunefast.score.table import load_scores

    prunefast("select", run)
    before = load_scores(run / "scores.parquet", "gaussian")
    manifest = json.loads((run / "features.json").read_text())
    (run / "features.json").write_text(json.dumps(manifest | {"package_version": "another"}))
    values = np.load(run / "features.npy")
    np.save(run / "features.npy", values * np.linspace(1, 2, values.shape[1], dtype=np.float32))
    prunefast("select", run)
    assert not np.array_equal(load_scores(run / "scores.parquet", "gaussian"), before)


def test_other_sampling_options_replace_the_samples_of_a_run(prunefast, images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ("run", images, "-o", run, "--keep", 0.5, *TRAINING, "--json")
    first = prunefast(*command, "--steps", 2, "--samples", 12)
    other = prunefast(*command, "--steps", 3, "--samples", 6)
    assert other.status == 0, other.err
    assert other.facts["train"]["repeated"]
    assert not other.facts["sample"]["repeated"]
    assert len(list((run / "samples").rglob("*.png"))) == 6
    assert other.facts["evaluate"]["metrics"] != first.facts["evaluate"]["metrics"]


def test_a_run_goes_on_with_its_own_settings(prunefast, images: Path, tmp_path: Path, monkeypatch) -> None:
    from prunefast.train import PRESETS

    run = tmp_path / "run"
    command = ("run", images, "-o", run, "--keep", 0.5, *TRAINING, *SAMPLING, "--samples", 12, "--json")
    prunefast(*command)
    monkeypatch.setitem(PRESETS, "cpu", PRESETS["cpu"] | {"lr": 0.5, "process": "ddpm-linear"})  # another version
    again = prunefast(*command)
    assert again.status == 0, again.err
    assert again.facts["train"]["repeated"]


def test_options_of_the_data_are_not_ignored(prunefast, run: Path, tmp_path: Path) -> None:
    for arguments in (
        ("embed", "-o", run, "--image-size", 4),
        ("train", run, "--split", "test"),
        ("evaluate", tmp_path, "--reference", run, "--split", "test"),
    ):
        prunefast("select", run)
        call = prunefast(*arguments)
        assert call.status == 2
        assert "leave it out" in call.error


def test_an_unknown_flag_is_said_by_its_command(prunefast) -> None:
    assert prunefast("select", "run", "--kep", 0.3).error.startswith("prunefast select: unrecognized arguments: --kep")
