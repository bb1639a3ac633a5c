"""The training loop. Everything is counted in images; a run is a function of its configuration and its data.

What a time limit (`max_seconds`) counts: the steps, from waiting for images to the update of the average. Not counted
are the first step of each process (libraries build and tune their kernels in it, the loader decodes what it keeps) and
the writing of checkpoints, so that runs of the same limit get the same training, however slowly they start. A resumed
run goes on counting where it stopped.

Several processes (torchrun) run the same loop on their parts of every batch (whole_batch.py) and have the same weights
after it. Rank 0 alone writes; what depends on a clock or a signal is agreed on after every step.
"""

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunefast import distributed
from prunefast.errors import InputError, InputTypeError
from prunefast.files import RunFolder, lock_folder, make_folder, read_json, remove_leftovers, write_json
from prunefast.models import count_parameters
from prunefast.train.config import TrainConfig
from prunefast.train.holdout import overfitting
from prunefast.train.interrupt import StopRequest, TrainingStopped
from prunefast.train.log import Meter, MetricsLog, Status, read_metrics, recent_loss, significant
from prunefast.train.optim import learning_rate
from prunefast.train.posthoc import Snapshots
from prunefast.train.setup import Parts, Plan, build_parts, make_plan, open_inputs
from prunefast.train.state import (
    check_same_recipe,
    checkpoint_path,
    checkpoint_tensors,
    is_sharded,
    latest_checkpoint,
    load_checkpoint,
    load_pruning,
    prune,
    seal,
    write_checkpoint,
)
from prunefast.train.step import autocast, forked_generators, repeatable_algorithms
from prunefast.train.whole_batch import check_shares

if TYPE_CHECKING:
    from torch import nn

    from prunefast.data import ImageDataset
    from prunefast.select import Coreset
    from prunefast.stream import Batch


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What `train` did. `repeated`: the run was finished before, nothing was done."""

    folder: Path  # RUN/train
    checkpoint: Path  # the newest
    images: int
    steps: int
    seconds: float  # of training, over all processes
    images_per_second: float | None  # None where no step was timed
    loss: float | None  # mean over the last tenth of the images
    repeated: bool = False

    def __str__(self) -> str:
        loss = f", loss {self.loss:.4f}" if self.loss is not None else ""
        rate = f", {self.images_per_second:,.1f} img/s" if self.images_per_second else ""
        before = "was already trained" if self.repeated else "trained"
        return f"{self.folder}: {before}: {self.images:,} images{loss}{rate}"


def train(
    config: TrainConfig,
    data: "ImageDataset | None" = None,
    coreset: "Coreset | None" = None,
    progress: bool = False,
    *,
    model: "nn.Module | None" = None,
) -> TrainResult:
    """Train a diffusion model on the images of a coreset; the same call continues a run that was stopped.

        pf.train(pf.TrainConfig(data="cifar10/train", coreset="run/coreset.parquet", out="run", images=1_000_000))

    Writes OUT/train/: config.toml, metrics.jsonl, summary.json and checkpoints. A run that was stopped, however it was,
    and continued ends with the bits of one that never was (weights, average, optimizer, metrics but for timings), on
    the same machine with the same number of threads. `images` and `max_seconds` may grow between calls.

    Under torchrun, or in a process group that you made, the processes share every batch: the same images and noise as
    one process takes, and its weights up to the rounding of sums. All call this alike; rank 0 writes. A run may go on
    with another number of processes.

    Args:
        config: all options; `config.data` and `config.coreset` are opened where the next two are None.
        data: with square images of one size, or with `config.image_size`.
        coreset: of `data`; None and no `config.coreset`: all images.
        progress: show the status line.
        model: any module taking (x_t [B, C, R, R], time float32 [B]) or, where the data has classes, (x_t, time, labels
            int64 [B]), in the place of the network that `config.model` names. It is trained in place, from the weights
            it has; a run that is continued puts its own into it.

    Raises:
        InputError: an option, the data, another recipe than that of the run in `out`, or training that diverged.
        MachineError: a full disk, a device too small for one image, another process that ended (its rank is named).
            The last checkpoint stays whole.
        TrainingStopped: (a KeyboardInterrupt) after Ctrl-C or SIGTERM, once a checkpoint is written.
    """
    if not isinstance(config, TrainConfig):
        raise InputTypeError(f"config is a {type(config).__name__}; give a TrainConfig")

    def plan() -> Plan:
        processes = distributed.world().size
        check_shares(config.batch_size, processes)
        if processes > 1 and ":" in config.device:
            raise InputError(f"device: {config.device} is one for {processes} processes; give cuda, each takes its own")
        opened = open_inputs(config, data, coreset)
        return make_plan(config, *opened, model)

    return train_plan(distributed.everywhere(plan), RunFolder(config.out).train, progress)


def train_plan(
    plan: Plan, folder: Path, progress: bool = False, make_run: Callable[..., "_Run"] | None = None
) -> TrainResult:
    """Begin or continue the run of `plan` in `folder`; `make_run`: another loop than `_Run`, called as it is."""
    config = plan.config
    with contextlib.ExitStack() as held, distributed.losses_named():
        found = distributed.on_main(lambda: _take(folder, held))
        if found is not None:
            path, recorded = found
            plan = plan.continuing(recorded["recipe"])
            distributed.everywhere(lambda: check_same_recipe(recorded["recipe"], plan.recipe, folder))
            over = _is_over(config, recorded["images"], recorded["seconds"])
            if over and distributed.on_main(lambda: _was_summarised(folder, recorded["images"])):
                return _result(folder, path, repeated=True)
        with (
            forked_generators(plan.device),
            repeatable_algorithms(plan.device, config.deterministic),
            warnings.catch_warnings(),
        ):
            # of FSDP2: who writes into a layer's output loses a hook. No network of ours does
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
            run = (make_run or _Run)(plan, build_parts(plan), folder, found)
            try:
                run.train(progress and distributed.is_main())
            finally:
                run.parts.gradient.close()
                if run.metrics is not None:
                    run.metrics.close()
        return _result(folder, run.checkpoint)


def _take(folder: Path, held: contextlib.ExitStack) -> tuple[Path, dict[str, Any]] | None:
    """Hold the folder, tidy it up, and look what is in it."""
    make_folder(folder)
    held.enter_context(lock_folder(folder, "training"))
    remove_leftovers(folder)
    return latest_checkpoint(folder)


def _is_over(config: TrainConfig, images: int, seconds: float) -> bool:
    return (config.images is not None and images >= config.images) or (
        config.max_seconds is not None and seconds >= config.max_seconds
    )


class _Run:
    """The counters of a run, which a checkpoint carries, and the loop over them."""

    def __init__(self, plan: Plan, parts: Parts, folder: Path, found: tuple[Path, dict[str, Any]] | None):
        self.plan, self.config, self.device, self.parts, self.folder = plan, plan.config, plan.device, parts, folder
        self.world = distributed.world()
        self.images = self.steps = 0
        self.pixels = 0  # trained on: height x width of every image or crop
        self.seconds = 0.0
        self.waited = 0.0  # of the seconds of this process, for images
        self.timed_images = 0  # those that `seconds` were spent on: a process' first step is in neither
        self.meter = Meter(plan.device)
        offset = 0
        self.saved_images = -1
        if found is not None:
            self.checkpoint, recorded = found
            read = None if parts.shards is None else parts.shards.load
            load_checkpoint(self.checkpoint, parts.model, parts.ema, parts.updater, recorded, read)
            parts.loader.load_state_dict(recorded["loader"])
            if parts.pruning is not None:
                parts.pruning.load(load_pruning(self.checkpoint))
            self.meter.load(recorded["meter"])
            self.images, self.steps = recorded["images"], recorded["steps"]
            self.seconds, self.timed_images = recorded["seconds"], recorded["timed_images"]
            self.pixels = recorded.get("pixels", self.images * plan.recipe["image_size"] ** 2)
            self.saved_images = self.images
            parts.gradient.take_over(recorded.get("fitted"))
            offset = recorded["metrics_offset"]
        self.metrics: MetricsLog | None = None  # rank 0 has it
        self.overfitting: str | None = None  # what the last measurement on held-out images said against the run
        distributed.on_main(lambda: self._open_files(offset))
        self.snapshots: Snapshots | None = None  # rank 0's too, but that sharded averages are gathered from all
        if self.world.is_main or parts.shards is not None:
            whole = None if parts.shards is None else parts.shards.whole
            self.snapshots = Snapshots(folder, parts.ema, self.config.ema_snapshots, whole)
        # at the last line of metrics
        self.line_images, self.line_seconds, self.line_waited = self.timed_images, self.seconds, self.waited

    def _open_files(self, offset: int) -> None:
        self.config.dump(self.folder / "config.toml")
        self.metrics = MetricsLog(self.folder / "metrics.jsonl", offset, self.config.wandb, self.config.to_dict())

    def extra_state(self) -> dict[str, Any]:
        """What a loop built on this one has in its checkpoints besides."""
        return {}

    @property
    def replaced(self) -> list[Any]:
        """Images that could not be read so far; of a loader that does not count them, none."""
        return getattr(self.parts.loader, "replaced", [])

    @property
    def end(self) -> int | None:
        """Images when the run is over: whole batches, the last one may go past the number asked for (with patches, by
        the multiplier of the last step)."""
        images, batch = self.config.images, self.config.batch_size
        return None if images is None else -(-images // batch) * batch

    def train(self, show: bool) -> None:
        """To the end of the run, to a request to stop, or to an error."""
        config = self.config
        with (
            StopRequest() as stop,
            Status(self.images, self.end, config.max_seconds, show=show) as status,
        ):
            over = self._loop(iter(self.parts.loader), stop, status)
            if over:
                self._finish()
            else:
                self._save()
            if self._agree(stop, False)[1]:
                raise TrainingStopped(
                    f"{stop.name or 'another process'}: stopped after {self.images:,} images, with a checkpoint in "
                    f"{self.folder}" + ("" if over else "; the same command goes on from there")
                )

    def _agree(self, stop: StopRequest, save: bool) -> tuple[bool, bool, bool]:
        """Whether for any rank the run is over, is to stop, or a checkpoint is due: clocks and signals differ."""
        over = _is_over(self.config, self.images, self.seconds)
        over, stopping, save = map(bool, distributed.largest(over, stop.name is not None, save))
        return over, stopping, save

    def _loop(self, batches: "Iterator[Batch]", stop: StopRequest, status: Status) -> bool:
        """Steps, until the run is over (True) or somebody asks to stop."""
        config, patches = self.config, self.plan.patches
        usual = config.batch_size * (1.0 if patches is None else patches.images_per_step)
        line_steps = max(round(config.status_every_images / usual), 1)
        save_images, save_time = self.images, time.monotonic()
        last: float | None = None  # when the step before this one ended
        over, stopping, _ = self._agree(stop, False)
        while not (over or stopping):
            before = self.images
            asked = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - asked
            self._one_step(batch)
            trained = self.images - before
            now = time.perf_counter()
            if last is not None:
                self.seconds += now - last
                self.waited += waited
                self.timed_images += trained
            last = now
            # from here on nothing is done at most steps
            line_due, look_due = self.steps % line_steps == 0, status.due()
            if line_due or (look_due and self.world.size == 1) or self.device.type == "cpu":  # all ranks, or none
                self._check_divergence()
            if look_due:
                known = (self.meter.read()["loss"], self.seconds, self.waited, len(self.replaced))
                status.note(*known, overfitting=self.overfitting is not None)
            if line_due and self._write_line(self._held_out(self.steps // line_steps)):
                last = time.perf_counter()
            status.advance(trained)
            if self.snapshots is not None and self.snapshots.take(self.images):
                last = time.perf_counter()
            images_due = config.checkpoint_every_images is not None and (
                self.images - save_images >= config.checkpoint_every_images
            )
            time_due = time.monotonic() - save_time >= config.checkpoint_every_seconds
            over, stopping, save = self._agree(stop, images_due or time_due)
            if save and not over:
                self._save()
                save_images, save_time, last = self.images, time.monotonic(), time.perf_counter()
        return over

    def _one_step(self, batch: "Batch") -> None:
        patch = None if self.plan.patches is None else self.plan.patches.at(self.images)
        side = self.plan.recipe["image_size"] if patch is None else patch.size
        count = self.config.batch_size * (1 if patch is None else patch.multiplier)
        unmasked_from = self.config.mask_images
        masked = unmasked_from is None or self.images < unmasked_from
        loss = self.parts.gradient(batch, self.images, patch, masked)
        norm, bad = self.parts.updater.step(loss, self.images, count)
        self.parts.ema.update(self.images, count)
        self.meter.update(loss, norm, bad)
        self.images += count
        self.pixels += count * side**2
        self.steps += 1

    def _check_divergence(self) -> None:
        """Bad steps were skipped when they happened. Where looking costs a wait, it is done with the status only."""
        if self.meter.read()["bad_in_a_row"] >= self.config.max_bad_steps:
            raise InputError(
                f"{self.folder}: training diverged: {self.config.max_bad_steps} steps in a row without a finite loss "
                f'and gradient, before image {self.images:,}; try a lower lr, more warmup_images or precision="fp32" '
                "in another out (the last checkpoint is untouched)"
            )

    def _held_out(self, line: int) -> dict[str, float]:
        """What line number `line` says of held-out images; {} where nothing is due."""
        holdout, plan = self.plan.holdout, self.plan
        if holdout is None or line % holdout.every_lines:
            return {}
        found = holdout.measure(self.parts.measured, autocast(self.device, plan.recipe["precision"]))
        before, self.overfitting = self.overfitting, overfitting(found)
        if self.overfitting and not before and self.world.is_main:
            warnings.warn(f"after {self.images:,} images {self.overfitting}: overfitting is suspected", stacklevel=2)
        return {key: significant(value) or 0.0 for key, value in found.items()}

    def _write_line(self, more: Mapping[str, float] | None = None) -> bool:
        """One line of metrics: means since the line before, and `more`. Whether there was more."""
        means = self.meter.read()
        images, seconds = self.timed_images - self.line_images, self.seconds - self.line_seconds
        waited = self.waited - self.line_waited
        record = {
            "images": self.images,
            "steps": self.steps,
            "pixels": self.pixels,
            "loss": significant(means["loss"]),
            "lr": learning_rate(self.config, self.images - self.config.batch_size),
            "grad_norm": significant(means["grad_norm"]),
            "skipped": means["skipped"],
            "images_per_second": significant(images / seconds, 4) if seconds else None,
            "seconds": round(self.seconds, 3),
            "data_wait": significant(waited / seconds, 3) if seconds else None,
            **(more or {}),
        }
        if self.metrics is not None:
            self.metrics.write(record)
        self.meter.start_line()
        self.line_images, self.line_seconds, self.line_waited = self.timed_images, self.seconds, self.waited
        return bool(more)

    def _save(self, *, finished: bool = False) -> None:
        """A checkpoint and a summary of the run so far. Of a sharded run it is written by all ranks, each its parts,
        and the last one of a finished run is an ordinary one."""
        shards, path = self.parts.shards, checkpoint_path(self.folder, self.images)
        if self.images == self.saved_images and not (finished and shards is not None and is_sharded(path)):
            return
        self._check_divergence()
        parts = self.parts
        if shards is not None:
            shards.close()
        pruning = None if parts.pruning is None else parts.pruning.tensors()
        files = checkpoint_tensors(parts.model, parts.ema, parts.updater, pruning)
        if shards is not None and not finished:
            shards.save(path, files, lambda folder: seal(folder, self.images, self._state()))
        else:
            if shards is not None:
                files = {name: shards.whole(tensors) for name, tensors in files.items()}
            distributed.on_main(lambda: write_checkpoint(path, self.images, self._state(), files))
        distributed.on_main(self._saved)
        self.checkpoint, self.saved_images = path, self.images

    def _state(self) -> dict[str, Any]:
        """What a checkpoint holds beside tensors."""
        assert self.metrics is not None
        self.metrics.sync()
        return {
            "steps": self.steps,
            "pixels": self.pixels,
            "seconds": self.seconds,
            "timed_images": self.timed_images,
            "meter": self.meter.state(),
            "metrics_offset": self.metrics.offset,
            "ema": self.parts.ema.state(),
            "loader": self.parts.loader.state_dict(),
            "fitted": self.parts.gradient.fitted(),
            "model": self.parts.model.config,
            "classes": list(self.plan.data.classes),
            "latents": None if self.plan.latents is None else dataclasses.asdict(self.plan.latents),
            "text": None if self.plan.text is None else self.plan.text.record(),
            "recipe": self.plan.recipe,
            "config": self.config.to_dict(),
            **self.extra_state(),
        }

    def _saved(self) -> None:
        prune(self.folder, self.images, self.config.keep_checkpoints)
        if replaced := self.replaced:
            write_json(self.folder / "replaced.json", [dataclasses.asdict(one) for one in replaced])
        self._write_summary(finished=False)

    def _finish(self) -> None:
        """The last checkpoint, the last line, the summary. The line is behind the checkpoint's `metrics_offset`: a run
        that is extended cuts it off and completes its interval, as if it had never ended here."""
        self._save(finished=True)
        if self.meter.read()["steps"]:
            self._write_line()
        distributed.on_main(lambda: self._write_summary(finished=True))

    def _write_summary(self, *, finished: bool) -> None:
        assert self.metrics is not None
        self.metrics.sync()
        lines = read_metrics(self.metrics.path)
        summary: dict[str, Any] = {
            "images": self.images,
            "steps": self.steps,
            "pixels": self.pixels,
            "seconds": round(self.seconds, 3),
            "images_per_second": significant(self.timed_images / self.seconds, 5) if self.seconds else None,
            "loss": recent_loss(lines),
            "model": self.config.model,
            "parameters": count_parameters(self.parts.model),
            "finished": finished,
        }
        if self.parts.pruning is not None:
            summary["left_out"] = self.parts.pruning.left_out  # images that whole epochs would have had more
        measured = [line for line in lines if "held_out_loss" in line]
        if measured:
            keys = ("images", "held_out_loss", "held_out_gap", "held_out_error")
            last = {key: measured[-1][key] for key in keys}
            summary["held_out"] = last | {"overfitting": overfitting(last)}
        write_json(self.folder / "summary.json", summary)


def _was_summarised(folder: Path, images: int) -> bool:
    """Whether nothing is left to do after the last checkpoint."""
    try:
        summary = read_json(folder / "summary.json")
        return summary["finished"] is True and summary["images"] == images
    except (InputError, KeyError, TypeError):
        return False


def _result(folder: Path, checkpoint: Path, repeated: bool = False) -> TrainResult:
    summary = read_json(folder / "summary.json")
    keys = ("images", "steps", "seconds", "images_per_second", "loss")
    return TrainResult(folder, checkpoint, **{key: summary[key] for key in keys}, repeated=repeated)
