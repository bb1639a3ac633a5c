import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from prunefast.errors import InputError, MissingDependencyError
from prunefast.train import TrainConfig
from prunefast.train.optim import Updater, learning_rate


def make_model(seed: int = 0) -> nn.Module:
    """A filter of 3 x 3, one of 1 x 1 (both in channels_last), a matrix, vectors and a number."""
    torch_generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 1), nn.Flatten(), nn.Linear(4, 2))
    model.gain = nn.Parameter(torch.zeros(()))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch_generator))
    return model.to(memory_format=torch.channels_last)


def loss_of(model: nn.Module, seed: int, scale: float = 1.0) -> torch.Tensor:
    x = torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(100 + seed))
    return scale * (model(x.to(memory_format=torch.channels_last)).square().mean() + (model.gain - 1) ** 2)


def make_config(**values) -> TrainConfig:
    defaults = {"out": "run", "images": 1, "batch_size": 10, "lr": 0.01, "warmup_images": 40, "betas": (0.8, 0.95)}
    return TrainConfig(**{**defaults, **values})


def adamw_in_float64(model, config, steps, scale):
    """Loshchilov & Hutter 2019, algorithm 2, with clipping by the global norm, written out."""
    weights = {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}
    first = {name: np.zeros_like(w) for name, w in weights.items()}
    second = {name: np.zeros_like(w) for name, w in weights.items()}
    twin = make_model().double()
    for step in range(steps):
        with torch.no_grad():
            for name, p in twin.named_parameters():
                p.copy_(torch.as_tensor(weights[name]))
        twin.zero_grad()
        x = torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(100 + step)).double()
        (scale * (twin(x).square().mean() + (twin.gain - 1) ** 2)).backward()
        grads = {name: p.grad.numpy() for name, p in twin.named_parameters()}
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        lr = config.lr * min((step + 1) * config.batch_size / config.warmup_images, 1)
        for name, g in grads.items():
            if config.grad_clip:
                g = g * min(config.grad_clip / norm, 1)
            beta1, beta2 = config.betas
            first[name] = beta1 * first[name] + (1 - beta1) * g
            second[name] = beta2 * second[name] + (1 - beta2) * g**2
            decay = config.weight_decay if weights[name].ndim >= 2 else 0.0
            mean = first[name] / (1 - beta1 ** (step + 1))
            variance = second[name] / (1 - beta2 ** (step + 1))
            weights[name] = weights[name] * (1 - lr * decay) - lr * mean / (np.sqrt(variance) + 1e-8)
    return weights, norm


@pytest.mark.parametrize(("clip", "scale"), [(0.0, 1.0), (0.5, 30.0), (1e6, 1.0)])
def test_agrees_with_adamw_in_float64(clip, scale):
    config = make_config(grad_clip=clip, weight_decay=0.3)
    model = make_model()
    expected, expected_norm = adamw_in_float64(model, config, 8, scale)
    updater = Updater(model, config)
    for step in range(8):
        loss = loss_of(model, step, scale)
        loss.backward()
        norm, bad = updater.step(loss, step * config.batch_size)
        assert bad == 0
    assert norm.item() == pytest.approx(expected_norm, rel=1e-4)
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.detach().numpy(), expected[name], rtol=1e-4, atol=2e-5, err_msg=name)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_warm_up():
    config = make_config(lr=1.0, warmup_images=40)
    assert [learning_rate(config, images) for images in (0, 10, 20, 30, 40, 10**9)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert learning_rate(make_config(lr=1.0, warmup_images=0), 0) == 1.0


@pytest.mark.parametrize("where", ["loss", "gradient", "infinite gradient"])
def test_a_step_that_is_not_finite_changes_nothing(where):
    config, model = make_config(), make_model()
    updater = Updater(model, config)
    for step in range(3):
        loss = loss_of(model, step)
        loss.backward()
        updater.step(loss, step * 10)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    moments = {name: t.clone() for name, t in updater.tensors().items()}
    loss = loss_of(model, 3)
    loss.backward()
    if where == "loss":
        loss = loss * torch.nan
    else:
        model[0].weight.grad[0, 0, 0, 0] = torch.nan if where == "gradient" else torch.inf
    _, bad = updater.step(loss, 30)
    assert bad == 1
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name]), name
    assert updater.tensors().keys() == moments.keys()
    for name, tensor in updater.tensors().items():
        assert torch.equal(tensor, moments[name]), name
    loss = loss_of(model, 4)
    loss.backward()
    assert updater.step(loss, 30)[1] == 0
    assert not torch.equal(model[0].weight, weights["0.weight"])


def continue_from(model, tensors, config):
    updater = Updater(model, config)
    updater.load(tensors)
    return updater


@pytest.mark.parametrize("optimizer", ["adamw", "apex"])
def test_state_goes_on_bit_for_bit(optimizer, monkeypatch):
    if optimizer == "apex":
        install_stand_in_for_apex(monkeypatch)
    config = make_config(optimizer=optimizer, weight_decay=0.1, grad_clip=0.1)

    def run(model, updater, begin, end):
        for step in range(begin, end):
            loss = loss_of(model, step)
            loss.backward()
            updater.step(loss, step * 10)

    straight = make_model()
    run(straight, Updater(straight, config), 0, 6)

    model = make_model()
    updater = Updater(model, config)
    run(model, updater, 0, 3)
    saved = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in updater.tensors().items()}
    assert saved
    again = make_model(seed=5)
    again.load_state_dict(model.state_dict())
    run(again, continue_from(again, saved, config), 3, 6)
    for (name, a), b in zip(straight.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_moments_lie_in_memory_as_their_parameters():
    config, model = make_config(), make_model()
    updater = Updater(model, config)
    loss = loss_of(model, 0)
    loss.backward()
    updater.step(loss, 0)
    saved = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in updater.tensors().items()}
    loaded = continue_from(model, saved, config).tensors()
    assert loaded["0.weight.exp_avg"].stride() == model[0].weight.stride() != saved["0.weight.exp_avg"].stride()
    assert torch.equal(loaded["0.weight.exp_avg"], saved["0.weight.exp_avg"])


def test_state_of_another_network_is_refused():
    config, model = make_config(), make_model()
    with pytest.raises(InputError, match=r"elsewhere\.weight\.exp_avg"):
        Updater(model, config).load({"elsewhere.weight.exp_avg": torch.zeros(3)})
    with pytest.raises(InputError, match=r"3\.weight\.exp_avg is \(7,\)"):
        Updater(model, config).load({"3.weight.exp_avg": torch.zeros(7)})


def install_stand_in_for_apex(monkeypatch):
    """An optimizer with apex's interface: the step count lies in the group, and there are no device scalars."""

    class FusedAdam(torch.optim.Optimizer):
        def __init__(self, params, lr, betas, adam_w_mode):
            assert adam_w_mode
            super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": 0.0})

        @torch.no_grad()
        def step(self):
            for group in self.param_groups:
                group["step"] = group.get("step", 0) + 1
                beta1, beta2 = group["betas"]
                for p in group["params"]:
                    state = self.state[p]
                    if not state:
                        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                    state["exp_avg"].lerp_(p.grad, 1 - beta1)
                    state["exp_avg_sq"].lerp_(p.grad.square(), 1 - beta2)
                    mean = state["exp_avg"] / (1 - beta1 ** group["step"])
                    root = (state["exp_avg_sq"] / (1 - beta2 ** group["step"])).sqrt()
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * mean / (root + 1e-8))

    package, module = types.ModuleType("apex"), types.ModuleType("apex.optimizers")
    module.FusedAdam = FusedAdam
    monkeypatch.setitem(sys.modules, "apex", package)
    monkeypatch.setitem(sys.modules, "apex.optimizers", module)


def test_apex_is_clipped_and_guarded_too(monkeypatch):
    install_stand_in_for_apex(monkeypatch)
    config = make_config(optimizer="apex", grad_clip=0.5, weight_decay=0.3)
    model = make_model()
    expected, _ = adamw_in_float64(model, config, 5, 30.0)
    updater = Updater(model, config)
    for step in range(5):
        loss = loss_of(model, step, 30.0)
        loss.backward()
        updater.step(loss, step * 10)
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.detach().numpy(), expected[name], rtol=1e-4, atol=2e-5, err_msg=name)
    before = model[0].weight.detach().clone()
    loss = loss_of(model, 9) * torch.nan
    loss.backward()
    assert updater.step(loss, 50)[1] == 1
    assert torch.equal(model[0].weight, before)
    assert model[0].weight.grad is None


def test_apex_that_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "apex", None)
    with pytest.raises(MissingDependencyError, match=r'NVIDIA.*optimizer="adamw"'):
        Updater(make_model(), make_config(optimizer="apex"))
