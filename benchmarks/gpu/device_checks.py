"""What only a device shows: graphs, streams, torch.compile, sizes past 2^31, a device that is not there.

Generators of rows. In a rehearsal those without a form on a CPU yield a row that says so.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from gpu import job
from gpu.checks import rand, whole
from gpu.operators import compiled, error_of
from prunefast import ops
from prunefast.errors import InputError

Rows = Iterator[dict[str, Any]]
NO_OP = {"status": "no-op", "reason": "has no form on a CPU"}


def denoising_loss(pred, x0, a, b, position):
    return ops.denoising_loss(pred, x0, (5, position), a, b)


def add_noise(x0, a, b, position):
    return (ops.add_noise(x0, a, b, (5, position), dtype=torch.bfloat16),)


def randn_philox(position):
    return (ops.randn_philox((8, 1001), 3, position),)


def group_norm_silu(image, weight, bias):
    return (ops.group_norm_silu(image, 8, weight, bias),)


def nearest(x, y):
    return tuple(torch.ops.prunefast.topk(x, y, 1, False, True, False))


def inputs_of(device: torch.device) -> dict[Callable, tuple]:
    """Operators that never wait for the device, with inputs."""
    shape = (8, 4, 33, 32)
    x0 = whole(0, 256, shape, device, torch.uint8)
    pred, a, b = rand(shape, device, torch.bfloat16).requires_grad_(), *rand((2, 8), device)
    position = torch.arange(8, device=device)
    image = rand((4, 64, 16, 16), device, torch.bfloat16).contiguous(memory_format=torch.channels_last)
    weight, bias = (t.clone().requires_grad_() for t in rand((2, 64), device))
    return {
        denoising_loss: (pred, x0, a, b, position),
        add_noise: (x0, a, b, position),
        randn_philox: (position,),
        group_norm_silu: (image.requires_grad_(), weight, bias),
        nearest: (rand((700, 48), device), rand((130, 48), device, seed=1)),
    }


def calls(device: torch.device) -> dict[str, tuple[Callable, tuple]]:
    """name -> (the operator and the gradients of its first output, its inputs)."""
    return {function.__name__: (with_gradients(function), inputs) for function, inputs in inputs_of(device).items()}


def with_gradients(function: Callable) -> Callable:
    def call(*inputs):
        outputs = function(*inputs)
        wanted = [t for t in inputs if t.requires_grad]
        found = torch.autograd.grad(outputs[0].float().square().sum(), wanted) if wanted else ()
        return (*(t.detach() for t in outputs), *found)

    return call


def fresh(inputs: tuple, seed: int) -> tuple:
    """Other values of the same kind and layout."""
    result = []
    for i, t in enumerate(inputs):
        if t.dtype.is_floating_point:
            new = (
                torch.empty_like(t.detach())
                .copy_(rand(t.shape, t.device, seed=seed + i))
                .requires_grad_(t.requires_grad)
            )
        else:
            new = t.roll(seed, 0)
        result.append(new)
    return tuple(result)


def differences(found: tuple, wanted: tuple) -> int:
    return sum(int((m != n).sum()) for m, n in zip(found, wanted, strict=True))


def graphs(device: torch.device) -> Rows:
    """Captured once, replayed on other values: the bits of the call itself."""
    for name, (call, inputs) in calls(device).items():
        if not job.on_gpu(device):
            yield {"check": name, **NO_OP}
            continue
        static = tuple(t.detach().clone().requires_grad_(t.requires_grad) for t in inputs)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                call(*static)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = call(*static)
        wrong = 0
        for seed in (1, 2):
            values = fresh(inputs, seed)
            with torch.no_grad():
                for target, value in zip(static, values, strict=True):
                    target.copy_(value)
            graph.replay()
            wrong += differences(tuple(t.clone() for t in outputs), call(*values))
        yield {"check": name, "status": "ok" if wrong == 0 else "bad", "wrong_values": wrong}


def streams(device: torch.device) -> Rows:
    """On a stream of its own that is held up: an operator that ran on another one would read what is not there yet."""
    for name, (call, inputs) in calls(device).items():
        if not job.on_gpu(device):
            yield {"check": name, **NO_OP}
            continue
        values = fresh(inputs, 7)
        wanted = tuple(t.clone() for t in call(*values))
        static = tuple(torch.zeros_like(t).requires_grad_(t.requires_grad) for t in inputs)
        torch.cuda.synchronize()
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            torch.cuda._sleep(200_000_000)  # cycles: some 0.1 s
            with torch.no_grad():
                for target, value in zip(static, values, strict=True):
                    target.copy_(value)
            found = call(*static)
        waited = not side.query()
        side.synchronize()
        wrong = differences(found, wanted)
        # a call that synchronises returns after the stream is done
        yield {
            "check": name,
            "status": "ok" if wrong == 0 and waited else "bad",
            "wrong_values": wrong,
            "returns_before_the_device": waited,
        }


def compile(device: torch.device) -> Rows:
    """torch.compile(fullgraph=True) gives what the call gives."""
    for function, inputs in inputs_of(device).items():
        torch._dynamo.reset()
        found = with_gradients(compiled(function, fullgraph=True))(*inputs)
        worst = max(error_of(a, b) for a, b in zip(found, with_gradients(function)(*inputs), strict=True))
        yield {"check": function.__name__, "status": "ok" if worst < 1e-5 else "bad", "error": worst}


def absent(device: torch.device) -> Rows:
    """A device that is not there, and tensors on two devices: one line that names the argument."""
    from prunefast.train.step import pick_device

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        pick_device(f"cuda:{count}")
        yield {"check": f"cuda:{count}", "status": "bad"}
    except InputError as error:
        yield {"check": f"cuda:{count}", "message": str(error)}
    if not job.on_gpu(device):
        yield {"check": "two devices", **NO_OP}
        return
    try:
        ops.nearest(rand((4, 3), device), rand((4, 3), torch.device("cpu")))
        yield {"check": "two devices", "status": "bad"}
    except InputError as error:
        yield {"check": "two devices", "message": str(error)}


def limits(device: torch.device) -> Rows:
    """Labels and boxes out of range, NaN in rows: no memory is touched that is not ours, and the device lives on."""
    pred, x0 = rand((4, 3, 8, 8), device), rand((4, 3, 16, 16), device)
    if job.on_gpu(device):
        corner = torch.tensor([[0, 0], [100, 100], [-5, -5], [8, 8]], device=device)
        loss, _ = ops.denoising_loss(pred, x0, pred, 1.0, 0.0, boxes=(corner, 8, 8))
        labels = torch.tensor([0, 1, 2**40, -7], device=device)
        rest = ops.denoising_loss(pred, pred, pred, 1.0, 0.0, labels=labels, num_classes=2)
        torch.cuda.synchronize()
        fine = bool(torch.isfinite(loss)) and int(rest[3].sum()) == 2
        yield {"check": "boxes and labels out of range", "status": "ok" if fine else "bad"}
        rows = rand((64, 8), device)
        rows[3, 3] = torch.nan
        index, _ = ops.topk(rows, rand((20, 8), device), 1)
        fine = bool(((index >= 0) & (index < 20)).all())
        yield {"check": "NaN in rows", "status": "ok" if fine else "bad"}
    else:
        yield {"check": "boxes and labels out of range", **NO_OP}
    empty = ops.add_noise(x0[:0], 1.0, 1.0, x0[:0])
    yield {"check": "no samples", "status": "ok" if empty.shape == (0, 3, 16, 16) else "bad"}


def autocast(device: torch.device) -> Rows:
    """A step of the UNet under autocast: bf16 in, float32 loss, finite gradients in every parameter."""
    from prunefast.models import build_model

    torch.manual_seed(0)
    model = build_model("unet-tiny", image_size=16, num_classes=10, dropout=0.0)
    model = model.to(device, memory_format=torch.channels_last)
    x = rand((4, 3, 16, 16), device, torch.bfloat16).contiguous(memory_format=torch.channels_last)
    time, labels = torch.arange(4, device=device).float(), torch.arange(4, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        pred = model(x, time, labels)
    loss, _ = ops.denoising_loss(pred, x, x, 1.0, 0.0)
    loss.backward()
    lost = [name for name, p in model.named_parameters() if p.grad is None or not bool(torch.isfinite(p.grad).all())]
    fine = not lost and loss.dtype == torch.float32 and pred.dtype == torch.bfloat16
    yield {"check": "unet-tiny", "status": "ok" if fine else "bad", "parameters_without_gradient": lost[:5]}


def large(device: torch.device) -> Rows:
    """Offsets past 2^31 elements: the last samples of a batch equal the same samples alone."""
    samples, shape = (9, (8, 16, 16)) if device.type == "cpu" else (2200, (8, 352, 352))  # 2.18e9 elements
    position = torch.arange(samples, device=device)
    x0 = torch.randint(0, 256, (samples, *shape), device=device, dtype=torch.uint8)
    a, b = rand((2, samples), device)
    tail, elements = slice(samples - 2, samples), x0.numel()

    def rows(name: str, found: torch.Tensor, wanted: torch.Tensor) -> dict[str, Any]:
        wrong = int((found != wanted).sum())
        return {"check": name, "status": "ok" if wrong == 0 else "bad", "wrong_values": wrong, "elements": elements}

    noisy = ops.add_noise(x0, a, b, (1, position), dtype=torch.bfloat16)
    yield rows(
        "add_noise", noisy[tail], ops.add_noise(x0[tail], a[tail], b[tail], (1, position[tail]), dtype=torch.bfloat16)
    )
    pred = noisy.requires_grad_()
    loss, per_sample = ops.denoising_loss(pred, x0, (1, position), a, b)
    (gradient,) = torch.autograd.grad(loss * samples, pred)
    mine = pred.detach()[tail].requires_grad_()
    loss, alone = ops.denoising_loss(mine, x0[tail], (1, position[tail]), a[tail], b[tail])
    (wanted,) = torch.autograd.grad(loss * 2, mine)
    yield rows("denoising_loss", per_sample[tail], alone)
    error = error_of(gradient[tail], wanted)
    yield {"check": "denoising_loss, gradient", "status": "ok" if error < 8e-3 else "bad", "error": error}
    del gradient, pred, noisy, x0
    normal = ops.randn_philox((samples, *shape), 3, position, dtype=torch.bfloat16)
    wrong = int((normal[tail] != ops.randn_philox((2, *shape), 3, position[tail], dtype=torch.bfloat16)).sum())
    yield {"check": "randn_philox", "status": "ok" if wrong == 0 else "bad", "wrong_values": wrong}
    image = normal.view(samples, *shape).contiguous(memory_format=torch.channels_last)
    del normal
    weight, bias = torch.ones(2, image.shape[1], device=device)
    y = ops.group_norm_silu(image, 2, weight, bias)
    wrong = int((y[tail] != ops.group_norm_silu(image[tail], 2, weight, bias)).sum())
    yield {"check": "group_norm_silu", "status": "ok" if wrong == 0 else "bad", "wrong_values": wrong}
    del y, image
    rows_of_x = 2**25 + 3 if device.type == "cuda" else 513
    x = torch.randn(rows_of_x, 64, device=device)
    y = torch.randn(16, 64, device=device)
    index, _ = torch.ops.prunefast.topk(x, y, 1, False, True, False)
    alone, _ = torch.ops.prunefast.topk(x[-1000:], y, 1, False, True, False)
    wrong = int((index[-1000:] != alone).sum())
    yield {"check": "nearest", "status": "ok" if wrong == 0 else "bad", "wrong_values": wrong, "elements": x.numel()}


CHECKS: dict[str, Callable[[torch.device], Rows]] = {
    check.__name__: check for check in (graphs, streams, compile, absent, limits, autocast, large)
}
