"""DenoisingLoss against the formula in NumPy float64, class weights, and every argument that is checked."""

import types

import numpy as np
import pytest
import torch

from prunefast import ops
from prunefast.diffusion import DenoisingLoss, MinSNR, make_process, target_coefficients
from prunefast.errors import InputError, InputTypeError

CASES = [
    ("ddpm-linear", "eps"),
    ("ddpm-linear", "v"),
    ("ddpm-linear", "x0"),
    ("ddpm-cosine", "v"),
    ("flow", "flow"),
    ("flow", "x0"),
    ("edm", "edm"),
    ("edm", "eps"),
]
COUNT = 6


def batch(process, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    t = make_process(process).sample_time(torch.rand(COUNT, generator=generator, dtype=torch.float64))
    pred, x0, noise = (torch.randn(COUNT, 3, 4, 4, generator=generator).to(dtype) for _ in range(3))
    return pred.requires_grad_(), x0.clamp(-1, 1), noise, t


def truth(process, prediction, weighting, pred, x0, noise, t, factor=1.0):
    """(loss, per_sample) in NumPy from the written-out formulas."""
    t = t.double().numpy()
    if process.startswith("ddpm"):
        if process == "ddpm-linear":
            alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
        else:
            f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
            alpha_bar = np.cumprod(1 - np.minimum(1 - f[1:] / f[:-1], 0.999))
        alpha, sigma = np.sqrt(alpha_bar[t.astype(int)]), np.sqrt(1 - alpha_bar[t.astype(int)])
    else:
        alpha, sigma = (1 - t, t) if process == "flow" else (np.ones_like(t), t)
    x0, noise, pred = (v.detach().double().numpy() for v in (x0, noise, pred))
    spread = (slice(None), None, None, None)
    x_t = alpha[spread] * x0 + sigma[spread] * noise
    c_skip, c_out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / np.sqrt(sigma**2 + 0.25)
    target = {
        "eps": noise,
        "x0": x0,
        "v": alpha[spread] * noise - sigma[spread] * x0,
        "flow": noise - x0,
        "edm": (x0 - c_skip[spread] * x_t) / c_out[spread],
    }[prediction]
    per_sample = ((pred - target) ** 2).mean((1, 2, 3))
    snr = alpha**2 / sigma**2
    weight = np.ones_like(t)
    if weighting == "min_snr":
        to_prediction = {"eps": 1 / snr, "x0": 1, "v": sigma**2, "flow": sigma**2, "edm": c_out**2}[prediction]
        weight = np.minimum(snr, 5) * to_prediction
    return (weight * per_sample * factor).mean(), per_sample


@pytest.mark.parametrize(("process", "prediction"), CASES)
@pytest.mark.parametrize("weighting", ["uniform", "min_snr"])
def test_is_the_formula(process, prediction, weighting):
    pred, x0, noise, t = batch(process)
    loss = DenoisingLoss(process, prediction, weighting)
    expected, expected_per_sample = truth(process, prediction, weighting, pred, x0, noise, t)
    got = loss(pred, x0, noise, t)
    assert got.shape == ()
    np.testing.assert_allclose(got.item(), expected, rtol=1e-5)
    np.testing.assert_allclose(loss.per_sample(pred, x0, noise, t).detach(), expected_per_sample, rtol=1e-5)


@pytest.mark.parametrize(("process", "prediction"), CASES)
def test_zero_at_the_true_target(process, prediction):
    """The exact target made from x_t = alpha x0 + sigma noise gives loss 0."""
    _, x0, noise, t = batch(process, torch.float64)
    loss = DenoisingLoss(process, prediction)
    alpha, sigma = (v[:, None, None, None] for v in loss.process.alpha_sigma(t, torch.float64))
    a, b = target_coefficients(prediction, alpha, sigma, 0.5)
    assert loss(a * x0 + b * noise, x0, noise, t).item() < 1e-28


def test_gradient_by_finite_differences():
    pred, x0, noise, t = batch("ddpm-linear", torch.float64)
    loss = DenoisingLoss(weighting="min_snr", class_weights=[0.2, 0.8])
    labels, weight = torch.tensor([0, 1, 0, 1, 1, 0]), torch.rand(COUNT, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: loss(p, x0, noise, t, labels, weight), (pred,))
    assert torch.autograd.gradcheck(lambda p: loss.per_sample(p, x0, noise, t), (pred,))


def test_uint8_images_are_mapped_to_minus_1_and_1():
    pred, _, noise, t = batch("ddpm-linear")
    pixels = torch.randint(0, 256, pred.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    loss = DenoisingLoss(prediction="v")
    torch.testing.assert_close(loss(pred, pixels, noise, t), loss(pred, pixels.float() / 127.5 - 1, noise, t))


def test_noise_by_seed_and_position():
    pred, x0, _, t = batch("ddpm-linear")
    position = torch.tensor([5, 1, 2**40, 7, 0, 9])
    noise = ops.randn_philox(tuple(pred.shape), 11, position)
    loss = DenoisingLoss()
    torch.testing.assert_close(loss(pred, x0, (11, position), t), loss(pred, x0, noise, t), rtol=1e-5, atol=1e-6)


def test_flip_is_the_loss_of_the_mirrored_images():
    pred, x0, noise, t = batch("flow")
    flip = torch.tensor([True, False, True, True, False, False])
    mirrored = torch.where(flip[:, None, None, None], x0.flip(3), x0)
    loss = DenoisingLoss("flow")
    expected = loss(pred, mirrored, noise, t)
    torch.testing.assert_close(loss(pred, x0, noise, t, flip=flip), expected)
    assert (loss(pred, x0, noise, t) - expected).abs() > 1e-3
    torch.testing.assert_close(
        loss.per_sample(pred, x0, noise, t, flip=flip), loss.per_sample(pred, mirrored, noise, t)
    )


def test_bfloat16_prediction():
    pred, x0, noise, t = batch("ddpm-linear", torch.bfloat16)
    loss = DenoisingLoss()(pred, x0, noise, t)
    assert loss.dtype == torch.float32
    loss.backward()
    assert pred.grad.dtype == torch.bfloat16


CLASS_WEIGHTS = [0.5, 0.3, 0.2]


@pytest.mark.parametrize(
    "given",
    [
        CLASS_WEIGHTS,
        tuple(CLASS_WEIGHTS),
        np.array(CLASS_WEIGHTS),
        torch.tensor(CLASS_WEIGHTS),
        {0: 0.5, 2: 0.2, 1: 0.3},
        types.SimpleNamespace(average=np.array(CLASS_WEIGHTS)),
    ],
)
def test_class_weights_in_every_form(given):
    pred, x0, noise, t = batch("ddpm-linear")
    labels = torch.tensor([0, 1, 2, 2, 0, 1])
    got = DenoisingLoss(class_weights=given)(pred, x0, noise, t, labels)
    factor = 3 * np.array(CLASS_WEIGHTS)[labels.numpy()]
    expected, _ = truth("ddpm-linear", "eps", "uniform", pred, x0, noise, t, factor)
    np.testing.assert_allclose(got.item(), expected, rtol=1e-5)


def test_class_weights_estimate_the_reweighted_mean():
    """With the images' own class shares the loss is sum_c w_c (mean over class c), whatever the shares."""
    pred, x0, noise, t = batch("ddpm-linear")
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    loss = DenoisingLoss(class_weights=CLASS_WEIGHTS, class_frequencies=[3 / 6, 2 / 6, 1 / 6])
    per_sample = truth("ddpm-linear", "eps", "uniform", pred, x0, noise, t)[1]
    expected = 0.5 * per_sample[:3].mean() + 0.3 * per_sample[3:5].mean() + 0.2 * per_sample[5]
    np.testing.assert_allclose(loss(pred, x0, noise, t, labels).item(), expected, rtol=1e-5)


def test_uniform_class_weights_change_nothing():
    pred, x0, noise, t = batch("ddpm-linear")
    labels = torch.tensor([0, 1, 2, 2, 0, 1])
    plain = DenoisingLoss()(pred, x0, noise, t)
    torch.testing.assert_close(DenoisingLoss(class_weights=[1 / 3] * 3)(pred, x0, noise, t, labels), plain)


def test_a_class_that_is_never_drawn():
    loss = DenoisingLoss(class_weights=[0.5, 0.5], class_frequencies=[1.0, 0.0])
    assert loss.class_factor.tolist() == [0.5, 0.0]


def test_all_factors_multiply():
    pred, x0, noise, t = batch("flow")
    labels, weight = torch.tensor([0, 1, 1, 0, 0, 1]), torch.rand(COUNT)
    loss = DenoisingLoss("flow", weighting=MinSNR(3.0), class_weights=[0.1, 0.9])
    sigma = t.double().numpy()
    level = np.minimum(((1 - sigma) / sigma) ** 2, 3.0) * sigma**2
    expected = level * np.array([0.2, 1.8])[labels.numpy()] * weight.numpy()
    np.testing.assert_allclose(loss.sample_weights(t, labels, weight), expected, rtol=1e-5)
    per_sample = loss.per_sample(pred, x0, noise, t).detach().numpy()
    np.testing.assert_allclose(
        loss(pred, x0, noise, t, labels, weight).item(), (expected * per_sample).mean(), rtol=1e-5
    )


def test_labels_are_not_looked_at_without_class_weights():
    pred, x0, noise, t = batch("ddpm-linear")
    loss = DenoisingLoss()
    assert torch.equal(loss(pred, x0, noise, t, torch.full((COUNT,), -1)), loss(pred, x0, noise, t))


def test_nan_comes_through():
    pred, x0, noise, t = batch("ddpm-linear")
    pred = pred.detach().index_fill(0, torch.tensor([1]), float("nan"))
    assert DenoisingLoss()(pred, x0, noise, t).isnan()


def test_compiles_as_one_graph():
    pred, x0, noise, t = batch("ddpm-linear")
    labels, weight = torch.tensor([0, 1, 1, 0, 0, 1]), torch.rand(COUNT)
    loss = DenoisingLoss(weighting="min_snr", class_weights=[0.1, 0.9])
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = loss(pred, x0, noise, t, labels, weight)
    (gradient,) = torch.autograd.grad(expected, pred)
    got = compiled(pred, x0, noise, t, labels, weight)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.autograd.grad(got, pred)[0], gradient)


def test_moves_and_prints():
    loss = DenoisingLoss("edm", class_weights=[0.5, 0.5])
    assert loss.to("meta").class_factor.device.type == "meta"
    assert "edm" in repr(loss)
    assert loss.state_dict() == {}


BAD_CONSTRUCTION = [
    ({"process": "vp"}, InputError, "process 'vp'"),
    ({"prediction": "score"}, InputError, "prediction 'score'"),
    ({"process": "flow", "prediction": "eps"}, InputError, "does not go with process 'flow'"),
    ({"process": "edm", "prediction": "v"}, InputError, "does not go with process 'edm'"),
    ({"weighting": "snr"}, InputError, "weighting 'snr'"),
    ({"class_weights": [0.5, 0.4]}, InputError, "class_weights must sum to 1"),
    ({"class_weights": [1.5, -0.5]}, InputError, "class_weights must be finite and not negative"),
    ({"class_weights": [float("nan"), 1.0]}, InputError, "class_weights must be finite"),
    ({"class_weights": [[0.5, 0.5]]}, InputError, "class_weights must be"),
    ({"class_weights": []}, InputError, "class_weights must be"),
    ({"class_weights": {0: 0.5, 2: 0.5}}, InputError, "class_weights must have the class indices"),
    ({"class_weights": {"cat": 0.5, "dog": 0.5}}, InputError, "class_weights must have the class indices"),
    ({"class_weights": "balanced"}, InputTypeError, "class_weights must be numbers"),
    ({"class_weights": [0.5, 0.5], "class_frequencies": [1.0]}, InputError, "class_frequencies has 1"),
    ({"class_weights": [0.5, 0.5], "class_frequencies": [1.0, 1.0]}, InputError, "class_frequencies must sum"),
    ({"class_frequencies": [0.5, 0.5]}, InputError, "class_frequencies only"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_CONSTRUCTION)
def test_bad_construction_is_named(arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        DenoisingLoss(**arguments)
    assert "\n" not in str(caught.value)


def test_bad_calls_are_named():
    pred, x0, noise, t = batch("ddpm-linear")
    loss = DenoisingLoss(class_weights=[0.5, 0.5])
    labels = torch.zeros(COUNT, dtype=torch.int64)
    with pytest.raises(InputError, match="pred"):
        loss(pred[:, :2], x0, noise, t, labels)
    with pytest.raises(InputError, match="learn_sigma"):
        loss(torch.cat((pred, pred), 1), x0, noise, t, labels)
    with pytest.raises(InputError, match="noise"):
        loss(pred, x0, noise[:1], t, labels)
    with pytest.raises(InputError, match="t has 5 times for 6 images"):
        loss(pred, x0, noise, t[:5], labels)
    with pytest.raises(InputTypeError, match="t of process 'ddpm-linear' must be int64"):
        loss(pred, x0, noise, t.float(), labels)
    with pytest.raises(InputError, match="t of process 'ddpm-linear' must lie in"):
        loss(pred, x0, noise, t + 1000, labels)
    with pytest.raises(InputError, match="labels are needed"):
        loss(pred, x0, noise, t)
    with pytest.raises(InputError, match="labels must lie in 0"):
        loss(pred, x0, noise, t, labels - 1)
    with pytest.raises(InputError, match="labels must lie in 0"):
        loss(pred, x0, noise, t, labels + 2)
    with pytest.raises(InputError, match="labels must be int64"):
        loss(pred, x0, noise, t, labels.float())
    with pytest.raises(InputError, match="sample_weight must be"):
        loss(pred, x0, noise, t, labels, torch.ones(COUNT, 1))
    with pytest.raises(InputError, match="pred"):
        loss(torch.zeros(()), x0, noise, t, labels)
