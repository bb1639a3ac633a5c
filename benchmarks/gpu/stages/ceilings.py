"""What the machine can do at best: copy bandwidth and matrix products on random data."""

import json
from collections.abc import Iterator
from typing import Any

from gpu.job import Job, Unit

ORDER, LIMIT = 30, 120
PRODUCTS = ("bf16", "fp16", "tf32", "fp32")


def units(job: Job) -> list[Unit]:
    return [Unit("copy", 8), *(Unit(f"product {name}", 6) for name in PRODUCTS), Unit("clocks", 2)]


def run(job: Job, name: str) -> Iterator[dict[str, Any]]:
    from gpu import machine

    if name == "clocks":
        query = "--query-gpu=clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu,power.draw"
        yield {"clocks": machine.answer("nvidia-smi", query, "--format=csv,noheader") or "no nvidia-smi"}
        return
    for row in copies(job) if name == "copy" else product(job, name.split()[1]):
        keep(job, row)
        yield row


def copies(job: Job) -> Iterator[dict[str, Any]]:
    """Bytes read plus bytes written, at sizes around the second-level cache and far beyond it."""
    import torch

    from gpu.timing import median_ms

    for megabytes in (4,) if job.rehearse else (4096, 512, 64, 16):
        size = megabytes << 20
        # at least a gigabyte in turn, so that no size is served by the cache
        sets = 1 if job.rehearse else max(1, min(16, (1 << 30) // size))
        pairs = [torch.randint(0, 256, (2, size), device=job.device, dtype=torch.uint8) for _ in range(sets)]
        timed = median_ms(lambda pair: pair[1].copy_(pair[0]), [(pair,) for pair in pairs], job)
        yield {"what": "copy", "mb": megabytes, **timed, "GB/s": 2 * size / timed["ms"] / 1e6}


def product(job: Job, precision: str) -> Iterator[dict[str, Any]]:
    import torch

    from gpu.timing import median_ms

    types = {"bf16": torch.bfloat16, "fp16": torch.float16}
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    for side in (64,) if job.rehearse else (8192, 4096):
        a, b = (torch.randn(side, side, device=job.device).to(types.get(precision, torch.float32)) for _ in range(2))
        out = torch.empty_like(a)
        timed = median_ms(lambda a, b, out: torch.mm(a, b, out=out), [(a, b, out)], job)
        yield {"what": f"product {precision}", "side": side, **timed, "TFLOP/s": 2 * side**3 / timed["ms"] / 1e9}


def keep(job: Job, row: dict[str, Any]) -> None:
    """The best of each for later stages, on the machine's disk."""
    path = job.folder() / "ceilings.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    rate = row.get("GB/s") or row.get("TFLOP/s")
    known[row["what"]] = max(known.get(row["what"], 0.0), rate)
    path.write_text(json.dumps(known))


def known(job: Job) -> dict[str, float]:
    """{"copy": GB/s, "product bf16": TFLOP/s}, measured now where no stage did before."""
    path = job.folder() / "ceilings.json"
    have = json.loads(path.read_text()) if path.exists() else {}
    for name in ("copy", "product bf16"):
        if name not in have:
            for _ in run(job, name):
                pass
    return json.loads(path.read_text())


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    lines = [["ceiling", "size", "rate"]]
    for row in rows:
        if "GB/s" in row:
            lines.append([row["what"], f"{row['mb']} MB", f"{row['GB/s']:,.0f} GB/s"])
        elif "TFLOP/s" in row:
            lines.append([row["what"], f"{row['side']}^3", f"{row['TFLOP/s']:,.3g} TFLOP/s"])
    return lines
