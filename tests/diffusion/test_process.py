"""Processes against closed forms in NumPy and against diffusers' schedules."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from prunefast.diffusion import DDPM, EDM, PROCESSES, Flow, make_process
from prunefast.diffusion.process import Process, ratio_grid
from prunefast.errors import InputError, InputTypeError

NAMES = tuple(PROCESSES)


@pytest.mark.parametrize(("name", "schedule"), [("ddpm-linear", "linear"), ("ddpm-cosine", "squaredcos_cap_v2")])
def test_ddpm_betas_are_diffusers(diffusers, name, schedule):
    scheduler = diffusers.DDPMScheduler(1000, beta_start=1e-4, beta_end=0.02, beta_schedule=schedule)
    process = make_process(name)
    alpha, sigma = process.alpha_sigma(torch.arange(1000), torch.float64)
    torch.testing.assert_close(process.betas().float(), scheduler.betas, rtol=1e-5, atol=1e-9)
    # theirs multiplies a thousand float32 factors
    torch.testing.assert_close((alpha**2).float(), scheduler.alphas_cumprod, rtol=2e-4, atol=1e-9)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(1000, dtype=torch.float64), rtol=1e-14, atol=0)


def test_ddpm_linear_is_the_product():
    betas = np.linspace(1e-4, 0.02, 1000)
    alpha_bar = np.cumprod(1 - betas)
    alpha, sigma = DDPM().alpha_sigma(torch.arange(1000), torch.float64)
    np.testing.assert_allclose(alpha.numpy(), np.sqrt(alpha_bar), rtol=1e-13)
    np.testing.assert_allclose(sigma.numpy(), np.sqrt(1 - alpha_bar), rtol=1e-11)
    assert sigma[0].item() == pytest.approx(0.01, rel=1e-14)  # sqrt(beta_start), to full precision
    assert DDPM().alpha_sigma(torch.tensor([0]))[0].dtype == torch.float32


def test_ddpm_cosine_is_nichols_formula():
    t = np.arange(1001) / 1000
    f = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
    np.testing.assert_allclose(DDPM("cosine").betas().numpy(), betas, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["ddpm-linear", "ddpm-cosine"])
def test_ddpm_at_real_times_meets_the_integers_and_grows(name):
    process = make_process(name)
    whole = torch.arange(1000)
    at_real = process.alpha_sigma(whole.double(), torch.float64)
    for real, integer in zip(at_real, process.alpha_sigma(whole, torch.float64), strict=True):
        torch.testing.assert_close(real, integer, rtol=1e-10, atol=0)
    times = torch.linspace(0, 999, 5555, dtype=torch.float64)
    assert (process.ratio(times).diff() > 0).all()
    alpha, sigma = process.alpha_sigma(times, torch.float64)
    torch.testing.assert_close(sigma / alpha, process.ratio(times), rtol=1e-9, atol=0)
    halfway = process.ratio(torch.tensor([499.0, 499.5, 500.0], dtype=torch.float64))
    assert halfway[1].item() == pytest.approx(math.sqrt(halfway[0] * halfway[2]), rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(NAMES), fraction=st.floats(0.0, 1.0))
def test_time_of_ratio_inverts_ratio(name, fraction):
    process = make_process(name)
    low, high = process.ratio_range()
    low, high = max(low, 1e-3), min(high, 1e3)
    ratio = torch.tensor([low * (high / low) ** fraction], dtype=torch.float64)
    back = process.ratio(process.time_of_ratio(ratio))
    torch.testing.assert_close(back, ratio, rtol=1e-9, atol=0)


def test_flow_borders():
    flow = Flow()
    alpha, sigma = flow.alpha_sigma(torch.tensor([0.0, 0.25, 1.0]))
    assert alpha.tolist() == [1.0, 0.75, 0.0]
    assert sigma.tolist() == [0.0, 0.25, 1.0]
    assert flow.ratio(torch.tensor([0.0, 0.5, 1.0])).tolist() == [0.0, 1.0, math.inf]
    assert flow.time_of_ratio(torch.tensor([0.0, 1.0, math.inf])).tolist() == [0.0, 0.5, 1.0]
    assert flow.network_time(torch.tensor([0.25])).tolist() == [250.0]


@settings(max_examples=50, deadline=None)
@given(sigma=st.floats(1e-4, 1e3))
def test_edm_preconditioning(sigma):
    edm = EDM(sigma_data=0.5)
    t = torch.tensor([sigma], dtype=torch.float64)
    c_in = 1 / math.sqrt(sigma**2 + 0.25)
    alpha, noise = edm.input_coefficients(t, torch.float64)
    assert alpha.item() == pytest.approx(c_in, rel=1e-14)
    assert noise.item() == pytest.approx(c_in * sigma, rel=1e-14)
    assert edm.network_time(t).item() == pytest.approx(math.log(sigma) / 4, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("name", ["ddpm-linear", "ddpm-cosine", "flow"])
def test_the_network_sees_x_t_itself_where_it_is_scaled(name):
    process = make_process(name)
    t = process.sample_time(torch.rand(50, dtype=torch.float64))
    for seen, made in zip(process.input_coefficients(t), process.alpha_sigma(t), strict=True):
        torch.testing.assert_close(seen, made, rtol=0, atol=0)
        assert seen.dtype == torch.float32


def test_training_times():
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    t = make_process("ddpm-linear").sample_time(u)
    assert t.dtype == torch.int64
    assert torch.equal(t.bincount(minlength=1000), torch.full((1000,), 100))
    t = make_process("flow").sample_time(u)
    np.testing.assert_allclose(t.numpy(), u.numpy(), atol=1e-7)
    sigma = make_process("edm").sample_time(u).double()
    np.testing.assert_allclose(sigma.numpy(), np.exp(norm.ppf(u.numpy(), loc=-1.2, scale=1.2)), rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_extreme_uniforms_give_usable_times(name):
    process = make_process(name)
    u = torch.tensor([2.0**-64, 2.0**-53, 0.5, 1 - 2.0**-53], dtype=torch.float64)
    t = process.sample_time(u)
    process.check_time(t)
    alpha, sigma = process.alpha_sigma(t)
    assert (alpha > 0).all()
    assert (sigma > 0).all()
    assert sigma.isfinite().all()
    assert process.network_time(t).isfinite().all()


@pytest.mark.parametrize("steps", [1, 2, 7, 50, 1000])
def test_ddpm_sampling_times_are_trailing(steps):
    times = make_process("ddpm-linear").sampling_times(steps)
    assert len(times) == steps
    assert times[0] == 999
    assert (times.diff() < 0).all()
    assert times[-1] >= 0
    if steps == 1000:
        assert torch.equal(times, torch.arange(999, -1, -1))
    if steps == 50:
        assert times.tolist() == list(range(999, 0, -20))


def test_edm_and_flow_grids():
    sigma = EDM().sampling_times(18)
    expected = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
    np.testing.assert_allclose(sigma.numpy(), expected, rtol=1e-12)
    assert Flow().sampling_times(4).tolist() == [1.0, 0.75, 0.5, 0.25]
    assert ratio_grid(1, 0.1, 3.0).tolist() == [3.0]


def test_make_process():
    assert [make_process(name).name for name in NAMES] == list(NAMES)
    assert [make_process(name).default_prediction for name in NAMES] == ["eps", "eps", "eps", "flow", "edm"]
    process = make_process("ddpm-cosine", steps=100)
    assert make_process(process) is process
    assert len(process.betas()) == 100
    assert make_process("edm", sigma_data=1.0).sigma_data == 1.0
    assert isinstance(process, Process)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: make_process("vp"), "vp"),
        (lambda: make_process("flow", steps=3), "steps"),
        (lambda: make_process("ddpm-linear", schedule="cosine"), "schedule"),
        (lambda: make_process(Flow(), steps=3), "options"),
        (lambda: DDPM("quadratic"), "quadratic"),
        (lambda: DDPM(steps=1), "steps"),
        (lambda: DDPM(beta_start=0.0), "beta_start"),
        (lambda: DDPM(beta_end=1.5), "beta_end"),
        (lambda: EDM(sigma_data=0.0), "sigma_data"),
        (lambda: EDM(p_std=-1.0), "p_std"),
        (lambda: DDPM().sampling_times(1001), "steps"),
        (lambda: DDPM().sampling_times(0), "steps"),
        (lambda: Flow().sampling_times(0), "steps"),
        (lambda: EDM().sampling_times(0), "steps"),
        (lambda: ratio_grid(3, 2.0, 1.0), "low"),
        (lambda: DDPM().check_time(torch.tensor([0, 1000])), "999"),
        (lambda: DDPM().check_time(torch.tensor([-1])), "999"),
        (lambda: DDPM().check_time(torch.tensor([[1]])), "t must be"),
    ],
)
def test_bad_arguments_are_named(make, word):
    with pytest.raises(InputError, match=word):
        make()


def test_time_dtypes_are_checked():
    with pytest.raises(InputTypeError, match="int64"):
        DDPM().check_time(torch.tensor([0.5]))
    with pytest.raises(InputTypeError, match="floating"):
        Flow().check_time(torch.tensor([1]))
