"""Class weights by DRO beside a plain torch loop: `pytest benchmarks/bench_reweight.py`.

No package does this for images. The loop is what one writes from DoReMi's algorithm: two forward passes, excess by
class, exponentiated gradient, a weighted backward pass, Adam; without checkpoints, EMA, log or resume, which ours has
in its time. Both see the same number of images, from memory, with the same networks.
"""

import numpy as np
import pytest
import torch

import prunefast as pf
from prunefast.data import from_arrays
from prunefast.train import TrainConfig, train
from prunefast.train.network import load_network

pytest.importorskip("pytest_benchmark")

IMAGES, BATCH, CLASSES = 512, 32, 10
OPTIONS = {"batch_size": BATCH, "model": "unet-tiny", "process": "flow", "device": "cpu", "precision": "fp32"}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    pixels = np.random.default_rng(0).integers(0, 256, (1000, 16, 16, 3), dtype=np.uint8)
    data = from_arrays(pixels, np.arange(1000) % CLASSES, classes=[str(c) for c in range(CLASSES)])
    folder = tmp_path_factory.mktemp("reference")
    train(TrainConfig(out=str(folder), images=64, dropout=0.0, **OPTIONS), data)
    return data, folder


def plain_loop(data, folder):
    target = load_network(folder, torch.device("cpu")).model.requires_grad_(False)
    proxy = load_network(folder, torch.device("cpu")).model.requires_grad_(True).train()
    optimiser = torch.optim.AdamW(proxy.parameters(), 1e-4)
    generator = torch.Generator().manual_seed(0)
    weights = average = torch.full((CLASSES,), 1 / CLASSES, dtype=torch.float64)
    for step in range(IMAGES // BATCH):
        index = torch.randint(len(data), (BATCH,), generator=generator)
        labels = torch.from_numpy(data.labels)[index]
        x0 = torch.from_numpy(data.images(index.numpy())).permute(0, 3, 1, 2).float() / 127.5 - 1
        noise, t = torch.randn(x0.shape, generator=generator), torch.rand(BATCH, generator=generator)
        x = (1 - t[:, None, None, None]) * x0 + t[:, None, None, None] * noise
        with torch.no_grad():
            expected = (target(x, 1000 * t, labels) - noise + x0).square().mean((1, 2, 3))
        loss = (proxy(x, 1000 * t, labels) - noise + x0).square().mean((1, 2, 3))
        excess = torch.zeros(CLASSES, dtype=torch.float64)
        excess.index_add_(0, labels, (loss.detach() - expected).clamp(min=0).double())
        excess /= torch.bincount(labels, minlength=CLASSES).clamp(min=1)
        weights = torch.softmax(weights.log() + excess, 0) * (1 - 1e-3) + 1e-3 / CLASSES
        average = average + (weights - average) / (step + 2)
        optimiser.zero_grad()
        (CLASSES * weights[labels].float() * loss).mean().backward()
        optimiser.step()
    return average


@pytest.mark.parametrize("who", ["prunefast", "plain torch"])
def test_reweight(benchmark, who, reference, tmp_path):
    benchmark.group = f"class weights, {IMAGES} images of 16 x 16, unet-tiny, batches of {BATCH}"
    data, folder = reference
    runs = iter(range(100))

    def reweight():
        config = TrainConfig(out=str(tmp_path / str(next(runs))), images=IMAGES, dropout=0.0, **OPTIONS)
        return pf.reweight(config, data, reference=folder).average

    found = benchmark.pedantic(reweight if who == "prunefast" else lambda: plain_loop(data, folder), rounds=3)
    assert float(np.asarray(found).sum()) == pytest.approx(1)
