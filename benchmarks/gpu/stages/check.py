"""The operators on the device against float64; graphs, streams, compile, sizes past 2^31; compute-sanitizer."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu.job import ROOT, Job, Skip, Unit

ORDER, LIMIT = 20, 540
OPERATORS = (
    *("denoising_loss", "loss_options", "add_noise", "philox", "nearest", "topk", "kmeans", "group_norm_silu"),
    *("gaussian", "repeats"),
)
DEVICE = ("graphs", "streams", "absent", "limits", "autocast", "compile", "large")
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
SHOWN = 5  # failures that a row names
INTERPRETED = ("denoising_loss", "add_noise", "philox", "nearest", "group_norm_silu")  # in a rehearsal
# of comparisons of one operator: the interpreter takes a second for a few, and Triton compiles a kernel for many shapes
SECONDS, REHEARSAL_SECONDS = 45.0, 3.0


def units(job: Job) -> list[Unit]:
    plain = [Unit(f"cuda {name}", 8) for name in OPERATORS] + [Unit(f"cuda {name}", 10) for name in DEVICE]
    if job.rehearse:
        interpreted = [Unit(f"triton {name}") for name in INTERPRETED]
        return [*plain, *interpreted, Unit("sanitizer cuda"), Unit("sanitizer triton")]
    # distances have no other backend: "cuda" ran them already
    triton = [Unit(f"triton {name}", 20) for name in OPERATORS if name not in ("gaussian", "nearest", "topk")]
    triton += [Unit(f"triton {name}", 15) for name in ("graphs", "streams", "limits", "large")]
    return [*plain, Unit("sanitizer cuda", 100), *triton, Unit("sanitizer triton", 100)]


def run(job: Job, name: str) -> Iterator[dict[str, Any]]:
    backend, what = name.split()
    if backend == "sanitizer":
        yield from sanitize(job, what)
        return
    from gpu.backends import forced, interpreter_runs_loops

    if job.rehearse and backend == "triton" and what == "nearest" and not interpreter_runs_loops():
        raise Skip("Triton's interpreter cannot run its loops with this NumPy")
    with forced(backend, job.rehearse) as runs:
        for row in on_device(job, what) if what in DEVICE else against_float64(job, what):
            yield {"backend": runs, **row}


def on_device(job: Job, what: str) -> Iterator[dict[str, Any]]:
    from gpu import device_checks

    yield from device_checks.CHECKS[what](job.device)


def against_float64(job: Job, what: str) -> Iterator[dict[str, Any]]:
    """One row an operator: how many comparisons, the worst of them, the first that fail."""
    from gpu import checks

    cases, failures, worst, nearest_to_limit = 0, [], 0.0, 0.0
    complete, end = True, time.monotonic() + (REHEARSAL_SECONDS if job.rehearse else SECONDS)
    for case, error, tolerance in checks.CHECKS[what](job.device, job.rehearse):
        cases += 1
        worst = max(worst, error)
        nearest_to_limit = max(nearest_to_limit, error / tolerance if tolerance else float(error > 0))
        if not error <= tolerance:
            failures.append(f"{case}: {error:.3g} > {tolerance:g}")
        if time.monotonic() > end:
            complete = False
            break
    yield {
        "check": what,
        "status": "bad" if failures or not cases else "ok",
        "cases": cases,
        "complete": complete,
        "worst": worst,
        "of_tolerance": nearest_to_limit,
        "failed": len(failures),
        "failures": failures[:SHOWN],
    }


# ---- compute-sanitizer


def sanitize(job: Job, backend: str) -> Iterator[dict[str, Any]]:
    """The four tools at once, each a process: first on a planted fault, then on small calls of every kernel."""
    target = [sys.executable, "-P", "-m", "gpu.sanitized", backend, job.device.type]
    if job.rehearse:
        if backend == "triton":
            raise Skip("the interpreter takes minutes for it; the same program ran on the native core")
        subprocess.run(target, check=True)
        yield {"check": "the program that is watched", "note": "ran on the CPU"}
        compiled = compile_faults(job, "90") if shutil.which("nvcc") else None
        status = {"status": "ok"} if compiled else {"status": "no-op", "reason": "no nvcc here"}
        yield {"check": "the planted faults compile", **status}
        yield {"check": "compute-sanitizer", "status": "no-op", "reason": "has no form on a CPU"}
        return
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        raise Skip("compute-sanitizer is not there")
    from gpu.stages.build import capability

    faults = compile_faults(job, capability())
    planted = {name: watch(tool, name, [str(faults), name]) for name in TOOLS}
    found = {name: finish(process, 60) for name, process in planted.items()}
    sound = []
    for name, (output, code, _) in found.items():
        fine = errors_in(output) > 0
        sound += [name] * fine
        yield {"check": f"{name} finds the planted fault", "status": "ok" if fine else "bad", "exit": code}
    started = time.monotonic()
    running = {name: watch(tool, name, target) for name in sound}
    for name, process in running.items():
        limit = min(job.left - 5, 240) - (time.monotonic() - started)
        output, code, ended = finish(process, max(limit, 1))
        row = {"check": name, "seconds": time.monotonic() - started, "exit": code, "errors": errors_in(output)}
        (job.folder("sanitizer") / f"{backend}-{name}.txt").write_text(output)
        if not ended or "sanitized: done" not in output:
            reason = "time was over" if not ended else f"the program did not end well: {output.strip()[-200:]}"
            yield row | {"status": "stopped" if not ended else "failed", "reason": reason}
            continue
        ours = ours_in(output)
        yield row | {"status": "bad" if ours else "ok", "in_our_kernels": len(ours), "first": ours[:SHOWN]}


def compile_faults(job: Job, architecture: str) -> Path:
    program = job.folder() / "faults"
    source = Path(__file__).parents[1] / "faults.cu"
    subprocess.run(["nvcc", f"-arch=sm_{architecture}", "-lineinfo", "-o", str(program), str(source)], check=True)
    return program


def watch(tool: str, name: str, command: list[str]) -> subprocess.Popen:
    # torch's allocator hands out parts of large blocks, in which a step outside of a tensor is no error
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    options = ["--tool", name, "--print-limit", "50", "--error-exitcode", "9"]
    arguments = [tool, *options, *command]
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, errors="replace"
    )


def finish(process: subprocess.Popen, seconds: float) -> tuple[str, int | None, bool]:
    """(output, exit status, whether it ended by itself)."""
    try:
        output, _ = process.communicate(timeout=seconds)
        return output, process.returncode, True
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        return output, None, False


def errors_in(output: str) -> int:
    """Of the summary line; racecheck counts hazards."""
    total = 0
    for line in output.splitlines():
        words = line.replace(":", " ").split()
        if "SUMMARY" in words:
            total += next((int(word) for word in words[words.index("SUMMARY") :] if word.isdigit()), 0)
    return total


def ours_in(output: str) -> list[str]:
    """Lines of the report that place an error in a kernel of ours: C++ by the namespace, Triton by its names."""
    sources = [path.read_text() for path in (ROOT / "kernels").glob("*.py")]
    names = sorted({name for source in sources for name in re.findall(r"def (\w+_kernel)", source)})
    ours = re.compile(rf"\bat (?:void )?(?:prunefast::|(?:{'|'.join(names)})\b)")
    return [
        line.strip("= ")[:200] for line in output.splitlines() if line.startswith("=========") and ours.search(line)
    ]


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    lines = [["check", "status", "cases", "worst", "failures"]]
    for row in rows:
        first = (row.get("failures") or row.get("first") or [row.get("message", "")])[:1]
        name = row["unit"] if row["check"] in row["unit"] else f"{row['unit']}: {row['check']}"
        worst = row.get("worst", row.get("error", row.get("wrong_values", "")))
        worst = f"{worst:.2g}" if isinstance(worst, float) else str(worst)
        lines.append([name, row["status"], str(row.get("cases", "")), worst, "".join(first)[:100]])
    return lines
