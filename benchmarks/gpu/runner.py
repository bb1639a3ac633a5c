"""Stages one after the other, each against its clock, its units in processes that may die."""

import contextlib
import dataclasses
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
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


def planned(units: list[Unit], left: float) -> Iterator[tuple[Unit, bool]]:
    """Units in their order, and whether each fits into what the ones before it leave of `left` seconds."""
    for unit in units:
        fits = unit.seconds <= left
        yield unit, fits
        if fits:
            left -= unit.seconds


def run_stage(name: str, job: Job, results: Results, limit: float) -> None:
    """All units of a stage, or those that fit."""
    stage = stages.load(name)
    started = time.time()
    job = dataclasses.replace(job, deadline=started + limit - GRACE)
    results.begin(name, limit)

    def add(row: dict[str, Any]) -> None:
        results.add(name, row, time.time() - started)

    say(f"\n== {name}, {limit:.0f} s")
    waiting = list(stage.units(job))
    while waiting:
        fitting = []
        for unit, fits in planned(waiting, job.left if not job.rehearse else float("inf")):
            if fits:
                fitting.append(unit)
            else:
                reason = f"needs about {unit.seconds:.0f} s, {max(job.left, 0):.0f} s are left of the stage"
                add({"unit": unit.name, "status": "skipped", "reason": reason})
        waiting = run_units(name, job, fitting, add)
    results.finish(name, time.time() - started)
    for line in table_lines(table_of(stage, results.rows(name))):
        print(line, flush=True)


def run_units(stage: str, job: Job, units: list[Unit], add: Any) -> list[Unit]:
    """Runs units in one worker; returns those that still wait when it died or the clock ran out of one of them."""
    if not units:
        return []
    read, write = os.pipe()
    log = Path(job.out) / LOG
    room = log.stat().st_size < LOG_BYTES if log.exists() else True
    command = [sys.executable, "-P", "-m", "gpu.worker", str(write), stage, job.to_json()]
    with open(log if room else os.devnull, "ab") as output:
        worker = subprocess.Popen(
            [*command, *(unit.name for unit in units)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[write],
            env=environment(job),
            cwd=job.work,
            start_new_session=True,
        )
    os.close(write)
    running: str | None = None
    ended = 0
    try:
        for message in messages(read, job, worker):
            if "begin" in message:
                running = message["begin"]
                say(f"   {running}")
            elif "row" in message:
                add(message["row"])
            elif "end" in message:
                running, ended = None, ended + 1
        timed_out = worker.poll() is None and job.left <= 0
    finally:
        os.close(read)
        end(worker)
    rest = units[ended:]
    if running is None and (worker.returncode == 0 or (not rest)):
        return []
    if running is None and ended == 0 and not timed_out:
        for unit in rest:
            add({"unit": unit.name, "status": "failed", "reason": f"the worker ended with {worker.returncode}: {LOG}"})
        return []
    if running is not None:
        status = "stopped" if timed_out else "failed"
        reason = "the time of the stage was over" if timed_out else f"the process ended with {worker.returncode}: {LOG}"
        add({"unit": running, "status": status, "reason": reason})
        rest = rest[1:]
    return rest


def messages(read: int, job: Job, worker: subprocess.Popen) -> Iterator[dict[str, Any]]:
    """What the worker tells, until it ends or the stage's time is over."""
    buffer = b""
    with selectors.DefaultSelector() as selector:
        selector.register(read, selectors.EVENT_READ)
        while job.left > 0:
            if not selector.select(min(job.left, 0.5)):
                continue
            part = os.read(read, 1 << 16)
            if not part:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    worker.wait(5)
                return
            *lines, buffer = (buffer + part).split(b"\n")
            for line in lines:
                yield json.loads(line)


def end(worker: subprocess.Popen) -> None:
    """The worker and what it started."""
    if worker.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


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
            run_stage(name, job, results, min(stages.load(name).LIMIT, LONGEST, left))
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
        lines = [["unit", "status", "what"]] + [[row["unit"], row["status"], short(row)] for row in rows]
        return lines
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
