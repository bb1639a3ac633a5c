"""Operators as cases: inputs, ours, peers, the float64 formula, the least traffic and work, what was predicted.

`cases` lists them in order of worth; in a rehearsal the same kinds at sizes for a CPU. The stage micro compares with
the formula on fresh inputs and times every entry of `case.ours` and `case.peers`.
"""

import importlib.util
import os
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
    """One operator at one size. `make(device, generator)` gives inputs; `run`, `ours` and each peer take them."""

    name: str
    make: Callable[..., tuple]
    run: Callable[..., Any]  # what is compared with the truth
    truth: Callable[..., Any]  # float64, of the same inputs
    tolerance: float  # of |run - truth| / |truth|, of each output
    ours: dict[str, Callable] = field(default_factory=dict)  # what is timed; empty: `run`
    peers: dict[str, Callable] = field(default_factory=dict)
    bytes: int = 0  # least traffic of a call
    flop: int = 0
    predicted: dict[str, float] = field(default_factory=dict)  # "of copy", "TFLOP/s", "over compile": at least
    judge: Callable[..., tuple] | None = None  # (inputs, what a call returned) -> what the truth is of; None: as it is


def compiled(function: Callable, **options: Any) -> Callable:
    """torch.compile as a user calls it; in a rehearsal the tracing alone, because a C++ compiler run takes a minute."""
    backend = "aot_eager" if os.environ.get("PRUNEFAST_REHEARSAL") else "inductor"
    return torch.compile(function, backend=backend, **options)


def randn(shape, device, generator, dtype=torch.float32):
    return torch.randn(shape, generator=generator, device=device).to(dtype)


def spread(value):
    return value[:, None, None, None]


def last(x):
    return x.contiguous(memory_format=torch.channels_last)


def text(shape):
    return "x".join(map(str, shape))


# ---- denoising loss


def loss_truth(pred, x0, noise, a, b):
    clean = x0.double() / 127.5 - 1 if x0.dtype == torch.uint8 else x0.double()
    if isinstance(noise, tuple):
        noise = ops.randn_philox(pred.shape, *noise)
    residual = pred.detach().double() - spread(a.double()) * clean - spread(b.double()) * noise.double()
    return residual.square().mean(), 2 * residual / residual.numel()


def loss_eager(pred, x0, noise, a, b):
    target = spread(a) * x0 + spread(b) * noise
    loss = (pred.float() - target).square().mean()
    return loss, torch.autograd.grad(loss, pred)[0]


def loss_ours(pred, x0, noise, a, b):
    loss, _ = ops.denoising_loss(pred, x0, noise, a, b)
    return loss, torch.autograd.grad(loss, pred)[0]


def loss_operator(pred, x0, noise, a, b):
    """The one pass alone: loss and gradient, without what autograd adds."""
    position, noise = (noise[1], None) if isinstance(noise, tuple) else (None, noise)
    scale = torch.full_like(a, 2 / pred.numel())
    rest = (position, a, b, None, None, 0, None, None, None, scale)
    loss, _, gradient, *_ = torch.ops.prunefast.denoising_loss(pred.detach(), x0, noise, SEED, *rest)
    return loss, gradient


def loss_case(shape, dtype, channels_last=False):
    def make(device, generator):
        form = last if channels_last else (lambda x: x)
        pred = form(randn(shape, device, generator, dtype)).requires_grad_()
        x0, noise = (form(randn(shape, device, generator)) for _ in range(2))
        return pred, x0, noise, *randn((2, shape[0]), device, generator)

    elements = torch.Size(shape).numel()
    half = torch.finfo(dtype).bits // 8
    name = f"denoising_loss {text(shape)} {str(dtype)[6:]}{' channels_last' if channels_last else ''}"
    ours = {"prunefast": loss_ours, "prunefast, the operator alone": loss_operator}
    peers = {"eager": loss_eager, "compile": compiled(loss_eager)}
    moved, predicted = elements * (2 * half + 8), {"of copy": 0.85, "over compile": 1.7}
    return Case(name, make, loss_ours, loss_truth, 4e-3, ours, peers, moved, elements * 8, predicted)


def training_loss_case(shape):
    """As the trainer calls it: bfloat16 channels_last prediction, uint8 images, the noise made again."""

    def make(device, generator):
        pred = last(randn(shape, device, generator, torch.bfloat16)).requires_grad_()
        x0 = last(torch.randint(0, 256, shape, generator=generator, device=device, dtype=torch.uint8))
        position = torch.arange(shape[0], device=device) + 11
        return pred, x0, (SEED, position), *randn((2, shape[0]), device, generator)

    def peer(pred, x0, noise, a, b):
        noise = torch.randn(pred.shape, device=pred.device)  # a peer keeps the noise it added; here it makes some
        return loss_eager(pred, x0.float() / 127.5 - 1, noise, a, b)

    elements = torch.Size(shape).numel()
    name = f"denoising_loss {text(shape)} bfloat16 channels_last, uint8 images, Philox noise"
    ours = {"prunefast": loss_ours, "prunefast, the operator alone": loss_operator}
    peers = {"eager, torch.randn": peer, "compile, torch.randn": compiled(peer)}
    return Case(name, make, loss_ours, loss_truth, 4e-3, ours, peers, elements * 5, elements * 60)


# ---- add_noise


def noise_truth(x0, alpha, sigma, noise):
    if isinstance(noise, tuple):
        noise = ops.randn_philox(x0.shape, *noise)
    return (spread(alpha.double()) * (x0.double() / 127.5 - 1) + spread(sigma.double()) * noise.double(),)


def noise_eager(x0, alpha, sigma, noise):
    return ((spread(alpha) * (x0.float() / 127.5 - 1) + spread(sigma) * noise).bfloat16(),)


def noise_drawn(x0, alpha, sigma, noise):
    return noise_eager(x0, alpha, sigma, torch.randn(x0.shape, device=x0.device))


def noise_ours(x0, alpha, sigma, noise):
    return (ops.add_noise(x0, alpha, sigma, noise, dtype=torch.bfloat16),)


def noise_case(shape, philox=False, channels_last=False):
    def make(device, generator):
        x0 = torch.randint(0, 256, shape, generator=generator, device=device, dtype=torch.uint8)
        x0 = last(x0) if channels_last else x0
        position = torch.arange(shape[0], device=device) + 5
        noise = (SEED, position) if philox else randn(shape, device, generator)
        return x0, *randn((2, shape[0]), device, generator), noise

    elements = torch.Size(shape).numel()
    peer = noise_drawn if philox else noise_eager
    peers = {"eager": peer, "compile": compiled(peer)}
    options = (", Philox noise" if philox else "") + (", channels_last" if channels_last else "")
    name = f"add_noise {text(shape)} uint8 to bfloat16{options}"
    predicted = {"of copy": 0.85, "over compile": 1.7}
    moved = elements * (3 if philox else 7)
    return Case(name, make, noise_ours, noise_truth, 4e-3, {}, peers, moved, elements * 4, predicted)


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
    peers = {"torch.randn": eager}
    return Case(f"randn_philox {text(shape)}", make, ours, philox_truth, 1e-6, {}, peers, elements * 4)


# ---- distances


def nearest_truth(x, y):
    """Smallest float64 distances."""
    return (torch.cat([torch.cdist(part, y.double()).amin(1).square() for part in x.double().split(4096)]),)


def picked(inputs, found):
    """Distances to what a search picked: its index, or (index, distance), or (distance, index) as faiss has it."""
    x, y = inputs
    found = found if isinstance(found, tuple) else (found,)
    index = next(t for t in found if t.dtype == torch.int64).flatten()
    return ((x.double() - y[index].double()).square().sum(1),)


def nearest_torch(x, y, chunk=16384):
    """flash-kmeans' baseline and ours: a product of the chunk that starts at half the norm, then argmin.

    The scores of 16,384 rows and 1,024 columns stay in the cache of a large GPU.
    """
    half = y.square().sum(1) / 2
    return torch.cat([torch.addmm(half, part, y.T, alpha=-1).argmin(1) for part in x.split(chunk)])


def nearest_tf32(x, y):
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        return nearest_torch(x, y)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


def nearest_bf16(x, y):
    return nearest_torch(x.bfloat16(), y.bfloat16())


def nearest_traced(x, y):
    """For torch.compile, which unrolls the loop: few, large chunks."""
    return nearest_torch(x.bfloat16(), y.bfloat16(), 1 << 18)


def faiss_search(x, y, k=1):
    """faiss on the GPU, rows handed over as CUDA tensors; the index of y is built in the call, as ours is."""
    import faiss
    import faiss.contrib.torch_utils

    index = faiss.GpuIndexFlatL2(faiss_search.resources, y.shape[1])
    index.add(y)
    return index.search(x, k)


def faiss_peer(k=1) -> dict[str, Callable]:
    """The peer where a faiss with GPUs is installed."""
    if importlib.util.find_spec("faiss") is None or os.environ.get("PRUNEFAST_REHEARSAL"):
        return {}
    import faiss

    if not hasattr(faiss, "StandardGpuResources"):
        return {}
    faiss_search.resources = faiss.StandardGpuResources()  # type: ignore[attr-defined]
    return {"faiss-gpu": lambda x, *y: faiss_search(x, *(y or (x,)), k)}


def nearest_case(rows, others, columns, predicted=None):
    def make(device, generator):
        return randn((rows, columns), device, generator), randn((others, columns), device, generator)

    name = f"nearest {rows}x{others}x{columns}"
    ours = {"prunefast": ops.nearest, "prunefast, not certified": lambda x, y: ops.nearest(x, y, certify=False)}
    peers = {
        "cuBLAS bf16 and argmin (not exact)": nearest_bf16,
        "cuBLAS tf32 and argmin (not exact)": nearest_tf32,
        "cuBLAS fp32 and argmin (not exact)": nearest_torch,
        "compile, bf16 (not exact)": compiled(nearest_traced),
        **faiss_peer(),
    }
    moved = 4 * columns * (rows + others) + 12 * rows
    flop = 2 * rows * others * columns
    return Case(name, make, ops.nearest, nearest_truth, 1e-9, ours, peers, moved, flop, predicted or {}, picked)


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

    peers = {"cdist and topk (not exact)": eager, **faiss_peer(k + 1)}
    flop = 2 * rows * rows * columns
    return Case(f"topk {rows}x{columns} k={k}", make, ours, truth, 1e-6, {}, peers, 0, flop)


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
    name = f"group_norm_silu {text(shape)} {str(dtype)[6:]} channels_last, forward and backward"
    peers = {"eager": norm_with(norm_eager), "compile": norm_with(compiled(norm_eager))}
    moved = elements * (torch.finfo(dtype).bits // 8) * 8  # x 2 and y; x 2, dy 2, dx
    ours = {"prunefast": norm_with(ops.group_norm_silu)}
    tolerance, predicted = 8e-3, {"of copy": 0.8}
    return Case(name, make, ours["prunefast"], norm_truth, tolerance, ours, peers, moved, elements * 40, predicted)


# ---- k-means and Gaussians


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

    def eager(x, start):
        centroids = start
        for _ in range(2):
            label = nearest_bf16(x, centroids)
            total = torch.zeros_like(centroids).index_add_(0, label, x)
            centroids = total / torch.bincount(label, minlength=k).clamp_min(1)[:, None]
        return nearest_bf16(x, centroids)

    peers = {"cuBLAS bf16, argmin, index_add (not exact)": eager}
    name = f"kmeans {rows}x{k}x{columns}, 2 iterations"
    return Case(name, make, ours, truth, 1e-3, {}, peers, 0, 6 * rows * k * columns)


def gaussian_case(rows, columns):
    def make(device, generator):
        return (randn((rows, columns), device, generator),)

    def ours(x):
        return (ops.gaussian_log_likelihood(x, ops.fit_gaussian(x)),)

    def truth(x):
        wide = x.double()
        covariance = torch.cov(wide.T, correction=0) + 1e-5 * torch.eye(columns, device=x.device).double()
        return (torch.distributions.MultivariateNormal(wide.mean(0), covariance).log_prob(wide),)

    def expanded(x):
        """What is usually written: float32, one product with the inverse covariance."""
        centred = x - x.mean(0)
        covariance = centred.T @ centred / len(x) + 1e-5 * torch.eye(columns, device=x.device)
        return -((centred @ torch.linalg.inv(covariance)) * centred).sum(1) / 2

    name = f"gaussian fit and log-likelihood {rows}x{columns}"
    peers = {"float32 with the inverse (fewer digits)": expanded}
    return Case(name, make, ours, truth, 1e-9, {}, peers, 0, 3 * rows * columns * columns)


def cases(rehearse: bool) -> list[Case]:
    """In order of worth: the predictions of the design first, then the sizes that training uses."""
    if rehearse:
        return [
            loss_case((4, 3, 16, 16), torch.bfloat16),
            training_loss_case((4, 3, 16, 16)),
            noise_case((4, 3, 16, 16)),
            noise_case((4, 3, 16, 16), philox=True, channels_last=True),
            nearest_case(500, 40, 24, {"TFLOP/s": 350.0}),
            norm_case((2, 64, 8, 8), torch.bfloat16),
            topk_case(300, 16, 5),
            kmeans_case(400, 8, 12),
            philox_case((4, 3, 16, 16)),
            gaussian_case(200, 12),
        ]
    return [
        loss_case((256, 3, 256, 256), torch.bfloat16),
        nearest_case(1_000_000, 1024, 128, {"TFLOP/s": 350.0}),
        norm_case((256, 128, 32, 32), torch.bfloat16),
        noise_case((256, 3, 256, 256)),
        training_loss_case((128, 3, 32, 32)),
        noise_case((128, 3, 32, 32), philox=True, channels_last=True),
        norm_case((128, 256, 16, 16), torch.bfloat16),
        training_loss_case((256, 3, 256, 256)),
        noise_case((256, 3, 256, 256), philox=True, channels_last=True),
        loss_case((256, 4, 32, 32), torch.bfloat16),
        kmeans_case(1_000_000, 1024, 128),
        topk_case(50_000, 512, 10),
        nearest_case(200_000, 100, 64),
        nearest_case(50_000, 1000, 512),
        loss_case((256, 4, 128, 128), torch.float32, channels_last=True),
        norm_case((64, 512, 16, 16), torch.bfloat16),
        philox_case((1024, 3, 64, 64)),
        gaussian_case(50_000, 512),
        nearest_case(4_000_000, 1024, 128),
    ]


def generator_of(device, seed):
    return torch.Generator(device=device).manual_seed(seed)


def error_of(found: torch.Tensor, truth: torch.Tensor) -> float:
    """|found - truth| / |truth|; infinite where anything is not finite."""
    found, truth = found.detach().double(), truth.detach().double()
    difference = torch.linalg.vector_norm(found - truth)
    error = float(difference / torch.linalg.vector_norm(truth).clamp_min(1e-300))
    return error if error == error else float("inf")


def accuracy(case: Case, call: Callable, inputs: tuple, truth: tuple) -> float | None:
    """The worst error of what a call returns; None where its outputs are not those of the truth."""
    found = call(*inputs)
    found = case.judge(inputs, found) if case.judge else found
    if not isinstance(found, tuple) or [t.shape for t in found] != [t.shape for t in truth]:
        return None
    return max(error_of(a, b) for a, b in zip(found, truth, strict=True))


def repeats(case: Case, inputs: tuple) -> bool:
    """Whether a second run gives the same bits."""
    return all(torch.equal(a, b) for a, b in zip(case.run(*inputs), case.run(*inputs), strict=True))


def size_of(inputs: tuple) -> int:
    return sum(t.numel() * t.element_size() for t in inputs if isinstance(t, torch.Tensor))


def input_sets(case: Case, device: torch.device) -> list[tuple]:
    """Fresh inputs, so many that together they exceed the cache."""
    first = case.make(device, generator_of(device, 1))
    count = 1 if device.type == "cpu" else min(16, max(2, -(-CACHE // max(size_of(first), 1))))
    return [first, *(case.make(device, generator_of(device, 2 + i)) for i in range(count - 1))]
