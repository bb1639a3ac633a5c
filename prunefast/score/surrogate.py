"""The registry of scores that need images and a trained diffusion model, and the one function over it."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prunefast.errors import InputError
from prunefast.progress import progress as show_progress
from prunefast.score import difficulty, el2n, forgetting, grand, loss, moso
from prunefast.score.options import check_seed, make_options

State = dict[str, Any]
Checkpoints = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True)
class SurrogateMethod:
    """function(data, networks one after the other, options, seed, bar) -> float64 [N]; directions by keep_hard."""

    name: str
    function: Callable[..., np.ndarray]
    options: type
    easy: str
    hard: str
    passes: int = 1  # over the images, for each checkpoint

    def make_options(self, given: dict[str, Any]) -> Any:
        return make_options(self.options, self.name, given)

    def direction(self, options: Any) -> str:
        return self.hard if options.keep_hard else self.easy


SURROGATES: dict[str, SurrogateMethod] = {
    method.name: method
    for method in (
        SurrogateMethod("loss", loss.loss_scores, loss.LossOptions, loss.EASY, loss.HARD),
        SurrogateMethod(
            "difficulty", difficulty.difficulty_scores, difficulty.DifficultyOptions, difficulty.EASY, difficulty.HARD
        ),
        SurrogateMethod(
            "forgetting", forgetting.forgetting_scores, forgetting.ForgettingOptions, forgetting.EASY, forgetting.HARD
        ),
        SurrogateMethod("el2n", el2n.el2n_scores, el2n.El2nOptions, el2n.EASY, el2n.HARD),
        SurrogateMethod("grand", grand.grand_scores, grand.GrandOptions, grand.EASY, grand.HARD),
        SurrogateMethod("moso", moso.moso_scores, moso.MosoOptions, moso.EASY, moso.HARD, passes=2),
    )
}


def surrogate_score(
    data: Any,
    checkpoint: Checkpoints | None,
    *,
    method: str = "loss",
    seed: int = 0,
    device: str = "auto",
    progress: bool = False,
    **options: Any,
) -> np.ndarray:
    """A score for every image of `data`: float64 [N], higher = keep.

        scores = pf.score(data=data, checkpoint="run", method="loss")

    data        ImageDataset with the image size (and classes) of the checkpoint
    checkpoint  a run folder, a checkpoint-* folder, or several, in the order of training. "forgetting" takes all
                checkpoints of a run folder, the others its newest
    method      `prunefast.score.surrogate.SURROGATES`: "loss", "difficulty", "forgetting", "el2n", "grand", "moso"
    seed        of the noise
    options     of the method, such as times=8 or keep_hard=True

    Raises InputError for a checkpoint of other images or classes, and for bad options, before any work.
    """
    from prunefast.train.step import pick_device

    chosen = SURROGATES[method]
    made = chosen.make_options(options)
    seed = check_seed(seed)
    found = _find(checkpoint, method)
    target = pick_device(device)

    first = [checked_network(found[0][0], data, target, made.ema, found[0][1])]  # before any work

    def networks() -> Iterator[Any]:
        """One at a time: a network is read when its turn comes, and its memory is free afterwards."""
        yield first.pop()
        for path, state in found[1:]:
            yield checked_network(path, data, target, made.ema, state)

    total = len(data) * chosen.passes * len(found)
    with show_progress(f"score {method}", total, silent=not progress) as bar:
        return chosen.function(data, networks(), made, seed, bar)


def checked_network(path: Path, data: Any, device: Any, ema: bool, state: State | None = None) -> Any:
    # the training package lies above this one and is needed for its checkpoints only
    from prunefast.train.network import load_network

    if getattr(data, "latents", None) is not None:
        raise InputError(f"data: {data.path} holds latents, these scores are of images; give the images")
    network = load_network(path, device, ema=ema, state=state)
    network.check_plain("checkpoint")
    network.check_data(data, "checkpoint")
    return network


def resolve_checkpoints(checkpoint: Checkpoints | None, method: str) -> list[Path]:
    """checkpoint-* folders, in the order given; InputError where there is none."""
    return [path for path, _ in _find(checkpoint, method)]


def _find(checkpoint: Checkpoints | None, method: str) -> list[tuple[Path, State | None]]:
    """(folder, its state where it was checked already)."""
    from prunefast.train.state import find_checkpoint, list_checkpoints

    if checkpoint is None:
        raise InputError(f"checkpoint: {method!r} needs a trained model; give a run folder or a checkpoint")
    given = [checkpoint] if isinstance(checkpoint, str | os.PathLike) else list(checkpoint)
    if not given:
        raise InputError(f"checkpoint: {method!r} needs a trained model; the list is empty")
    found: list[tuple[Path, State | None]] = []
    for path in map(Path, given):
        all_of_them = list_checkpoints(path / "train") or list_checkpoints(path) if method == "forgetting" else []
        found += [(entry, None) for entry in reversed(all_of_them)] if all_of_them else [find_checkpoint(path)]
    if method == "forgetting" and len(found) < 2:
        raise InputError(
            "checkpoint: forgetting compares at least two checkpoints of one training; give more (a run keeps the last "
            "keep_checkpoints)"
        )
    return found
