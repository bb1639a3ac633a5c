"""prunefast reweight, scores from a surrogate, and both inside a run."""

import json

import numpy as np
import pytest

FAST = ("--device", "cpu", "--set", "threads=1", "--set", "warmup_images=0", "--batch-size", 16)
SMALL = ("--set", "model_options={'width': 8, 'channel_multipliers': [1, 2], 'blocks': 1, 'attention_levels': [1]}")


@pytest.fixture
def run(prunefast, images, tmp_path):
    """A run with a coreset, and a reference trained on everything."""
    folder = tmp_path / "run"
    assert prunefast("embed", images, "-o", folder).status == 0
    assert prunefast("select", folder, "--method", "random", "--keep", 0.5).status == 0
    call = prunefast("train", "--data", images, "-o", tmp_path / "ref", "--images", 64, *FAST, *SMALL)
    assert call.status == 0, call.err
    return folder


def test_weights_are_found_once_and_trained_with(prunefast, run, tmp_path):
    reference = ("--reference", tmp_path / "ref")
    planned = prunefast("reweight", run, *reference, "--dry-run", "--json")
    assert planned.facts["config"]["dropout"] == 0.0
    assert planned.facts["config"]["process"] == "flow"  # the reference's
    assert not (run / "class_weights.json").exists()
    first = prunefast("reweight", run, *reference, "--images", 32, "--step-size", 5, "--micro-batch", 8, "--json")
    assert first.status == 0, first.err
    average = first.facts["average"]
    assert sum(average.values()) == pytest.approx(1)
    assert set(average) == {"0", "1", "2"}
    assert "x uniform" in first.out
    written = (run / "class_weights.json").read_bytes()
    again = prunefast("reweight", run, *reference, "--images", 32, "--step-size", 5, "--json")
    assert "was there already" in again.out
    assert again.facts["average"] == average
    more = prunefast("reweight", run, *reference, "--images", 64, "--step-size", 5)
    assert more.status == 0, more.err
    assert (run / "class_weights.json").read_bytes() != written

    losses = {}
    for place in ("loss", "sampler"):
        weights = ("--class-weights", run / "class_weights.json", "--class-weights-in", place)
        call = prunefast("train", run, "-o", tmp_path / place, "--images", 32, *weights, *FAST, *SMALL)
        assert call.status == 0, call.err
        losses[place] = json.loads((tmp_path / place / "train" / "summary.json").read_text())["loss"]
    assert np.isfinite(list(losses.values())).all()
    assert prunefast("report", run).status == 0
    assert 'id="class-weights"' in (run / "report.html").read_text()


def test_scores_from_a_surrogate(prunefast, run, tmp_path):
    checkpoint = ("--checkpoint", tmp_path / "ref")
    call = prunefast("score", run, "--method", "loss", *checkpoint, "--option", "times=2", "--device", "cpu", "--json")
    assert call.status == 0, call.err
    assert call.facts["direction"].startswith("minus the denoising loss")
    again = prunefast("score", run, "--method", "loss", *checkpoint, "--option", "times=2", "--device", "cpu")
    assert "was there already" in again.out
    turned = ("--option", "times=2", "--option", "keep_hard=true")
    hard = prunefast("score", run, "--method", "loss", *checkpoint, *turned, "--device", "cpu", "--json")
    assert hard.facts["direction"].startswith("denoising loss")
    assert "was there already" not in hard.out


def test_a_run_with_weights(prunefast, run, images, tmp_path):
    rest = ("--samples", 4, "--steps", 2, "--images", 32, "--method", "random", *FAST, *SMALL)
    command = ("run", images, "-o", tmp_path / "whole", "--reweight", tmp_path / "ref", "--reweight-images", 16, *rest)
    command += ("--class-weights-in", "sampler")
    call = prunefast(*command, "--json")
    assert call.status == 0, call.err
    assert list(call.facts) == ["embed", "select", "reweight", "train", "sample", "evaluate", "report"]
    config = (tmp_path / "whole" / "train" / "config.toml").read_text()
    assert "class_weights.json" in config
    assert 'class_weights_in = "sampler"' in config
    again = prunefast(*command, "--json")
    assert again.facts["reweight"]["repeated"]
    assert again.facts["train"]["repeated"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("reweight", "RUN"), "--reference"),
        (("reweight", "RUN", "--reference", "nowhere"), "nowhere: there is no checkpoint"),
        (("reweight", "RUN", "--reference", "REF", "--step-size", "-1"), "--step-size is -1"),
        (("reweight", "RUN", "--reference", "REF", "--groups", "clusters"), "the coreset has no clusters"),
        (("reweight", "RUN", "--reference", "REF", "--process", "edm"), "process: the reference"),
        (("reweight", "RUN", "--reference", "REF", "--start", "odd"), "invalid choice"),
        (("reweight", "RUN", "--reference", "REF", "--coreset", "none.parquet"), "none.parquet: no such file"),
        (("reweight", "empty", "--reference", "REF"), "holds no run"),
        (("score", "RUN", "--method", "loss"), "'loss' needs a trained model"),
        (("score", "RUN", "--method", "loss", "--checkpoint", "nowhere"), "nowhere: there is no checkpoint"),
        (("score", "RUN", "--method", "moderate", "--checkpoint", "REF"), "--checkpoint: means nothing to moderate"),
        (
            ("score", "RUN", "--method", "loss", "--checkpoint", "REF", "--option", "k=3"),
            "k: method 'loss' has no such",
        ),
        (("train", "RUN", "--images", "16", "--class-weights", "nowhere.json"), "nowhere.json: no such file"),
        (("run", "DATA", "-o", "new", "--reweight-images", "5"), "--reweight-images: means nothing"),
        (("run", "DATA", "-o", "new", "--reweight", "nowhere"), "nowhere: there is no checkpoint"),
    ],
)
def test_errors_are_one_line(prunefast, run, images, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    places = {"RUN": run, "REF": tmp_path / "ref", "DATA": images}
    call = prunefast(*(places.get(word, word) for word in arguments))
    assert call.status == 2
    assert said in call.error
    assert not (tmp_path / "new" / "features.npy").exists()  # before any work
