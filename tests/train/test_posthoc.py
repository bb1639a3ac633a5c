"""Power-function averages against a brute-force average, in float64, over the whole trajectory of the weights."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from scipy import integrate, optimize
from torch import nn

import prunefast as pf
from prunefast.cli import main
from prunefast.errors import InputError
from prunefast.train import find_checkpoint
from prunefast.train.ema import WIDEST, Ema, PowerFunction, gamma_of
from prunefast.train.posthoc import Snapshots, inner_products, list_snapshots, solve_factors

KEPT = (0.05, 0.1)


def sigma_of(gamma: float) -> float:
    """Relative standard deviation of p(s) = (gamma + 1) s^gamma on [0, 1], from its moments."""
    mean, square = ((gamma + 1) / (gamma + 1 + k) for k in (1, 2))
    return math.sqrt(square - mean**2)


def brute_force(ends: np.ndarray, weights: np.ndarray, sigma_rel: float) -> np.ndarray:
    """float64: weights[k], which held from ends[k - 1] to ends[k], averaged with the integral of p over that time."""
    gamma = optimize.brentq(lambda g: sigma_of(g) - sigma_rel, -0.5, 1e4)
    p = np.diff((np.concatenate([[0.0], ends]) / ends[-1]) ** (gamma + 1))
    return np.tensordot(p, weights, 1)


@settings(max_examples=30, deadline=None)
@given(sigma_rel=st.floats(0.01, WIDEST - 1e-6))
def test_the_exponent_of_a_width(sigma_rel):
    assert sigma_of(gamma_of(sigma_rel)) == pytest.approx(sigma_rel, rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(t=st.tuples(*[st.floats(0.2, 3.0)] * 2), g=st.tuples(*[st.floats(0.1, 20.0)] * 2))
def test_inner_products_are_the_integral(t, g):
    def integrand(s):
        return math.prod((gi + 1) * s**gi / ti ** (gi + 1) for ti, gi in zip(t, g, strict=True))

    expected = integrate.quad(integrand, 0, min(t))[0]
    assert float(inner_products(t[0], g[0], t[1], g[1])) == pytest.approx(expected, rel=1e-6)


def walk(ema: Ema, model: nn.Module, steps: int, batch: int, take=None) -> tuple[np.ndarray, np.ndarray]:
    """Random steps of the weights with the averages behind them: (images at their ends, the weights, float64)."""
    generator = torch.Generator().manual_seed(3)
    ends, weights = [], []
    for step in range(steps):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        ema.update(step * batch, batch)
        if take is not None:
            take((step + 1) * batch)
        ends.append((step + 1) * batch)
        weights.append(nn.utils.parameters_to_vector(model.parameters()).detach().double().numpy())
    return np.array(ends, float), np.stack(weights)


def of(ema: Ema, name: str) -> np.ndarray:
    parts = [t.flatten() for key, t in ema.more_tensors().items() if key.startswith(f"{name}/")]
    return torch.cat(parts).double().numpy()


def test_power_function_averages_are_the_brute_force_ones():
    """With at most 90 steps every one is an update: 2 % of 0.05 x 90 steps is less than a step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 2))
    ema = Ema(model, 1000.0, sigma_rel=KEPT)
    ends, weights = walk(ema, model, 90, 32)
    for sigma_rel in KEPT:
        np.testing.assert_allclose(
            of(ema, PowerFunction(sigma_rel).name), brute_force(ends, weights, sigma_rel), atol=2e-6
        )


def test_several_half_lives_at_once_are_those_alone():
    def run(lives):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        ema = Ema(model, lives, ramp_up=10.0)
        walk(ema, model, 40, 10)
        return ema

    together = run((100.0, 30.0))
    first, second = run(100.0).tensors(), run(30.0).tensors()
    for name, tensor in together.tensors().items():
        assert torch.equal(tensor, first[name])
        assert torch.equal(together.more_tensors()[f"half-life-30/{name}"], second[name])


def test_wide_averages_are_updated_less_often_and_stay_what_they_are():
    """2 % of a width lags by half of that at most: the averages of a random walk differ by less than 1 % of what the
    weights moved within the width."""
    torch.manual_seed(0)
    model = nn.Linear(20, 20)
    ema = Ema(model, 50_000.0, ramp_up=1.0, sigma_rel=(0.2,))
    updates = []
    original = torch._foreach_lerp_
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "_foreach_lerp_", lambda *a: (updates.append(1), original(*a)))
        ends, weights = walk(ema, model, 4_000, 10)
    assert 200 < len(updates) < 1_500  # 0.02 x 0.2 x images: every step up to 2,500 images, every 16th at the end
    expected = brute_force(ends, weights, 0.2)
    moved = np.sqrt(np.mean((weights[-1] - weights[-800]) ** 2))
    error = np.sqrt(np.mean((of(ema, "sigma-rel-0.2") - expected) ** 2))
    assert 0 < error < 0.01 * moved


def test_pending_images_travel_with_the_state():
    torch.manual_seed(0)
    model = nn.Linear(3, 3)
    ema = Ema(model, 10_000.0, ramp_up=1.0)
    walk(ema, model, 1_003, 10)
    assert 0 < ema.pending < 200
    other = Ema(model, 10_000.0, ramp_up=1.0)
    other.load(ema.tensors(), ema.more_tensors(), json.loads(json.dumps(ema.state())))
    for step in range(1_003, 1_040):
        with torch.no_grad():
            model.weight.add_(0.01)
        assert ema.update(step * 10, 10) == other.update(step * 10, 10)
    assert torch.equal(ema.tensors()["weight"], other.tensors()["weight"])


@pytest.mark.parametrize(
    ("sigma_rel", "profile", "weights_error"),
    [(0.06, 0.01, 0.01), (0.08, 0.01, 0.01), (0.12, 0.01, 0.01), (0.15, 0.02, 0.02), (0.2, 0.03, 0.04)],
)
def test_any_width_after_the_fact(tmp_path, sigma_rel, profile, weights_error):
    """Put together from snapshots of 0.05 and 0.10, against the average over every step. The error is measured in what
    the weights moved within the average's width: what another width would change."""
    torch.manual_seed(0)
    model = nn.Linear(30, 10)
    ema = Ema(model, 1e6, sigma_rel=KEPT)
    snapshots = Snapshots(tmp_path, ema, keep=100)
    ends, weights = walk(ema, model, 1_500, 64, snapshots.take)
    files = list_snapshots(tmp_path / "averages", int(ends[-1]))
    assert 30 < len(files) < 60
    images = [float(file.stem) for file in files for _ in KEPT] + [ends[-1]] * 2
    factors, error = solve_factors(images, KEPT * (len(files) + 1), sigma_rel, ends[-1])
    assert error < profile
    assert factors.sum() == pytest.approx(1.0, abs=1e-9)
    tensors = [load_file(file) for file in files] + [ema.more_tensors()]
    stored = [
        torch.cat([t[f"sigma-rel-{s:g}/{name}"].flatten() for name in ("weight", "bias")])
        for t in tensors
        for s in KEPT
    ]
    found = sum(x * tensor.double().numpy() for x, tensor in zip(factors, stored, strict=True))
    expected = brute_force(ends, weights, sigma_rel)
    moved = np.sqrt(np.mean((weights[-1] - weights[-int(sigma_rel * 1_500)]) ** 2))
    assert np.sqrt(np.mean((found - expected) ** 2)) < weights_error * moved
    # and it is another average than those that were kept
    assert np.sqrt(np.mean((of(ema, "sigma-rel-0.1") - expected) ** 2)) > 4 * weights_error * moved


def test_a_kept_width_is_found_exactly():
    factors, error = solve_factors([1, 1, 2, 2], [0.05, 0.1, 0.05, 0.1], 0.1, 2)
    np.testing.assert_allclose(factors, [0, 0, 0, 1], atol=1e-9)
    assert error < 1e-6


# --- a run ---


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Every step has a checkpoint, so the whole trajectory lies on the disk."""
    images = np.random.Generator(np.random.Philox(key=0)).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    config = pf.TrainConfig(
        out=str(tmp_path_factory.mktemp("trained")),
        images=8 * 60,
        batch_size=8,
        model="unet-tiny",
        model_options={"width": 4, "channel_multipliers": [1], "blocks": 1, "attention_levels": []},
        lr=1e-3,
        warmup_images=0,
        ema_sigma_rel=KEPT,
        ema_half_life_images=(200.0, 50.0),
        ema_snapshots=100,
        checkpoint_every_images=8,
        keep_checkpoints=1000,
        device="cpu",
        precision="fp32",
    )
    pf.train(config, pf.data.from_arrays(images))
    return config


def test_a_run_and_every_average_of_it(trained, tmp_path):
    paths = sorted((Path(trained.out) / "train").glob("checkpoint-*"))
    assert len(paths) == 60
    ends = np.array([int(path.name[-9:]) for path in paths], float)
    trajectory = [load_file(path / "model.safetensors") for path in paths]
    chosen = {
        "0.05": pf.choose_ema(trained.out, tmp_path / "a", sigma_rel=0.05),
        "0.08": pf.choose_ema(trained.out, tmp_path / "b", sigma_rel=0.08),
    }
    assert chosen["0.05"].snapshots == 1
    assert chosen["0.05"].profile_error == 0
    assert chosen["0.08"].snapshots > 20
    assert chosen["0.08"].profile_error < 0.02
    for width, result in chosen.items():
        averages = load_file(result.checkpoint / "ema.safetensors")
        for name, tensor in averages.items():
            steps = np.stack([weights[name].double().numpy() for weights in trajectory])
            expected = brute_force(ends, steps, float(width))
            spread = np.abs(steps[-5:] - steps[-1]).max()
            assert tensor.dtype == torch.float32
            np.testing.assert_allclose(tensor.numpy(), expected, atol=2e-6 if width == "0.05" else 0.05 * spread + 1e-7)
    # it samples, other than the run itself, and is not made twice
    images = pf.sample(tmp_path / "b", 2, steps=2)
    assert (images != pf.sample(trained.out, 2, steps=2)).any()
    assert pf.choose_ema(trained.out, tmp_path / "b", sigma_rel=0.08).repeated
    with pytest.raises(InputError, match="holds another model"):
        pf.choose_ema(trained.out, tmp_path / "b", sigma_rel=0.1)
    half = pf.choose_ema(trained.out, tmp_path / "c", half_life=50)
    path = find_checkpoint(trained.out)[0]
    kept = load_file(path / "averages.safetensors")
    for name, tensor in load_file(half.checkpoint / "ema.safetensors").items():
        assert torch.equal(tensor, kept[f"half-life-50/{name}"])
    with pytest.raises(InputError, match="half-life-200, half-life-50, sigma-rel-0"):
        pf.choose_ema(trained.out, tmp_path / "d", half_life=70)
    with pytest.warns(UserWarning, match="profile is put together"):
        pf.choose_ema(trained.out, tmp_path / "e", sigma_rel=0.01)


def test_a_stopped_run_has_the_averages_and_snapshots_of_one_that_was_not(make_config, data, tmp_path):
    values = {"ema_sigma_rel": KEPT, "ema_half_life_images": (400.0, 20.0), "ema_ramp_up": 5.0}
    whole = make_config(images=320, out=str(tmp_path / "whole"), **values)
    parts = make_config(images=152, out=str(tmp_path / "parts"), **values)
    pf.train(whole, data)
    pf.train(parts, data)
    (tmp_path / "parts/train/averages/000000160.safetensors").write_bytes(b"from a lost future")
    pf.train(parts.replace(images=320), data)
    first, second = ({p.relative_to(tmp_path / run): p for p in sorted((tmp_path / run).rglob("*.safetensors"))
                      if "000000152" not in str(p)} for run in ("whole", "parts"))  # fmt: skip
    assert first.keys() == second.keys()
    assert sum("averages/" in str(name) for name in first) > 10
    for name, path in first.items():
        assert path.read_bytes() == second[name].read_bytes(), name


def test_old_snapshots_go(make_config, data):
    config = make_config(images=320, ema_sigma_rel=KEPT, ema_snapshots=3)
    pf.train(config, data)
    found = list_snapshots(Path(config.out) / "train" / "averages", 10**9)
    assert len(found) == 3
    assert int(found[0].stem) > 200


def test_runs_without_them_say_so(make_config, data, tmp_path):
    config = make_config(images=16)
    pf.train(config, data)
    assert not (Path(config.out) / "train" / "averages").exists()
    with pytest.raises(InputError, match="train with ema_sigma_rel"):
        pf.choose_ema(config.out, tmp_path / "x", sigma_rel=0.1)
    for wrong in (0.0, -1.0, 0.4, math.nan):
        with pytest.raises(InputError, match="sigma_rel is"):
            pf.choose_ema(config.out, tmp_path / "x", sigma_rel=wrong)
    with pytest.raises(InputError, match="give one of them"):
        pf.choose_ema(config.out, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_the_command(trained, tmp_path, capsys):
    command = ["ema", trained.out, "--sigma-rel", "0.12", "-o", str(tmp_path / "x"), "--json"]
    assert main(command) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts["average"] == "sigma-rel-0.12"
    assert facts["profile_error"] < 0.03
    snapshot = max((Path(trained.out) / "train" / "averages").glob("*.safetensors"))
    whole = snapshot.read_bytes()
    snapshot.write_bytes(b"rubbish")
    assert main([*command[:-2], str(tmp_path / "y"), "--json"]) == 2
    snapshot.write_bytes(whole)
    assert "a snapshot cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "y").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [("ema_sigma_rel", (0.05, 0.05)), ("ema_sigma_rel", 0.05), ("ema_sigma_rel", (0.3,)), ("ema_half_life_images", ()),
     ("ema_half_life_images", (100, -1)), ("ema_snapshots", -1)],
)  # fmt: skip
def test_options_are_checked(make_config, key, value):
    with pytest.raises((InputError, TypeError), match=key):
        make_config(**{key: value})
