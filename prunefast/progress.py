"""Progress for people: a bar with an ETA on a terminal, a plain line now and then elsewhere, nothing when quiet.

Everything goes to standard error, so that standard output holds results only.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

PLAIN_INTERVAL_SECONDS = 10.0  # between two plain lines: a log of an hour stays readable


class Progress:
    """Counts `advance` calls towards `total` (None: unknown) and shows them. `silent` is the library's default."""

    def __init__(self, title: str, total: int | None, unit: str = "img", silent: bool = False):
        self.title = title
        self.total = total
        self.unit = unit
        self.done = 0
        self._silent = silent
        self._started = self._last_line = time.monotonic()
        self._printed = False
        self._bar = None
        if not silent and sys.stderr.isatty():
            self._bar = tqdm(total=total, desc=title, unit=unit, leave=False, dynamic_ncols=True, smoothing=0.1)

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        if self._silent:
            return
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
            return
        now = time.monotonic()
        if now - self._last_line >= PLAIN_INTERVAL_SECONDS:
            self._last_line = now
            self._line(now, note)

    def _line(self, now: float, note: str) -> None:
        elapsed = max(now - self._started, 1e-9)
        rate = self.done / elapsed
        parts = [f"{self.title}: {self.done:,}" + (f"/{self.total:,}" if self.total else "") + f" {self.unit}"]
        parts.append(f"{rate:,.1f} {self.unit}/s")
        if self.total and self.done and self.done < self.total:
            parts.append(f"ETA {format_seconds((self.total - self.done) / rate)}")
        if note:
            parts.append(note)
        print("  ".join(parts), file=sys.stderr, flush=True)
        self._printed = True

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        elif self._printed and not self._silent:
            self._line(time.monotonic(), "done")


@contextmanager
def progress(title: str, total: int | None, unit: str = "img", silent: bool = True) -> Iterator[Progress]:
    bar = Progress(title, total, unit, silent)
    try:
        yield bar
    finally:
        bar.close()


def format_seconds(seconds: float) -> str:
    """``75`` -> ``1:15``, ``4000`` -> ``1:06:40``."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
