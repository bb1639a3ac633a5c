"""Images held out of a run: which, what is measured on them, and when the run says that it overfits."""

import numpy as np
import pytest
import torch

from prunefast.data import from_arrays
from prunefast.diffusion import DenoisingLoss
from prunefast.errors import InputError
from prunefast.evaluate.gap import Measured, fixed_losses
from prunefast.files import read_json
from prunefast.ops import randn_philox
from prunefast.select import Coreset, select
from prunefast.train import TIMING_KEYS, read_metrics, train
from prunefast.train.holdout import make_holdout
from prunefast.train.network import load_network

SIDE = {"depth": 3, "width": 16, "heads": 2}
MASKED = {"depth": 1, "width": 16, "heads": 2, "decoder_depth": 1, "decoder_width": 8, "decoder_heads": 2}


def test_a_share_is_set_aside_and_not_trained_on(make_config, make_data):
    data = make_data(count=60)
    whole = select(data, method="random", keep=0.5)
    config = make_config(holdout=0.2)
    coreset, holdout = make_holdout(config, data, whole)
    assert len(coreset) == 24
    assert set(holdout.items).isdisjoint(coreset.indices)
    assert {*holdout.items, *coreset.indices} == {*whole.indices}
    assert len(holdout.items) == len(holdout.training) == 6  # sets of one size: the same times and noises
    assert set(holdout.training) <= {*coreset.indices}
    assert make_holdout(config, data, whole)[0].fingerprint == coreset.fingerprint
    assert make_holdout(config.replace(seed=1), data, whole)[0].fingerprint != coreset.fingerprint


def test_the_lines_of_a_run(make_config, make_data, tmp_path):
    """With lr 0 the network stays as it begins, so the losses can be computed from its first weights."""
    data = make_data(count=60)
    config = make_config(holdout=0.5, holdout_every_images=48, lr=0.0, images=192, label_drop=0.0)
    train(config, data)
    lines = read_metrics(tmp_path / "run/train/metrics.jsonl")
    measured = [line for line in lines if "held_out_loss" in line]
    assert [line["images"] for line in measured] == [48, 96, 144, 192]
    _, holdout = make_holdout(config, data, Coreset.full(data))
    network = load_network(tmp_path / "run", ema=False)
    asked = Measured(network.model, DenoisingLoss("ddpm-linear"), labelled=True)
    means = [fixed_losses(asked, data, items, draws=4).mean() for items in (holdout.items, holdout.training)]
    for line in measured:
        assert line["held_out_loss"] == pytest.approx(means[0], rel=1e-5)
        assert line["held_out_gap"] == pytest.approx(means[0] - means[1], abs=1e-6)
        assert line["held_out_error"] > 0
    assert read_json(tmp_path / "run/train/summary.json")["held_out"]["images"] == 192


def test_measuring_changes_nothing_but_the_lines(make_config, make_data, tmp_path):
    """Held-out images of their own: the run with them has the weights of the run without."""
    data, other = make_data(count=60), make_data(count=40, seed=1)
    images, labels = data.images(range(60)), np.asarray(data.labels)
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    np.savez(tmp_path / "other.npz", images=other.images(range(40)), labels=np.asarray(other.labels))
    weights, lines = [], []
    for out, holdout in (("with", str(tmp_path / "other.npz")), ("without", None)):
        config = make_config(data=str(tmp_path / "data.npz"), out=str(tmp_path / out), images=96, holdout=holdout)
        if holdout:
            config = config.replace(holdout_every_images=24)
            train(config.replace(images=40))  # and stopped in between: the lines are the same
        train(config)
        weights.append(load_network(config.out).model.state_dict())
        lines.append(read_metrics(tmp_path / out / "train/metrics.jsonl"))
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name
    apart = (*TIMING_KEYS, "held_out_loss", "held_out_gap", "held_out_error")
    kept = [[{k: v for k, v in line.items() if k not in apart} for line in run] for run in lines]
    assert kept[0] == kept[1]
    assert all("held_out_loss" in line for line in lines[0])


KINDS = {
    "patches": {"patch_p": 0.5, "patch_levels": 2},
    "variance": {"learn_sigma": True},
    "some times": {"timesteps": (0.2, 0.6)},
    "masks": {"model": "maskdit-tiny/2", "model_options": MASKED, "dropout": None, "mask_ratio": 0.5},
    "side masks": {"model": "mdt-tiny/2", "model_options": SIDE, "dropout": None, "mask_ratio": 0.5},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_training_is_measured_on_whole_images(kind, make_config, make_data, tmp_path):
    """With lr 0, against the formula: eps of the network's first weights for whole images with all of their tokens."""
    data = make_data(count=30)
    config = make_config(holdout=0.2, holdout_every_images=24, lr=0.0, images=64, **KINDS[kind])
    train(config, data)
    line = [line for line in read_metrics(tmp_path / "run/train/metrics.jsonl") if "held_out_loss" in line][-1]
    _, holdout = make_holdout(config, data, Coreset.full(data))
    model = load_network(tmp_path / "run", ema=False).model
    low, high = config.timesteps or (0.0, 1.0)
    kept = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    clean = torch.from_numpy(data.images(holdout.items)).permute(0, 3, 1, 2).double() / 127.5 - 1
    labels = torch.from_numpy(np.asarray(data.labels)[holdout.items])
    grid = torch.linspace(-1, 1, 8).expand(len(clean), 8, 8)
    found = []
    for k in range(4):
        t = int((low + (high - low) * (k + 0.5) / 4) * 1000)
        noise = randn_philox(clean.shape, 0, torch.arange(len(clean)), 512 + k)
        x = (kept[t] ** 0.5 * clean + (1 - kept[t]) ** 0.5 * noise).float()
        if "patch_p" in KINDS[kind]:
            x = torch.cat((x, grid[:, None], grid.mT[:, None]), dim=1)
        answer = model(x, torch.full((len(x),), float(t)), labels)[:, :3]
        found.append((answer - noise).double().square().mean())
    assert line["held_out_loss"] == pytest.approx(float(sum(found)) / 4, rel=1e-4)


def test_a_run_that_overfits_says_so(make_config, make_data, tmp_path):
    generator = np.random.Generator(np.random.Philox(key=1))
    coarse = generator.integers(0, 256, (40, 2, 2, 3), dtype=np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    data = from_arrays(coarse)
    config = make_config(
        images=16 * 150,
        batch_size=16,
        lr=4e-3,
        dropout=0.0,
        flip=False,
        process="flow",
        holdout=0.8,
        holdout_every_images=16 * 50,
        status_every_images=16 * 25,
        model_options={"width": 16, "channel_multipliers": [1, 2], "blocks": 1, "attention_levels": []},
    )
    with pytest.warns(UserWarning, match="overfitting is suspected"):
        train(config, data)
    summary = read_json(tmp_path / "run/train/summary.json")
    assert "the loss on held-out images is" in summary["held_out"]["overfitting"]


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"holdout": 0.01}, "at least 2 are needed"),
        ({"holdout": 0.99}, "at least 2 are needed"),
        ({"holdout_every_images": 10}, "means nothing without holdout"),
        ({"holdout": "nowhere.npz"}, "nowhere"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(make_config, data, tmp_path, values, match):
    with pytest.raises(InputError, match=match):
        train(make_config(**values), data)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [0, 1.5, -0.1, True, ""])
def test_shares_are_checked(make_config, value):
    with pytest.raises((InputError, TypeError), match="holdout"):
        make_config(holdout=value)
