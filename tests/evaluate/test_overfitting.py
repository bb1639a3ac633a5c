"""Variety, novelty, the denoising gap and the rule that turns them into a warning."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

import prunefast as pf
from prunefast.cli import main
from prunefast.data import from_arrays
from prunefast.errors import InputError
from prunefast.evaluate import evaluate, memorisation, vendi_score
from prunefast.evaluate.gap import Measured, fixed_losses, gap_of
from prunefast.evaluate.overfitting import overfitting_signs
from prunefast.select import Coreset


def vendi_by_definition(x):
    """exp of the entropy of all N eigenvalues of K / N, with K written out."""
    x = np.asarray(x, np.float64)
    kernel = np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in x] for a in x])
    values = np.linalg.eigvalsh(kernel / len(x))
    return math.exp(-sum(v * math.log(v) for v in values if v > 1e-14))


@pytest.mark.parametrize("shape", [(12, 30), (40, 5)], ids=["more features than images", "fewer"])
def test_vendi_is_the_definition(shape):
    x = np.random.default_rng(0).normal(size=shape) + 1
    assert vendi_score(x) == pytest.approx(vendi_by_definition(x), rel=1e-9)


def test_vendi_of_what_is_known():
    assert vendi_score(np.eye(7)) == pytest.approx(7)
    assert vendi_score(np.repeat(np.eye(7), 5, axis=0)) == pytest.approx(7)  # copies add nothing
    assert vendi_score(np.ones((9, 4)) * np.arange(1, 10)[:, None]) == pytest.approx(1)  # one direction
    uneven = np.repeat(np.eye(2), [3, 1], axis=0)
    assert vendi_score(uneven) == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))
    with pytest.raises(InputError, match="row 1 is zero"):
        vendi_score(np.array([[1.0, 2.0], [0.0, 0.0]]))


def test_novelty_is_the_definition():
    rng = np.random.default_rng(1)
    samples, training = rng.normal(size=(90, 4)), rng.normal(size=(70, 4))
    within = cdist(training, training)
    np.fill_diagonal(within, np.inf)
    near = cdist(samples, training).min(1)
    found = memorisation(samples, training)
    assert found.training_nearest_median == pytest.approx(np.median(within.min(1)), rel=1e-5)
    assert found.novelty == (near > np.median(within.min(1))).mean()
    assert found.nearest_train_mean == pytest.approx(near.mean(), rel=1e-5)
    assert memorisation(training, training).novelty == 0
    assert memorisation(samples + 50, training).novelty == 1


def test_the_gap_and_its_standard_error():
    a, b = np.array([[1.0, 3.0], [2.0, 2.0], [4.0, 6.0]]), np.array([[5.0, 5.0], [9.0, 7.0]])
    found = gap_of(a, b)
    assert (found.training, found.held_out, found.gap) == (3.0, 6.5, 3.5)
    variances = np.var([2.0, 2.0, 5.0], ddof=1) / 3 + np.var([5.0, 8.0], ddof=1) / 2
    assert found.standard_error == pytest.approx(math.sqrt(variances))
    assert found.relative == pytest.approx(3.5 / 3)
    assert (found.images, found.draws) == ((3, 2), 2)


def test_losses_are_those_of_fixed_times_and_noises():
    rng = np.random.default_rng(0)
    data = from_arrays(rng.integers(0, 256, (70, 8, 8, 3), dtype=np.uint8))
    loss = pf.DenoisingLoss("ddpm-linear", "eps")

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.tensor(0.5))

        def forward(self, x, time, labels):
            return self.gain * x

    items = np.arange(69, -1, -1)
    found = fixed_losses(Measured(Network(), loss), data, items, seed=5, draws=4)
    assert found.shape == (70, 4)
    for number, k in ((0, 0), (3, 2), (69, 3)):
        t = torch.tensor([int((k + 0.5) / 4 * 1000)])
        betas = np.linspace(1e-4, 0.02, 1000)
        kept = np.cumprod(1 - betas)[int(t)]
        noise = pf.ops.randn_philox([1, 3, 8, 8], 5, torch.tensor([number]), 512 + k)[0].double().numpy()
        clean = data.images([items[number]])[0].transpose(2, 0, 1) / 127.5 - 1
        answer = 0.5 * (math.sqrt(kept) * clean + math.sqrt(1 - kept) * noise)
        assert found[number, k] == pytest.approx(((answer - noise) ** 2).mean(), rel=1e-4)
    # the same images as another set meet the same noise: no gap at all
    again = fixed_losses(Measured(Network(), loss), data, items.copy(), seed=5, draws=4)
    assert gap_of(found, again).gap == 0


def test_the_rule():
    def signs(copied=0.01, relative=0.0, error=0.01, samples=1_000, images=10_000):
        memory = {"copied_share": copied, "copied_share_expected": 0.01}
        gap = {"relative": relative, "gap": relative, "standard_error": error}
        return overfitting_signs({"memorisation": memory, "denoising_gap": gap}, samples, images)

    assert overfitting_signs({}, 100, 100) is None  # nothing was measured
    assert signs() == []
    assert signs(copied=0.02) == []  # significant, but little
    assert signs(copied=0.03, samples=100) == []  # three of a hundred: chance
    assert len(signs(copied=0.04)) == 1
    assert signs(copied=0.1, images=24) == []  # nearer than the nearest of 24: 4 % by chance, and that is a guess
    assert len(signs(copied=0.5, images=24)) == 1
    assert signs(relative=0.04, error=1e-5) == []
    assert signs(relative=0.2, error=0.1) == []
    assert len(signs(copied=0.5, relative=0.2)) == 2


# --- from a model that knows its images by heart to the warning ---


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A network trained long on 6 of 60 images of noise, which no other image helps with."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (60, 4, 4, 3), dtype=np.uint8)
    data = from_arrays(coarse.repeat(2, axis=1).repeat(2, axis=2))
    coreset = pf.select(data, method="random", keep_n=6)
    folder = tmp_path_factory.mktemp("learned")
    config = pf.TrainConfig(
        out=str(folder),
        images=16 * 90,
        batch_size=16,
        model="unet-tiny",
        model_options={"width": 16, "channel_multipliers": [1, 2], "blocks": 1, "attention_levels": []},
        dropout=0.0,
        lr=4e-3,
        warmup_images=160,
        flip=False,
        device="cpu",
        precision="fp32",
        process="flow",
    )
    pf.train(config, data, coreset)
    return folder, data, coreset


def test_a_model_that_learned_by_heart_is_warned_of(learned, tmp_path, capsys):
    folder, data, coreset = learned
    samples = pf.sample(folder, 40, steps=12, sampler="heun")
    result = evaluate(samples, data, coreset=coreset, checkpoint=folder, out=tmp_path / "metrics.json")
    gap = result.metrics["denoising_gap"]
    assert gap["held_out"] > 1.05 * gap["training"]
    assert gap["images"] == [6, 54]
    assert result.metrics["overfitting"]["suspected"]
    assert result.warnings[0].startswith("overfitting: ")
    assert "denoising gap" in str(result)
    assert "suspected" in str(result)
    stored = json.loads((tmp_path / "metrics.json").read_text())
    assert stored["metrics"]["overfitting"] == result.metrics["overfitting"]
    assert stored["protocol"]["denoising_gap"]["held_out"] == "left out by random"


def test_images_that_a_score_left_out_are_no_sign(learned, tmp_path):
    """Harder by themselves: a gap without overfitting, which is printed and not warned of."""
    folder, data, coreset = learned
    scored = Coreset.from_indices(data, coreset.indices, manifest={"method": "gaussian"})
    samples = data.images(coreset.dropped)  # of which none is a copy
    by_score = evaluate(samples, data, coreset=scored, checkpoint=folder, metrics=["denoising_gap"])
    assert by_score.metrics["denoising_gap"]["held_out"] > 1.05 * by_score.metrics["denoising_gap"]["training"]
    assert not by_score.metrics["denoising_gap"]["comparable"]
    assert "overfitting" not in by_score.metrics
    assert "harder by itself" in str(by_score)
    with_copies = evaluate(samples, data, coreset=scored, checkpoint=folder)
    assert with_copies.metrics["overfitting"] == {"suspected": False, "signs": []}
    assert "by near-copies\n" in str(with_copies)
    given = evaluate(samples, data, coreset=scored, checkpoint=folder, held_out=data, metrics=["denoising_gap"])
    assert given.metrics["denoising_gap"]["comparable"]


def test_an_untrained_model_has_no_gap(learned, tmp_path):
    _, data, coreset = learned
    config = pf.TrainConfig(out=str(tmp_path), images=16, batch_size=16, model="unet-tiny", device="cpu", lr=0.0)
    pf.train(config, data, coreset)
    result = evaluate(data.images(range(30)), data, coreset=coreset, checkpoint=tmp_path, metrics=["denoising_gap"])
    gap = result.metrics["denoising_gap"]
    assert abs(gap["gap"]) < 4 * gap["standard_error"]
    assert result.metrics["overfitting"] == {"suspected": False, "signs": []}


def test_what_training_set_aside_is_held_out(tmp_path):
    """Of a coreset of all images there is nothing left out; its training knew what it set aside."""
    data = from_arrays(np.random.default_rng(2).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8))
    config = pf.TrainConfig(out=str(tmp_path), images=32, batch_size=16, model="unet-tiny", device="cpu", holdout=0.25)
    pf.train(config, data)
    everything = pf.Coreset.full(data)
    result = evaluate(data.images(range(20)), data, coreset=everything, checkpoint=tmp_path)
    assert result.metrics["denoising_gap"]["images"] == [30, 10]
    assert result.protocol["denoising_gap"]["held_out"] == "set aside by training"
    assert result.protocol["memorisation"]["training_images"] == 30
    assert not any("another coreset" in warning for warning in result.warnings)
    other = pf.select(data, method="random", keep=0.5, seed=9)
    wrong = evaluate(data.images(range(20)), data, coreset=other, checkpoint=tmp_path)
    assert any("trained on another coreset" in warning for warning in wrong.warnings)


def test_held_out_images_of_their_own(learned):
    folder, data, coreset = learned
    fresh = from_arrays(255 - data.images(range(20)))
    result = evaluate(data.images(range(30)), data, coreset=coreset, checkpoint=folder, held_out=fresh)
    assert result.metrics["denoising_gap"]["images"] == [6, 20]
    assert result.protocol["denoising_gap"]["held_out"]["count"] == 20
    assert result.protocol["memorisation"]["held_out_images"] == 20


def test_what_is_missing_is_said_before_any_work(learned, tmp_path):
    folder, data, coreset = learned
    images = data.images(range(10))
    with pytest.raises(InputError, match="checkpoint: says nothing without coreset"):
        evaluate(images, data, checkpoint=folder)
    with pytest.raises(InputError, match="held_out: says nothing without coreset"):
        evaluate(images, data, held_out=data)
    with pytest.raises(InputError, match="checkpoint: 'denoising_gap'"):
        evaluate(images, data, coreset=coreset, metrics=["denoising_gap"])
    with pytest.raises(InputError, match="there is no checkpoint"):
        evaluate(images, data, coreset=coreset, checkpoint=tmp_path)
    other = from_arrays(np.zeros((10, 16, 16, 3), np.uint8))
    with pytest.raises(InputError, match="checkpoint: "):
        evaluate(other, other, coreset=pf.select(other, method="random", keep=0.5), checkpoint=folder)


def test_the_command(learned, tmp_path, capsys):
    folder, data, coreset = learned
    np.save(tmp_path / "data.npy", data.images(range(60)))
    np.save(tmp_path / "new.npy", data.images(range(20))[:, ::-1])
    reference = pf.open_dataset(tmp_path / "data.npy")
    pf.Coreset.from_indices(reference, coreset.indices).save(tmp_path / "coreset.parquet")
    command = ["evaluate", str(tmp_path / "data.npy"), "--reference", str(tmp_path / "data.npy"), "--json"]
    command += ["--coreset", str(tmp_path / "coreset.parquet"), "--checkpoint", str(folder)]
    assert main([*command, "--held-out", str(tmp_path / "new.npy")]) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts["metrics"]["denoising_gap"]["images"] == [6, 20]
    assert facts["metrics"]["vendi"] == pytest.approx(facts["metrics"]["vendi_reference"])
