"""What a run says: sums on the device, metrics.jsonl, summary.json and the status line.

Lines of metrics.jsonl are keyed to image counts, never to time, and the sums between two lines travel in the
checkpoint: a run that was stopped and resumed writes the same lines as one that was not, but for `TIMING_KEYS`.
"""

import json
import math
import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from prunefast.errors import InputError
from prunefast.files import explain_os_error
from prunefast.progress import Progress, format_seconds
from prunefast.train.events import EVENTS_FILE, EventFile, WandbRun

TIMING_KEYS = ("images_per_second", "seconds", "data_wait")  # keys of a metrics line that differ from run to run

# Reading the loss waits for the device: for the eye, twice a second is enough.
STATUS_SECONDS = 0.5
DATA_WAIT_SHOWN = 0.05  # share of the time from which the status line speaks of waiting for data


class Meter:
    """Sums over steps, kept on the device: nothing is read back until somebody looks.

    One float64 vector: loss sum and gradient-norm sum over good steps, good steps, skipped steps (these four since the
    last metrics line), skipped steps in a row now, the longest such row.
    """

    def __init__(self, device: torch.device):
        self._sums = torch.zeros(6, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, loss: Tensor, norm: Tensor, bad: Tensor) -> None:
        """One step: loss, gradient norm and bad (1: skipped) are scalars on the device."""
        bad = bad.double()
        good = 1.0 - bad
        values = torch.nan_to_num(torch.stack((loss.detach().double(), norm.double())), 0.0, 0.0, 0.0) * good
        in_a_row = (self._sums[4] + 1.0) * bad
        self._sums[:4] += torch.stack((values[0], values[1], good, bad))
        self._sums[4] = in_a_row
        self._sums[5] = torch.maximum(self._sums[5], in_a_row)

    def read(self) -> dict[str, Any]:
        """Means since the last `start_line` (waits for the device). loss and grad_norm are None without a good step."""
        loss, norm, good, bad, _, longest = self._sums.tolist()
        return {
            "loss": loss / good if good else None,
            "grad_norm": norm / good if good else None,
            "steps": int(good + bad),
            "skipped": int(bad),
            "bad_in_a_row": int(longest),
        }

    def start_line(self) -> None:
        self._sums[:4] = 0.0

    def state(self) -> list[float]:
        return self._sums.tolist()

    def load(self, state: list[float]) -> None:
        self._sums.copy_(torch.tensor(state, dtype=torch.float64))


def significant(value: float | None, digits: int = 7) -> float | None:
    """Rounded to `digits` significant digits (float32 has no more); None for None."""
    return None if value is None else float(f"{value:.{digits}g}")


class MetricsLog:
    """RUN/train/metrics.jsonl, appended to; `offset` is its length in bytes and part of a checkpoint.

    Opening cuts off what lies behind `offset`: lines of steps that were lost with a killed process and are done again.
    TensorBoard's event file beside it, and a run of Weights & Biases where `wandb` names a project, follow it.
    """

    def __init__(self, path: Path, offset: int, wandb: str | None = None, config: Mapping[str, Any] | None = None):
        self.path = path
        try:
            self._file = open(path, "ab")  # noqa: SIM115  closed by close()
            size = os.fstat(self._file.fileno()).st_size
            if size < offset:
                warnings.warn(
                    f"{path}: is shorter than when the checkpoint was written; lines are missing", stacklevel=2
                )
            self.offset = min(size, offset)
            self._file.truncate(self.offset)
        except OSError as error:
            raise explain_os_error(error, path) from None
        self._followers: list[EventFile | WandbRun] = [EventFile(path.parent / EVENTS_FILE, read_metrics(path))]
        if wandb is not None:
            self._followers.append(WandbRun(path.parent, wandb, config or {}))

    def write(self, record: dict[str, Any]) -> None:
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise explain_os_error(error, self.path) from None
        self.offset += len(line)
        for follower in self._followers:
            follower.write(record)

    def sync(self) -> None:
        """To the disk; before a checkpoint that counts on these lines."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise explain_os_error(error, self.path) from None

    def close(self) -> None:
        self._file.close()
        for follower in self._followers:
            follower.close()


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl. A last line that a killed process left unfinished is dropped."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; train first") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not readable ({error})") from None
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise InputError(f"{path}: line {number} is not JSON") from None
    return records


def recent_loss(records: list[dict[str, Any]]) -> float | None:
    """Mean loss over the lines of the last tenth of the images: one line alone is noisy, and the last may be short."""
    if not records:
        return None
    begin = 0.9 * records[-1]["images"]
    total = weight = 0.0
    for before, record in zip([{"steps": 0}, *records], records, strict=False):
        if record["images"] > begin:
            good = record["steps"] - before["steps"] - record["skipped"]
            total, weight = total + good * (record["loss"] or 0.0), weight + good
    return significant(total / weight) if weight else None


class Status:
    """The status line: images, loss, img/s, ETA; a bar on a terminal, plain lines elsewhere, nothing when not shown.

    Args:
        begin, end: images at the start of this process and at the end of the run (None: limited by time alone).
        max_seconds: the run's limit. With it the line counts that down instead of the images, which it may not reach.
    """

    def __init__(self, begin: int, end: int | None, max_seconds: float | None, *, show: bool):
        title = "train" if begin == 0 else f"train (on from {begin:,})"
        total = None if end is None or max_seconds is not None else max(end - begin, 0)
        self._bar = Progress(title, total, "img", silent=not show)
        self._show = show
        self._max_seconds = max_seconds
        self._note = ""
        self._last = -math.inf
        self._seconds: float | None = None  # and waited, when noted last
        self._waited = 0.0

    def due(self) -> bool:
        """Whether it is worth reading the loss for the line."""
        return self._show and time.monotonic() - self._last >= STATUS_SECONDS

    def note(
        self, loss: float | None, seconds: float, waited: float = 0.0, replaced: int = 0, overfitting: bool = False
    ) -> None:
        """seconds: of training so far; waited: how many of them for images; replaced: images that cannot be read;
        overfitting: whether held-out images say so."""
        self._last = time.monotonic()
        parts = [f"loss {loss:.4f}" if loss is not None else "loss -"]
        if self._seconds is not None and seconds > self._seconds:
            share = (waited - self._waited) / (seconds - self._seconds)
            if share >= DATA_WAIT_SHOWN:
                parts.append(f"waiting for data {share:.0%}")
        self._seconds, self._waited = seconds, waited
        if replaced:
            parts.append(f"{replaced:,} replaced")
        if overfitting:
            parts.append("overfitting")
        if self._max_seconds is not None:
            parts.append(f"{format_seconds(max(self._max_seconds - seconds, 0.0))} left")
        self._note = ", ".join(parts)

    def advance(self, images: int) -> None:
        self._bar.advance(images, self._note)

    def __enter__(self) -> "Status":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
