"""Every operator beside torch eager, torch.compile and libraries: time, percent of the ceilings, accuracy."""

from collections.abc import Iterator
from typing import Any

from gpu.job import Job, Unit

ORDER, LIMIT = 40, 540
CASES, REHEARSAL_CASES = 19, 10  # of operators.cases; a test compares


def units(job: Job) -> list[Unit]:
    """By number: the names come with torch, which the runner does without."""
    return [Unit(f"case {i}", 20) for i in range(REHEARSAL_CASES if job.rehearse else CASES)]


def run(job: Job, name: str) -> Iterator[dict[str, Any]]:
    import torch

    from gpu import operators
    from gpu.stages.ceilings import known
    from gpu.timing import median_ms

    ceilings = known(job)
    torch._dynamo.reset()
    torch.backends.cuda.matmul.allow_tf32 = False
    case = operators.cases(job.rehearse)[int(name.split()[1])]
    inputs = case.make(job.device, operators.generator_of(job.device, 0))
    truth = case.truth(*inputs)
    same = operators.repeats(case, inputs)
    sets = operators.input_sets(case, job.device)
    times: dict[str, float] = {}
    for who, call in ({"prunefast": case.run} | case.ours | case.peers).items():
        row = {"case": case.name, "who": who}
        ours = who.startswith("prunefast")
        try:
            error = operators.accuracy(case, call, inputs, truth)
            timed = median_ms(call, sets, job)
        except Exception as problem:  # a peer that does not run here is a row that says so
            if ours:
                raise
            yield row | {"status": "skipped", "reason": f"{type(problem).__name__}: {problem}".splitlines()[0][:200]}
            continue
        times[who] = timed["ms"]
        row |= timed | rates(case, timed["ms"], ceilings) | {"error": error}
        if ours:
            fine = same and (error is None or error <= case.tolerance)
            row |= {"tolerance": case.tolerance, "repeats": same, "status": "ok" if fine else "bad"}
        yield row
    yield from verdicts(case, times, ceilings)


def rates(case: Any, ms: float, ceilings: dict[str, float]) -> dict[str, float]:
    """GB/s and its share of the copy, TFLOP/s and its share of the bf16 product, where the case counts them."""
    result = {}
    if case.bytes:
        result |= {"GB/s": case.bytes / ms / 1e6, "of copy": case.bytes / ms / 1e6 / ceilings["copy"]}
    if case.flop:
        result |= {"TFLOP/s": case.flop / ms / 1e9, "of product": case.flop / ms / 1e9 / ceilings["product bf16"]}
    return result


def verdicts(case: Any, times: dict[str, float], ceilings: dict[str, float]) -> Iterator[dict[str, Any]]:
    """One row for each prediction: what was predicted, what was measured, whether it was met."""
    for who, ms in times.items():
        if not who.startswith("prunefast"):
            continue
        values: dict[str, float] = rates(case, ms, ceilings)
        compiled = [times[peer] for peer in times if peer.startswith("compile")]
        if compiled:
            values["over compile"] = min(compiled) / ms
        for key, least in case.predicted.items():
            if key in values:
                row = {"case": case.name, "who": who, "prediction": key, "predicted": least}
                yield row | {"measured": values[key], "met": values[key] >= least}


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    lines = [["case", "who", "ms", "of copy", "TFLOP/s", "error"]]
    for row in rows:
        if "prediction" in row:
            met = "met" if row["met"] else "MISSED"
            lines.append([row["case"], row["who"], met, f"{row['prediction']} {row['measured']:.3g}", "predicted"])
            lines[-1].append(f"{row['predicted']:g}")
        elif "ms" in row:
            share = f"{100 * row['of copy']:.0f} %" if "of copy" in row else ""
            rate = f"{row['TFLOP/s']:.3g}" if "TFLOP/s" in row else ""
            error = "" if row["error"] is None else f"{row['error']:.1e}"
            lines.append([row["case"], row["who"], f"{row['ms']:.4g}", share, rate, error])
    return lines
