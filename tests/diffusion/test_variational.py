"""The hybrid loss against the formulas in float64, with scipy's normal distribution and betas by loops."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from prunefast.diffusion import DDPM, Denoiser, DenoisingLoss, HybridLoss, sample_images
from prunefast.diffusion.groups import GroupedDenoiser, TimestepGroups
from prunefast.diffusion.samplers import ddpm
from prunefast.diffusion.variational import learned_log_variance
from prunefast.errors import InputError
from prunefast.ops import randn_philox


def cosine_betas(steps):
    def abar(t):
        return math.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.array([min(1 - abar(t + 1) / abar(t), 0.999) for t in range(steps)])


def reference_bound(betas, prediction, pred, x0, noise, t):
    """Bits a dimension of one image, every quantity by its definition."""
    abar = np.cumprod(1 - betas)
    before = np.append(1.0, abar[:-1])
    beta_tilde = betas * (1 - before) / (1 - abar)
    beta_tilde[0] = beta_tilde[1]
    channels = len(x0)
    x_t = np.sqrt(abar[t]) * x0 + np.sqrt(1 - abar[t]) * noise
    output, share = pred[:channels], (pred[channels:] + 1) / 2
    if prediction == "eps":
        estimate = (x_t - np.sqrt(1 - abar[t]) * output) / np.sqrt(abar[t])
    elif prediction == "v":
        estimate = np.sqrt(abar[t]) * x_t - np.sqrt(1 - abar[t]) * output
    else:
        estimate = output
    of_x0 = betas[t] * np.sqrt(before[t]) / (1 - abar[t])
    of_x_t = (1 - before[t]) * np.sqrt(1 - betas[t]) / (1 - abar[t])
    mean, true_mean = of_x0 * estimate + of_x_t * x_t, of_x0 * x0 + of_x_t * x_t
    variance = np.exp(share * np.log(betas[t]) + (1 - share) * np.log(beta_tilde[t]))
    if t > 0:
        nats = 0.5 * (np.log(variance / beta_tilde[t]) - 1 + (beta_tilde[t] + (mean - true_mean) ** 2) / variance)
    else:
        std = np.sqrt(variance)
        upper = np.where(x0 > 0.999, np.inf, (x0 + 1 / 255 - mean) / std)
        lower = np.where(x0 < -0.999, -np.inf, (x0 - 1 / 255 - mean) / std)
        nats = -np.log(norm.cdf(upper) - norm.cdf(lower))
    return nats.mean() / np.log(2)


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_bound_agrees_with_its_definition(schedule, prediction):
    steps = 50
    process = DDPM(schedule=schedule, steps=steps)
    betas = np.linspace(1e-4, 0.02, steps) if schedule == "linear" else cosine_betas(steps)
    loss = HybridLoss(process, prediction)
    generator = np.random.default_rng(0)
    t = torch.tensor([0, 0, 1, 7, 30, 48, 49])
    images = generator.integers(0, 256, (7, 3, 4, 4), dtype=np.uint8)
    images[0, 0], images[0, 1] = 0, 255  # the open bins
    x0 = images / 127.5 - 1
    noise = generator.standard_normal(x0.shape)
    alpha, sigma = (v.numpy()[:, None, None, None] for v in process.alpha_sigma(t, torch.float64))
    target = {"eps": noise, "x0": x0, "v": alpha * noise - sigma * x0}[prediction]
    near = target + 0.003 * generator.standard_normal(x0.shape)
    pred = np.concatenate((near, generator.uniform(-1, 1, x0.shape)), axis=1)
    expected = [reference_bound(betas, prediction, *rest) for rest in zip(pred, x0, noise, t.tolist(), strict=True)]
    found = loss.bound(torch.tensor(pred), torch.from_numpy(images), torch.tensor(noise), t)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
    single = loss.bound(torch.tensor(pred).float(), torch.from_numpy(images), torch.tensor(noise).float(), t)
    np.testing.assert_allclose(single.numpy(), expected, rtol=2e-3, atol=1e-8)

    weight = torch.linspace(0.5, 2.0, 7, dtype=torch.float64)
    whole = loss(torch.tensor(pred), torch.from_numpy(images), torch.tensor(noise), t, None, weight.float())
    simple = ((near - target) ** 2).mean((1, 2, 3))
    assert whole.item() == pytest.approx(
        (weight.numpy() * (simple + 0.001 * steps * np.array(expected))).mean(), rel=1e-5
    )
    assert loss.per_sample(torch.tensor(pred), torch.from_numpy(images), torch.tensor(noise), t).numpy() == (
        pytest.approx(simple, rel=1e-5)
    )


def test_the_mean_gets_the_gradient_of_the_simple_loss_alone():
    loss, simple = HybridLoss("ddpm-linear"), DenoisingLoss("ddpm-linear")
    torch.manual_seed(0)
    x0, noise = torch.rand(4, 3, 4, 4) * 2 - 1, torch.randn(4, 3, 4, 4)
    t = torch.tensor([0, 3, 500, 999])
    pred = torch.randn(4, 6, 4, 4, requires_grad=True)
    loss(pred, x0, noise, t).backward()
    mean = pred.detach()[:, :3].contiguous().requires_grad_()
    simple(mean, x0, noise, t).backward()
    torch.testing.assert_close(pred.grad[:, :3], mean.grad)
    share = pred.grad[:, 3:]
    assert torch.isfinite(share).all()
    assert (share.flatten(1).abs().sum(1) > 0).all()


def test_variances_between_the_two_limits():
    small, large = torch.tensor(-8.0), torch.tensor(-4.0)
    assert learned_log_variance(torch.tensor([-1.0, 0.0, 1.0]), small, large).tolist() == [-8.0, -6.0, -4.0]


def test_crops_flips_and_regenerated_noise_are_the_materialised_ones():
    loss = HybridLoss("ddpm-cosine")
    torch.manual_seed(0)
    images, position = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8), torch.arange(3) + 5
    corner, flip = torch.tensor([[0, 4], [2, 1], [4, 4]]), torch.tensor([True, False, True])
    cut = torch.stack(
        [
            (image.flip(-1) if mirror else image)[:, top : top + 4, left : left + 4]
            for image, mirror, (top, left) in zip(images, flip, corner.tolist(), strict=True)
        ]
    )
    pred, t = torch.randn(3, 6, 4, 4), torch.tensor([0, 20, 900])
    fused = loss(pred, images, (7, position), t, flip=flip, boxes=(corner, 4, 4))
    noise = randn_philox((3, 3, 4, 4), 7, position)
    assert fused.item() == pytest.approx(loss(pred, cut, noise, t).item(), rel=1e-5)


class Perfect(torch.nn.Module):
    """Predicts the noise towards a known x0 and a given share."""

    def __init__(self, x0, share):
        super().__init__()
        self.x0, self.share, self.process = x0, share, DDPM(steps=40)
        self.anchor = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, time, labels=None):
        alpha, sigma = self.process.alpha_sigma(time.long(), torch.float64)
        eps = (x.double() - alpha[:, None, None, None] * self.x0) / sigma[:, None, None, None]
        return torch.cat((eps, torch.full_like(eps, self.share)), dim=1).float()


@pytest.mark.parametrize(("share", "fixed"), [(-1.0, "fixedsmall"), (1.0, "fixedlarge")])
def test_sampler_at_the_limits_is_the_fixed_one(share, fixed):
    model = Perfect(0.3, share)
    denoiser = Denoiser(model, model.process)
    options = {"image_size": 4, "sampler": "ddpm", "steps": 10}
    learned = sample_images(denoiser, 3, variance="learned", **options)
    torch.testing.assert_close(learned, sample_images(denoiser, 3, variance=fixed, **options), atol=1e-5, rtol=1e-5)


def test_variance_of_a_step_is_the_interpolated_one():
    """From t = 39 to 19 of 40: beta' = 1 - abar_t / abar_s, beta~' = beta' (1 - abar_s) / (1 - abar_t)."""
    process, share = DDPM(steps=40), 0.25
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 40))
    beta = 1 - abar[39] / abar[19]
    small = beta * (1 - abar[19]) / (1 - abar[39])
    expected = np.exp(0.625 * np.log(beta) + 0.375 * np.log(small))
    drawn = torch.randn(1, 1, 64, 64, dtype=torch.float64)
    start = torch.zeros(1, 1, 64, 64, dtype=torch.float64)
    told = (torch.zeros_like(start), torch.full_like(start, share))
    seen = []

    def denoise(x, t):
        seen.append(x)
        return told

    ddpm(denoise, process, start, torch.tensor([39, 19]), noise=lambda _: drawn, variance="learned")
    torch.testing.assert_close(seen[1], drawn * math.sqrt(expected))


def test_guidance_takes_the_conditional_share():
    class Labelled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.anchor = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x, time, labels):
            value = labels.float()[:, None, None, None]
            return torch.cat((x * 0 + value, x * 0 + 10 * value), dim=1)

    denoiser = Denoiser(Labelled(), "ddpm-linear", "x0", guidance=3.0, null_label=2)
    x0, share = denoiser.with_share(torch.zeros(2, 1, 2, 2), 5, torch.tensor([0, 1]))
    assert x0[:, 0, 0, 0].tolist() == [2 + 3 * (0 - 2), 2 + 3 * (1 - 2)]
    assert share[:, 0, 0, 0].tolist() == [0.0, 10.0]


def test_what_cannot_be():
    with pytest.raises(InputError, match="a learned variance needs a process of steps"):
        HybridLoss("flow")
    with pytest.raises(InputError, match="bound_weight must be finite"):
        HybridLoss("ddpm-linear", bound_weight=-1.0)
    loss = HybridLoss("ddpm-linear")
    with pytest.raises(InputError, match="pred must have 6 channels for a learned variance"):
        loss(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2), torch.tensor([1]))


def test_timestep_groups_of_one_network_are_that_network():
    model = Perfect(0.3, 0.4)
    one = Denoiser(model, model.process)
    groups = GroupedDenoiser(TimestepGroups(model.process, (0.0, 0.3, 1.0)), [one, one])
    options = {"image_size": 4, "sampler": "ddpm", "steps": 10, "variance": "learned"}
    assert torch.equal(sample_images(groups, 2, **options), sample_images(one, 2, **options))
