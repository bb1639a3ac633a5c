import numpy as np
import pytest
import torch
from torch import nn

from prunefast.errors import InputError
from prunefast.train.ema import Ema, named_weights


def make_model(seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).to(
        memory_format=torch.channels_last
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def test_agrees_with_the_formula_in_float64():
    model, batch, half_life, ramp_up = make_model(), 10, 300.0, 0.25
    ema = Ema(model, half_life, ramp_up)
    oracle = {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(1)
    for step in range(60):
        images = step * batch
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        ema.update(images, batch)
        effective = min(half_life, ramp_up * images)
        beta = 0.5 ** (batch / effective) if effective else 0.0
        for name, parameter in model.named_parameters():
            oracle[name] = beta * oracle[name] + (1 - beta) * parameter.detach().double().numpy()
    for name, value in oracle.items():
        assert ema.tensors()[name].dtype == torch.float32
        np.testing.assert_allclose(ema.tensors()[name].numpy(), value, rtol=1e-5, atol=1e-5)


def test_half_life_and_ramp_up():
    ema = Ema(make_model(), 1_000)
    assert ema.beta(10**9, 1_000) == 0.5
    assert ema.beta(10**9, 500) ** 2 == pytest.approx(0.5)
    assert ema.beta(2_000, 100) == 0.5  # 5 % of 2,000 images is one batch
    assert ema.beta(0, 100) == 0.0  # the first step: nothing of the random start stays
    assert Ema(make_model(), 0).beta(10**9, 1) == 0.0


def test_a_short_run_has_forgotten_its_start():
    model = make_model()
    ema = Ema(model, 500_000)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    for step in range(20):
        ema.update(step * 32, 32)
    for name, _ in model.named_parameters():
        torch.testing.assert_close(ema.tensors()[name], torch.ones_like(ema.tensors()[name]))


def test_buffers_are_followed_and_counters_copied():
    model = make_model()
    ema = Ema(model, 100)
    model(torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(0)))
    ema.update(10_000, 100)
    shadow = ema.tensors()
    assert shadow["1.num_batches_tracked"] == 1
    torch.testing.assert_close(shadow["1.running_mean"], model[1].running_mean / 2)


def test_names_are_those_of_the_uncompiled_module():
    model = make_model()
    compiled = torch.compile(model)
    assert any(name.startswith("_orig_mod") for name, _ in compiled.named_parameters())  # what this guards against
    assert list(named_weights(compiled)) == list(named_weights(model))
    assert "0.weight" in Ema(compiled, 1).tensors()


def test_the_average_follows_weights_trained_through_the_wrapper():
    model = make_model()
    compiled = torch.compile(model)
    ema = Ema(compiled, 0)
    with torch.no_grad():
        next(compiled.parameters()).fill_(7.0)
    ema.update(0, 1)
    assert (ema.tensors()["0.weight"] == 7.0).all()


def test_shared_weights_and_throwaway_buffers():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model.register_buffer("table", torch.zeros(5), persistent=False)
    assert list(named_weights(model)) == ["0.weight", "0.bias", "1.bias"]


def test_load_refuses_another_network():
    ema = Ema(make_model(), 1)
    tensors = {name: tensor.clone() for name, tensor in ema.tensors().items()}
    ema.load(tensors)
    with pytest.raises(InputError, match="another network"):
        ema.load({**tensors, "more": torch.zeros(1)})
    with pytest.raises(InputError, match=r"0\.weight"):
        ema.load({**tensors, "0.weight": torch.zeros(1)})
