"""Every parameterisation: the closed forms against the linear system they solve, in float64, and at the borders."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefast.diffusion import PREDICTIONS, target_coefficients, to_noise, to_x0
from prunefast.errors import InputError


def number(value):
    return torch.tensor(value, dtype=torch.float64)


def levels(prediction):
    """(alpha, sigma) pairs of the processes that the prediction is used with."""
    if prediction == "edm":
        return st.floats(1e-3, 1e3).map(lambda sigma: (1.0, sigma))
    angle = st.floats(1e-3, math.pi / 2 - 1e-3).map(lambda a: (math.cos(a), math.sin(a)))
    line = st.floats(1e-3, 1 - 1e-3).map(lambda t: (1 - t, t))
    return angle | line


@pytest.mark.parametrize("prediction", PREDICTIONS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_round_trip(prediction, data):
    """From the true target, x0 and noise come back."""
    alpha, sigma = data.draw(levels(prediction))
    x0, noise = data.draw(st.floats(-1, 1)), data.draw(st.floats(-4, 4))
    alpha, sigma, x0, noise = number(alpha), number(sigma), number(x0), number(noise)
    a, b = target_coefficients(prediction, alpha, sigma)
    target, x_t = a * x0 + b * noise, alpha * x0 + sigma * noise
    scale = max(1.0, float(sigma / alpha), float(alpha / sigma))
    assert float(to_x0(prediction, target, x_t, alpha, sigma) - x0) == pytest.approx(0, abs=1e-12 * scale)
    assert float(to_noise(prediction, target, x_t, alpha, sigma) - noise) == pytest.approx(0, abs=1e-12 * scale)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_output_solves_the_linear_system(prediction, data):
    """A wrong prediction too: the x0 and noise read from it reproduce both x_t and the prediction."""
    alpha, sigma = data.draw(levels(prediction))
    x_t, output = data.draw(st.floats(-3, 3)), data.draw(st.floats(-3, 3))
    alpha, sigma, x_t, output = number(alpha), number(sigma), number(x_t), number(output)
    x0 = to_x0(prediction, output, x_t, alpha, sigma)
    noise = to_noise(prediction, output, x_t, alpha, sigma)
    a, b = target_coefficients(prediction, alpha, sigma)
    size = 1 + float(x0.abs() + noise.abs()) * max(1.0, float(sigma))
    assert float(alpha * x0 + sigma * noise - x_t) == pytest.approx(0, abs=1e-12 * size)
    assert float(a * x0 + b * noise - output) == pytest.approx(0, abs=1e-12 * size)


def test_hand_values():
    alpha, sigma = number(0.6), number(0.8)
    pair = lambda prediction, *level: tuple(map(float, target_coefficients(prediction, *level)))  # noqa: E731
    assert pair("eps", alpha, sigma) == (0, 1)
    assert pair("x0", alpha, sigma) == (1, 0)
    assert pair("v", alpha, sigma) == (-0.8, 0.6)
    assert pair("flow", alpha, sigma) == (-1, 1)
    # sigma = 1.2, sd = 0.5: s = 1.3, a = 1.2 / (0.5 * 1.3), b = -0.5 / 1.3
    assert pair("edm", number(1.0), number(1.2)) == pytest.approx((1.2 / 0.65, -0.5 / 1.3), rel=1e-15)
    with pytest.raises(InputError, match="score"):
        target_coefficients("score", alpha, sigma)
    with pytest.raises(InputError, match="score"):
        to_x0("score", alpha, alpha, alpha, sigma)


@settings(max_examples=60, deadline=None)
@given(sigma=st.floats(1e-4, 1e3), x_t=st.floats(-3, 3), output=st.floats(-3, 3), sd=st.floats(0.1, 2.0))
def test_edm_is_the_papers_preconditioning(sigma, x_t, output, sd):
    c_skip = sd**2 / (sigma**2 + sd**2)
    c_out = sigma * sd / math.sqrt(sigma**2 + sd**2)
    x0 = to_x0("edm", number(output), number(x_t), number(1.0), number(sigma), sd)
    assert float(x0) == pytest.approx(c_skip * x_t + c_out * output, rel=1e-12, abs=1e-14)
    a, b = target_coefficients("edm", number(1.0), number(sigma), sd)
    # F* = (x0 - c_skip (x0 + sigma n)) / c_out
    assert float(b) == pytest.approx(-c_skip * sigma / c_out, rel=1e-12)
    if sigma > 0.1 * sd:  # below, the textbook form itself loses digits
        assert float(a) == pytest.approx((1 - c_skip) / c_out, rel=1e-10)


def test_edm_target_keeps_its_digits_in_float32():
    """At sigma = 1e-4, 1 - c_skip is 4e-8: below float32's spacing at 1, so the textbook form has no digit left."""
    sigma = torch.tensor(1e-4)
    a, _ = target_coefficients("edm", torch.ones(()), sigma)
    assert float(a) == pytest.approx(1e-4 / (0.5 * math.sqrt(1e-8 + 0.25)), rel=1e-6)
    textbook = (1 - 0.25 / (sigma**2 + 0.25)) / (sigma * 0.5 / torch.sqrt(sigma**2 + 0.25))
    assert abs(float(textbook) / float(a) - 1) > 0.01


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [("x0", (0.3, 2.0)), ("v", (-0.3, 2.0)), ("flow", (1.7, 2.0))],
)
def test_at_alpha_0_x_t_is_the_noise(prediction, expected):
    """x_t = 2 is all noise; a prediction of 0.3 says what x0 is."""
    level = number(0.0), number(1.0)
    assert float(to_x0(prediction, number(0.3), number(2.0), *level)) == pytest.approx(expected[0])
    if prediction != "x0":
        assert float(to_noise(prediction, number(0.3), number(2.0), *level)) in (2.0, pytest.approx(2.0))
    else:
        assert float(to_noise("x0", number(0.3), number(2.0), *level)) == 2.0


@pytest.mark.parametrize("prediction", ["eps", "v", "flow", "edm"])
def test_at_sigma_0_x_t_is_the_image(prediction):
    assert float(to_x0(prediction, number(0.3), number(0.7), number(1.0), number(0.0))) == pytest.approx(0.7)


def test_what_is_undefined_is_not_hidden():
    assert not to_x0("eps", number(0.3), number(2.0), number(0.0), number(1.0)).isfinite()
    assert not to_noise("x0", number(0.3), number(2.0), number(1.0), number(0.0)).isfinite()
