"""The proxy's training run with the ascent inside: `reweight`.

One step, on one global batch (over all micro-batches and ranks):

1. proxy and frozen reference see the same noised images, times and labels; per image the excess max(l - l_ref, 0),
   where l is the plain error, mean over pixels (`ops.denoising_loss`, which sums over each class in the same pass)
2. the ascent turns the sums over the classes into new weights (`ascent.py`)
3. the proxy takes a step on mean_i of (weight_c / p_c) l_i with these new weights; p_c: share of class c in the draws

With several micro-batches a rank, 1 runs once without a graph over all of them and 3 runs forward again: the weights of
a step come from the whole batch, never from the step before (DoReMi's own code does the latter and warns of it).

The loop, its checkpoints, its log and exact resume are those of `prunefast.train`.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunefast import distributed, ops
from prunefast.diffusion import DenoisingLoss
from prunefast.diffusion.parameterisation import target_coefficients
from prunefast.errors import InputError, InputTypeError
from prunefast.files import RunFolder
from prunefast.reweight.ascent import Ascent
from prunefast.reweight.weights import ClassWeights
from prunefast.stream import Batch, CoresetLoader
from prunefast.stream.draw import check_groups
from prunefast.train.config import TrainConfig
from prunefast.train.loop import _Run, train_plan  # the same loop with another step: a variant inside the package
from prunefast.train.network import TrainedNetwork, load_network
from prunefast.train.setup import Parts, Plan, make_plan, open_inputs
from prunefast.train.state import latest_checkpoint
from prunefast.train.step import TrainingStep, derived_seed, seed_generators

if TYPE_CHECKING:
    from prunefast.data import ImageDataset
    from prunefast.select import Coreset


@dataclasses.dataclass(frozen=True)
class ReweightOptions:
    """step_size    rise of a class in log-odds per step and unit of excess. The excess is a mean over pixels, so it has
                    the same meaning at every image size. The default was measured (docs/reweighting.md)
    smoothing    share of the uniform weights mixed in at every step; no weight falls under smoothing / C. DoReMi: 1e-3
    start        "uniform", or "shares": of the classes in the coreset
    draw         how the proxy's images are drawn: "uniform" over the classes, as DoReMi has it (rare classes get an
                 excess that is as exact as any), or by "shares", every image equally often
    micro_batch  images a rank takes at a time (gradient accumulation); None: its whole part of the batch
    """

    step_size: float = 1.0
    smoothing: float = 1e-3
    start: Literal["uniform", "shares"] = "uniform"
    draw: Literal["uniform", "shares"] = "uniform"
    micro_batch: int | None = None

    def __post_init__(self) -> None:
        for name, most in (("step_size", np.inf), ("smoothing", 1.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InputTypeError(f"{name} is {value!r}; give a number")
            if not 0 <= value <= most or value == np.inf:
                upper = f" and at most {most:g}" if most < np.inf else " and finite"
                raise InputError(f"{name} is {value:g}; it must be at least 0{upper}")
        for name in ("start", "draw"):
            if getattr(self, name) not in ("uniform", "shares"):
                raise InputError(f"{name} is {getattr(self, name)!r}; choose uniform or shares")
        micro = self.micro_batch
        if micro is not None and (isinstance(micro, bool) or not isinstance(micro, int) or micro < 1):
            raise InputError(f"micro_batch is {micro!r}; give a number of images, at least 1")


def reweight(
    config: TrainConfig,
    data: "ImageDataset | None" = None,
    coreset: "Coreset | None" = None,
    *,
    reference: str | os.PathLike[str],
    groups: Any = "classes",
    progress: bool = False,
    **options: Any,
) -> ClassWeights:
    """Train a proxy against a frozen reference; the class weights it arrives at (arXiv 2409.19128, 2305.10429).

        weights = pf.reweight(config, reference="full-run", step_size=1.0)
        pf.train(pf.TrainConfig(class_weights=weights, ...))

    Writes OUT/reweight/ (a training folder of the proxy) and OUT/class_weights.json. The same call continues a run that
    was stopped, and returns at once where it was finished; `config.images` may grow. Runs under torchrun too:
    `config.batch_size` is then shared by the ranks, which get the same weights up to the last digits of their sums.

    Args:
        config: of the proxy: a small or the same network, dropout 0 (it would count as excess). Its process and
            prediction must be the reference's; its class_weights must be None.
        data, coreset: as for `train`.
        reference: a run folder or checkpoint-* folder; its averaged weights are used.
        groups: "classes" of the data, "clusters" of the coreset (both for unlabelled data), or integers [N], the
            group of every image of the data.
        options: `ReweightOptions`.

    Raises:
        InputError: an option, a reference of other images, classes, process or prediction, a class without images.
    """
    if not isinstance(config, TrainConfig):
        raise InputTypeError(f"config is a {type(config).__name__}; give a TrainConfig")
    known = [field.name for field in dataclasses.fields(ReweightOptions)]
    for name in options:
        if name not in known:
            raise InputError(f"{name}: reweight has no such option; its options are {', '.join(known)}")
    made = ReweightOptions(**options)
    if config.class_weights is not None:
        raise InputError("class_weights: the proxy finds them; leave them out of its config")
    other_losses = {"patch_p": config.patch_p is not None, "mask_ratio": config.mask_ratio > 0}
    for key, given in {**other_losses, "learn_sigma": config.learn_sigma}.items():
        if given:
            raise InputError(f"{key}: the proxy's losses are of whole images and one prediction; leave it out")
    if config.dynamic_prune is not None:
        raise InputError("dynamic_prune: the proxy draws its images its own way; leave it out of its config")
    data, coreset = open_inputs(config, data, coreset)
    plan = make_plan(config, data, coreset)
    grouping = _grouping(groups, data, coreset)
    network = load_network(reference, plan.device)
    _check_reference(network, plan)
    world = distributed.connect()
    _check_ranks(config, made, world)
    facts = {**dataclasses.asdict(made), "reference": network.digest, "groups": grouping.digest()}
    del facts["micro_batch"]  # any cut of the batch gives the same weights
    own = {f"reweight.{name}": value for name, value in facts.items()}
    plan = dataclasses.replace(plan, recipe={**plan.recipe, **own})
    make_run = functools.partial(_ReweightRun, reference=network, options=made, grouping=grouping)
    run = RunFolder(config.out)
    train_plan(plan, run.reweight, progress, make_run)
    weights = _result(_last_state(run.reweight), grouping, facts | {"reference_path": str(network.path)}, plan)
    distributed.on_main(lambda: weights.save(run.class_weights))
    return weights


def check_reweight(config: TrainConfig, data: "ImageDataset", reference: str | os.PathLike[str]) -> None:
    """Raise what `reweight` would raise whatever the coreset: before one is selected."""
    from prunefast.select import Coreset

    everything = Coreset.full(data)
    data, everything = open_inputs(config, data, everything)
    plan = make_plan(config, data, everything)
    _grouping("classes", data, everything)
    _check_reference(load_network(reference, plan.device), plan)


@dataclasses.dataclass(frozen=True, eq=False)
class _Grouping:
    """of_item int64 [N]; counts int64 [C] in the coreset, none 0."""

    kind: str
    names: list[str]
    of_item: np.ndarray
    counts: np.ndarray

    @property
    def shares(self) -> np.ndarray:
        return self.counts / self.counts.sum()

    def digest(self) -> str:
        return hashlib.sha256(self.of_item.tobytes()).hexdigest()[:16]


def _grouping(groups: Any, data: "ImageDataset", coreset: "Coreset") -> _Grouping:
    if isinstance(groups, str):
        if groups == "classes":
            if data.labels is None:
                raise InputError('groups: the data has no classes; give "clusters" or a group for every image')
            kind, of_item, names = "classes", data.labels, list(data.classes)
        elif groups == "clusters":
            if coreset.clusters is None:
                raise InputError('groups: the coreset has no clusters; select with method="clusters", or give groups')
            kind, of_item, names = "clusters", coreset.clusters, []
        else:
            raise InputError(f"groups: {groups!r} is neither classes nor clusters")
    else:
        of_item = groups.detach().cpu().numpy() if isinstance(groups, Tensor) else np.asarray(groups)
        kind, names = "own", []
        if of_item.ndim == 1 and len(of_item) != len(data):
            raise InputError(f"groups: {len(of_item)} of them for {len(data)} images")
    mine = check_groups(of_item, coreset.indices)
    names = names or [f"{'cluster' if kind == 'clusters' else 'group'} {k}" for k in range(int(mine.max()) + 1)]
    counts = np.bincount(mine, minlength=len(names))
    if (counts == 0).any():
        empty = names[int(np.argmin(counts))]
        fix = {"classes": "keep some of every class (per_class=True)", "own": "leave it out, or keep some of it"}
        more = fix.get(kind, "select with quota='equal', or with fewer clusters")
        raise InputError(f"groups: no image of {empty!r} is in the coreset; {more}")
    if len(names) < 2:
        raise InputError("groups: there is one group only; nothing can be weighed against it")
    return _Grouping(kind, names, of_item.astype(np.int64), counts)


def _check_reference(network: TrainedNetwork, plan: Plan) -> None:
    network.check_plain("reference")
    network.check_data(plan.data, "reference")
    for name, theirs, ours in (
        ("process", network.loss.process.name, plan.loss.process.name),
        ("prediction", network.loss.prediction, plan.loss.prediction),
    ):
        if theirs != ours:
            raise InputError(f"{name}: the reference {network.path} has {theirs}, the proxy {ours}; they must agree")
    if network.num_classes is not None and plan.num_classes is None:
        raise InputError("class_conditional: the reference is told the classes, so the proxy must be; leave it at auto")


def _check_ranks(config: TrainConfig, options: ReweightOptions, world: distributed.World) -> None:
    micro = options.micro_batch or max(config.batch_size // world.size, 1)
    if config.batch_size % (micro * world.size):
        raise InputError(
            f"batch_size is {config.batch_size}: must be a multiple of micro-batch x ranks = {micro} x {world.size}"
        )


def _last_state(folder: Path) -> dict[str, Any]:
    found = latest_checkpoint(folder)
    assert found is not None  # train_plan leaves one
    return found[1]


def _result(state: dict[str, Any], grouping: _Grouping, facts: dict[str, Any], plan: Plan) -> ClassWeights:
    recorded = state["reweight"]
    history = {name: list(values) for name, values in recorded["history"].items()}
    if not history["images"] or history["images"][-1] != state["images"]:
        _note(history, state["images"], recorded["now"])
    facts = facts | {"data": plan.data.fingerprint, "coreset": plan.coreset.fingerprint, "images": state["images"]}
    arrays = {name: np.array(values, dtype=np.float64) for name, values in history.items()}  # None becomes NaN
    return ClassWeights(np.array(recorded["now"]["average"]), grouping.names, grouping.kind, arrays, facts)


def _note(history: dict[str, list[Any]], images: int, now: dict[str, Any]) -> None:
    history["images"].append(images)
    for name in ("weights", "average", "excess"):
        history[name].append(now[name])


class _Pair(nn.Module):
    """(x, time, labels) -> the proxy's and the reference's prediction. The reference stays as it is.

    augment: how the images were augmented, as the proxy is told; a reference that knows of it is told too.
    """

    def __init__(self, proxy: nn.Module, reference: TrainedNetwork):
        super().__init__()
        self.proxy = proxy
        self.reference = [reference.model]  # in a list: no sub-module, so train() does not reach it
        self.conditional = reference.num_classes is not None
        config: dict[str, Any] = reference.model.config  # type: ignore[assignment]
        self.augment_labels = config.get("augment_labels", 0)

    def forward(
        self, x: Tensor, time: Tensor, labels: Tensor | None, augment: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        told = {} if augment is None else {"augment": augment}
        theirs = {}
        if augment is not None and self.augment_labels:  # only the first says anything: mirroring
            theirs = {"augment": F.pad(augment[:, :1], (0, self.augment_labels - 1))}
        with torch.no_grad():
            expected = self.reference[0](x, time, labels if self.conditional else None, **theirs)
        return self.proxy(x, time, labels, **told), expected


class _Errors(NamedTuple):
    """per_sample [B], differentiable; weight [B] of noise level and image; excess, images [C]: sums over classes."""

    per_sample: Tensor
    weight: Tensor
    excess: Tensor
    images: Tensor


class _ExcessLoss(nn.Module):
    """In the place of `DenoisingLoss` in a `TrainingStep`: both predictions -> `_Errors`. `groups` is set per batch."""

    def __init__(self, loss: DenoisingLoss, num_groups: int):
        super().__init__()
        self.loss, self.num_groups = loss, num_groups
        self.groups: Tensor | None = None

    @property
    def process(self) -> Any:
        return self.loss.process

    def forward(self, predictions, x0, noise, t, labels=None, sample_weight=None, *, flip=None, boxes=None) -> _Errors:
        prediction, expected = predictions
        loss = self.loss
        with torch.no_grad():
            reference = loss.per_sample(expected, x0, noise, t, flip=flip, boxes=boxes)
        alpha, sigma = loss.process.alpha_sigma(t, torch.float64)
        a, b = target_coefficients(loss.prediction, alpha, sigma, loss.process.sigma_data)
        _, per_sample, excess, count = ops.denoising_loss(
            prediction,
            x0,
            noise,
            a,
            b,
            labels=self.groups,
            num_classes=self.num_groups,
            reference_per_sample=reference,
            flip=flip,
            boxes=boxes,
        )
        return _Errors(per_sample, loss.sample_weights(t, None, sample_weight), excess, count)


class _MicroBatches:
    """The loader's batches, `count` of them a step: what the loop gets as one batch."""

    def __init__(self, loader: CoresetLoader, count: int):
        self.loader, self.count = loader, count

    def __iter__(self) -> Iterator[list[Batch]]:
        batches = iter(self.loader)
        while True:
            yield [next(batches) for _ in range(self.count)]

    @property
    def replaced(self) -> Any:
        """As the loader's."""
        return self.loader.replaced

    def state_dict(self) -> dict[str, Any]:
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loader.load_state_dict(state)


class _ReweightRun(_Run):
    def __init__(
        self,
        plan: Plan,
        parts: Parts,
        folder: Path,
        found: tuple[Path, dict[str, Any]] | None,
        *,
        reference: TrainedNetwork,
        options: ReweightOptions,
        grouping: _Grouping,
    ):
        config, device, count = plan.config, plan.device, len(grouping.names)
        self.world = distributed.world()  # before super() says so: the loader needs it
        micro = options.micro_batch or config.batch_size // self.world.size
        uniform = np.full(count, 1 / count)
        loader = CoresetLoader(
            plan.data,
            plan.coreset,
            batch_size=micro,
            seed=config.seed,
            rank=self.world.rank,
            world_size=self.world.size,
            threads=config.threads,
            device=device,
            placement=config.placement,  # type: ignore[arg-type]
            loader=config.loader,  # type: ignore[arg-type]
            on_error=config.on_unreadable,  # type: ignore[arg-type]
            class_weights=uniform if options.draw == "uniform" else None,
            class_weights_in="sampler",
            groups=grouping.of_item,
        )
        batches = _MicroBatches(loader, config.batch_size // (micro * self.world.size))
        self.excess_loss = _ExcessLoss(plan.loss, count)
        step: TrainingStep = parts.step
        step.network, step.loss = _Pair(step.network, reference), self.excess_loss  # type: ignore[assignment]
        self.group_of_item = torch.from_numpy(grouping.of_item).to(device)
        self.shares = torch.from_numpy(uniform if options.draw == "uniform" else grouping.shares).to(device)
        start = torch.from_numpy(uniform if options.start == "uniform" else grouping.shares).to(device)
        self.ascent = Ascent(start, options.step_size, options.smoothing)
        self.history: dict[str, list[Any]] = {"images": [], "weights": [], "average": [], "excess": []}
        if found is not None:
            self.ascent.load(found[1]["reweight"]["now"])
            self.history = found[1]["reweight"]["history"]
        else:
            _note(self.history, 0, self.ascent.state())
        super().__init__(plan, dataclasses.replace(parts, loader=batches), folder, found)  # type: ignore[arg-type]

    def _errors(self, number: int, batch: Batch) -> _Errors:
        """Of micro-batch `number` of this step; dropout follows from the position of its first image."""
        first = self.images + number * len(batch) * self.world.size + self.world.rank
        seed_generators(self.device, derived_seed("step", self.config.seed, first))
        self.excess_loss.groups = self.group_of_item[batch.index]
        return self.parts.step(batch)  # type: ignore[return-value]  # what _ExcessLoss gives

    def _one_step(self, batches: Any) -> None:
        alone = len(batches) == 1
        with torch.set_grad_enabled(alone):
            errors = [self._errors(number, batch) for number, batch in enumerate(batches)]
        sums = sum(torch.stack((part.excess.double(), part.images.double())) for part in errors)
        excess, count = distributed.sum_blocks(sums[None], self.world.size)  # type: ignore[index]
        factor = (self.ascent.update(excess, count) / self.shares).float()
        total = torch.zeros((), device=self.device)
        for number, (batch, part) in enumerate(zip(batches, errors, strict=True)):
            fresh = part if alone else self._errors(number, batch)
            weight = fresh.weight * factor[self.group_of_item[batch.index]]
            loss = (weight * fresh.per_sample).sum() / self.config.batch_size
            loss.backward()
            total += loss.detach()
        gradients = [p.grad for p in self.parts.model.parameters() if p.grad is not None]
        distributed.add_over_ranks([*gradients, total])
        norm, bad = self.parts.updater.step(total, self.images)
        self.parts.ema.update(self.images, self.config.batch_size)
        self.meter.update(total, norm, bad)
        self.images += self.config.batch_size
        self.pixels += self.config.batch_size * self.plan.recipe["image_size"] ** 2
        self.steps += 1

    def _write_line(self, more: Mapping[str, float] | None = None) -> bool:
        written = super()._write_line(more)
        _note(self.history, self.images, self.ascent.state())
        return written

    def extra_state(self) -> dict[str, Any]:
        return {"reweight": {"now": self.ascent.state(), "history": self.history}}
