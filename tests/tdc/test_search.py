"""Proposals and rounds: budgets are kept and used, memory makes a search resumable, bad answers are lost rounds."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from prunefast.data import open_dataset
from prunefast.diffusion import equal_times, make_process
from prunefast.errors import InputError, MissingDependencyError
from prunefast.models import build_model
from prunefast.models.flops import WidthCosts
from prunefast.select import Coreset
from prunefast.tdc import LanguageProposer, LostRound, Space, Trial
from prunefast.tdc.propose import Evolutionary, Optuna, Random, Uniform, command_to_ask, describe, make_proposer
from prunefast.tdc.search import Proxy, best, read_memory, search
from prunefast.tdc.similarity import contiguous_groups
from prunefast.train import TrainConfig


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        return build_model("unet-tiny", image_size=8, width=16, channel_multipliers=[1, 2], blocks=1)


@pytest.fixture(scope="module")
def space(model: torch.nn.Module) -> Space:
    costs = WidthCosts.of(model)
    return Space(costs, int(0.6 * costs.full))


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_fit_keeps_the_budget_and_uses_it(space: Space, data: st.DataObject) -> None:
    shares = {name: data.draw(st.floats(0.05, 1.0)) for name in space.names}
    widths = space.check(space.fit(shares))
    # nothing more fits: each further step of any block that is not full would go over
    for name, entry in space.costs.widths.items():
        wider = {**widths, name: widths[name] + entry.step}
        assert widths[name] == entry.width or space.costs.flops(wider) > space.budget - max(
            space.costs.slopes[n] * e.step for n, e in space.costs.widths.items()
        )
    assert space.costs.flops(widths) > 0.9 * space.budget


def test_a_full_budget_prunes_nothing(space: Space) -> None:
    full = Space(space.costs, space.costs.full)
    assert full.fit(dict.fromkeys(full.names, 1.0)) == {name: e.width for name, e in full.costs.widths.items()}


def test_a_budget_below_the_least_is_refused(space: Space) -> None:
    with pytest.raises(InputError, match="larger k"):
        Space(space.costs, space.costs.least - 1)


def fake_loss(widths: dict[str, int], space: Space) -> float:
    """Wants the first blocks wide and the last ones narrow."""
    names = space.names
    return sum(place * widths[name] / space.costs.widths[name].width for place, name in enumerate(names)) / len(names)


def run_search(proposer, space: Space, rounds: int) -> list[Trial]:
    memory: list[Trial] = []
    for number in range(rounds):
        widths = space.check(proposer.propose(space, memory, number))
        memory.append(Trial(number, widths, space.costs.flops(widths), fake_loss(widths, space)))
    return memory


@pytest.mark.parametrize("kind", [Evolutionary, Optuna, Random])
def test_proposals_follow_from_memory_seed_and_round(kind, space: Space) -> None:
    if kind is Optuna:
        pytest.importorskip("optuna")
    once, again = run_search(kind(3), space, 9), run_search(kind(3), space, 9)
    assert once == again
    assert once != run_search(kind(4), space, 9)
    assert len({json.dumps(trial.widths) for trial in once}) > 5
    # what a stopped search goes on with
    assert kind(3).propose(space, once[:7], 7) == once[7].widths


@pytest.mark.parametrize("kind", [Evolutionary, Optuna])
def test_search_beats_uniform_and_random(kind, space: Space) -> None:
    if kind is Optuna:
        pytest.importorskip("optuna")
    searched = min(trial.loss for trial in run_search(kind(0), space, 40))
    uniform = run_search(Uniform(), space, 1)[0].loss
    at_random = min(trial.loss for trial in run_search(Random(0), space, 40))
    assert searched < at_random
    assert searched < uniform


def test_language_proposer_reads_strictly(space: Space) -> None:
    good = space.fit(dict.fromkeys(space.names, 1.0))
    name = space.names[0]
    bad = {
        "not JSON": "the widths are all 8",
        "prose around": f"Here: {json.dumps(good)}",
        "a list": json.dumps(list(good.values())),
        "one missing": json.dumps({key: good[key] for key in space.names[1:]}),
        "one unknown": json.dumps({**good, "extra": 4}),
        "twice": json.dumps(good)[:-1] + f', "{name}": {good[name]}}}',
        "a fraction": json.dumps({**good, name: good[name] + 0.5}),
        "a truth": json.dumps({**good, name: True}),
        "no multiple": json.dumps({**good, name: good[name] + 1}),
        "over budget": json.dumps({key: entry.width for key, entry in space.costs.widths.items()}),
        "nothing": "",
        "deep": "[" * 100_000,
    }
    for answer in bad.values():
        proposer = LanguageProposer(lambda text, answer=answer: answer)
        with pytest.raises(LostRound):
            proposer.propose(space, [], 1)
    assert LanguageProposer(lambda text: f" {json.dumps(good)}\n").propose(space, [], 1) == good


def test_language_proposer_is_told_everything(space: Space) -> None:
    memory = [Trial(0, space.fit(dict.fromkeys(space.names, 1.0)), 5, 0.25), Trial(1, None, None, None, "too wide")]
    text = describe(space, memory)
    for part in (*space.names, str(space.budget), "0.25", "too wide"):
        assert part in text


class Scripted:
    """A proxy that scores by `fake_loss` and counts."""

    def __init__(self, space: Space):
        self.space, self.calls = space, 0

    def tuned_loss(self, model: torch.nn.Module) -> float:
        self.calls += 1
        full = {name: entry.width for name, entry in self.space.costs.widths.items()}
        return fake_loss({**full, **model.config["widths"]}, self.space)


def test_rounds_are_remembered_and_lost_ones_go_on(space: Space, model: torch.nn.Module, tmp_path: Path) -> None:
    pytest.importorskip("torch_pruning")
    from prunefast.tdc.prune import channel_order

    order = channel_order(model, "magnitude")
    answers = ["nonsense", json.dumps(space.fit(dict.fromkeys(space.names, 0.5)))]
    proposer = LanguageProposer(lambda text: answers[text.count("rejected")])
    proxy = Scripted(space)
    file = tmp_path / "search.jsonl"
    memory = search(model, space, proposer, proxy, order, rounds=3, memory_file=file)
    assert [trial.loss is None for trial in memory] == [False, True, False]
    assert "JSON" in memory[1].reason
    assert proxy.calls == 1  # the third round proposed the first one's widths: they are not scored again
    assert memory[2].loss == memory[0].loss
    assert best(memory, "group 1") == memory[0]
    assert read_memory(file) == memory
    # going on does no round twice
    again = Scripted(space)
    assert search(model, space, proposer, again, order, rounds=3, memory_file=file) == memory
    assert again.calls == 0
    with pytest.raises(InputError, match="every round was lost"):
        best(memory[1:2], "group 1")


def test_a_damaged_memory_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "search.jsonl"
    for text in ("{", '{"round": 1, "widths": null, "flops": null, "loss": null}\n', "[]\n", '{"a": 1}\n'):
        file.write_text(text)
        with pytest.raises(InputError, match="delete it"):
            read_memory(file)


def test_a_program_may_answer(tmp_path: Path) -> None:
    program = tmp_path / "answer"
    program.write_text("#!/bin/sh\ncat > /dev/null\necho '{}'\n")
    program.chmod(0o755)
    assert command_to_ask(str(program))("task") == "{}\n"
    program.write_text("#!/bin/sh\necho no >&2\nexit 3\n")
    with pytest.raises(InputError, match="status 3"):
        command_to_ask(str(program))("task")
    with pytest.raises(InputError, match="cannot be run"):
        command_to_ask(str(tmp_path / "none"))("task")
    with pytest.raises(InputError, match="empty"):
        command_to_ask(" ")


def test_proposers_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="needs a function"):
        make_proposer("language", 0)
    with pytest.raises(InputError, match="not used"):
        make_proposer("uniform", 0, str)
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(MissingDependencyError, match=r"prunefast\[tdc\]"):
        make_proposer("optuna", 0)


def test_groups_of_similar_gradients() -> None:
    """Bins in three blocks of like gradients: the edges are where the blocks meet, whatever their sizes."""
    sizes = [3, 12, 5]
    directions = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    unit = torch.cat([directions[i].expand(size, 3) for i, size in enumerate(sizes)])
    groups = contiguous_groups(make_process("ddpm-linear"), unit @ unit.T, 3)
    assert groups.edges == (0.0, 0.15, 0.75, 1.0)
    # all alike: any partition is as good, and there is one
    assert len(contiguous_groups(make_process("flow"), torch.ones(20, 20, dtype=torch.float64), 4)) == 4
    assert len(equal_times(make_process("flow"), 1)) == 1


def test_the_proxy_replaces_what_cannot_be_read(tmp_path):
    for k in range(12):
        pixels = np.random.default_rng(k).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        (tmp_path / f"class{k % 2}").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"class{k % 2}" / f"{k}.png")
    data = open_dataset(tmp_path)
    (tmp_path / data.keys[3]).unlink()
    model = build_model("unet-tiny", image_size=8, num_classes=2)
    for how, said in (
        ("raise", pytest.raises(InputError)),
        ("replace", pytest.warns(UserWarning, match="in its place")),
    ):
        config = TrainConfig(out="x", images=8, batch_size=12, model="unet-tiny", device="cpu", on_unreadable=how)
        proxy = Proxy(config, data, Coreset.full(data), images=12, steps=0, lr=0.0, seed=0)
        with said:
            assert np.isfinite(proxy.loss(model))
