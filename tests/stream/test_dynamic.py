"""Dynamic pruning: without bias, a function of seed, epoch and what was observed, and resumable at any image."""

import numpy as np
import pytest
import torch

from prunefast.data import ImageDataset, from_arrays
from prunefast.errors import InputError
from prunefast.select import Coreset
from prunefast.stream import CoresetLoader, DynamicPruning
from prunefast.stream.dynamic import BINS

N = 60
LOSSES = torch.linspace(0.1, 2.0, N)


def observed(seed: int = 0, fraction: float = 0.5, until: int = 10**9) -> DynamicPruning:
    """One that has seen every image once, all at one time."""
    pruning = DynamicPruning(N, seed, fraction=fraction, until=until)
    places, factors = pruning.at(np.arange(N))
    assert sorted(places) == list(range(N))  # nothing is known yet, so the first epoch is whole
    assert (factors == 1).all()
    pruning.observe(torch.arange(N), torch.full((N,), 0.3), LOSSES)
    return pruning


def epoch(pruning: DynamicPruning) -> tuple[np.ndarray, np.ndarray]:
    """The whole next epoch."""
    pruning.at(np.array([pruning._end]))
    return pruning.at(np.arange(pruning._begin, pruning._end))


def test_only_easy_images_are_left_out_and_the_rest_count_for_them() -> None:
    pruning = observed(fraction=0.75)
    places, factors = epoch(pruning)
    easy = (LOSSES.mean() > LOSSES).numpy()
    assert set(np.flatnonzero(~easy)) <= set(places)
    assert len(set(places)) == len(places) < N
    assert np.array_equal(factors, np.where(easy[places], np.float32(4), np.float32(1)))
    assert pruning.left_out == N - len(places)


@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.9])
def test_the_expected_gradient_is_that_of_whole_epochs(fraction: float) -> None:
    """Mean over seeds of sum over the epoch of factor x gradient, against the sum over all images."""
    gradients = np.random.default_rng(1).normal(1.0, 1.0, (N, 3))
    sums = []
    for seed in range(400):
        places, factors = epoch(observed(seed, fraction))
        sums.append((factors[:, None] * gradients[places]).sum(0))
    mean, error = np.mean(sums, 0), np.std(sums, 0) / np.sqrt(len(sums))
    assert (np.abs(mean - gradients.sum(0)) < 4 * error).all()
    # an epoch without the factor is biased by far more than the tolerance
    plain = np.mean([gradients[epoch(observed(seed, fraction))[0]].sum(0) for seed in range(50)], 0)
    assert (np.abs(plain - gradients.sum(0)) > 4 * error).any()


def test_the_share_left_out_is_the_fraction() -> None:
    easy = int((LOSSES.mean() > LOSSES).sum())
    gone = [observed(seed, 0.4) for seed in range(200)]
    for pruning in gone:
        epoch(pruning)
    assert np.mean([pruning.left_out for pruning in gone]) == pytest.approx(0.4 * easy, rel=0.05)


def test_the_last_epochs_are_whole() -> None:
    pruning = observed(until=N)  # the second epoch begins at N
    places, factors = epoch(pruning)
    assert sorted(places) == list(range(N))
    assert (factors == 1).all()


def test_losses_are_compared_with_those_of_their_time() -> None:
    """Late times have a hundred times the loss: an image is easy among its like."""
    pruning = DynamicPruning(4, 0, fraction=0.5, until=10**9)
    pruning.observe(torch.arange(4), torch.tensor([0.01, 0.01, 0.99, 0.99]), torch.tensor([1.0, 3.0, 100.0, 300.0]))
    assert pruning._scores.tolist() == pytest.approx([0.5, 1.5, 0.5, 1.5])


def test_bin_means_by_hand_and_non_finite_losses() -> None:
    pruning = DynamicPruning(3, 0, fraction=0.5, until=10**9)
    pruning.observe(torch.tensor([0, 1]), torch.zeros(2), torch.tensor([1.0, 3.0]))
    pruning.observe(torch.tensor([1, 2]), torch.zeros(2), torch.tensor([8.0, float("nan")]))
    expected = 2.0 + (8.0 - 2.0) * (1 - np.exp(-1 / 1000))
    assert pruning._means[0].item() == pytest.approx(expected)
    assert torch.isnan(pruning._means[1:]).all()
    assert len(pruning._means) == BINS
    assert pruning._scores[1].item() == pytest.approx(8.0 / expected)
    assert torch.isnan(pruning._scores[2])  # never seen with a finite loss, so never left out
    pruning.observe(torch.tensor([0, 0]), torch.zeros(2), torch.tensor([2.0, 1.0]))
    assert pruning._scores[0].item() == pytest.approx(2.0 / pruning._means[0].item())


def test_state_goes_on_exactly() -> None:
    ours, other = observed(3), DynamicPruning(N, 3, fraction=0.5, until=10**9)
    ours.at(np.arange(N, N + 7))  # in the middle of the second epoch
    assert ours.tensors()["places"].dtype == torch.int64
    other.load({name: tensor.clone() for name, tensor in ours.tensors().items()})
    for begin in range(N + 7, 4 * N, 9):
        positions = np.arange(begin, begin + 9)
        (a, b), (c, d) = ours.at(positions), other.at(positions)
        assert np.array_equal(a, c)
        assert np.array_equal(b, d)
        losses = torch.rand(9, generator=torch.Generator().manual_seed(begin))
        for pruning in (ours, other):
            pruning.observe(torch.from_numpy(a), torch.full((9,), 0.5), losses)


@pytest.fixture
def data() -> ImageDataset:
    images = np.random.default_rng(0).integers(0, 255, (N, 4, 4, 3), dtype=np.uint8)
    return from_arrays(images, np.arange(N) % 2)


@pytest.mark.parametrize("placement", ["memory", "disk"])
def test_loader_gives_the_chosen_images(data: ImageDataset, placement: str) -> None:
    coreset = Coreset.full(data)
    pruning = DynamicPruning(N, 5, fraction=0.5, until=10**9)
    loader = CoresetLoader(data, coreset, batch_size=16, seed=5, placement=placement, pruning=pruning, threads=1)
    oracle = DynamicPruning(N, 5, fraction=0.5, until=10**9)
    pixels = np.asarray(next(iter(data.batches(np.arange(N), N)))[1])
    for step, batch in zip(range(12), loader, strict=False):
        places, factors = oracle.at(np.arange(16 * step, 16 * step + 16))
        assert batch.index.tolist() == places.tolist()
        assert batch.weight.tolist() == factors.tolist()
        assert np.array_equal(batch.images.permute(0, 2, 3, 1).numpy(), pixels[places])
        for each in (pruning, oracle):
            each.observe(batch.index, torch.full((16,), 0.1), LOSSES[batch.index])
    assert oracle.left_out > 0


def test_loader_refuses_what_cannot_be(data: ImageDataset) -> None:
    pruning = DynamicPruning(N, 0, fraction=0.5, until=0)
    for wrong in ({"epochs": 1}, {"shuffle": False}, {"start": 3}):
        with pytest.raises(InputError, match="pruning"):
            CoresetLoader(data, Coreset.full(data), batch_size=4, pruning=pruning, **wrong)
