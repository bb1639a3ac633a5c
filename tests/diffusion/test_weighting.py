"""Weightings: hand values of every parameterisation, the mistakes others published, and the borders."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefast.diffusion import (
    P2,
    PREDICTIONS,
    WEIGHTINGS,
    EDMWeighting,
    MinSNR,
    Uniform,
    make_weighting,
    target_coefficients,
)
from prunefast.errors import InputError, InputTypeError


def vp(snr):
    """alpha, sigma with alpha^2 + sigma^2 = 1."""
    snr = torch.tensor(snr, dtype=torch.float64)
    return (snr / (snr + 1)).sqrt(), (1 / (snr + 1)).sqrt()


def ve(snr):
    return torch.tensor(1.0, dtype=torch.float64), torch.tensor(snr, dtype=torch.float64).rsqrt()


def flow(snr):
    ratio = snr**-0.5
    return tuple(torch.tensor(v, dtype=torch.float64) for v in (1 / (1 + ratio), ratio / (1 + ratio)))


def weigh(weighting, prediction, level):
    return float(make_weighting(weighting).weight(prediction, *level))


@pytest.mark.parametrize("snr", [1e-6, 0.25, 1.0, 4.0, 5.0, 6.0, 1e6])
@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
def test_min_snr_is_the_papers(snr, gamma):
    weighting = MinSNR(gamma)
    assert weigh(weighting, "eps", vp(snr)) == pytest.approx(min(snr, gamma) / snr, rel=1e-12)
    assert weigh(weighting, "v", vp(snr)) == pytest.approx(min(snr, gamma) / (snr + 1), rel=1e-12)
    assert weigh(weighting, "x0", vp(snr)) == pytest.approx(min(snr, gamma), rel=1e-12)
    # x0 - (noise error) at alpha + sigma = 1: an error e of the velocity is an error sigma e of x0
    sigma = float(flow(snr)[1])
    assert weigh(weighting, "flow", flow(snr)) == pytest.approx(min(snr, gamma) * sigma**2, rel=1e-12)


def test_mistakes_of_others():
    """min-SNR, gamma 5, at hand values where each published mistake gives another number."""
    # huggingface/diffusers#5654: adding 1 to the SNR before the clamp makes v at SNR 4.5 1 / 1 instead of 4.5 / 5.5
    assert weigh("min_snr", "v", vp(4.5)) == pytest.approx(4.5 / 5.5)
    # the eps weight used for v: 1 below gamma; the right one falls with the SNR
    assert weigh("min_snr", "v", vp(0.25)) == pytest.approx(0.2)
    # zero terminal SNR: min(snr, g) / snr is 0 / 0 when it is computed as a quotient
    assert weigh("min_snr", "eps", vp(0.0)) == 1
    # max instead of min ("max-SNR"), and the clamp forgotten
    assert weigh("min_snr", "eps", vp(50.0)) == pytest.approx(0.1)
    assert weigh("min_snr", "x0", vp(50.0)) == pytest.approx(5.0)
    # the eps weight used for x0
    assert weigh("min_snr", "x0", vp(0.25)) == pytest.approx(0.25)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@settings(max_examples=50, deadline=None)
@given(
    log_snr=st.floats(-12, 12), name=st.sampled_from(["min_snr", "edm", "p2"]), process=st.sampled_from([vp, ve, flow])
)
def test_one_currency(prediction, log_snr, name, process):
    """lambda_prediction = lambda_x0 sigma^2 / (a sigma - b alpha)^2, with (a, b) of the target."""
    snr = math.exp(log_snr)
    alpha, sigma = ve(snr) if prediction == "edm" else process(snr)
    lambda_x0 = {"min_snr": min(snr, 5), "edm": (1 / snr + 0.25) / (0.25 / snr), "p2": snr / (1 + snr)}[name]
    a, b = target_coefficients(prediction, alpha, sigma)
    factor = float(sigma**2 / (a * sigma - b * alpha) ** 2)
    assert weigh(name, prediction, (alpha, sigma)) == pytest.approx(lambda_x0 * factor, rel=1e-8)


@settings(max_examples=50, deadline=None)
@given(sigma=st.floats(1e-4, 1e4), sd=st.floats(0.1, 3.0))
def test_edm_weight_is_1_on_f(sigma, sd):
    level = torch.ones((), dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64)
    assert float(EDMWeighting().weight("edm", *level, sd)) == pytest.approx(1, rel=1e-12)
    expected = (sigma**2 + sd**2) / (sigma * sd) ** 2
    assert float(EDMWeighting().weight("x0", *level, sd)) == pytest.approx(expected, rel=1e-12)


def test_p2_hand_values():
    assert weigh(P2(), "eps", vp(3.0)) == pytest.approx(1 / 4)
    assert weigh(P2(k=2.0, gamma=0.5), "eps", vp(7.0)) == pytest.approx(1 / 3)
    assert weigh(P2(), "v", vp(3.0)) == pytest.approx(3 / 4 / 4)
    assert weigh(P2(gamma=0.0), "eps", vp(9.0)) == pytest.approx(1)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_uniform_is_1(prediction):
    assert weigh("uniform", prediction, ve(3.0)) == 1


BORDERS = [
    ("min_snr", "eps", 1, 0),
    ("min_snr", "v", 0, 0),
    ("min_snr", "flow", 0, 0),
    ("min_snr", "x0", 0, 5),
    ("edm", "eps", math.inf, 1),
    ("edm", "v", 4, 1),
    ("edm", "flow", 4, 1),
    ("edm", "x0", 4, math.inf),
    ("p2", "eps", 1, 0),
    ("p2", "v", 0, 0),
    ("p2", "flow", 0, 0),
    ("p2", "x0", 0, 1),
    (P2(gamma=0.5), "x0", 0, math.inf),
]


@pytest.mark.parametrize(("weighting", "prediction", "at_alpha_0", "at_sigma_0"), BORDERS)
def test_borders(weighting, prediction, at_alpha_0, at_sigma_0):
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    assert weigh(weighting, prediction, (zero, one)) == at_alpha_0
    assert weigh(weighting, prediction, (one, zero)) == at_sigma_0


@pytest.mark.parametrize(("weighting", "at_sigma_0"), [("min_snr", 0), ("edm", 1), ("p2", 0)])
def test_edm_prediction_at_sigma_0(weighting, at_sigma_0):
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    assert weigh(weighting, "edm", (one, zero)) == at_sigma_0


def test_a_function_is_a_weight_on_the_x0_error():
    weighting = make_weighting(lambda alpha, sigma: torch.full_like(alpha, 3.0))
    assert weigh(weighting, "x0", vp(2.0)) == 3
    assert weigh(weighting, "eps", vp(2.0)) == pytest.approx(1.5)
    assert weigh(weighting, "v", vp(2.0)) == pytest.approx(1.0)


def test_make_weighting():
    assert make_weighting("min_snr") == MinSNR(5.0)
    assert make_weighting(Uniform()) == Uniform()
    assert set(WEIGHTINGS) == {"uniform", "min_snr", "edm", "p2"}
    with pytest.raises(InputError, match="minsnr"):
        make_weighting("minsnr")
    with pytest.raises(InputTypeError, match="weighting"):
        make_weighting(5)
    for make, word in (
        (lambda: MinSNR(0.0), "gamma"),
        (lambda: P2(k=0.0), "k must"),
        (lambda: P2(gamma=-1.0), "gamma"),
    ):
        with pytest.raises(InputError, match=word):
            make()
