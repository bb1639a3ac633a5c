"""What a stage is told: where things lie, how long it has, whether it rehearses."""

import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[2]


class Skip(Exception):
    """Raised by a unit that cannot run here; its text is the reason that is recorded."""


@dataclasses.dataclass(frozen=True)
class Unit:
    """A part of a stage that stands alone: it runs, fails or is left out without the others.

    seconds: what it takes on the machine; a unit that does not fit into the time left is left out, and says so.
    """

    name: str
    seconds: float = 10.0


@dataclasses.dataclass(frozen=True)
class Job:
    out: str  # what comes back
    work: str  # the machine's own disk: what later calls find again
    rehearse: bool = False
    deadline: float = float("inf")  # of the stage, time.time()
    wheels: str | None = None
    data: str | None = None  # the archive of images
    prepared: str | None = None  # the file of prepare.py
    arms: tuple[str, ...] = ()  # of quality

    @property
    def left(self) -> float:
        """Seconds until the end of the stage."""
        return self.deadline - time.time()

    @property
    def site(self) -> Path:
        """Where this job installs packages."""
        return Path(self.work) / "site"

    @property
    def device(self) -> "torch.device":
        import torch

        return torch.device("cpu" if self.rehearse else "cuda")

    def folder(self, *names: str) -> Path:
        path = Path(self.work, *names)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Job":
        values: dict[str, Any] = json.loads(text)
        return cls(**values | {"arms": tuple(values["arms"])})


def on_gpu(device: "torch.device") -> bool:
    """The one question that decides between a device's own code and a rehearsal's; the tests answer it otherwise."""
    return device.type == "cuda"


def default_work(rehearse: bool) -> Path:
    """One folder a machine and user: arms and caches are found again by the next call."""
    return Path(tempfile.gettempdir()) / f"prunefast-gpu-{'rehearsal' if rehearse else 'job'}"


def say(*words: object) -> None:
    print(*words, file=sys.stderr, flush=True)
