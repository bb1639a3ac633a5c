"""Looks at a training loop from inside: called at the begin of each step it times, counts waits, profiles, ends it."""

import contextlib
import time
import warnings
from collections import Counter
from typing import Any

import torch

from gpu import job as job_module
from gpu.job import Job

WARM, TIMED, COUNTED, PROFILED = 8, 40, 5, 3  # steps of each phase
TIMED_SECONDS = 8.0  # the timed phase ends early here
KERNELS = 12  # rows of the profile


class Enough(BaseException):
    """Raised out of the loop when everything was seen; nothing of the loop catches it."""


class Probe:
    """`step()` at the begin of each step of `batch` images; `result` when it raised Enough."""

    def __init__(self, job: Job, batch: int):
        self.device, self.batch = job.device, batch
        self.warm, self.timed = (1, 2) if job.rehearse else (WARM, TIMED)
        self.counted, self.profiled = (1, 1) if job.rehearse else (COUNTED, PROFILED)
        self.result: dict[str, Any] = {"batch": batch}
        self._steps, self._start, self._phase, self._since = 0, time.perf_counter(), "first", 0
        self._stack = contextlib.ExitStack()
        if job_module.on_gpu(self.device):
            torch.cuda.reset_peak_memory_stats()

    def step(self) -> None:
        done, self._steps = self._steps, self._steps + 1
        inside = done - self._since
        if self._phase == "first" and done == 1:
            self.result["first_step_seconds"] = self._now() - self._start
            self._enter("warm", done)
        elif self._phase == "warm" and inside == self.warm:
            self._start = self._now()
            self._enter("timed", done)
        elif self._phase == "timed" and (
            inside == self.timed or (inside >= 3 and time.perf_counter() - self._start > TIMED_SECONDS)
        ):
            seconds = self._now() - self._start
            self.result |= {"images_per_second": self.batch * inside / seconds, "step_ms": 1e3 * seconds / inside}
            self._count_waits()
            self._enter("counted", done)
        elif self._phase == "counted" and inside == self.counted:
            self._stack.close()
            self._begin_profile()
            self._enter("profiled", done)
        elif self._phase == "profiled" and inside == self.profiled:
            self._finish()

    def _enter(self, phase: str, done: int) -> None:
        self._phase, self._since = phase, done

    def _now(self) -> float:
        if job_module.on_gpu(self.device):
            torch.cuda.synchronize()
        return time.perf_counter()

    def _count_waits(self) -> None:
        """Every call that makes the host wait for the device warns, with the line it stands in."""
        if not job_module.on_gpu(self.device):
            self.result["host_waits"] = "no-op: has no form on a CPU"
            return
        caught = self._stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")

        def read() -> None:
            torch.cuda.set_sync_debug_mode("default")
            places = Counter(
                f"{'/'.join(w.filename.split('/')[-3:])}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)
            )
            self.result["host_waits"] = sum(places.values()) / self.counted
            self.result["host_waits_at"] = dict(places.most_common(6))

        self._stack.callback(read)

    def _begin_profile(self) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if job_module.on_gpu(self.device):
            activities = [torch.profiler.ProfilerActivity.CUDA]  # of the host nothing: it would slow the loop down
        self._profiler = torch.profiler.profile(activities=activities)
        self._profiler.__enter__()
        self._start = self._now()

    def _finish(self) -> None:
        wall = 1e6 * (self._now() - self._start)
        self._profiler.__exit__(None, None, None)
        if job_module.on_gpu(self.device):
            self.result["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        on_gpu = job_module.on_gpu(self.device)
        events = self._profiler.key_averages()
        times = {e.key: e.self_device_time_total if on_gpu else e.self_cpu_time_total for e in events}
        total = sum(times.values())
        top = sorted(times.items(), key=lambda item: -item[1])[:KERNELS]
        self.result["device_busy"] = total / wall
        self.result["profile"] = [
            {"kernel": key[:100], "share": spent / max(total, 1e-9), "ms": spent / 1e3 / self.profiled}
            for key, spent in top
        ]
        raise Enough
