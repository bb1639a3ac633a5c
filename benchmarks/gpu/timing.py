"""Times of calls on the device: by replay of a captured graph where that works, else by events around single calls.

Inputs rotate among sets that together exceed the cache. A graph holds one call on every set, so its replay shows the
kernels without the gaps between their launches; `call_ms` is what a caller in eager mode sees.
"""

import time
from collections.abc import Callable
from typing import Any

import torch

from gpu import job as job_module
from gpu.job import Job

Call = Callable[..., Any]
LEAST_MS = 10.0  # of one round, so that the event's resolution (0.5 us) does not count
MOST_REPEATS = 1000  # in one round, however short


def median_ms(call: Call, sets: list[tuple], job: Job, seconds: float = 1.0, graph: bool = True) -> dict[str, Any]:
    """{"ms", "ms20", "ms80", "call_ms", "by"}; about `seconds` of measuring after a warm-up."""
    for inputs in (sets * 3)[: max(3, len(sets))]:
        call(*inputs)
    if not job_module.on_gpu(job.device):
        found = sorted(_clock(call, sets) for _ in range(3))
        return {"ms": found[1], "ms20": found[0], "ms80": found[2], "call_ms": found[1], "by": "clock"}
    torch.cuda.synchronize()
    eager = _rounds(lambda: [call(*inputs) for inputs in sets], len(sets), seconds / 2)
    result = _quantiles(eager) | {"call_ms": eager[len(eager) // 2], "by": "events"}
    replay = _capture(call, sets) if graph else None
    if replay is not None:
        result |= _quantiles(_rounds(replay, len(sets), seconds / 2)) | {"by": "graph"}
    return result


def _clock(call: Call, sets: list[tuple]) -> float:
    start = time.perf_counter()
    for inputs in sets:
        call(*inputs)
    return 1e3 * (time.perf_counter() - start) / len(sets)


def _rounds(work: Callable[[], Any], calls: int, seconds: float) -> list[float]:
    """Milliseconds of one call, sorted: `work` makes `calls` of them."""
    found: list[float] = []
    repeats, end = 1, time.perf_counter() + seconds
    while len(found) < 3 or (time.perf_counter() < end and len(found) < 100):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            work()
        stop.record()
        stop.synchronize()
        elapsed = start.elapsed_time(stop)
        if elapsed < LEAST_MS / 2 and not found and repeats < MOST_REPEATS:
            repeats = min(max(2 * repeats, round(repeats * LEAST_MS / max(elapsed, 1e-3))), MOST_REPEATS)
            continue
        found.append(elapsed / repeats / calls)
    return sorted(found)


def _quantiles(found: list[float]) -> dict[str, float]:
    return {"ms": found[len(found) // 2], "ms20": found[len(found) // 5], "ms80": found[len(found) * 4 // 5]}


def _capture(call: Call, sets: list[tuple]) -> Callable[[], None] | None:
    """A graph of one call on every set; None for a call that cannot be captured (it waits for the device)."""
    graph = torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(side):
            for inputs in sets:
                call(*inputs)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            kept = [call(*inputs) for inputs in sets]
    except Exception as error:  # each library that waits inside says so in words of its own
        print(f"not captured: {str(error).splitlines()[0]}", flush=True)
        torch.cuda.synchronize()
        return None
    del kept  # its memory belongs to the graph
    return graph.replay
