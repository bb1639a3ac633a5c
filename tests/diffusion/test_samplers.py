"""Samplers on Gaussian data, where the best denoiser and the exact result are known, and against diffusers step by
step.

Data N(mu, s^2), independent pixels: E[x0 | x_t] = mu + alpha s^2 / (alpha^2 s^2 + sigma^2) (x_t - alpha mu). With
y = x_t / alpha and ratio r = sigma / alpha the ODE moves y along mu + (y_0 - mu) sqrt((s^2 + r^2) / (s^2 + r_0^2)).
"""

import itertools
import math

import pytest
import torch
from torch import nn

from prunefast.diffusion import (
    DDPM,
    PROCESSES,
    SAMPLERS,
    Denoiser,
    DenoisingLoss,
    ddim,
    ddpm,
    euler,
    heun,
    heun_times,
    make_process,
    sample_images,
    target_coefficients,
    to_x0,
)
from prunefast.errors import InputError, InputTypeError
from prunefast.models import build_model

MU, S = 0.2, 0.25
F64 = torch.float64


def gaussian_denoise(process, mu=MU, s=S):
    def denoise(x, t):
        time = torch.tensor([t]) if isinstance(t, int) else torch.tensor([t], dtype=F64)
        alpha, sigma = (v.item() for v in process.alpha_sigma(time, F64))
        return mu + alpha * s**2 / (alpha**2 * s**2 + sigma**2) * (x - alpha * mu)

    return denoise


class GaussianModel(nn.Module):
    """The best network for Gaussian data, with the interface of one: it sees c_in x_t and the network's time."""

    def __init__(self, process, prediction, mus=(MU,), s=S):
        super().__init__()
        self.process, self.prediction, self.s = make_process(process), prediction, s
        self.register_parameter("mus", nn.Parameter(torch.tensor([*mus, 0.0])))  # the last row: the null class
        self.config = {"num_classes": len(mus)}
        self.calls = []

    def forward(self, x, time, labels=None):
        self.calls.append((len(x), None if labels is None else labels.clone()))
        name = self.process.name
        t = time.double()
        if name == "flow":
            t = t / 1000
        elif name == "edm":
            t = torch.exp(4 * t)
        alpha, sigma = (v[:, None, None, None] for v in self.process.alpha_sigma(t, F64))
        x_t = x.double() / self.process.input_scale(t)[:, None, None, None]
        mu = self.mus[0] if labels is None else self.mus[labels][:, None, None, None]
        x0 = mu + alpha * self.s**2 / (alpha**2 * self.s**2 + sigma**2) * (x_t - alpha * mu)
        noise = (x_t - alpha * x0) / sigma
        a, b = target_coefficients(self.prediction, alpha, sigma)
        return (a * x0 + b * noise).float()


def exact_flow(process, x, first_time, mu=MU, s=S):
    """Where the ODE takes x from first_time to the clean image."""
    alpha, sigma = (v.item() for v in process.alpha_sigma(first_time, F64))
    return mu + (x - alpha * mu) * s / math.sqrt(alpha**2 * s**2 + sigma**2)


def errors_of(function, process, grids, **options):
    return [error.abs().max().item() for error in signed_errors_of(function, process, grids, **options)]


def signed_errors_of(function, process, grids, **options):
    x = torch.tensor([-2.0, -0.3, 0.0, 0.7, 1.9], dtype=F64)
    for times in grids:
        start = x * process.alpha_sigma(times[:1], F64)[1].item()
        end = function(gaussian_denoise(process), process, start, times, **options)
        yield end - exact_flow(process, start, times[:1])


@pytest.mark.parametrize("name", PROCESSES)
def test_heun_is_second_order(name):
    process = make_process(name)
    *coarse, fine = signed_errors_of(heun, process, [heun_times(process, n) for n in (20, 40, 80, 1280)])
    assert coarse[0].abs().max() < 0.06
    # what stays is the last step, from the least noise there is (0.029 in ddpm-scaled-linear) to none, by Euler
    least = process.alpha_sigma(heun_times(process, 20)[-2:-1], F64)[1].item()
    assert fine.abs().max() < 1e-4 + 4 * least**2
    errors = [(error - fine).abs().max().item() for error in coarse]
    assert all(3.2 < a / b < 6.5 for a, b in itertools.pairwise(errors)), errors


@pytest.mark.parametrize(("name", "function"), [("flow", euler), ("edm", euler), ("flow", ddim), ("ddpm-cosine", ddim)])
def test_euler_and_ddim_are_first_order(name, function):
    process = make_process(name)
    steps = (40, 80, 160) if name != "ddpm-cosine" else (125, 250, 500)
    options = {"clip": False} if function is ddim else {}
    errors = errors_of(function, process, [process.sampling_times(n) for n in steps], **options)
    assert errors[0] < 0.1
    assert all(1.7 < a / b < 2.4 for a, b in itertools.pairwise(errors)), errors


def test_flow_euler_is_the_velocity_rule():
    process = make_process("flow")
    denoise, x = gaussian_denoise(process), torch.tensor([0.5, -1.0], dtype=F64)
    by_hand = x.clone()
    times = [1.0, 0.75, 0.5, 0.25, 0.0]
    for t, s in itertools.pairwise(times):
        velocity = (by_hand - denoise(by_hand, t)) / t  # noise - x0, from x_t = (1 - t) x0 + t noise
        by_hand = by_hand + (s - t) * velocity
    torch.testing.assert_close(euler(denoise, process, x, process.sampling_times(4)), by_hand, rtol=1e-13, atol=1e-14)


def test_edm_euler_is_the_sigma_rule():
    process = make_process("edm")
    denoise, x = gaussian_denoise(process), torch.tensor([40.0, -90.0], dtype=F64)
    by_hand, sigmas = x.clone(), [*process.sampling_times(6).tolist(), 0.0]
    for sigma, following in itertools.pairwise(sigmas):
        by_hand = by_hand + (following - sigma) * (by_hand - denoise(by_hand, sigma)) / sigma
    torch.testing.assert_close(euler(denoise, process, x, process.sampling_times(6)), by_hand, rtol=1e-12, atol=1e-13)


def affine_response(function, process, times, mu, s, **options):
    """(constant, coefficients) of the affine map from (initial normal, fresh normals) to the result, exactly: row 0 of
    the state gets no noise, row 1 + k gets a 1 from draw k."""
    draws = len(times) + 1

    def noise(step):
        out = torch.zeros(draws + 1, dtype=F64)
        out[1 + step] = 1
        return out

    # a mean that the initial state does not carry would be the process's own error, not the sampler's
    alpha, sigma = (v.item() for v in process.alpha_sigma(times[:1], F64))
    spread = math.sqrt(alpha**2 * s**2 + sigma**2)
    x = alpha * mu + spread * noise(0)
    end = function(gaussian_denoise(process, mu, s), process, x, times, noise=noise, clip=False, **options)
    return end[0].item(), (end[1:] - end[0])


@pytest.mark.parametrize(
    ("function", "options"),
    [(ddim, {"eta": 0.0}), (ddim, {"eta": 0.5}), (ddim, {"eta": 1.0}), (ddpm, {}), (ddpm, {"variance": "fixedlarge"})],
)
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_ddpm_chains_reproduce_mean_and_std(function, options, schedule):
    """A chain of T steps ends at std s (1 + O(1 / T)): within 2 % for T = 1000 and nearer in proportion for finer
    chains."""
    errors = []
    for steps in (1000, 4000):
        process = DDPM(schedule, steps, beta_start=0.1 / steps, beta_end=20 / steps)
        mean, coefficients = affine_response(function, process, process.sampling_times(steps), MU, S, **options)
        assert mean == pytest.approx(MU, abs=1e-9)
        errors.append(abs(coefficients.norm().item() / S - 1))
    assert errors[0] < 0.02
    assert errors[1] < max(0.3 * errors[0], 1e-4)


@pytest.mark.parametrize("name", ["flow", "edm"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_on_any_process_reproduces_mean_and_std(name, eta):
    process = make_process(name)
    mean, coefficients = affine_response(ddim, process, process.sampling_times(1000), MU, S, eta=eta)
    assert mean == pytest.approx(MU, abs=1e-9)
    assert coefficients.square().sum().sqrt().item() == pytest.approx(S, rel=1e-2)


def test_fixedlarge_is_exact_for_unit_variance():
    """Ho et al. 2020, section 3.2: beta_t is optimal for N(0, I); the last mean is alpha_1 x_1, of std alpha_1."""
    process = make_process("ddpm-linear")
    mean, coefficients = affine_response(ddpm, process, process.sampling_times(1000), 0.0, 1.0, variance="fixedlarge")
    assert mean == 0
    assert coefficients.square().sum().sqrt().item() == pytest.approx(math.sqrt(1 - 1e-4), rel=1e-11)


@pytest.mark.parametrize(("function", "options"), [(ddim, {"eta": 0.7}), (ddim, {"eta": 1.0}), (ddpm, {})])
@pytest.mark.parametrize("name", PROCESSES)
def test_fixedsmall_and_every_eta_keep_the_marginals_of_one_image(function, options, name):
    """A data set of one image: at every time of the sampler x_t is N(alpha x0, sigma^2), exactly."""
    process = make_process(name)
    times = process.sampling_times(7)
    draws, seen = len(times) + 1, []

    def noise(step):
        out = torch.zeros(draws + 1, dtype=F64)
        out[1 + step] = 1
        return out

    def denoise(x, t):
        seen.append(x.clone())
        return torch.full_like(x, MU)

    alpha, sigma = process.alpha_sigma(times, F64)
    end = function(denoise, process, alpha[0] * MU + sigma[0] * noise(0), times, noise=noise, clip=False, **options)
    for x, a, s in zip(seen, alpha.tolist(), sigma.tolist(), strict=True):
        assert x[0].item() == pytest.approx(a * MU, rel=1e-9, abs=1e-12)
        assert (x[1:] - x[0]).norm().item() == pytest.approx(s, rel=1e-9)
    torch.testing.assert_close(end, torch.full_like(end, MU), rtol=0, atol=1e-12)


def test_ancestral_is_ddim_with_eta_1():
    process = make_process("ddpm-linear")
    times = process.sampling_times(20)
    draws = torch.randn(21, 50, dtype=F64, generator=torch.Generator().manual_seed(0))
    arguments = (gaussian_denoise(process), process, draws[0], times)
    first = ddpm(*arguments, noise=lambda step: draws[step])
    second = ddim(*arguments, noise=lambda step: draws[step], eta=1.0)
    torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("churn", [10.0, 40.0])
def test_heun_with_churn_keeps_the_distribution(churn):
    process = make_process("edm")
    times = heun_times(process, 256)

    def noise(step):
        return torch.randn(40_000, dtype=F64, generator=torch.Generator().manual_seed(step))

    end = heun(gaussian_denoise(process), process, 80 * noise(0), times, noise=noise, churn=churn)
    assert end.mean().item() == pytest.approx(MU, abs=6e-3)
    assert end.std().item() == pytest.approx(S, abs=6e-3)
    quiet = heun(
        gaussian_denoise(process), process, 80 * noise(0), times, noise=noise, churn=churn, churn_range=(1e5, 1e6)
    )
    torch.testing.assert_close(quiet, heun(gaussian_denoise(process), process, 80 * noise(0), times), rtol=0, atol=0)


def wavy_model(x, t):
    """Some smooth prediction, the same for both sides."""
    return torch.sin(3 * x + 0.01 * t) + 0.3 * x


def denoise_with(process, prediction, model):
    def denoise(x, t):
        alpha, sigma = process.alpha_sigma(torch.tensor([t]), F64)
        return to_x0(prediction, model(x, t), x, alpha, sigma)

    return denoise


NAMES_OF_DIFFUSERS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


def scheduler_of(diffusers, kind, **options):
    scheduler = getattr(diffusers, kind)(1000, beta_start=1e-4, beta_end=0.02, **options)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=F64)  # theirs in float32 would be the larger error
    scheduler.betas, scheduler.alphas = betas, 1 - betas
    scheduler.alphas_cumprod = (1 - betas).cumprod(0)
    return scheduler


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ddim_is_diffusers(diffusers, prediction, clip, eta):
    scheduler = scheduler_of(
        diffusers,
        "DDIMScheduler",
        clip_sample=clip,
        timestep_spacing="trailing",
        prediction_type=NAMES_OF_DIFFUSERS[prediction],
    )
    scheduler.set_timesteps(20)
    process = make_process("ddpm-linear")
    times = process.sampling_times(20)
    assert times.tolist() == scheduler.timesteps.tolist()
    draws = torch.randn(21, 2, 3, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(1))
    x = draws[0].clone()
    for step, t in enumerate(scheduler.timesteps):
        x = scheduler.step(
            wavy_model(x, int(t)), int(t), x, eta=eta, use_clipped_model_output=True, variance_noise=draws[step + 1]
        ).prev_sample
    got = ddim(
        denoise_with(process, prediction, wavy_model), process, draws[0], times, eta=eta, clip=clip,
        noise=lambda step: draws[step],
    )  # fmt: skip
    torch.testing.assert_close(got, x, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(("variance", "theirs"), [("fixedsmall", "fixed_small"), ("fixedlarge", "fixed_large")])
@pytest.mark.parametrize("steps", [25, 1000])
def test_ddpm_is_diffusers(diffusers, prediction, clip, variance, theirs, steps):
    scheduler = scheduler_of(
        diffusers,
        "DDPMScheduler", clip_sample=clip, timestep_spacing="trailing", variance_type=theirs,
        prediction_type=NAMES_OF_DIFFUSERS[prediction],
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    process = make_process("ddpm-linear")
    times = process.sampling_times(steps)
    draws = torch.randn(1, 2, 3, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(1))
    # the state that enters the last step compared: theirs adds noise to the finished image under fixed_large
    compared = min(steps - 1, 100)
    generator = torch.Generator().manual_seed(2)
    x = draws[0]
    for t in scheduler.timesteps.tolist()[:compared]:
        x = scheduler.step(0.5 * wavy_model(x, t), t, x, generator=generator).prev_sample
    generator = torch.Generator().manual_seed(2)
    states = []

    def denoise(x, t):
        states.append(x)
        return denoise_with(process, prediction, lambda x, t: 0.5 * wavy_model(x, t))(x, t)

    def noise(step):
        return torch.randn(2, 3, 4, 4, dtype=F64, generator=generator)

    end = ddpm(denoise, process, draws[0], times, noise=noise, variance=variance, clip=clip)
    torch.testing.assert_close(states[compared], x, rtol=1e-7, atol=1e-7)
    last_x0 = denoise(states[-1], int(times[-1]))
    torch.testing.assert_close(end, last_x0.clamp(-1, 1) if clip else last_x0, rtol=1e-9, atol=1e-9)


def test_clipping_comes_before_the_mean():
    """A prediction of x0 = 5 everywhere ends at 1 when clipped, in one step of two too."""
    process = make_process("ddpm-linear")
    x = torch.zeros(3, dtype=F64)
    for function in (ddim, ddpm):
        end = function(lambda x, t: torch.full_like(x, 5.0), process, x, torch.tensor([999, 499]), noise=lambda step: x)
        assert end.tolist() == [1.0, 1.0, 1.0]
        middle = []
        function(
            lambda x, t, middle=middle: (middle.append(x), torch.full_like(x, 5.0))[1],
            process, x, torch.tensor([999, 499]), noise=lambda step: x,
        )  # fmt: skip
        assert middle[1].abs().max() < 1.1


PAIRS = [(name, prediction) for name in PROCESSES for prediction in make_process(name).predictions]


@pytest.mark.parametrize(("name", "prediction"), PAIRS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_images_from_the_best_network(name, prediction, sampler):
    """The whole path, from positions to images, through the network's own view of input and time."""
    steps = 200 if sampler in ("ddim", "ddpm", "euler") else 24
    denoiser = Denoiser(GaussianModel(name, prediction), name, prediction)
    images = sample_images(denoiser, 24, image_size=16, sampler=sampler, steps=steps, batch_size=10)
    assert images.shape == (24, 3, 16, 16)
    assert images.dtype == torch.float32
    error = 4 / math.sqrt(images.numel())  # four standard errors, and the discretisation's few per cent
    assert images.mean().item() == pytest.approx(MU, abs=error * S + 0.005)
    assert images.std().item() == pytest.approx(S, rel=error + 0.06)


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    model = build_model("unet-tiny", image_size=8, num_classes=3, width=8, channel_multipliers=[1, 2])
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.05)
    return model


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_does_not_depend_on_its_batch(tiny, sampler):
    denoiser = Denoiser(tiny, "ddpm-linear", guidance=1.5)
    labels = torch.tensor([0, 1, 2, 0, 1])
    arguments = {"image_size": 8, "sampler": sampler, "steps": 5, "seed": 3}
    if sampler == "ddim":
        arguments["eta"] = 1.0
    together = sample_images(denoiser, 5, labels=labels, batch_size=64, **arguments)
    pairs = sample_images(denoiser, 5, labels=labels, batch_size=2, **arguments)
    torch.testing.assert_close(pairs, together, rtol=0, atol=1e-4)
    order = torch.tensor([4, 1])
    chosen = sample_images(denoiser, order, labels=labels[order], **arguments)
    torch.testing.assert_close(chosen, together[order], rtol=0, atol=1e-4)
    other = sample_images(denoiser, 5, labels=labels, **{**arguments, "seed": 4})
    assert (other - together).abs().mean() > 0.05
    assert (together[0] - together[3]).abs().mean() > 0.05  # one class, two positions


def test_guidance_1_calls_once_and_is_conditional_only():
    model = GaussianModel("ddpm-linear", "eps", mus=(-0.4, 0.5))
    labels = torch.tensor([0, 1, 1])
    images = sample_images(Denoiser(model, "ddpm-linear"), 3, image_size=8, labels=labels, steps=4)
    assert [size for size, _ in model.calls] == [3] * 4
    assert all(torch.equal(given, labels) for _, given in model.calls)
    assert images.mean((1, 2, 3)).tolist() == pytest.approx([-0.4, 0.5, 0.5], abs=0.1)


def test_guidance_evaluates_both_in_one_batch():
    model = GaussianModel("ddpm-linear", "eps", mus=(-0.4, 0.5))
    denoiser = Denoiser(model, "ddpm-linear", guidance=3.0)
    x, labels = torch.randn(2, 3, 4, 4, dtype=F64), torch.tensor([0, 1])
    guided = denoiser(x, 500, labels)
    assert [size for size, _ in model.calls] == [4]
    assert model.calls[0][1].tolist() == [0, 1, 2, 2]
    conditional = Denoiser(model, "ddpm-linear")(x, 500, labels)
    unconditional = Denoiser(model, "ddpm-linear", guidance=0.0)(x, 500, labels)
    assert model.calls[-1][1].tolist() == [2, 2]
    torch.testing.assert_close(guided, unconditional + 3 * (conditional - unconditional), rtol=1e-4, atol=1e-4)


def test_a_learned_variance_is_left_out():
    model = GaussianModel("flow", "flow")
    wide = lambda x, time, labels: torch.cat((model(x, time, labels), torch.ones_like(x)), 1)  # noqa: E731
    x = torch.randn(2, 3, 4, 4, dtype=F64)
    torch.testing.assert_close(Denoiser(wide, "flow")(x, 0.5), Denoiser(model, "flow")(x, 0.5))


def test_denoiser_takes_a_time_an_image():
    model = GaussianModel("flow", "flow")
    denoiser = Denoiser(model, "flow")
    x = torch.randn(3, 3, 4, 4, dtype=F64)
    times = torch.tensor([0.1, 0.5, 0.9], dtype=F64)
    together = denoiser(x, times)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], denoiser(x[i : i + 1], float(times[i])), rtol=1e-5, atol=1e-6)


def test_dropout_is_off_while_sampling_and_on_again_after(tiny):
    tiny.train()
    tiny.middle1.eval()
    images = [sample_images(Denoiser(tiny), 2, image_size=8, labels=[0, 1], steps=2) for _ in range(2)]
    assert torch.equal(*images)
    assert tiny.training
    assert tiny.up_blocks[0].dropout.training
    assert not tiny.middle1.training
    tiny.train()


def test_global_random_state_is_left_alone(tiny):
    state = torch.get_rng_state()
    sample_images(Denoiser(tiny), 1, image_size=8, labels=[0], sampler="ddpm", steps=2)
    assert torch.equal(state, torch.get_rng_state())


def test_no_labels_means_the_null_class(tiny):
    first = sample_images(Denoiser(tiny), 2, image_size=8, steps=3)
    assert torch.equal(first, sample_images(Denoiser(tiny), 2, image_size=8, steps=3, labels=[3, 3]))


def test_a_trained_network_samples_its_data():
    """End to end: a network trained for seconds on two flat images, one a class, paints them when it is asked to."""
    torch.manual_seed(0)
    model = build_model("unet-tiny", image_size=4, num_classes=2, width=8, channel_multipliers=[1, 2], dropout=0.0)
    loss = DenoisingLoss("flow")
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    labels = torch.arange(64) % 2
    x0 = torch.where(labels == 0, -0.5, 0.5)[:, None, None, None].expand(-1, 3, 4, 4)
    generator = torch.Generator().manual_seed(1)
    for _ in range(150):
        t = loss.process.sample_time(torch.rand(64, generator=generator, dtype=F64))
        noise = torch.randn(64, 3, 4, 4, generator=generator)
        alpha, sigma = (v[:, None, None, None] for v in loss.process.input_coefficients(t))
        value = loss(model(alpha * x0 + sigma * noise, loss.process.network_time(t), labels), x0, noise, t)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    for sampler in SAMPLERS:
        images = sample_images(Denoiser(model, "flow"), 4, image_size=4, labels=[0, 1, 0, 1], sampler=sampler, steps=12)
        assert images.mean((1, 2, 3)).tolist() == pytest.approx([-0.5, 0.5, -0.5, 0.5], abs=0.15), sampler


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sampler": "plms"}, InputError, "sampler 'plms'"),
        ({"steps": 0}, InputError, "steps"),
        ({"steps": 1001}, InputError, "steps"),
        ({"batch_size": 0}, InputError, "batch_size"),
        ({"positions": 0}, InputError, "positions"),
        ({"positions": torch.tensor([-1])}, InputError, "positions"),
        ({"positions": torch.tensor([0.5])}, InputTypeError, "positions"),
        ({"positions": torch.tensor([[1]])}, InputError, "positions"),
        ({"labels": [0]}, InputError, "labels must be \\[2\\]"),
        ({"labels": [0.5, 1.0]}, InputTypeError, "labels"),
        ({"labels": [0, 9]}, InputError, "labels must lie in"),
        ({"churn": 3.0}, InputError, "no option 'churn'"),
        ({"sampler": "euler", "eta": 1.0}, InputError, "no option 'eta'"),
        ({"sampler": "ddpm", "variance": "learned"}, InputError, "variance 'learned'"),
    ],
)
def test_bad_arguments_are_named(tiny, arguments, error, message):
    with pytest.raises(error, match=message):
        sample_images(Denoiser(tiny), **{"positions": 2, "image_size": 8, "labels": [0, 1], **arguments})


def test_bad_denoisers_are_named(tiny):
    with pytest.raises(InputError, match="labels are needed with guidance"):
        sample_images(Denoiser(tiny, guidance=2.0), 2, image_size=8)
    with pytest.raises(InputError, match="labels are needed with guidance"):
        Denoiser(tiny, guidance=2.0)(torch.zeros(1, 3, 8, 8), 3)
    with pytest.raises(InputError, match="needs a model with classes"):
        Denoiser(build_model("unet-tiny", image_size=8), guidance=2.0)
    with pytest.raises(InputError, match="guidance must be finite"):
        Denoiser(tiny, guidance=math.nan)
    with pytest.raises(InputError, match="does not go with process"):
        Denoiser(tiny, "edm", "v")
    process = make_process("flow")
    with pytest.raises(InputError, match="cannot start where alpha is 0"):
        heun(gaussian_denoise(process), process, torch.zeros(1), process.sampling_times(3))
    with pytest.raises(InputError, match="noise is needed"):
        ddim(gaussian_denoise(process), process, torch.zeros(1), process.sampling_times(3), eta=1.0)
