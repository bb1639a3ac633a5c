"""Operators on a GPU: checked against float64, then timed beside torch, as fractions of the device's own ceilings.

    python benchmarks/gpu/operators.py --out operators.json        # a GPU; some minutes
    python benchmarks/gpu/operators.py --rehearse                  # a CPU, small sizes: does it run and is it right?

Every case makes fresh random inputs. A check compares with a direct float64 formula written here, twice; timing uses
device events around many calls over rotated input sets that together exceed the cache, after a warm-up.
`check(case, device)` and `measure(case, device)` serve larger jobs; `CASES` lists what there is.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional

from prunefast import ops

CACHE = 256 << 20  # bytes that no cache holds
SEED = 7


@dataclass
class Case:
    """One operator at one size. `make(device, generator)` gives inputs; `run` and each peer take them."""

    name: str
    make: Callable[..., tuple]
    run: Callable[..., Any]
    truth: Callable[..., Any]  # float64, of the same inputs
    tolerance: float  # of |run - truth| / |truth|, of each output
    peers: dict[str, Callable] = field(default_factory=dict)
    bytes: int = 0  # least traffic of a call
    flop: int = 0


def randn(shape, device, generator, dtype=torch.float32):
    return torch.randn(shape, generator=generator, device=device).to(dtype)


def spread(value):
    return value[:, None, None, None]


def last(x):
    return x.contiguous(memory_format=torch.channels_last)


# ---- denoising loss


def loss_truth(pred, x0, noise, a, b):
    clean = x0.double() / 127.5 - 1 if x0.dtype == torch.uint8 else x0.double()
    residual = pred.detach().double() - spread(a.double()) * clean - spread(b.double()) * noise.double()
    return residual.square().mean(), 2 * residual / residual.numel()


def loss_eager(pred, x0, noise, a, b):
    target = spread(a) * x0 + spread(b) * noise
    loss = (pred.float() - target).square().mean()
    return loss, torch.autograd.grad(loss, pred)[0]


def loss_ours(pred, x0, noise, a, b):
    loss, _ = ops.denoising_loss(pred, x0, noise, a, b)
    return loss, torch.autograd.grad(loss, pred)[0]


def loss_case(shape, dtype, channels_last=False):
    def make(device, generator):
        form = last if channels_last else (lambda x: x)
        pred = form(randn(shape, device, generator, dtype)).requires_grad_()
        x0, noise = (form(randn(shape, device, generator)) for _ in range(2))
        return pred, x0, noise, *randn((2, shape[0]), device, generator)

    elements = torch.Size(shape).numel()
    half = torch.finfo(dtype).bits // 8
    name = f"denoising_loss {'x'.join(map(str, shape))} {str(dtype)[6:]}{' channels_last' if channels_last else ''}"
    peers = {"eager": loss_eager, "compile": torch.compile(loss_eager)}
    return Case(name, make, loss_ours, loss_truth, 4e-3, peers, elements * (2 * half + 8), elements * 8)


# ---- add_noise


def noise_truth(x0, alpha, sigma, noise):
    return (spread(alpha.double()) * (x0.double() / 127.5 - 1) + spread(sigma.double()) * noise.double(),)


def noise_eager(x0, alpha, sigma, noise):
    return ((spread(alpha) * (x0.float() / 127.5 - 1) + spread(sigma) * noise).bfloat16(),)


def noise_ours(x0, alpha, sigma, noise):
    return (ops.add_noise(x0, alpha, sigma, noise, dtype=torch.bfloat16),)


def noise_case(shape):
    def make(device, generator):
        x0 = torch.randint(0, 256, shape, generator=generator, device=device, dtype=torch.uint8)
        return x0, *randn((2, shape[0]), device, generator), randn(shape, device, generator)

    elements = torch.Size(shape).numel()
    peers = {"eager": noise_eager, "compile": torch.compile(noise_eager)}
    name = f"add_noise {'x'.join(map(str, shape))} uint8 to bfloat16"
    return Case(name, make, noise_ours, noise_truth, 4e-3, peers, elements * 7, elements * 4)


# ---- random numbers


def philox_truth(position, shape):
    normal = ops.randn_philox(shape, SEED, position.cpu(), dtype=torch.float64)  # the portable float64 path
    return (normal.to(position.device),)


def philox_case(shape):
    def make(device, generator):
        return (torch.randint(0, 1 << 40, shape[:1], generator=generator, device=device), shape)

    def ours(position, shape):
        return (ops.randn_philox(shape, SEED, position),)

    def eager(position, shape):
        return (torch.randn(shape, device=position.device),)

    elements = torch.Size(shape).numel()
    name = f"randn_philox {'x'.join(map(str, shape))}"
    return Case(name, make, ours, philox_truth, 1e-6, {"torch.randn": eager}, elements * 4)


# ---- distances


def nearest_truth(x, y):
    """Smallest float64 distances; indices are judged by the distance of what they pick."""
    return (torch.cat([torch.cdist(part, y.double()).amin(1).square() for part in x.double().split(4096)]),)


def nearest_ours(x, y):
    index, _ = ops.nearest(x, y)
    return ((x.double() - y[index].double()).square().sum(1),)


def nearest_call(x, y):
    return ops.nearest(x, y)


def nearest_eager(x, y):
    half = y.square().sum(1) / 2
    return (torch.cat([torch.addmm(half, part, y.T, alpha=-1).argmin(1) for part in x.split(16384)]),)


def nearest_bf16(x, y):
    half = y.square().sum(1).bfloat16() / 2
    x, y = x.bfloat16(), y.bfloat16()
    return (torch.cat([torch.addmm(half, part, y.T, alpha=-1).argmin(1) for part in x.split(16384)]),)


def nearest_case(rows, others, columns):
    def make(device, generator):
        return randn((rows, columns), device, generator), randn((others, columns), device, generator)

    name = f"nearest {rows}x{others}x{columns}"
    peers = {"eager fp32 (not exact)": nearest_eager, "eager bf16 (not exact)": nearest_bf16}
    moved = 4 * columns * (rows + others) + 12 * rows
    return Case(name, make, nearest_ours, nearest_truth, 1e-9, peers, moved, 2 * rows * others * columns)


def topk_case(rows, columns, k):
    def make(device, generator):
        return (randn((rows, columns), device, generator),)

    def truth(x):
        values = []
        for start in range(0, rows, 4096):
            distance = torch.cdist(x[start : start + 4096].double(), x.double())
            own = torch.arange(distance.shape[0], device=x.device)
            distance[own, start + own] = torch.inf
            values.append(distance.topk(k, largest=False).values.square())
        return (torch.cat(values),)

    def ours(x):
        return (ops.topk(x, x, k, exclude_self=True)[1],)

    def eager(x):
        return torch.cat([torch.cdist(part, x).topk(k + 1, largest=False).indices for part in x.split(4096)])

    flop = 2 * rows * rows * columns
    return Case(f"topk {rows}x{columns} k={k}", make, ours, truth, 1e-6, {"cdist and topk": eager}, 0, flop)


# ---- group norm


def norm_chain(x, groups, weight, bias, scale, shift):
    y = functional.group_norm(x, groups, weight, bias)
    return functional.silu(y * (1 + scale[..., None, None]) + shift[..., None, None])


def norm_truth(x, dy, groups, *parameters):
    leaves = [t.detach().double().requires_grad_() for t in (x, *parameters)]
    y = norm_chain(leaves[0], groups, *leaves[1:])
    return y.detach(), *torch.autograd.grad(y, leaves, dy.double())


def norm_with(function):
    def run(x, dy, groups, *parameters):
        y = function(x, groups, *parameters)
        return y.detach(), *torch.autograd.grad(y, (x, *parameters), dy)

    return run


def norm_eager(x, groups, *parameters):
    return norm_chain(x, groups, *(p.to(x.dtype) for p in parameters))


def norm_case(shape, dtype):
    def make(device, generator):
        x, dy = (last(randn(shape, device, generator, dtype)) for _ in range(2))
        parameters = [randn(shape[1:2], device, generator) for _ in range(2)]
        parameters += [randn(shape[:2], device, generator, dtype) for _ in range(2)]
        return x.requires_grad_(), dy, 32, *(p.requires_grad_() for p in parameters)

    elements = torch.Size(shape).numel()
    name = f"group_norm_silu {'x'.join(map(str, shape))} {str(dtype)[6:]} channels_last, forward and backward"
    peers = {"eager": norm_with(norm_eager), "compile": norm_with(torch.compile(norm_eager))}
    moved = elements * (torch.finfo(dtype).bits // 8) * 8  # x 2 and y; x 2, dy 2, dx
    return Case(name, make, norm_with(ops.group_norm_silu), norm_truth, 8e-3, peers, moved, elements * 40)


# ---- k-means


def kmeans_case(rows, k, columns):
    def make(device, generator):
        return randn((rows, columns), device, generator), randn((k, columns), device, generator)

    def ours(x, start):
        return (ops.kmeans(x, k, init=start, iterations=2).centroids,)

    def truth(x, start):
        centroids = start.double()
        for _ in range(2):
            label = torch.cat([torch.cdist(part, centroids).argmin(1) for part in x.double().split(4096)])
            one = functional.one_hot(label, k).double()
            centroids = (one.T @ x.double()) / one.sum(0)[:, None]
        return (centroids,)

    return Case(f"kmeans {rows}x{k}x{columns}, 2 iterations", make, ours, truth, 1e-3, {}, 0, 6 * rows * k * columns)


CASES = [
    loss_case((256, 4, 32, 32), torch.bfloat16),
    loss_case((256, 3, 256, 256), torch.bfloat16),
    loss_case((256, 4, 128, 128), torch.float32, channels_last=True),
    noise_case((1024, 3, 64, 64)),
    noise_case((256, 3, 256, 256)),
    philox_case((1024, 3, 64, 64)),
    nearest_case(1_000_000, 1024, 128),
    nearest_case(200_000, 100, 64),
    topk_case(50_000, 512, 10),
    norm_case((256, 128, 32, 32), torch.bfloat16),
    norm_case((64, 512, 16, 16), torch.bfloat16),
    kmeans_case(200_000, 256, 128),
]
REHEARSAL = [
    loss_case((4, 3, 16, 16), torch.bfloat16),
    loss_case((4, 3, 16, 16), torch.float32, channels_last=True),
    noise_case((4, 3, 16, 16)),
    philox_case((4, 3, 16, 16)),
    nearest_case(500, 40, 24),
    topk_case(300, 16, 5),
    norm_case((2, 64, 8, 8), torch.bfloat16),
    kmeans_case(400, 8, 12),
]


def generator_of(device, seed):
    return torch.Generator(device=device).manual_seed(seed)


def error_of(found: torch.Tensor, truth: torch.Tensor) -> float:
    """|found - truth| / |truth|; infinite where anything is not finite."""
    found, truth = found.detach().double(), truth.detach().double()
    difference = torch.linalg.vector_norm(found - truth)
    error = float(difference / torch.linalg.vector_norm(truth).clamp_min(1e-300))
    return error if error == error else float("inf")


def check(case: Case, device: torch.device, seed: int = 0) -> dict[str, Any]:
    """{case, error, tolerance, ok, repeats}: the worst output, and whether a second run gave the same bits."""
    inputs = case.make(device, generator_of(device, seed))
    found, again = case.run(*inputs), case.run(*inputs)
    errors = [error_of(a, b) for a, b in zip(found, case.truth(*inputs), strict=True)]
    same = all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    worst = max(errors)
    return {
        "case": case.name,
        "error": worst,
        "tolerance": case.tolerance,
        "ok": worst <= case.tolerance,
        "repeats": same,
    }


def size_of(inputs: tuple) -> int:
    return sum(t.numel() * t.element_size() for t in inputs if isinstance(t, torch.Tensor))


def times(call: Callable, sets: list[tuple], device: torch.device, seconds: float) -> list[float]:
    """Milliseconds of single calls over rotated inputs, sorted."""
    for inputs in sets[:3]:
        call(*inputs)
    result: list[float] = []
    if device.type != "cuda":
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(result) < 3:
            start = time.perf_counter()
            call(*sets[len(result) % len(sets)])
            result.append(1e3 * (time.perf_counter() - start))
        return sorted(result)
    torch.cuda.synchronize(device)
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds or len(result) < 20:
        events = []
        for i in range(20):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call(*sets[i % len(sets)])
            stop.record()
            events.append((start, stop))
        torch.cuda.synchronize(device)
        result += [start.elapsed_time(stop) for start, stop in events]
    return sorted(result)


def measure(case: Case, device: torch.device, seconds: float = 1.0, ceilings: dict | None = None) -> list[dict]:
    """A row for prunefast and each peer: median, 20th and 80th percentile in ms, and rates."""
    first = case.make(device, generator_of(device, 1))
    count = 1 if device.type != "cuda" else min(16, max(2, -(-CACHE // max(size_of(first), 1))))
    sets = [first, *(case.make(device, generator_of(device, 2 + i)) for i in range(count - 1))]
    rows = []
    ours = nearest_call if case.name.startswith("nearest") else case.run
    for who, call in {"prunefast": ours, **case.peers}.items():
        try:
            found = times(call, sets, device, seconds)
        except Exception as error:  # a peer that does not run here is a row that says so
            if who == "prunefast":
                raise
            rows.append({"case": case.name, "who": who, "failed": str(error).splitlines()[0][:200]})
            continue
        middle = found[len(found) // 2]
        row = {"case": case.name, "who": who, "ms": middle, "ms20": found[len(found) // 5]}
        row |= {"ms80": found[len(found) * 4 // 5], "calls": len(found)}
        row |= {"GB/s": case.bytes / middle / 1e6, "TFLOP/s": case.flop / middle / 1e9}
        if ceilings:
            row["of copy"] = row["GB/s"] / ceilings["copy GB/s"]
            row["of product"] = row["TFLOP/s"] / ceilings["bf16 TFLOP/s"]
        rows.append(row)
    return rows


def measure_ceilings(device: torch.device, size: int = 1 << 30, side: int = 8192) -> dict[str, float]:
    """Copy bandwidth, bytes read plus written, and the rate of a large bfloat16 product."""
    source = torch.randint(0, 256, (size,), device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    copy = times(lambda: target.copy_(source), [()], device, 1.0)
    product = times(lambda: a @ b, [()], device, 1.0)
    rates = {"copy GB/s": 2 * size / copy[len(copy) // 2] / 1e6}
    return rates | {"bf16 TFLOP/s": 2 * side**3 / product[len(product) // 2] / 1e9}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rehearse", action="store_true", help="small sizes, on a CPU where there is no GPU")
    parser.add_argument("--checks-only", action="store_true")
    parser.add_argument("--seconds", type=float, default=1.0, help="of timing for each row")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--out", help="a JSON file for the results")
    arguments = parser.parse_args()
    if not arguments.rehearse and not torch.cuda.is_available():
        print("torch sees no GPU; --rehearse runs small sizes on the CPU", file=sys.stderr)
        return 2
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cases = [case for case in (REHEARSAL if arguments.rehearse else CASES) if arguments.only in case.name]
    backends = {name: found["detail"] for name, found in ops.backends().items()}
    result: dict[str, Any] = {"torch": torch.__version__, "backends": backends, "checks": [], "times": []}
    if device.type == "cuda":
        result["device"] = torch.cuda.get_device_name(device)
        result["ceilings"] = measure_ceilings(device)
        print(json.dumps(result["ceilings"]))
    for case in cases:
        found = check(case, device)
        result["checks"].append(found)
        print(f"{'ok ' if found['ok'] else 'BAD'} {found['error']:.1e} {found['case']}")
    if not arguments.checks_only:
        for case in cases:
            for row in measure(case, device, 0.05 if arguments.rehearse else arguments.seconds, result.get("ceilings")):
                result["times"].append(row)
                print("  ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    if arguments.out:
        with open(arguments.out, "w") as file:
            json.dump(result, file, indent=1)
    return 0 if all(found["ok"] for found in result["checks"]) else 1


if __name__ == "__main__":
    sys.exit(main())
