"""Timestep groups: budgets by hand, edges against the definition, routing at the edges, copies that change nothing."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefast.diffusion import (
    PROCESSES,
    SAMPLERS,
    Denoiser,
    GroupedDenoiser,
    TimestepGroups,
    budgets,
    equal_snr,
    equal_times,
    make_process,
    sample_images,
)
from prunefast.diffusion.groups import evaluation_times
from prunefast.errors import InputError
from prunefast.models import build_model


def test_budgets_by_hand() -> None:
    assert budgets(5, 0.5) == pytest.approx((0.6, 0.7, 0.8, 0.9, 1.0))
    assert budgets(2, 0.2) == pytest.approx((0.6, 1.0))
    assert budgets(5, 0.5, reverse=True) == pytest.approx((1.0, 0.9, 0.8, 0.7, 0.6))
    assert budgets(1, 0.3) == (1.0,)


@given(n=st.integers(1, 40), k=st.floats(0.01, 1.0))
@settings(max_examples=30, deadline=None)
def test_mean_budget_is_the_closed_form(n: int, k: float) -> None:
    assert sum(budgets(n, k)) / n == pytest.approx(((n + 1) + (n - 1) * k) / (2 * n))


@pytest.mark.parametrize("split", [equal_times, equal_snr])
@pytest.mark.parametrize("name", PROCESSES)
def test_every_training_time_of_a_group_is_sampled_from_its_network(name: str, split) -> None:
    process = make_process(name)
    groups = split(process, 5)
    least = 2.0**-24 if process.discrete else 1e-6  # continuous times are float32, and may round onto the edge
    u = torch.tensor([least, 0.1, 0.5, 0.9, 1 - least], dtype=torch.float64)
    for group in range(1, 6):
        low, high = groups.shares(group)
        for t in process.sample_time(low + (high - low) * u).tolist():
            assert groups.group_of(t) == group
    assert groups.shares(5)[0] == 0  # group N has the least noise
    assert groups.shares(1)[1] == 1


def test_ddpm_groups_of_equal_times() -> None:
    groups = equal_times(make_process("ddpm-linear"), 5)
    assert [groups.group_of(t) for t in (0, 199, 199.9, 200, 399, 400, 799, 800, 999)] == [5, 5, 5, 4, 4, 3, 2, 1, 1]
    # whole times that N does not divide: nobody's and two groups' times do not exist
    groups = equal_times(make_process("ddpm-linear", steps=10), 3)
    assert [groups.group_of(t) for t in range(10)] == [3, 3, 3, 2, 2, 2, 1, 1, 1, 1]


def test_snr_edges_are_even_in_decibels() -> None:
    process = make_process("edm")
    groups = equal_snr(process, 4)
    times = process.sample_time(torch.tensor(groups.edges[1:-1], dtype=torch.float64))
    decibels = [-20 * math.log10(ratio) for ratio in (0.002, *process.ratio(times).tolist(), 80.0)]
    steps = [a - b for a, b in itertools.pairwise(decibels)]
    assert steps == pytest.approx([steps[0]] * 4, rel=1e-4)


def test_groups_that_cannot_be_are_refused() -> None:
    process = make_process("ddpm-linear")
    for edges in ((0.0, 0.5), (0.5, 1.0), (0.0, 0.6, 0.4, 1.0), (0.0, float("nan"), 1.0)):
        with pytest.raises(InputError, match="edges"):
            TimestepGroups(process, edges)
    with pytest.raises(InputError, match="fewer groups"):
        equal_times(make_process("ddpm-linear", steps=2), 5)
    with pytest.raises(InputError, match="groups is 0"):
        equal_times(process, 0)
    with pytest.raises(InputError, match="k is 0"):
        budgets(3, 0.0)


def network(seed: int) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model("unet-tiny", image_size=8, width=8, channel_multipliers=[1, 2], num_classes=2).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", ["ddpm-cosine", "flow", "edm"])
def test_copies_of_one_network_give_its_bits(name: str, sampler: str) -> None:
    process, model = make_process(name), network(0)
    alone = Denoiser(model, process, guidance=1.5)
    grouped = GroupedDenoiser(equal_times(process, 3), [Denoiser(network(0), process, guidance=1.5) for _ in range(3)])
    arguments = {"image_size": 8, "labels": [0, 1], "sampler": sampler, "steps": 5}
    assert torch.equal(sample_images(alone, 2, **arguments), sample_images(grouped, 2, **arguments))


def test_a_learned_variance_is_asked_of_the_group() -> None:
    process = make_process("ddpm-linear")
    model = build_model("unet-tiny", image_size=8, width=8, channel_multipliers=[1, 2], learn_sigma=True).eval()
    grouped = GroupedDenoiser(equal_times(process, 2), [Denoiser(model, process), Denoiser(model, process)])
    arguments = {"image_size": 8, "sampler": "ddpm", "steps": 4, "variance": "learned"}
    assert torch.equal(sample_images(Denoiser(model, process), 2, **arguments), sample_images(grouped, 2, **arguments))


def test_every_evaluation_asks_its_own_group() -> None:
    """Heun's two evaluations of a step may lie in two groups; each goes by its own time."""
    process = make_process("flow")
    groups = equal_times(process, 3)
    asked: list[tuple[int, float]] = []

    class Spy:
        prediction, guidance, device, model, dtype = "flow", 1.0, torch.device("cpu"), None, torch.float32

        def __init__(self, group: int):
            self.group = group

        def __call__(self, x, t, labels=None):
            asked.append((self.group, t))
            return x

    grouped = GroupedDenoiser(groups, [Spy(group) for group in (1, 2, 3)])
    sample_images(grouped, 1, image_size=2, sampler="heun", steps=4)
    assert [t for _, t in asked] == pytest.approx(evaluation_times(process, "heun", 4))
    assert [group for group, _ in asked] == [1 if t >= 2 / 3 else 2 if t >= 1 / 3 else 3 for _, t in asked]
    assert any(a[0] != b[0] and b[1] < a[1] for a, b in zip(asked[::2], asked[1::2], strict=False))


@pytest.mark.parametrize(("sampler", "calls"), [("ddim", 6), ("ddpm", 6), ("euler", 6), ("heun", 11)])
def test_evaluations_of_the_samplers(sampler: str, calls: int) -> None:
    times = evaluation_times(make_process("ddpm-linear"), sampler, 6)
    assert len(times) == calls
    assert times == sorted(times, reverse=True)
