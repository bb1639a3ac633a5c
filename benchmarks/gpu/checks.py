"""Checks of the operators on a device, each against the direct formula in float64.

A check is a generator of (what, error, tolerance) for one operator and is run once a backend. Shapes are odd where
kernels have edges, tensors are strided, expanded, channels_last and misaligned, gradients come with stride 0, strided,
scaled and twice.
"""

import itertools
from collections.abc import Callable, Iterator

import torch
from torch.nn import functional

from gpu.operators import error_of, loss_truth, norm_chain, spread
from prunefast import ops

Found = Iterator[tuple[str, float, float]]
CHECKS: dict[str, Callable[[torch.device, bool], Found]] = {}
# one rounding of the output in its own dtype, and float32 sums in some order
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 2e-3, torch.float64: 1e-12}


def check(function: Callable[[torch.device, bool], Found]) -> Callable[[torch.device, bool], Found]:
    CHECKS[function.__name__] = function
    return function


def rand(shape, device, dtype=torch.float32, seed=0):
    generator = torch.Generator(device=device).manual_seed(seed + 31 * len(shape) + sum(shape))
    return torch.randn(shape, generator=generator, device=device).to(dtype)


def whole(low, high, shape, device, dtype=torch.int64, seed=0):
    generator = torch.Generator(device=device).manual_seed(seed + sum(shape))
    return torch.randint(low, high, shape, generator=generator, device=device, dtype=dtype)


def layouts(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same values lying differently."""
    wide = torch.empty((*x.shape[:-1], 2 * x.shape[-1]), dtype=x.dtype, device=x.device)
    wide[..., ::2] = x
    flat = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)[1:]  # one element behind an aligned address
    return {
        "contiguous": x,
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "strided": wide[..., ::2],
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
        "misaligned": flat.copy_(x.flatten()).view(x.shape),
    }


SHAPES = ((1, 1, 1, 1), (3, 3, 7, 5), (2, 3, 16, 16), (5, 4, 33, 17), (2, 8, 64, 63))


@check
def denoising_loss(device: torch.device, small: bool) -> Found:
    shapes = SHAPES[1:3] if small else SHAPES
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    for shape, dtype, philox in itertools.product(shapes, dtypes, (False, True)):
        x0 = whole(0, 256, shape, device, torch.uint8)
        noise = (2**63 + 5, whole(0, 2**40, shape[:1], device)) if philox else rand(shape, device, seed=1)
        a, b, weight = rand((3, shape[0]), device, seed=2)
        for layout, value in layouts(rand(shape, device, dtype)).items():
            pred = value.requires_grad_()
            loss, per_sample = ops.denoising_loss(pred, x0, noise, a, b, weight)
            true = _loss(pred, x0, noise, a, b)
            what = f"{shape} {dtype} {layout} {'philox' if philox else 'tensor'}"
            yield f"{what}: per sample", error_of(per_sample, true), 1e-5
            wanted = (true * weight.double()).mean()
            yield (
                f"{what}: loss",
                abs(float((loss - wanted).detach())) / float((true * weight.double()).abs().mean()),
                1e-5,
            )
            residual = loss_truth(pred, x0, noise, a, b)[1] * pred.numel() / 2
            each = pred[0].numel()
            factor = spread(weight.double()) * 2 / pred.numel()
            (gradient,) = torch.autograd.grad(loss, pred, retain_graph=True)
            yield f"{what}: gradient", error_of(gradient, residual * factor), TOLERANCE[dtype]
            (again,) = torch.autograd.grad(3 * loss + per_sample.sum(), pred)  # scaled, and with stride 0
            wanted = residual * (3 * factor + 2 / each)
            yield f"{what}: scaled gradient", error_of(again, wanted), 2 * TOLERANCE[dtype]


def _loss(pred, x0, noise, a, b):
    """Float64 [samples]."""
    return (loss_truth(pred, x0, noise, a, b)[1] * pred.numel() / 2).square().flatten(1).mean(1)


@check
def loss_options(device: torch.device, small: bool) -> Found:
    """Classes, boxes, mirrors, strides of the other operands, gradients through torch.cat, other ranks than 4."""
    image, shape = (4, 3, 19, 23), (4, 3, 12, 15)
    corner = torch.tensor([[0, 0], [7, 8], [3, 1], [5, 4]], device=device)
    flip = torch.tensor([True, False, True, False], device=device)
    a, b, weight = rand((3, 4), device)
    labels = torch.tensor([2, 0, 2, 5], device=device)
    reference = rand((4,), device, seed=9).abs()
    for x_type, last in itertools.product((torch.uint8, torch.float32, torch.bfloat16), (False, True)):
        x0 = whole(0, 256, image, device, torch.uint8) if x_type == torch.uint8 else rand(image, device, x_type)
        if last:
            x0 = x0.contiguous(memory_format=torch.channels_last)
        pred = rand(shape, device).requires_grad_()
        options = {"labels": labels, "num_classes": 7, "reference_per_sample": reference}
        place = {"boxes": (corner, 12, 15), "flip": flip}
        crop = torch.stack(
            [
                (x.flip(-1) if m else x)[:, r : r + 12, c : c + 15]
                for x, m, (r, c) in zip(x0, flip.tolist(), corner.tolist(), strict=True)
            ]
        )
        position = torch.arange(4, device=device) + 2**33
        _, per_sample, excess, count = ops.denoising_loss(pred, x0, (3, position), a, b, weight, **options, **place)
        true = _loss(pred, crop, (3, position), a, b)
        what = f"{x_type} {'channels_last' if last else 'contiguous'}"
        yield f"{what}: cropped", error_of(per_sample, true), 1e-5
        above = (true - reference.double()).clamp_min(0)
        wanted = torch.zeros(7, dtype=torch.float64, device=device).index_add_(0, labels, above)
        yield f"{what}: class excess", error_of(excess, wanted), 1e-5
        yield f"{what}: class count", float((count != torch.bincount(labels, minlength=7)).sum()), 0
        both = torch.cat([pred * 1.0, pred * 2.0])
        (gradient,) = torch.autograd.grad(
            ops.denoising_loss(both[:4], x0, (3, position), a, b, **place)[0], pred, retain_graph=False
        )
        residual = loss_truth(pred, crop, (3, position), a, b)[1]
        yield f"{what}: gradient through torch.cat", error_of(gradient, residual), 1e-5
    pred, noise = rand((6, 37), device).requires_grad_(), rand((6, 1), device).expand(6, 37)
    x0 = rand((37, 6), device).T
    a, b = rand((2, 6), device)
    _, per_sample = ops.denoising_loss(pred, x0, noise, a, b)
    wanted = (pred.double() - a.double()[:, None] * x0.double() - b.double()[:, None] * noise.double()).square().mean(1)
    yield "two dimensions, expanded noise, transposed data", error_of(per_sample, wanted), 1e-5
    nan = rand(shape, device)
    nan[1, 0, 0, 0] = torch.nan
    found = ops.denoising_loss(nan, rand(shape, device), rand(shape, device), 1.0, 1.0)[1]
    yield (
        "NaN passes through, in its sample only",
        float((torch.isnan(found) != (torch.arange(4, device=device) == 1)).sum()),
        0,
    )


@check
def add_noise(device: torch.device, small: bool) -> Found:
    shapes = SHAPES[1:3] if small else SHAPES
    for shape, dtype, philox in itertools.product(
        shapes, (torch.float32, torch.bfloat16, torch.float16), (False, True)
    ):
        noise = (11, whole(0, 2**40, shape[:1], device)) if philox else rand(shape, device, seed=1)
        alpha, sigma = rand((2, shape[0]), device)
        flip = torch.arange(shape[0], device=device) % 2 == 0
        for layout, x0 in layouts(whole(0, 256, shape, device, torch.uint8)).items():
            drawn = ops.randn_philox(shape, *noise, dtype=torch.float64) if philox else noise.double()
            clean = torch.where(spread(flip), x0.flip(-1), x0).double() / 127.5 - 1
            wanted = spread(alpha.double()) * clean + spread(sigma.double()) * drawn
            for form in (torch.contiguous_format, torch.channels_last):
                out = ops.add_noise(x0, alpha, sigma, noise, flip=flip, dtype=dtype, memory_format=form)
                what = f"{shape} {dtype} {layout} {'philox' if philox else 'tensor'} {form}"
                yield what, error_of(out, wanted), TOLERANCE[dtype]
                yield f"{what}: layout", float(not out.is_contiguous(memory_format=form)), 0
    x0 = rand((3, 3, 20, 24), device)
    corner = torch.tensor([[0, 0], [4, 8], [2, 3]], device=device)
    out = ops.add_noise(x0, 1.0, 0.0, rand((3, 3, 16, 16), device), boxes=(corner, 16, 16), coordinates=True)
    for i, (row, column) in enumerate(corner.tolist()):
        yield f"crop {i}", error_of(out[i, :3], x0[i, :, row : row + 16, column : column + 16]), 1e-6
        axis = (torch.arange(16, device=device).double() + column) * 2 / 23 - 1
        yield f"column coordinates {i}", error_of(out[i, 3], axis.expand(16, 16)), 1e-6
        axis = (torch.arange(16, device=device).double() + row) * 2 / 19 - 1
        yield f"row coordinates {i}", error_of(out[i, 4], axis[:, None].expand(16, 16)), 1e-6


@check
def philox(device: torch.device, small: bool) -> Found:
    for seed, stream, size in itertools.product((0, 2**63 + 17, 2**64 - 1), (0, 2**31 + 5), (1, 4, 1023, 4099)):
        position = torch.tensor([0, 5, 2**40 + 1], device=device)
        shape = (3, size)
        uniform = ops.uniform_philox(shape, seed, position, stream)
        wanted = ops.uniform_philox(shape, seed, position.cpu(), stream, dtype=torch.float64)
        yield f"uniform {seed} {stream} {size}", float((uniform.cpu().double() != wanted).sum()), 0
        truth = ops.randn_philox(shape, seed, position.cpu(), stream, dtype=torch.float64)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            normal = ops.randn_philox(shape, seed, position, stream, dtype=dtype)
            error = (normal.cpu().double() - truth).abs()
            if dtype == torch.float32:
                yield f"normal {seed} {stream} {size} {dtype}", float(error.max()), 2e-6
                continue
            # half a last place of what it is rounded to; a whole one in a rehearsal: Triton's interpreter cuts off
            places = (error - 2e-6).clamp(min=0) / truth.abs() / torch.finfo(dtype).eps
            small_ones = truth.abs() < torch.finfo(dtype).tiny  # they have fewer digits
            worst = float(places.masked_fill(small_ones, 0).max())
            yield f"normal {seed} {stream} {size} {dtype}, in last places", worst, 1.0 if small else 0.5


def _brute(x, y, k, exclude_self=False, inner=False):
    """(index, distance) by float64; ties to the smallest index."""
    x, y = x.double(), y.double()
    distance = -(x @ y.T) if inner else (x[:, None] - y[None]).square().sum(2)
    if exclude_self:
        distance.fill_diagonal_(torch.inf)
    order = torch.sort(distance, dim=1, stable=True)
    return order.indices[:, :k], order.values[:, :k]


@check
def nearest(device: torch.device, small: bool) -> Found:
    sizes = ((1, 1, 1), (17, 3, 2), (65, 64, 33), (130, 127, 64)) + (
        () if small else ((1000, 513, 100), (257, 1025, 512))
    )
    for rows, others, columns in sizes:
        x = whole(-4, 5, (rows, columns), device).float()  # small whole numbers: every product is exact, ties are many
        y = whole(-4, 5, (others, columns), device, seed=1).float()
        for metric in ("l2", "ip"):
            index, distance = ops.nearest(x, y, metric=metric)
            wanted = _brute(x, y, 1, inner=metric == "ip")
            what = f"{rows}x{others}x{columns} {metric}"
            yield f"{what}: index", float((index != wanted[0][:, 0]).sum()), 0
            yield f"{what}: distance", float((distance.double() != wanted[1][:, 0]).sum()), 0
        strided = torch.empty((columns, rows), device=device).copy_(x.T).T
        index, _ = ops.nearest(strided, y)
        yield f"{rows}x{others}x{columns} transposed rows", float((index != _brute(x, y, 1)[0][:, 0]).sum()), 0
    # offsets and duplicates: what rounds away in a product must be decided by differences
    y = 1000 + 1e-2 * rand((100, 24), device)
    x = y[whole(0, 100, (300,), device)] + 1e-4 * rand((300, 24), device, seed=3)
    index, _ = ops.nearest(x, y)
    best = _brute(x, y, 1)[1][:, 0]
    picked = (x.double() - y[index].double()).square().sum(1)
    yield "a spread of 0.01 at an offset of 1,000", float((picked / best.clamp_min(1e-30) - 1).max()), 1e-6
    _, distance = ops.nearest(y, y)
    yield "a duplicate is at distance 0", float(distance.abs().max()), 0
    _, distance = ops.nearest(y[:1].expand(50, 24), y)
    yield "expanded rows", float(distance.abs().max()), 0


@check
def topk(device: torch.device, small: bool) -> Found:
    sizes = ((7, 5, 3, 5), (65, 90, 17, 9)) + (() if small else ((300, 1100, 64, 100), (50, 3000, 32, 1024)))
    for rows, others, columns, k in sizes:
        x = whole(-4, 5, (rows, columns), device).float()
        y = whole(-4, 5, (others, columns), device, seed=1).float()
        index, distance = ops.topk(x, y, k)
        wanted = _brute(x, y, k)
        yield f"{rows}x{others}x{columns} k={k}: index", float((index != wanted[0]).sum()), 0
        yield f"{rows}x{others}x{columns} k={k}: distance", float((distance.double() != wanted[1]).sum()), 0
        k = min(k, rows - 1)
        index, _ = ops.topk(x, x, k, exclude_self=True)
        yield f"{rows} with themselves left out", float((index != _brute(x, x, k, True)[0]).sum()), 0
    y = 1000 + 1e-2 * rand((90, 24), device)
    _, distance = ops.topk(y, y, 4, exclude_self=True)
    yield "offset of 1,000", error_of(distance, _brute(y, y, 4, True)[1]), 1e-6


@check
def kmeans(device: torch.device, small: bool) -> Found:
    for rows, k, columns in ((200, 5, 7), (301, 16, 33)) + (() if small else ((5000, 100, 128),)):
        x = whole(-8, 9, (rows, columns), device).float()
        start = x[:k].clone()
        found = ops.kmeans(x, k, init=start, iterations=1)
        label = _brute(x, start, 1)[0][:, 0]
        one = functional.one_hot(label, k).double()
        counts = one.sum(0)
        wanted = (one.T @ x.double()) / counts[:, None]
        kept = counts > 0  # an empty cluster takes the farthest row, which moves one row of another
        if bool(kept.all()):
            yield f"{rows}x{k}x{columns}: centroids", error_of(found.centroids, wanted), 1e-6
        own = (x.double() - found.centroids[found.labels].double()).square().sum()
        yield f"{rows}x{k}x{columns}: inertia", abs(found.inertia / float(own) - 1), 1e-6
        more = ops.kmeans(x, k, init=start, iterations=5)
        yield f"{rows}x{k}x{columns}: more iterations are no worse", max(0.0, more.inertia / found.inertia - 1), 1e-9
        again = ops.kmeans(x, k, init=start, iterations=5)
        yield f"{rows}x{k}x{columns}: repeats", float((again.centroids != more.centroids).sum()), 0


@check
def group_norm_silu(device: torch.device, small: bool) -> Found:
    shapes = ((2, 32, 5, 7, 8), (1, 64, 1, 1, 4), (3, 96, 9, 3, 4)) + (
        () if small else ((4, 512, 16, 16, 32), (2, 40, 33, 31, 10))
    )
    for *shape, groups in shapes:
        for dtype, modulated in itertools.product((torch.float32, torch.bfloat16, torch.float16), (True, False)):
            for layout, x in layouts(3 + rand(shape, device, dtype)).items():
                x = x.detach().requires_grad_()
                tensors = [rand(shape[1:2], device, seed=i).requires_grad_() for i in (1, 2)]
                if modulated:
                    tensors += [rand(shape[:2], device, dtype, seed=i).requires_grad_() for i in (3, 4)]
                y = ops.group_norm_silu(x, groups, *tensors)
                leaves = [t.detach().double().requires_grad_() for t in (x, *tensors)]
                rest = leaves[3:] or [torch.zeros_like(leaves[0][:, :, 0, 0])] * 2
                true = norm_chain(leaves[0], groups, *leaves[1:3], *rest)
                what = f"{shape} / {groups} {dtype} {layout}{' modulated' if modulated else ''}"
                tolerance = 3 * TOLERANCE[dtype]
                yield f"{what}: y", error_of(y, true), tolerance
                for name, dy in (
                    ("stride 0", torch.ones((), device=device, dtype=dtype).expand(shape)),
                    ("strided", layouts(rand(shape, device, dtype, seed=5))["strided"]),
                ):
                    found = torch.autograd.grad(y, (x, *tensors), dy, retain_graph=True)
                    wanted = torch.autograd.grad(true, leaves, dy.double(), retain_graph=True)
                    scale = max(float(w.abs().max()) for w in wanted[:1])
                    for part, mine, other in zip(
                        ("x", "weight", "bias", "scale", "shift"), found, wanted, strict=False
                    ):
                        # a sum that cancels is judged by the size of its terms
                        floor = scale * mine.numel() ** 0.5 * 0.1
                        norm = max(float(torch.linalg.vector_norm(other)), floor)
                        error = float(torch.linalg.vector_norm(mine.double() - other)) / norm
                        yield f"{what}: gradient of {part}, {name}", error, tolerance


@check
def gaussian(device: torch.device, small: bool) -> Found:
    for rows, columns in ((50, 3), (400, 33)) + (() if small else ((5000, 256),)):
        x = 100 + rand((rows, columns), device)
        labels = torch.arange(rows, device=device) % 3
        fit = ops.fit_gaussian(x, labels)
        found = ops.gaussian_log_likelihood(x, fit, labels, ridge=1e-3)
        wanted = torch.empty(rows, dtype=torch.float64, device=device)
        for c in range(3):
            part = x[labels == c].double()
            covariance = torch.cov(part.T, correction=0) + 1e-3 * torch.eye(columns, device=device).double()
            normal = torch.distributions.MultivariateNormal(part.mean(0), covariance)
            wanted[labels == c] = normal.log_prob(part)
        yield f"{rows}x{columns}", error_of(found, wanted), 1e-8


@check
def repeats(device: torch.device, small: bool) -> Found:
    """The same bits twice, and with the device busy on another stream."""
    x, noise = rand((8, 3, 33, 31), device), rand((8, 3, 33, 31), device, seed=1)
    a, b = rand((2, 8), device)
    rows, others = rand((500, 48), device), rand((77, 48), device)
    weight, bias = rand((2, 64), device)
    image = rand((4, 64, 16, 16), device).contiguous(memory_format=torch.channels_last)
    position = torch.arange(8, device=device)
    calls = {
        "denoising_loss": lambda: ops.denoising_loss(x, x, noise, a, b),
        "add_noise": lambda: (ops.add_noise(x, a, b, (1, position)),),
        "nearest": lambda: ops.nearest(rows, others),
        "topk": lambda: ops.topk(rows, others, 5),
        "group_norm_silu": lambda: (ops.group_norm_silu(image, 8, weight, bias),),
    }
    for name, call in calls.items():
        first = call()
        for _ in range(3):
            yield name, float(sum(int((m != n).sum()) for m, n in zip(first, call(), strict=True))), 0
