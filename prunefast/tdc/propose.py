"""Who decides the widths: proposers get the space and the memory of all rounds so far, and answer with widths.

A proposal is a function of (space, memory, seed, round): a search that was stopped and goes on from its memory proposes
what one that was not stopped would have.
"""

import dataclasses
import json
import shlex
import subprocess
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from prunefast.errors import InputError, InputTypeError, MissingDependencyError
from prunefast.tdc.space import Space

LEAST_SHARE = 0.05  # of a full width, before all are scaled to the budget: no block is proposed to vanish
EXPLORING_ROUNDS = 5  # random proposals before evolution and Optuna begin to learn from them


@dataclasses.dataclass(frozen=True)
class Trial:
    """One round: what was proposed, and how it scored. loss None: a lost round, `reason` says why."""

    round: int
    widths: dict[str, int] | None
    flops: int | None
    loss: float | None
    reason: str | None = None


class LostRound(Exception):
    """A proposal that cannot be used; the round counts and the search goes on."""


class Proposer(Protocol):
    """What decides the widths of a round."""

    def propose(self, space: Space, memory: Sequence[Trial], round: int) -> dict[str, int]:
        """Widths of all blocks within the budget. Raises `LostRound` when there is none to give."""
        ...


def _random_shares(space: Space, seed: int, round: int) -> dict[str, float]:
    numbers = keyed_generator(seed, round).uniform(LEAST_SHARE, 1.0, len(space.names))
    return dict(zip(space.names, numbers.tolist(), strict=True))


def keyed_generator(seed: int, round: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed, round], dtype=np.uint64)))


class Uniform:
    """Every block the same share of its width: a control, and the first round of those that search."""

    def propose(self, space: Space, memory: Sequence[Trial], round: int) -> dict[str, int]:
        return space.fit(dict.fromkeys(space.names, 1.0))


@dataclasses.dataclass(frozen=True)
class Random:
    """Independent shares, uniform in 0.05 ... 1: a control. With one round a random network of the budget."""

    seed: int

    def propose(self, space: Space, memory: Sequence[Trial], round: int) -> dict[str, int]:
        return space.fit(_random_shares(space, self.seed, round))


@dataclasses.dataclass(frozen=True)
class Evolutionary:
    """A child of two of the best four trials: each width from either, half of them changed by a factor exp(0.3 z)."""

    seed: int

    def propose(self, space: Space, memory: Sequence[Trial], round: int) -> dict[str, int]:
        if round == 0:
            return Uniform().propose(space, memory, round)
        scored = sorted((t for t in memory if t.loss is not None and t.widths), key=lambda t: (t.loss, t.round))
        if round < EXPLORING_ROUNDS or not scored:
            return space.fit(_random_shares(space, self.seed, round))
        draw = keyed_generator(self.seed, round)
        mother, father = (scored[int(draw.integers(min(4, len(scored))))].widths for _ in range(2))
        assert mother is not None
        assert father is not None
        shares = {}
        for name, entry in space.costs.widths.items():
            share = (mother if draw.random() < 0.5 else father)[name] / entry.width
            shares[name] = share * float(np.exp(0.3 * draw.standard_normal())) if draw.random() < 0.5 else share
        return space.fit(shares)


@dataclasses.dataclass(frozen=True)
class Optuna:
    """Optuna's tree-structured Parzen estimator (Bergstra et al. 2011) over the shares.

    The memory is the study: it is rebuilt from it every round with a sampler seeded by (seed, round), so that stopping
    changes nothing and there is no second file that could disagree.
    """

    seed: int

    def __post_init__(self) -> None:
        _import_optuna()

    def propose(self, space: Space, memory: Sequence[Trial], round: int) -> dict[str, int]:
        if round == 0:
            return Uniform().propose(space, memory, round)
        optuna = _import_optuna()
        seed = int(keyed_generator(self.seed, round).integers(2**32))
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=EXPLORING_ROUNDS, multivariate=True)
        study = optuna.create_study(sampler=sampler)
        shares = {name: optuna.distributions.FloatDistribution(LEAST_SHARE, 1.0) for name in space.names}
        for trial in memory:
            if trial.loss is not None and trial.widths is not None:
                params = {
                    name: min(max(trial.widths[name] / entry.width, LEAST_SHARE), 1.0)
                    for name, entry in space.costs.widths.items()
                }
                study.add_trial(optuna.create_trial(params=params, distributions=shares, value=trial.loss))
        return space.fit(study.ask(shares).params)


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise MissingDependencyError(
            f'proposer="optuna" needs Optuna: pip install "prunefast[tdc]", or take proposer="evolutionary" [{error}]'
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.logging.disable_propagation()
    return optuna


@dataclasses.dataclass(frozen=True)
class LanguageProposer:
    """Widths from a language model, as the paper has GPT-4 decide them with a memory bank.

    Args:
        ask: gets the task with the memory as text and answers with text: one JSON object, every block's name with its
            width. Anything else is a lost round, which the next text tells of.
    """

    ask: Callable[[str], str]

    def propose(self, space: Space, memory: Sequence[Trial], round: int) -> dict[str, int]:
        if round == 0:
            return Uniform().propose(space, memory, round)
        answer = self.ask(describe(space, memory))
        if not isinstance(answer, str):
            raise InputTypeError(f"ask: answered with {type(answer).__name__}; it must give text")
        return parse_widths(answer, space)


def describe(space: Space, memory: Sequence[Trial]) -> str:
    """The task and the memory, for a language model."""
    lines = [
        "You decide how wide each block of a diffusion network is after structural pruning. A lower loss is better.",
        f"The network may use {space.budget} FLOPs an image; unpruned it uses {space.costs.full}, of which "
        f"{space.costs.fixed} do not depend on the widths.",
        "Blocks, in order: name, full width, the number its width must be a multiple of, FLOPs per unit of width:",
    ]
    for name, entry in space.costs.widths.items():
        lines.append(f"  {name} {entry.width} {entry.step} {space.costs.slopes[name]}")
    lines.append("Rounds so far, as JSON:" if memory else "This is the first round.")
    for trial in memory:
        facts = {"round": trial.round, "widths": trial.widths, "flops": trial.flops, "loss": trial.loss}
        lines.append("  " + json.dumps(facts if trial.reason is None else {**facts, "rejected": trial.reason}))
    lines.append("Answer with one JSON object and nothing else: every block's name with its width, within the budget.")
    return "\n".join(lines) + "\n"


def parse_widths(answer: str, space: Space) -> dict[str, int]:
    """The widths of an answer, or `LostRound` that says what is wrong with it."""

    def refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = dict(pairs)
        if len(names) < len(pairs):
            raise ValueError("a name comes twice")
        return names

    try:
        widths = json.loads(answer, object_pairs_hook=refuse_twice)
    except (ValueError, RecursionError) as error:
        raise LostRound(f"the answer is not one JSON object ({error})") from None
    if not isinstance(widths, dict):
        raise LostRound("the answer is not one JSON object")
    try:
        return space.check(widths)
    except (InputError, InputTypeError) as error:
        raise LostRound(str(error)) from None


def command_to_ask(command: str) -> Callable[[str], str]:
    """A function for `LanguageProposer` that gives the text to a program and takes its output as the answer."""
    words = shlex.split(command)
    if not words:
        raise InputError("ask: the command is empty; name a program that reads the task and prints the widths")

    def ask(text: str) -> str:
        try:
            done = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"ask: {words[0]} cannot be run ({error})") from None
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise InputError(f"ask: {words[0]} ended with status {done.returncode} ({last})")
        return done.stdout

    return ask


def make_proposer(name: str, seed: int, ask: Callable[[str], str] | None = None) -> Proposer:
    """The proposer of that name; `ask` is that of "language"."""
    if (name == "language") != (ask is not None):
        raise InputError(
            'ask: proposer="language" needs a function that answers' if ask is None else f"ask: not used by {name!r}"
        )
    if name == "language":
        assert ask is not None
        return LanguageProposer(ask)
    kinds: dict[str, Callable[[int], Proposer]] = {"optuna": Optuna, "evolutionary": Evolutionary, "random": Random}
    return kinds[name](seed) if name in kinds else Uniform()
