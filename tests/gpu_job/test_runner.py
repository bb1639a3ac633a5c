"""The job as a command, with a stage of our own: adding a stage is adding a file."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gpu import runner, stages
from gpu.job import Job, Unit
from gpu.results import NAME, Results, problems

ROOT = Path(__file__).parents[2]
STAGE = '''
"""A stage that tries everything."""
import os, time
from gpu.job import Skip, Unit
ORDER, LIMIT = 99, 60

def units(job):
    return [Unit(name) for name in {names}]

def run(job, name):
    yield {{"value": 1.5, "process": os.getpid(), "odd": float("nan")}}
    if name == "raises":
        raise ValueError("the reason\\nand more")
    if name == "dies":
        os._exit(7)
    if name == "skips":
        raise Skip("no such thing here")
    while name == "endless":
        time.sleep(0.05)
        yield {{"process": os.getpid()}}
    if name == "sleeps":
        time.sleep(100)
'''


@pytest.fixture
def command(tmp_path):
    """A copy of the job with the stage `trial` of the given units."""

    def make(*names):
        target = tmp_path / "benchmarks" / "gpu"
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "benchmarks" / "gpu", target, ignore=ignored)
        (target / "stages" / "trial.py").write_text(STAGE.format(names=names))
        words = ["--rehearse", "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
        return [str(target / "run.sh"), "trial", *words]

    return make


def start(words, *more):
    environment = os.environ | {"PYTHON": sys.executable}
    return subprocess.Popen([*words, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def rows_of(tmp_path, stage="trial"):
    return json.loads((tmp_path / "out" / NAME).read_text())["stages"][stage]["rows"]


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("nothing happened in time")


def alive(process):
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_units_fail_alone(command, tmp_path):
    """One raises, one kills its process, one does not apply: the others run, and every row says what happened."""
    done = start(command("works", "raises", "dies", "skips", "last"))
    out, err = done.communicate(timeout=60)
    assert done.returncode == 1, err
    status = [(row["unit"], row["status"]) for row in rows_of(tmp_path)]
    assert ("raises", "failed") in status
    assert ("dies", "failed") in status
    assert ("skips", "skipped") in status
    assert status[0] == ("works", "ok")
    assert status[-1] == ("last", "ok")
    reasons = {row["unit"]: row["reason"] for row in rows_of(tmp_path) if "reason" in row}
    assert reasons["raises"] == "ValueError: the reason"
    assert "ended with 7" in reasons["dies"]
    assert out.splitlines()[0].split() == ["unit", "status", "what"]
    assert problems(tmp_path / "out") == []
    assert rows_of(tmp_path)[0]["odd"] == "nan"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_stop_at_any_moment_loses_nothing(command, tmp_path, how):
    process = start(command("endless"))
    wait_for(lambda: (tmp_path / "out" / NAME).exists() and "trial" in (tmp_path / "out" / NAME).read_text())
    wait_for(lambda: len(rows_of(tmp_path)) > 3)
    worker = rows_of(tmp_path)[0]["process"]
    assert alive(worker)
    process.send_signal(how)
    process.communicate(timeout=20)
    assert problems(tmp_path / "out") == []
    assert len(rows_of(tmp_path)) > 3
    wait_for(lambda: not alive(worker))
    before = json.loads((tmp_path / "out" / NAME).read_text())["stages"]["trial"]["rows"]
    assert all(row["status"] == "ok" for row in before)


def test_the_clock_ends_a_unit(command, tmp_path):
    started = time.monotonic()
    done = start(command("sleeps", "never"), "--minutes", "0.19")
    done.communicate(timeout=60)
    assert time.monotonic() - started < 40
    status = [(row["unit"], row["status"]) for row in rows_of(tmp_path)]
    assert status == [("sleeps", "ok"), ("sleeps", "stopped"), ("never", "skipped")]


def test_units_that_do_not_fit_make_room(job, monkeypatch):
    """In order of worth, each if it fits into what is left at its turn; what never fits says so."""
    ran = []

    class Fake:
        def __init__(self, stage, job):
            pass

        def run(self, unit, add):
            ran.append(unit.name)
            add({"unit": unit.name, "status": "ok"})
            return True

        def end(self):
            pass

    class Stage:
        LIMIT = 60

        @staticmethod
        def units(job):
            return [Unit("first", 20), Unit("long", 500), Unit("short", 5)]

    monkeypatch.setattr(runner, "Worker", Fake)
    monkeypatch.setattr(stages, "load", lambda name: Stage)
    real = Job(job.out, job.work)
    results = Results(Path(job.out), Path(job.work), {}, False)
    runner.run_stage("trial", real, results, 60)
    assert ran == ["first", "short"]
    assert [(row["unit"], row["status"]) for row in results.rows("trial")][-1] == ("long", "skipped")


def test_a_second_call_keeps_the_stages_of_the_first(command, tmp_path):
    words = command("works")
    start(words).communicate(timeout=60)
    again = start([words[0], "ceilings", *words[2:]])
    again.communicate(timeout=120)
    assert again.returncode == 0
    assert json.loads((tmp_path / "out" / NAME).read_text())["stages"].keys() == {"trial", "ceilings"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nonsense"], "stage 'nonsense' does not exist"),
        (["quality", "nonsense", "--rehearse"], "no arm or group 'nonsense'"),
        (["build", "--minutes", "0", "--rehearse"], "must be above 0"),
        (["build", "--data", "missing.tar", "--rehearse"], "missing.tar: does not exist"),
    ],
)
def test_mistakes_are_one_line(words, message, tmp_path):
    done = start(
        [str(ROOT / "benchmarks/gpu/run.sh"), *words, "--out", str(tmp_path), "--work", str(tmp_path / "work")]
    )
    _, err = done.communicate(timeout=60)
    assert done.returncode != 0
    assert message in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a GPU")
def test_without_a_gpu_only_the_rehearsal_runs(tmp_path):
    done = start([str(ROOT / "benchmarks/gpu/run.sh"), "ceilings", "--out", str(tmp_path / "out")])
    _, err = done.communicate(timeout=60)
    assert done.returncode != 0
    assert "--rehearse" in err


def test_the_runner_needs_nothing_but_python():
    """The build stage runs before torch and prunefast need to be there; units are listed without them."""
    code = """
import sys
sys.path.insert(0, sys.argv[1])
for name in ("torch", "numpy", "prunefast"):
    sys.modules[name] = None
from gpu import __main__, stages
from gpu.job import Job
names = stages.names()
for name in names:
    for rehearse in (False, True):
        assert stages.load(name).units(Job("out", "work", rehearse)), name
print(*names)
"""
    done = subprocess.run([sys.executable, "-c", code, str(ROOT / "benchmarks")], capture_output=True, text=True)
    assert done.stdout.strip() == "build check ceilings micro throughput decode quality", done.stderr


def test_stages_end_within_nine_minutes():
    for name in stages.names():
        assert stages.load(name).LIMIT <= 540
        assert stages.load(name).__doc__.splitlines()[0].endswith(".")
