"""Images per second, MFU, memory, time to the first step, waits and profile: prunefast's loop beside others."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from gpu.job import Job, Skip, Unit

if TYPE_CHECKING:
    import torch

ORDER, LIMIT = 50, 540
# (network, batch): the paper's batch, and one that fills the chip; DiTs see 32 x 32 pixels as 256 tokens
ROWS = (
    ("unet-cifar10", 512, ("prunefast", "plain")),
    ("dit-s/2", 512, ("prunefast", "plain")),
    ("dit-b/2", 256, ("prunefast", "plain")),
    ("dit-xl/2", 128, ("prunefast", "plain")),
    ("unet-cifar10", 128, ("prunefast", "plain")),
    ("unet-cifar10", 512, ("prunefast-eager", "plain-eager", "diffusers")),
)
REHEARSAL = (
    ("unet-tiny", 8, ("prunefast", "plain", "prunefast-eager", "plain-eager", "diffusers")),
    ("dit-tiny/2", 4, ("prunefast",)),
)
IMAGES = 8192


def units(job: Job) -> list[Unit]:
    rows = REHEARSAL if job.rehearse else ROWS
    # what compiles: forward and backward by inductor on 16 cores take most of the time
    return [
        Unit(f"{network} {batch} {loop}", 25 if loop.endswith(("eager", "diffusers")) else 50)
        for network, batch, loops in rows
        for loop in loops
    ]


def run(job: Job, name: str) -> Iterator[dict[str, Any]]:
    import torch

    from gpu.probe import Enough, Probe
    from gpu.stages.ceilings import known

    network, batch, loop = name.split()
    if loop == "diffusers":
        try:
            from diffusers import UNet2DModel  # noqa: F401
        except Exception as error:  # a peer that was built for other packages raises anything
            raise Skip(f"diffusers does not load; bring its wheel ({str(error).splitlines()[0]})") from None
    torch._dynamo.reset()
    torch.backends.cuda.matmul.allow_tf32 = True  # for all loops alike; what autocast leaves in float32
    compile = not loop.endswith("eager") and loop != "diffusers"
    started = time.perf_counter()
    probe = Probe(job, int(batch))
    start = {"prunefast": prunefast_loop, "plain": plain_loop, "diffusers": diffusers_loop}[loop.split("-")[0]]
    with contextlib.suppress(Enough):
        start(job, network, int(batch), compile and not job.rehearse, probe.step)
    row = {
        "network": network,
        "loop": loop,
        "compile": compile,
        **probe.result,
        "seconds": time.perf_counter() - started,
    }
    if loop != "diffusers":
        each = 3 * forward_flop(job, network, job.device)  # the backward costs twice the forward
        rate = probe.result["images_per_second"] * each / 1e12
        row |= {"gflop_per_image": each / 1e9, "TFLOP/s": rate, "mfu": rate / known(job)["product bf16"]}
    yield row
    if job.device.type == "cuda":
        torch.cuda.empty_cache()


def images(job: Job) -> Any:
    import torch

    size = 16 if job.rehearse else 32
    generator = torch.Generator().manual_seed(0)
    return torch.randint(
        0, 256, (64 if job.rehearse else IMAGES, size, size, 3), generator=generator, dtype=torch.uint8
    )


def prunefast_loop(job: Job, network: str, batch: int, compile: bool, on_step: Callable[[], None]) -> None:
    """`prunefast.train` itself; the probe sits in front of its training step."""
    import numpy as np

    from gpu.backends import replaced
    from prunefast import TrainConfig, train
    from prunefast.data import from_arrays
    from prunefast.train.step import TrainingStep

    pixels = images(job).numpy()
    config = TrainConfig(
        out=str(job.folder("throughput", f"{network.replace('/', '-')}-{time.time_ns()}")),
        images=10**9,
        model=network,
        batch_size=batch,
        device=job.device.type,
        precision="fp32" if job.rehearse else "bf16",
        compile=compile,
        deterministic=False,
        status_every_images=50_000,  # as the presets: a line of metrics waits for the device
        checkpoint_every_seconds=1e6,
    )
    call = TrainingStep.__call__

    def watched(step: Any, *arguments: Any, **options: Any) -> Any:
        on_step()
        return call(step, *arguments, **options)

    with replaced(TrainingStep, "__call__", watched):
        train(config, from_arrays(pixels, labels=np.arange(len(pixels)) % 10))


def resident(job: Job) -> tuple[Any, Any]:
    """uint8 [N, 3, R, R] and labels on the device."""
    import torch

    pixels = images(job).permute(0, 3, 1, 2).to(job.device)
    return pixels, (torch.arange(len(pixels)) % 10).to(job.device)


def plain_loop(job: Job, network: str, batch: int, compile: bool, on_step: Callable[[], None]) -> None:
    import torch

    from gpu.plain import PlainLoop
    from prunefast.models import build_model

    pixels, labels = resident(job)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    model = build_model(network, image_size=pixels.shape[-1], num_classes=10)
    model = model.to(job.device, memory_format=torch.channels_last)
    options = {"lr": 2e-4, "warmup_images": 20_000, "half_life_images": 500_000.0}
    loop = PlainLoop(model, pixels, labels, 10, batch=batch, compile=compile, **options)
    while True:
        on_step()
        loop.step()


def diffusers_loop(job: Job, network: str, batch: int, compile: bool, on_step: Callable[[], None]) -> None:
    from gpu.plain import diffusers_step

    step = diffusers_step(resident(job)[0], batch, small=job.rehearse)
    while True:
        on_step()
        step()


def forward_flop(job: Job, network: str, device: "torch.device") -> float:
    """FLOP of one image forward, by torch's counter: convolutions, products and attention, two a multiply-add."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from prunefast.models import build_model

    size = 16 if job.rehearse else 32
    model = build_model(network, image_size=size, num_classes=10).to(device).eval()
    x, time_, label = torch.zeros(1, 3, size, size), torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    # as plain products: the counter does not know every fused attention
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x.to(device), time_.to(device), label.to(device))
    return float(counter.get_total_flops())


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    lines = [["network", "batch", "loop", "img/s", "MFU", "GB", "first step", "waits a step", "busy"]]
    for row in rows:
        waits = row.get("host_waits", "")
        lines.append(
            [
                row["network"],
                str(row["batch"]),
                row["loop"],
                f"{row['images_per_second']:,.0f}",
                f"{100 * row['mfu']:.1f} %" if "mfu" in row else "",
                f"{row.get('memory_gb', 0):.1f}",
                f"{row['first_step_seconds']:.1f} s",
                f"{waits:.1f}" if isinstance(waits, float) else "-",
                f"{100 * row['device_busy']:.0f} %",
            ]
        )
    return lines
