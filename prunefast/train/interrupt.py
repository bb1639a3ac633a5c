"""Ctrl-C and SIGTERM during training: noted, acted on between two steps, so that a checkpoint can be written first."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class TrainingStopped(KeyboardInterrupt):
    """Training was asked to stop (Ctrl-C, SIGTERM) and has written a checkpoint; the same call continues from it.

    A `KeyboardInterrupt`, so that a script which trains and then samples ends here, as it would without prunefast.
    """


class StopRequest:
    """Context in which SIGINT and SIGTERM set `name` instead of ending the process. A second one ends it as always.

    Signals reach the main thread only; elsewhere nothing is changed and `name` stays None.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # None: a handler that was not installed from Python and could not be put back
                if signal.getsignal(number) not in (None, signal.SIG_IGN):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        self._put_back()

    def _put_back(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._put_back()
