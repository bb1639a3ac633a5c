"""Stages one after the other, each against its clock, its units in a process that may die."""

import contextlib
import dataclasses
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gpu import stages
from gpu.job import ROOT, Job, Unit, say
from gpu.results import LOG, LOG_BYTES, Results

GRACE = 5.0  # seconds before the end of a stage at which a unit that runs is killed
LONGEST = 540.0  # of any stage


class Stop(BaseException):
    """SIGTERM or SIGINT: the worker is ended, the rows stay."""


def environment(job: Job) -> dict[str, str]:
    """Of a worker: what the job installed comes first, and what compilers keep stays for the next call."""
    paths = [str(job.site), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTHONUNBUFFERED": "1",
        **({"PRUNEFAST_REHEARSAL": "1", "TRITON_INTERPRET": "1"} if job.rehearse else {}),
        "PRUNEFAST_CACHE": str(job.folder("cache")),
        "TRITON_CACHE_DIR": str(job.folder("triton")),
        "TORCHINDUCTOR_CACHE_DIR": str(job.folder("inductor")),
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    }


def run_stage(name: str, job: Job, results: Results, limit: float) -> None:
    """The units of a stage in their order; one that does not fit into the time left makes room for those after it."""
    stage = stages.load(name)
    started = time.time()
    job = dataclasses.replace(job, deadline=started + limit - GRACE)
    results.begin(name, limit)

    def add(row: dict[str, Any]) -> None:
        results.add(name, row, time.time() - started)

    say(f"\n== {name}, {limit:.0f} s")
    waiting, worker = list(stage.units(job)), None
    try:
        while waiting and job.left > 0:
            unit = next((unit for unit in waiting if job.rehearse or unit.seconds <= job.left), None)
            if unit is None:
                break
            waiting.remove(unit)
            worker = worker or Worker(name, job)
            if not worker.run(unit, add):
                worker.end()
                worker = None
    finally:
        if worker is not None:
            worker.end()
    for unit in waiting:
        reason = f"needs about {unit.seconds:.0f} s, {max(job.left, 0):.0f} s were left of the stage"
        add({"unit": unit.name, "status": "skipped", "reason": reason})
    results.finish(name, time.time() - started)
    for line in table_lines(table_of(stage, results.rows(name))):
        print(line, flush=True)


class Worker:
    """A process of worker.py: it is told units one by one and tells rows."""

    def __init__(self, stage: str, job: Job):
        self.job = job
        self._read, write = os.pipe()
        log = Path(job.out) / LOG
        full = log.exists() and log.stat().st_size > LOG_BYTES // 2
        command = [sys.executable, "-P", "-m", "gpu.worker", str(write), stage, job.to_json()]
        with open(os.devnull if full else log, "ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[write],
                env=environment(job),
                cwd=job.work,
                start_new_session=True,
            )
        os.close(write)

    def run(self, unit: Unit, add: Callable[[dict[str, Any]], None]) -> bool:
        """Adds the rows of a unit as they come. Whether the process can take another."""
        say(f"   {unit.name}")
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(unit.name.encode() + b"\n")
            self._process.stdin.flush()
        for message in self._messages():
            if "row" in message:
                add(message["row"])
            else:
                return message["usable"]
        if self.job.left <= 0:
            add({"unit": unit.name, "status": "stopped", "reason": "the time of the stage was over"})
        else:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            reason = f"its process ended with {self._process.returncode}; see {LOG}"
            add({"unit": unit.name, "status": "failed", "reason": reason})
        return False

    def _messages(self) -> Iterator[dict[str, Any]]:
        """Until the process ends or the stage's time is over."""
        buffer = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._read, selectors.EVENT_READ)
            while self.job.left > 0:
                if not selector.select(min(self.job.left, 1.0)):
                    continue
                part = os.read(self._read, 1 << 16)
                if not part:
                    return
                *lines, buffer = (buffer + part).split(b"\n")
                for line in lines:
                    yield json.loads(line)

    def end(self) -> None:
        """The process and what it started; its memory on the device is free afterwards."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._read)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()


def run(names: list[str], job: Job, results: Results, minutes: float | None) -> bool:
    """Stages in the order given, as many as fit into `minutes`. Whether every row is fine."""
    end_of_job = time.time() + (minutes * 60 if minutes else float("inf"))

    def stop(number: int, frame: object) -> None:
        raise Stop(signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for name in names:
            left = end_of_job - time.time()
            if left < 2 * GRACE:
                say(f"\n== {name}: left out, {max(left, 0):.0f} s of --minutes {minutes:g} are left")
                continue
            # a rehearsal shares its processor with others: only the end of the job cuts it short
            limit = LONGEST if job.rehearse else min(stages.load(name).LIMIT, LONGEST)
            run_stage(name, job, results, min(limit, left))
    except Stop as signal_name:
        say(f"stopped by {signal_name}; the rows so far are in {results.path}")
        return False
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return all(row["status"] not in ("bad", "failed") for name in names for row in results.rows(name))


# ---- the table that is printed last


def table_of(stage: Any, rows: list[dict[str, Any]]) -> list[list[str]]:
    problems = [row for row in rows if row["status"] != "ok"]
    lines = stage.table([row for row in rows if row["status"] in ("ok", "bad")]) if hasattr(stage, "table") else []
    if not lines:
        return [["unit", "status", "what"], *([row["unit"], row["status"], short(row)] for row in rows)]
    width = len(lines[0])
    lines += [[row["unit"], row["status"], row.get("reason", "")[:90]][:width] for row in problems if "reason" in row]
    return lines


def short(row: dict[str, Any]) -> str:
    if row.get("reason"):
        return row["reason"][:100]
    facts = [f"{key} {number(value)}" for key, value in row.items() if key not in ("unit", "status")]
    return "  ".join(facts)[:100]


def number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table_lines(table: list[list[str]]) -> list[str]:
    if not table:
        return []
    columns = max(len(line) for line in table)
    table = [[*map(str, line), *[""] * (columns - len(line))] for line in table]
    widths = [max(len(line[i]) for line in table) for i in range(columns)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
