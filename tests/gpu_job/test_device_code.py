"""The lines that only a GPU reaches, run on a CPU with stand-ins for streams, events and graphs.

They show that the code runs and judges, not what a device does: that is the job's.
"""

import contextlib
import time
import warnings
from types import SimpleNamespace

import pytest
import torch
from gpu import device_checks, probe, timing
from gpu import job as job_module

CPU = torch.device("cpu")


class Event:
    def __init__(self, enable_timing=False):
        pass

    def record(self):
        self.at = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return 1e3 * (other.at - self.at)


class Stream:
    def wait_stream(self, other):
        pass

    def synchronize(self):
        pass

    def query(self):
        return False


class Graph:
    """Replays nothing: what was captured stays as it was."""

    def replay(self):
        pass


@pytest.fixture
def pretended(monkeypatch):
    """torch.cuda as far as the job uses it."""
    nothing = lambda *arguments, **options: None  # noqa: E731
    fakes = {
        "Event": Event,
        "Stream": Stream,
        "CUDAGraph": Graph,
        "stream": lambda stream: contextlib.nullcontext(),
        "graph": lambda graph: contextlib.nullcontext(),
        "current_stream": lambda *device: Stream(),
        "max_memory_allocated": lambda: 3e9,
    }
    fakes |= dict.fromkeys(("synchronize", "empty_cache", "reset_peak_memory_stats", "_sleep"), nothing)
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(job_module, "on_gpu", lambda device: True)


def test_times_by_events_and_by_graph(job, pretended):
    calls = []
    found = timing.median_ms(lambda x: calls.append(float(x.sum())), [(torch.ones(3),), (torch.ones(4),)], job, 0.05)
    assert found["by"] == "graph"
    assert found["call_ms"] > 0
    assert found["ms20"] <= found["ms"] <= found["ms80"]
    assert set(calls) == {3.0, 4.0}


def test_what_cannot_be_captured_is_timed_by_events(job, pretended, monkeypatch):
    @contextlib.contextmanager
    def refuse(graph):
        yield
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    assert timing.median_ms(lambda x: x + 1, [(torch.ones(3),)], job, 0.02)["by"] == "events"


def test_a_stream_of_its_own(pretended):
    rows = list(device_checks.streams(CPU))
    assert [row["check"] for row in rows] == list(device_checks.calls(CPU))
    assert all(row["status"] == "ok" and row["wrong_values"] == 0 for row in rows)


def test_a_call_that_waits_is_found(pretended, monkeypatch):
    monkeypatch.setattr(Stream, "query", lambda self: True)
    assert all(row["status"] == "bad" for row in device_checks.streams(CPU))


def test_a_graph_that_does_nothing_is_found(pretended):
    rows = list(device_checks.graphs(CPU))
    assert len(rows) == len(device_checks.calls(CPU))
    assert all(row["status"] == "bad" and row["wrong_values"] > 0 for row in rows)


def test_the_probe_sees_time_waits_memory_and_kernels(job, pretended, monkeypatch):
    class Profile:
        def __init__(self, activities):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def key_averages(self):
            events = [("slow", 3000.0), ("fast", 1000.0)]
            return [SimpleNamespace(key=key, self_device_time_total=spent) for key, spent in events]

    modes = []
    monkeypatch.setattr(torch.profiler, "profile", Profile)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    looked = probe.Probe(job, batch=4)

    def loop():
        while True:
            looked.step()
            if modes and modes[-1] == "warn":  # as torch does it at a call that waits
                warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
                warnings.warn("another matter", stacklevel=1)

    with pytest.raises(probe.Enough):
        loop()
    result = looked.result
    assert modes == ["warn", "default"]
    assert result["host_waits"] == 1.0
    assert next(iter(result["host_waits_at"])).startswith("tests/gpu_job/test_device_code.py:")
    assert result["memory_gb"] == 3.0
    assert [entry["kernel"] for entry in result["profile"]] == ["slow", "fast"]
    assert result["profile"][0]["share"] == 0.75
    assert result["images_per_second"] > 0
    assert result["first_step_seconds"] >= 0
