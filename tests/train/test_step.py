"""The step against the formulas in float64, written out without the library's processes, losses and operators."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from prunefast.diffusion import DenoisingLoss
from prunefast.errors import InputError
from prunefast.ops import randn_philox, uniform_philox
from prunefast.ops.philox import Stream
from prunefast.stream import Batch
from prunefast.train.step import (
    TrainingStep,
    derived_seed,
    forked_generators,
    pick_device,
    pick_precision,
    pick_weighting,
    seed_generators,
)

CLASSES = 4


class Probe(nn.Module):
    """prediction = gain * x + 0.001 * time + 0.1 * label; keeps what it was given."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.7))

    def forward(self, x, time, labels=None):
        self.seen = (x.detach().clone(), time.clone(), None if labels is None else labels.clone())
        shift = 0.001 * time + (0 if labels is None else 0.1 * labels)
        return self.gain * x + shift[:, None, None, None]


def make_batch(positions, seed: int = 5) -> Batch:
    positions = np.asarray(positions)
    generator = [np.random.Generator(np.random.Philox(key=[seed, p])) for p in positions]
    images = np.stack([g.integers(0, 256, (6, 6, 3), dtype=np.uint8) for g in generator])
    return Batch(
        images=torch.from_numpy(images).permute(0, 3, 1, 2),
        labels=torch.from_numpy(positions % CLASSES),
        index=torch.from_numpy(positions % 100),
        position=torch.from_numpy(positions),
        weight=torch.from_numpy((0.5 + positions % 3).astype(np.float32)),
    )


def make_step(loss: DenoisingLoss | None = None, **values) -> TrainingStep:
    options = {"seed": 9, "num_classes": CLASSES, "label_drop": 0.3, "flip": True, "precision": "fp32"}
    return TrainingStep(Probe(), loss or DenoisingLoss("ddpm-linear"), **{**options, **values})


def numbers(function, stream, positions, *shape):
    return function((len(positions), *shape), 9, torch.as_tensor(positions), stream, dtype=torch.float64).numpy()


@pytest.mark.parametrize("process", ["ddpm-linear", "flow"])
def test_agrees_with_the_formulas_in_float64(process):
    positions = np.arange(1000, 1064)
    batch = make_batch(positions)
    frequencies, class_weights = np.full(CLASSES, 0.25), np.array([0.1, 0.2, 0.3, 0.4])
    step = make_step(DenoisingLoss(process, class_weights=class_weights, class_frequencies=frequencies))
    loss = step(batch)

    u = numbers(uniform_philox, Stream.TIME, positions)
    if process == "flow":
        alpha, sigma, time = 1 - u, u, 1000 * u
    else:
        alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
        t = np.floor(u * 1000).astype(int)
        alpha, sigma, time = np.sqrt(alpha_bar[t]), np.sqrt(1 - alpha_bar[t]), t
    x0 = batch.images.numpy().astype(np.float64) / 127.5 - 1
    flipped = numbers(uniform_philox, Stream.FLIP, positions) < 0.5
    assert 10 < flipped.sum() < 54
    x0 = np.where(flipped[:, None, None, None], x0[..., ::-1], x0)
    noise = numbers(randn_philox, Stream.NOISE, positions, 3, 6, 6)
    spread = (slice(None), None, None, None)
    x = alpha[spread] * x0 + sigma[spread] * noise
    dropped = numbers(uniform_philox, Stream.LABEL_DROP, positions) < 0.3
    assert 5 < dropped.sum() < 40
    labels = np.where(dropped, CLASSES, positions % CLASSES)
    prediction = 0.7 * x + (0.001 * time + 0.1 * labels)[spread]
    target = noise if process == "ddpm-linear" else noise - x0
    weight = (0.5 + positions % 3) * class_weights[positions % CLASSES] * CLASSES
    expected = (weight * ((prediction - target) ** 2).mean((1, 2, 3))).mean()

    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(step.network.seen[0].numpy(), x, atol=1e-4)
    np.testing.assert_array_equal(step.network.seen[2].numpy(), labels)
    loss.backward()
    gradient = (weight * (2 * (prediction - target) * x).mean((1, 2, 3))).mean()
    assert step.network.gain.grad.item() == pytest.approx(gradient, rel=1e-3)


def test_an_image_does_not_depend_on_its_batch():
    step = make_step()
    positions = np.arange(50, 66)
    whole = step(make_batch(positions))
    x, time, labels = step.network.seen
    shards = [positions[rank::4] for rank in range(4)]
    losses = []
    for shard in shards:
        losses.append(step(make_batch(shard)))
        for all_of_them, mine in zip((x, time, labels), step.network.seen, strict=True):
            assert torch.equal(all_of_them[shard - 50], mine)
    assert torch.stack(losses).mean().item() == pytest.approx(whole.item(), rel=1e-6)


def test_options_that_are_off():
    positions = np.arange(32)
    batch = make_batch(positions)
    step = make_step(num_classes=None, flip=False)
    step(batch)
    assert step.network.seen[2] is None
    plain = step.network.seen[0]
    with_flip = make_step(num_classes=None)
    with_flip(batch)
    flipped = torch.from_numpy(numbers(uniform_philox, Stream.FLIP, positions) < 0.5)
    same = (plain == with_flip.network.seen[0]).flatten(1).all(1)
    assert torch.equal(same, ~flipped)
    no_drop = make_step(label_drop=0.0)
    no_drop(batch)
    assert torch.equal(no_drop.network.seen[2], batch.labels)


def test_labels_are_dropped_as_often_as_asked():
    step = make_step(label_drop=0.1)
    count = 4_000
    step(make_batch(np.arange(count)))
    share = (step.network.seen[2] == CLASSES).float().mean().item()
    assert abs(share - 0.1) < 4 * math.sqrt(0.1 * 0.9 / count)


def test_bf16_runs_the_network_in_bf16_and_the_loss_in_float32():
    class Network(Probe):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x, time, labels=None):
            self.dtype = self.conv(x).dtype
            return self.conv(super().forward(x, time, labels))

    batch = make_batch(np.arange(16))
    losses = {}
    for precision in ("fp32", "bf16"):
        step = make_step(precision=precision)
        step.network = Network()
        with torch.no_grad():
            step.network.conv.weight.copy_(torch.eye(3)[:, :, None, None])
            step.network.conv.bias.zero_()
        losses[precision] = step(batch)
        assert step.network.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
        assert losses[precision].dtype == torch.float32
        losses[precision].backward()
        assert step.network.conv.weight.grad.dtype == torch.float32
    assert losses["bf16"].item() == pytest.approx(losses["fp32"].item(), rel=0.02)
    assert losses["bf16"].item() != losses["fp32"].item()


def test_derived_seeds():
    seeds = {
        derived_seed(purpose, seed, position) for purpose in ("a", "b") for seed in range(20) for position in range(50)
    }
    assert len(seeds) == 2_000
    assert all(0 <= seed < 2**63 for seed in seeds)
    # the CPU's generator looks at the low 32 bits only
    assert len({seed % 2**32 for seed in seeds}) == 2_000


def test_generators_are_put_back():
    device = torch.device("cpu")
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with forked_generators(device):
        seed_generators(device, 1)
        inside = torch.rand(4)
        seed_generators(device, 1)
        assert torch.equal(torch.rand(4), inside)
    assert torch.equal(torch.rand(4), expected)


def test_devices(monkeypatch):
    assert pick_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(InputError, match="torch sees 0 GPUs"):
        pick_device("cuda")
    for name in ("gpu", "meta", "mps"):
        with pytest.raises(InputError, match=f"device.*{name}"):
            pick_device(name)


def test_precision(monkeypatch):
    cpu = torch.device("cpu")
    small, large = 650_000, 36_000_000
    assert pick_precision("fp32", cpu, large) == "fp32"
    assert pick_precision("bf16", cpu, small) == "bf16"
    for avx512, amx, expected in ((False, False, "fp32"), (True, False, "bf16"), (False, True, "bf16")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=avx512: has)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda has=amx: has)
        assert pick_precision("auto", cpu, large) == expected
        assert pick_precision("auto", cpu, small) == "fp32"


def test_weighting_gamma():
    assert pick_weighting("min_snr", None).gamma == 5.0
    assert pick_weighting("min_snr", 2.0).gamma == 2.0
    assert pick_weighting("p2", 0.5).gamma == 0.5
    with pytest.raises(InputError, match="weighting 'uniform' has no gamma"):
        pick_weighting("uniform", 1.0)
    with pytest.raises(InputError, match="nonsense"):
        pick_weighting("nonsense", None)
