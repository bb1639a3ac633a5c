"""Scores from a diffusion surrogate: every number again in float64, gradients by a loop of backward()."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import prunefast as pf
from prunefast.data import from_arrays
from prunefast.errors import InputError
from prunefast.ops import randn_philox
from prunefast.progress import Progress
from prunefast.score.denoising import STREAM, denoising_losses
from prunefast.score.gradients import PerSampleGradients
from prunefast.score.surrogate import SURROGATES
from prunefast.train import TrainConfig, train
from prunefast.train.network import load_network
from prunefast.train.state import list_checkpoints

NETWORK = {"width": 8, "channel_multipliers": [1, 2], "blocks": 1, "attention_levels": [1]}
BAR = Progress("", None, silent=True)
SEED, TIMES = 3, 3


def build(count: int = 20, classes: int | None = 2):
    pixels = np.random.Generator(np.random.Philox(key=1)).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    labels = None if classes is None else np.arange(count) % classes
    return from_arrays(pixels, labels, classes=None if classes is None else ["a", "b"])


@pytest.fixture(scope="module")
def data():
    return build()


@pytest.fixture(scope="module", params=["ddpm-linear", "flow", "edm"])
def trained(request, data, tmp_path_factory):
    """Two checkpoints of one short training, for each process."""
    folder = tmp_path_factory.mktemp(request.param)
    config = TrainConfig(
        out=str(folder), images=64, batch_size=16, model="unet-tiny", model_options=NETWORK, dropout=0.2, lr=3e-3,
        warmup_images=0, process=request.param, device="cpu", precision="fp32", checkpoint_every_images=32,
    )  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(config, data)
    yield folder
    torch.set_num_threads(threads)


def draw(network, data, index: int, k: int):
    """(x, network time, target) of one image, float64 where it matters, from the formulas."""
    u = (k + 0.5) / TIMES
    x0 = torch.from_numpy(data.images([index])).permute(0, 3, 1, 2).double() / 127.5 - 1
    noise = randn_philox((1, 3, 8, 8), SEED, torch.tensor([index]), STREAM + k).double()
    name = network.loss.process.name
    if name == "flow":
        return (1 - u) * x0 + u * noise, 1000 * u, noise - x0
    if name == "edm":
        sigma = np.exp(-1.2 + 1.2 * torch.special.ndtri(torch.tensor(u, dtype=torch.float64)).item())
        scale = 1 / np.sqrt(sigma**2 + 0.25)
        target = 2 * sigma * scale * x0 - 0.5 * scale * noise
        return scale * (x0 + sigma * noise), np.log(sigma) / 4, target
    t = int(u * 1000)
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[t]
    return np.sqrt(alpha_bar) * x0 + np.sqrt(1 - alpha_bar) * noise, t, noise


def loss_of(network, data, index: int, k: int) -> torch.Tensor:
    x, time, target = draw(network, data, index, k)
    labels = torch.tensor([data.labels[index]])
    prediction = network.model(x.float(), torch.tensor([time], dtype=torch.float32), labels)
    return ((prediction.double() - target) ** 2).mean()


def losses_of(network, data) -> np.ndarray:
    with torch.no_grad():
        return np.array([[loss_of(network, data, i, k).item() for k in range(TIMES)] for i in range(len(data))])


def gradients_of(network, data) -> np.ndarray:
    """[N, K, P], float64: one backward() after another."""
    model = network.model.requires_grad_(True)
    rows = []
    for index in range(len(data)):
        for k in range(TIMES):
            model.zero_grad()
            loss_of(network, data, index, k).backward()
            rows.append(torch.cat([p.grad.double().flatten() for p in model.parameters()]).numpy())
    model.requires_grad_(False)
    return np.stack(rows).reshape(len(data), TIMES, -1)


def test_losses_are_the_formula(trained, data):
    network = load_network(trained)
    expected = losses_of(network, data)
    np.testing.assert_allclose(denoising_losses(data, network, TIMES, SEED, BAR), expected, rtol=2e-4)
    z = ((expected - expected.mean(0)) / expected.std(0)).mean(1)
    options = {"data": data, "checkpoint": trained, "method": "loss", "seed": SEED, "times": TIMES}
    np.testing.assert_allclose(pf.score(**options), -z, atol=5e-3)
    np.testing.assert_allclose(pf.score(**options, keep_hard=True), z, atol=5e-3)
    plain = pf.score(**options, normalise=False)
    np.testing.assert_allclose(plain, -expected.mean(1), rtol=2e-4)
    assert plain.dtype == np.float64
    roots = pf.score(**options | {"method": "el2n"}, keep_hard=False)
    np.testing.assert_allclose(roots, -np.sqrt(expected).mean(1), rtol=2e-4)


def test_difficulty_is_the_error_of_eps(trained, data):
    """For a prediction of something else, eps is solved for first."""
    network = load_network(trained)
    expected = np.zeros(len(data))
    for index in range(len(data)):
        for k in range(TIMES):
            x, time, _ = draw(network, data, index, k)
            with torch.no_grad():
                labels = torch.tensor([data.labels[index]])
                prediction = network.model(x.float(), torch.tensor([time], dtype=torch.float32), labels).double()
            x0 = torch.from_numpy(data.images([index])).permute(0, 3, 1, 2).double() / 127.5 - 1
            eps = randn_philox((1, 3, 8, 8), SEED, torch.tensor([index]), STREAM + k).double()
            name = network.loss.process.name
            if name == "flow":  # eps - x0 = v and (1 - u) x0 + u eps = x
                found = x + (1 - (k + 0.5) / TIMES) * prediction
            elif name == "edm":  # x0 = c_skip x_t + c_out F, eps = (x_t - x0) / sigma, with x = c_in x_t
                sigma = np.exp(4 * time)
                scale = np.sqrt(sigma**2 + 0.25)
                found = (x * scale - (0.25 / scale**2 * x * scale + sigma * 0.5 / scale * prediction)) / sigma
            else:
                found = prediction
            assert x0.shape == found.shape
            expected[index] += ((found - eps) ** 2).mean().item() / TIMES
    got = pf.score(data=data, checkpoint=trained, method="difficulty", seed=SEED, times=TIMES)
    np.testing.assert_allclose(got, -expected, rtol=2e-3)


def test_forgetting_counts_the_rises(trained, data):
    paths = list_checkpoints(trained / "train")[::-1]
    assert len(paths) == 2
    before, after = (losses_of(load_network(path, ema=False), data) for path in paths)
    expected = (after > before).mean(1)
    got = pf.score(data=data, checkpoint=trained, method="forgetting", seed=SEED, times=TIMES)
    close = np.abs(after - before).min(1) < 1e-4 * before.max()  # a tie to float32 may fall either way
    assert close.sum() < 5
    np.testing.assert_allclose(got[~close], expected[~close])
    np.testing.assert_array_equal(
        pf.score(data=data, checkpoint=paths, method="forgetting", seed=SEED, times=TIMES), got
    )
    turned = pf.score(data=data, checkpoint=trained, method="forgetting", seed=SEED, times=TIMES, keep_hard=False)
    np.testing.assert_array_equal(turned, -got)


def test_gradients_are_those_of_backward(trained, data):
    network = load_network(trained)
    expected = gradients_of(network, data)
    found = PerSampleGradients(network)
    items = np.arange(len(data))
    for rows, k, gradients in found.draws(data, items, data.images(items), SEED, TIMES, chunk=7):
        flat = torch.cat([gradients[name].flatten(1) for name, _ in network.model.named_parameters()], 1)
        wanted = expected[rows, k]
        error = np.linalg.norm(flat.numpy() - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
        assert error.max() < 1e-3
    options = {"data": data, "checkpoint": trained, "seed": SEED, "times": TIMES, "chunk": 7}
    norms = np.linalg.norm(expected, axis=2).mean(1)
    np.testing.assert_allclose(pf.score(**options, method="grand"), norms, rtol=1e-3)

    # MoSo from its definition: N gradients of the whole set without the image
    n = len(data)
    g = expected.mean(1)
    mean = g.mean(0)
    moso = (2 * n - 3) / (n - 1) ** 2 * mean @ mean - (g * g).sum(1) / (n - 1) ** 2
    moso += (2 * n - 4) / (n - 1) ** 2 * ((mean - g / n) * g).sum(1)
    scale = np.abs(moso).max()
    np.testing.assert_allclose(pf.score(**options, method="moso"), moso, atol=1e-3 * scale)


def test_several_checkpoints_are_averaged(trained, data):
    paths = list_checkpoints(trained / "train")
    options = {"data": data, "method": "el2n", "seed": SEED, "times": TIMES}
    one, two = (pf.score(checkpoint=path, **options) for path in paths)
    np.testing.assert_allclose(pf.score(checkpoint=paths, **options), (one + two) / 2, rtol=1e-12)


def test_an_image_is_scored_by_itself():
    """Not by its batch: another cut, the same numbers; and a constant column says nothing."""
    from prunefast.score.loss import standardised

    np.testing.assert_array_equal(standardised(np.full((4, 2), 3.0)), 0)
    loss = np.array([[1.0, 10.0], [3.0, 10.0]])
    np.testing.assert_allclose(standardised(loss), [[-1, 0], [1, 0]])


def test_an_unlabelled_surrogate(tmp_path):
    data = build(classes=None)
    config = TrainConfig(
        out=str(tmp_path), images=16, batch_size=16, model="dit-tiny/2", device="cpu", precision="fp32"
    )
    train(config, data)
    for method, chosen in SURROGATES.items():
        if method == "forgetting":
            continue
        scores = pf.score(data=data, checkpoint=tmp_path, method=method, times=2)
        assert np.isfinite(scores).all()
        assert len(np.unique(scores)) > 10
        made = chosen.make_options({})
        turned = pf.score(data=data, checkpoint=tmp_path, method=method, times=2, keep_hard=not made.keep_hard)
        np.testing.assert_allclose(turned, -scores, rtol=1e-6)
        assert chosen.direction(made) != chosen.direction(SimpleNamespace(keep_hard=not made.keep_hard))
    with pytest.raises(InputError, match="forgetting compares at least two checkpoints"):
        pf.score(data=data, checkpoint=tmp_path, method="forgetting")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"checkpoint": None}, "'loss' needs a trained model; give a run folder"),
        ({"checkpoint": []}, "the list is empty"),
        ({"checkpoint": "nowhere"}, "nowhere: there is no checkpoint"),
        ({"times": 0}, "times: must be a whole number from 1 to 512, not 0"),
        ({"times": 2.5}, "times: must be a whole number"),
        ({"keep_hard": "yes"}, "keep_hard: must be true or false"),
        ({"normalise": 1}, "normalise: must be true or false"),
        ({"tims": 3}, "tims: method 'loss' has no such option"),
        ({"method": "grand", "chunk": 0}, "chunk: must be a whole number from 1, not 0"),
        ({"method": "gaussian"}, "checkpoint: means nothing to 'gaussian'"),
        ({"method": "los"}, "method: 'los' is not a score; there are random.*moso"),
        ({"data": None}, "data: 'loss' looks at images"),
        ({"features": np.zeros((20, 2))}, "data: 'loss' looks at images"),
        ({"data": "larger"}, "was trained on images of 8 x 8, the data gives 16"),
        ({"data": "other"}, "was trained on other classes"),
    ],
)
def test_bad_input_is_one_line(trained, data, values, said):
    others = {
        "larger": from_arrays(np.zeros((4, 16, 16, 3), np.uint8), np.arange(4) % 2, classes=["a", "b"]),
        "other": from_arrays(np.zeros((4, 8, 8, 3), np.uint8), np.arange(4) % 2, classes=["x", "y"]),
    }
    options = {"data": data, "checkpoint": trained, "method": "loss"} | values
    if isinstance(options["data"], str):
        options["data"] = others[options["data"]]
    with pytest.raises(InputError, match=said) as caught:
        pf.score(**options)
    assert "\n" not in str(caught.value)
