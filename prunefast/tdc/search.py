"""The search for widths, in rounds: propose, prune, fine-tune a little, score, remember, propose again."""

import copy
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunefast.data import ImageDataset
from prunefast.errors import InputError
from prunefast.files import write_text
from prunefast.progress import progress as show_progress
from prunefast.select import Coreset
from prunefast.stream import Batch, CoresetLoader
from prunefast.tdc.propose import LostRound, Proposer, Trial
from prunefast.tdc.prune import prune
from prunefast.tdc.space import Space
from prunefast.train.config import TrainConfig
from prunefast.train.setup import make_plan, make_step
from prunefast.train.step import derived_seed, forked_generators, seed_generators


class Proxy:
    """Scores networks on fixed (image, time, noise) triples of one timestep group, the same for every network.

    Args:
        config: of the base network's training; `timesteps` is the group's.
        images: triples to score on, rounded up to whole batches.
        steps: fine-tuning steps before, on other triples, the same for every network too.
        lr: of these steps.
        seed: of all triples.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: ImageDataset,
        coreset: Coreset,
        *,
        images: int,
        steps: int,
        lr: float,
        seed: int,
    ):
        self.plan = make_plan(config.replace(init_from=None), data, coreset)
        self.steps, self.lr = steps, lr
        self.seed = derived_seed("tdc proxy", seed) % 2**62
        self.batches = -(-images // config.batch_size)
        self._loader = CoresetLoader(
            data,
            coreset,
            batch_size=config.batch_size,
            seed=self.seed,
            threads=config.threads,
            device=self.plan.device,
            placement=config.placement,  # type: ignore[arg-type]
            loader=config.loader,  # type: ignore[arg-type]
            on_error=config.on_unreadable,  # type: ignore[arg-type]
        )
        self._kept: list[Batch] = []

    @property
    def images(self) -> int:
        return self.batches * self.plan.config.batch_size

    def _batch(self, number: int) -> Batch:
        while len(self._kept) <= number:
            iterator = iter(self._loader)
            self._kept += [next(iterator) for _ in range(self.batches + self.steps - len(self._kept))]
        return self._kept[number]

    def loss(self, model: nn.Module) -> float:
        """Mean loss of `model` as it is."""
        model = model.to(self.plan.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        step = make_step(self.plan, model, seed=self.seed)
        with torch.no_grad():
            return sum(float(step(self._batch(number))) for number in range(self.batches)) / self.batches

    def tuned_loss(self, model: nn.Module) -> float:
        """Mean loss of a copy of `model` after the fine-tuning steps."""
        if not self.steps:
            return self.loss(copy.deepcopy(model))
        model = copy.deepcopy(model).train()
        model = model.to(self.plan.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        step = make_step(self.plan, model, seed=self.seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.lr, weight_decay=0.0, fused=True)
        with forked_generators(self.plan.device):
            for number in range(self.steps):
                seed_generators(self.plan.device, derived_seed("tdc step", self.seed, number))
                step(self._batch(self.batches + number)).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        return self.loss(model)

    def accumulate_gradients(self, model: nn.Module) -> None:
        """Put the gradient of the loss on the scored triples into the parameters, for importance "taylor"."""
        model.zero_grad(set_to_none=True)
        step = make_step(self.plan, model.eval(), seed=self.seed)
        for number in range(self.batches):
            step(self._batch(number)).backward()


def search(
    model: nn.Module,
    space: Space,
    proposer: Proposer,
    proxy: Proxy,
    order: dict[str, Tensor],
    *,
    rounds: int,
    memory_file: Path,
    progress: bool = False,
    title: str = "search",
) -> list[Trial]:
    """All rounds of one group; those in `memory_file` are not done again."""
    memory = read_memory(memory_file)[:rounds]
    with show_progress(title, rounds - len(memory), "rounds", silent=not progress) as bar:
        while len(memory) < rounds:
            memory.append(_one_round(model, space, proposer, proxy, order, memory))
            write_text(memory_file, "".join(json.dumps(dataclasses.asdict(trial)) + "\n" for trial in memory))
            bar.advance(1)
    return memory


def _one_round(
    model: nn.Module,
    space: Space,
    proposer: Proposer,
    proxy: Proxy,
    order: dict[str, Tensor],
    memory: Sequence[Trial],
) -> Trial:
    number = len(memory)
    try:
        widths = proposer.propose(space, memory, number)
    except LostRound as reason:
        return Trial(number, None, None, None, str(reason))
    widths = space.check(widths)
    flops = space.costs.flops(widths)
    for before in memory:  # the score is a function of the widths
        if before.widths == widths and before.loss is not None:
            return Trial(number, widths, flops, before.loss)
    loss = proxy.tuned_loss(prune(model, widths, order))
    if not loss < float("inf"):
        return Trial(number, widths, flops, None, "the loss is not finite")
    return Trial(number, widths, flops, loss)


def best(memory: Sequence[Trial], name: str) -> Trial:
    """The trial of the lowest loss, the earliest of equals."""
    scored = [trial for trial in memory if trial.loss is not None]
    if not scored:
        reason = memory[-1].reason if memory else "there were none"
        raise InputError(f"{name}: every round was lost ({reason}); take more rounds or another proposer")
    return min(scored, key=lambda trial: (trial.loss, trial.round))


def read_memory(path: Path) -> list[Trial]:
    """The trials of a search.jsonl; none where there is no file."""
    if not path.exists():
        return []
    trials: list[Trial] = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            values: dict[str, Any] = json.loads(line)
            trials.append(Trial(**values))
            if trials[-1].round != len(trials) - 1:
                raise ValueError
    except (OSError, ValueError, TypeError):
        raise InputError(f"{path}: is not what a search wrote; delete it to search again") from None
    return trials
