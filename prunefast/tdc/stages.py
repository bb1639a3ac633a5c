"""TDC as a whole: groups, a search and a fine-tuning for each, and what they cost against the one network.

Under torchrun the ranks search for different groups, each for every world-size-th, which needs no word between them and
gives what one process finds; then all of them train each network together.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from prunefast import distributed
from prunefast.data import ImageDataset
from prunefast.diffusion import TimestepGroups, budgets, equal_snr, equal_times, make_process
from prunefast.diffusion.groups import evaluation_times
from prunefast.errors import InputError, InputTypeError
from prunefast.files import atomic_path, lock_folder, make_folder, read_json, remove_leftovers, write_json
from prunefast.models import build_model
from prunefast.models.flops import WidthCosts, model_flops
from prunefast.select import Coreset
from prunefast.tdc.options import TDCOptions
from prunefast.tdc.propose import Proposer, make_proposer
from prunefast.tdc.prune import channel_order, import_torch_pruning, prune
from prunefast.tdc.search import Proxy, best, search
from prunefast.tdc.similarity import similar_gradients
from prunefast.tdc.space import Space
from prunefast.train import TrainConfig, TrainResult, train
from prunefast.train.ema import named_weights
from prunefast.train.experts import (
    FORMAT_VERSION,
    TDC_FILE,
    find_experts,
    group_folder,
    is_tdc_folder,
    read_groups,
    read_tdc,
)
from prunefast.train.state import find_checkpoint, list_checkpoints, load_initial_weights, load_weights
from prunefast.train.step import derived_seed
from prunefast.train.whole_batch import check_shares

BACKWARD = 2  # FLOPs of a backward pass in those of the forward pass: one product for the inputs, one for the weights
BASE_FILE = "base.safetensors"
PRUNED_FILE = "pruned.safetensors"
GROUP_FILE = "group.json"
SEARCH_FILE = "search.jsonl"
SUMMARY_FILE = "summary.json"


@dataclasses.dataclass(frozen=True)
class TDCResult:
    """What `tdc` made. `groups` has one record for each group 1 ... N:

    shares       between which shares of the training times it lies, 0 the least noise
    budget       its part of the base's FLOPs, at most
    flops        of an image through its network
    loss_base    of the base network on the group's fixed triples
    loss_pruned  of the pruned network before any fine-tuning
    loss         of the fine-tuned network (its moving average)
    """

    folder: Path
    groups: tuple[dict[str, Any], ...]
    base_flops: int
    training_flops: dict[str, float]  # base, search, fine_tuning, and single: the base network for as many images
    repeated: bool = False

    @property
    def mean_share(self) -> float:
        """FLOPs of a network call, mean over the groups, in those of the base."""
        return sum(group["flops"] for group in self.groups) / len(self.groups) / self.base_flops

    def __str__(self) -> str:
        lines = [f"{self.folder}: {len(self.groups)} groups, {self.mean_share:.1%} of the base's FLOPs on average"]
        lines.append("group  times (shares)   budget  FLOPs   loss: base  pruned  fine-tuned")
        for number, group in enumerate(self.groups, 1):
            low, high = group["shares"]
            lines.append(
                f"{number:5}  {low:.3f} - {high:.3f}  {group['budget']:6.1%}  {group['flops'] / self.base_flops:6.1%}"
                f"  {group['loss_base']:10.5f}  {group['loss_pruned']:6.5f}  {group['loss']:10.5f}"
            )
        cost = self.training_flops
        spent = cost["base"] + cost["search"] + cost["fine_tuning"]
        lines.append(
            f"training: base {cost['base']:.3g} + search {cost['search']:.3g} + fine-tuning {cost['fine_tuning']:.3g} "
            f"= {spent:.3g} FLOPs; one network on as many images: {cost['single']:.3g}"
        )
        return "\n".join(lines)


def tdc(
    checkpoint: str | os.PathLike[str],
    data: ImageDataset,
    coreset: Coreset | None = None,
    options: TDCOptions | None = None,
    *,
    out: str | os.PathLike[str],
    propose: Proposer | Callable[[str], str] | None = None,
    progress: bool = False,
) -> TDCResult:
    """Stage 2 of TDC: prune and fine-tune one network for each timestep group of a trained base network.

        pf.train(pf.TrainConfig(out="run", ...), data, coreset)                       # stage 1: all times
        pf.tdc("run", data, coreset, pf.TDCOptions(groups=5, k=0.5), out="run/tdc")
        pf.sample("run/tdc", 1_000, out="run/tdc/samples")

    The same call goes on where it was stopped, in the search as in the training, and repeats nothing that is done. The
    base is read at the start only: its checkpoints may go afterwards. Under torchrun all processes call it alike; the
    networks they find are those of one, and are trained as `train` does it on several.

    Args:
        checkpoint: of the base network; its averaged weights are pruned, its configuration is kept.
        data, coreset: what the base was trained on.
        options: see `TDCOptions`.
        out: the folder of the networks: tdc.json, group-1 ... group-N, summary.json.
        propose: a `Proposer` of your own; or with options.proposer="language" a function that gets the task as text and
            answers with a JSON object of widths.

    Raises:
        InputError: options that do not fit the network or the folder, other data than the base's.
        MissingDependencyError: without torch-pruning, or without Optuna where it is the proposer.
    """
    options = options or TDCOptions()
    if not isinstance(options, TDCOptions):
        raise InputTypeError(f"options is a {type(options).__name__}; give TDCOptions")
    coreset = coreset if coreset is not None else Coreset.full(data)
    if options.proposer != "none":
        import_torch_pruning()
    if propose is None or (callable(propose) and not hasattr(propose, "propose")):
        make_proposer(options.proposer, options.seed, propose)  # what is missing is said now
    folder = Path(out)
    with contextlib.ExitStack() as held, distributed.losses_named():
        distributed.on_main(lambda: _take(folder, held))
        run = _Run(folder, data, coreset, options, propose, progress and distributed.is_main())
        run.open(Path(checkpoint))
        before = distributed.on_main(lambda: _known_result(folder))
        return before if before is not None else run.finish()


def _take(folder: Path, held: contextlib.ExitStack) -> None:
    """Hold the folder, and tidy it up."""
    make_folder(folder)
    held.enter_context(lock_folder(folder, "working"))
    remove_leftovers(folder)


class _Run:
    """One call of `tdc`; `open` checks everything before anything is written."""

    def __init__(
        self, folder: Path, data: ImageDataset, coreset: Coreset, options: TDCOptions, propose: Any, progress: bool
    ):
        self.folder, self.data, self.coreset = folder, data, coreset
        self.options, self.propose, self.progress = options, propose, progress

    def open(self, checkpoint: Path) -> None:
        """tdc.json: made, or read and compared. Afterwards the base is not needed any more."""
        self.record = distributed.on_main(lambda: self._recorded(checkpoint))
        self.config = TrainConfig.from_dict({**self.record["base"]["config"], "out": str(self.folder)})
        check_shares(self.config.batch_size, distributed.world().size)
        self.groups = read_groups(self.record)
        self.parts = budgets(self.options.groups, self.options.k, self.options.reverse)
        self.base = _build(self.record["base"]["model"])
        load_initial_weights(self.folder / BASE_FILE, self.base)
        self.costs = WidthCosts.of(self.base)
        for part in self.parts:
            Space(self.costs, self._budget(part))  # a budget that cannot be met is said now

    def _recorded(self, checkpoint: Path) -> dict[str, Any]:
        if not (self.folder / TDC_FILE).exists():
            if list_checkpoints(self.folder) or list_checkpoints(self.folder / "train"):
                raise InputError(f"{self.folder}: holds a training run; choose another folder for the groups")
            self._begin(checkpoint)
        self.record = read_tdc(self.folder)
        self._check_same(checkpoint)
        return self.record

    def _begin(self, checkpoint: Path) -> None:
        path, state = find_checkpoint(checkpoint)
        for key, value, what in (
            ("data", self.data.fingerprint, "data"),
            ("coreset", self.coreset.fingerprint, "coreset"),
        ):
            if state["recipe"].get(key, value) != value:  # an imported network says nothing of its data
                raise InputError(f"{what}: the network of {path} was trained on another one; give that")
        model = _build(state["model"])
        load_weights(path, model, ema=True)
        costs = WidthCosts.of(model)
        for part in budgets(self.options.groups, self.options.k, self.options.reverse):
            Space(costs, self._budget(part, costs))
        config = TrainConfig.from_dict({**state["config"], "out": str(self.folder)})
        check_shares(config.batch_size, distributed.world().size)
        config = config.replace(precision=state["recipe"]["precision"], init_from=None, timesteps=None)
        groups = self._split(model, config)
        with atomic_path(self.folder / BASE_FILE) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in named_weights(model).items()}, temporary)
        base = {"digest": state["digest"], "images": state["images"], "model": state["model"]}
        record = {
            "format": FORMAT_VERSION,
            "process": state["recipe"]["process"],
            "edges": list(groups.edges),
            "options": self._recorded_options(),
            "base": {**base, "config": {**config.to_dict(), "out": ""}},
        }
        write_json(self.folder / TDC_FILE, record)

    def _recorded_options(self) -> dict[str, Any]:
        own = {"proposer": type(self.propose).__name__} if hasattr(self.propose, "propose") else {}
        return {**dataclasses.asdict(self.options), **own}

    def _split(self, model: nn.Module, config: TrainConfig) -> TimestepGroups:
        process, n = make_process(config.process), self.options.groups
        if self.options.groups_by == "times":
            return equal_times(process, n)
        if self.options.groups_by == "snr":
            return equal_snr(process, n)
        images = min(self.options.proxy_images, 4 * config.batch_size)
        return similar_gradients(model, config, self.data, self.coreset, n, images=images, seed=self.options.seed)

    def _check_same(self, checkpoint: Path) -> None:
        recorded, wanted = self.record["options"], self._recorded_options()
        changed = [
            f"{key} {recorded.get(key)}, now {value}" for key, value in wanted.items() if recorded.get(key) != value
        ]
        if changed:
            raise InputError(
                f"{self.folder}: holds groups of other options ({'; '.join(changed)}); choose another folder, "
                "or delete it"
            )
        try:
            digest = find_checkpoint(checkpoint)[1]["digest"]
        except InputError:
            return  # the base has gone; its weights were kept
        if digest != self.record["base"]["digest"]:
            raise InputError(
                f"{self.folder}: holds groups of another base network than that of {checkpoint}; choose another "
                "folder, or delete it"
            )

    def _budget(self, part: float, costs: WidthCosts | None = None) -> int:
        full = (costs or self.costs).full
        return full if self.options.proposer == "none" else int(part * full)

    def _group_config(self, group: int) -> TrainConfig:
        config, options = self.config, self.options
        images = options.images or max(self.record["base"]["images"] // len(self.groups), 1)
        return config.replace(
            out=str(group_folder(self.folder, group)),
            data=config.data,
            images=images,
            max_seconds=None,
            timesteps=self.groups.shares(group),
            dynamic_prune_until=None,  # of these images, not of the base's
            lr=options.lr or config.lr,
            warmup_images=min(config.warmup_images, images // 20),
        )

    def finish(self) -> TDCResult:
        """Everything that is not done yet, and the summary."""
        groups = range(1, len(self.groups) + 1)
        distributed.everywhere(lambda: self._search([groups[number] for number in distributed.owned(len(groups))]))
        records = [self._fine_tune(group) for group in groups]
        summary = {
            "groups": records,
            "base_flops": self.costs.full,
            "training_flops": self._training_flops(records),
            "trained": find_experts(self.folder)[1]["digest"],
        }
        distributed.on_main(lambda: write_json(self.folder / SUMMARY_FILE, summary))
        return _result(self.folder, summary)

    def _proxy(self, group: int) -> Proxy:
        config = self._group_config(group)
        return Proxy(
            config,
            self.data,
            self.coreset,
            images=self.options.proxy_images,
            steps=self.options.proxy_steps,
            lr=config.lr,
            seed=derived_seed("tdc group", self.options.seed, group),
        )

    def _search(self, groups: list[int]) -> None:
        """The networks of these groups, where they are not found yet."""
        for group in groups:
            folder = make_folder(group_folder(self.folder, group))
            remove_leftovers(folder)
            if not (folder / GROUP_FILE).exists():
                self._prune_group(group, folder, self._proxy(group))

    def _fine_tune(self, group: int) -> dict[str, Any]:
        """Train the network of a group, or go on with it; what is recorded of the group."""
        folder, config = group_folder(self.folder, group), self._group_config(group)
        chosen = read_json(folder / GROUP_FILE)
        model_options = {**config.model_options, **({"widths": chosen["widths"]} if chosen["widths"] else {})}
        config = config.replace(model_options=model_options, init_from=str(folder / PRUNED_FILE))
        result = train(config, self.data, self.coreset, progress=self.progress)
        return distributed.on_main(lambda: self._measured(group, result, chosen))

    def _measured(self, group: int, result: TrainResult, chosen: dict[str, Any]) -> dict[str, Any]:
        _, state = find_checkpoint(group_folder(self.folder, group))
        expert = _build(state["model"])
        load_weights(result.checkpoint, expert, ema=True)
        facts = {key: chosen[key] for key in ("budget", "flops", "loss_base", "loss_pruned", "rounds", "search_flops")}
        return {
            "shares": list(self.groups.shares(group)),
            **facts,
            "loss": self._proxy(group).loss(expert),
            "images": result.images,
            "seconds": result.seconds,
        }

    def _prune_group(self, group: int, folder: Path, proxy: Proxy) -> None:
        """pruned.safetensors and then group.json."""
        part = self.parts[group - 1]
        space = Space(self.costs, self._budget(part))
        memory, widths, pruned = [], {}, self.base
        if self.options.proposer != "none" and space.budget < self.costs.full:
            if self.options.importance == "taylor":
                proxy.accumulate_gradients(self.base)
            order = channel_order(
                self.base, self.options.importance, derived_seed("tdc order", self.options.seed, group)
            )
            self.base.zero_grad(set_to_none=True)
            memory = search(
                self.base,
                space,
                self._proposer(group),
                proxy,
                order,
                rounds=1 if self.options.proposer == "uniform" else self.options.rounds,
                memory_file=folder / SEARCH_FILE,
                progress=self.progress,
                title=f"group {group}",
            )
            widths = best(memory, f"group {group}").widths or {}
            widths = {name: width for name, width in widths.items() if width < self.costs.widths[name].width}
            pruned = prune(self.base, widths, order)
        with atomic_path(folder / PRUNED_FILE) as temporary:
            save_file({name: tensor.cpu().contiguous() for name, tensor in named_weights(pruned).items()}, temporary)
        tuning = proxy.steps * proxy.plan.config.batch_size * (1 + BACKWARD)
        record = {
            "group": group,
            "budget": 1.0 if self.options.proposer == "none" else part,
            "widths": widths,
            "flops": self.costs.flops(widths),
            "rounds": len(memory),
            "search_flops": float(sum((tuning + proxy.images) * (trial.flops or 0) for trial in memory if trial.loss)),
            "loss_base": proxy.loss(self.base),
            "loss_pruned": proxy.loss(pruned),
        }
        write_json(folder / GROUP_FILE, record)

    def _proposer(self, group: int) -> Proposer:
        if hasattr(self.propose, "propose"):
            return self.propose
        seed = derived_seed("tdc propose", self.options.seed, group)
        return make_proposer(self.options.proposer, seed, self.propose)

    def _training_flops(self, records: list[dict[str, Any]]) -> dict[str, float]:
        """Forward and backward of every image trained on; optimizers and averages, bytes rather than FLOPs, are left
        out."""
        image = (1 + BACKWARD) * self.costs.full
        tuning = sum(record["images"] * (1 + BACKWARD) * record["flops"] for record in records)
        images = self.record["base"]["images"] + sum(record["images"] for record in records)
        return {
            "base": float(self.record["base"]["images"] * image),
            "search": float(sum(record["search_flops"] for record in records)),
            "fine_tuning": float(tuning),
            "single": float(images * image),
        }


def base_state(checkpoint: Path, out: Path) -> dict[str, Any]:
    """The state of the base network, or what `out` recorded of it (model, config, digest) once its checkpoints went."""
    if is_tdc_folder(out):
        return read_tdc(out)["base"]
    return find_checkpoint(checkpoint)[1]


def sampling_flops(folder: str | os.PathLike[str], sampler: str = "ddim", steps: int = 50) -> tuple[int, int]:
    """FLOPs of one image by `sampler`, without guidance: (of the networks of a TDC folder, of group N's alone at every
    step). Every evaluation counts for the group of its own time."""
    record = read_tdc(Path(folder))
    groups = read_groups(record)
    _, state = find_experts(Path(folder))
    flops = [model_flops(_build(network, "meta")) for network in state["networks"]]
    asked = [groups.group_of(t) for t in evaluation_times(groups.process, sampler, steps)]
    base = model_flops(_build(record["base"]["model"], "meta"))
    return sum(flops[group - 1] for group in asked), base * len(asked)


def _build(network: dict[str, Any], device: str = "cpu") -> nn.Module:
    with torch.random.fork_rng(devices=[]), torch.device(device):
        return build_model(**network)


def _known_result(folder: Path) -> TDCResult | None:
    """The result of a call that finished, when nothing was added since."""
    path = folder / SUMMARY_FILE
    if not path.exists():
        return None
    summary = read_json(path)
    try:
        if find_experts(folder)[1]["digest"] != summary["trained"]:
            return None
    except (InputError, KeyError, TypeError):
        return None
    return _result(folder, summary, repeated=True)


def _result(folder: Path, summary: dict[str, Any], repeated: bool = False) -> TDCResult:
    return TDCResult(folder, tuple(summary["groups"]), summary["base_flops"], summary["training_flops"], repeated)
