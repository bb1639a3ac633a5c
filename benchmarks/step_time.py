"""A training step beside the networks people use: ours and the peers in turn, round after round, in one process.

    python benchmarks/step_time.py unet                    # 35,746,307 parameters: ours, diffusers', lucidrains'
    python benchmarks/step_time.py dit --batch 8           # DiT-S/2 on latents of 32 x 32: ours and diffusers'
    python benchmarks/step_time.py unet --compile          # every side through torch.compile (minutes, the first time)
    python benchmarks/step_time.py unet --threads 1 --cpu-time       # on a machine that others work on too

A step is forward, mean squared error and backward from a batch that is there; channels_last inputs and weights for all.
Printed for each side: the time to the first step (with what it compiles), then the least and the median time of a step,
and the rate at the FLOPs of the network as torch counts them (three times those of its forward pass), and the load of
the machine. lucidrains' `denoising-diffusion-pytorch` is another network, so its rate is what compares.
"""

import argparse
import importlib.machinery
import os
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from prunefast.models import build_model, count_parameters
from prunefast.models.dropout import dropout_layers, keyed_dropout

PIXELS = (3, 32, 32)
LATENTS = (4, 32, 32)
CLASSES = 1000


# One that was built for another torch fails inside the peers, who use nothing of it here. diffusers is content without.
sys.modules["torchvision"] = None  # type: ignore[assignment]


def empty_torchvision(*parts: str) -> None:
    for name in ("torchvision", *(f"torchvision.{part}" for part in parts)):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)


def our_unet() -> nn.Module:
    return build_model("unet-cifar10", image_size=32)


def diffusers_unet() -> nn.Module:
    import diffusers

    return diffusers.UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        attention_head_dim=None,
        norm_eps=1e-6,
        dropout=0.1,
    )


def lucidrains_unet() -> nn.Module:
    empty_torchvision("transforms", "utils")
    from denoising_diffusion_pytorch import Unet

    return Unet(128, dim_mults=(1, 2, 2, 2), channels=3, dropout=0.1)


def our_dit() -> nn.Module:
    return build_model("dit-s/2", image_size=32, channels=4, num_classes=CLASSES)


class DiffusersDiT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        import diffusers

        self.network = diffusers.DiTTransformer2DModel(
            num_attention_heads=6, attention_head_dim=64, in_channels=4, out_channels=4, num_layers=12, sample_size=32
        )

    def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.network(x, timestep=t, class_labels=labels, return_dict=False)[0]


NETWORKS: dict[str, dict[str, Callable[[], nn.Module]]] = {
    "unet": {"prunefast": our_unet, "diffusers": diffusers_unet, "lucidrains": lucidrains_unet},
    "dit": {"prunefast": our_dit, "diffusers": DiffusersDiT},
}


class Step:
    """One step, waited for."""

    def __init__(self, model: nn.Module, options: argparse.Namespace):
        torch.manual_seed(0)
        self.device, self.bf16 = options.device, options.precision == "bf16"
        self.model = model.to(self.device).to(memory_format=torch.channels_last).train()
        self.called: Any = torch.compile(self.model) if options.compile else self.model
        shape = PIXELS if options.network == "unet" else LATENTS
        x, noise = (torch.randn(options.batch, *shape, device=self.device) for _ in range(2))
        self.x, self.noise = (v.to(memory_format=torch.channels_last) for v in (x, noise))
        self.position = torch.arange(options.batch, device=self.device)
        self.arguments = [torch.randint(0, 1000, (options.batch,), device=self.device)]
        if options.network == "dit":
            self.arguments.append(torch.randint(0, CLASSES, (options.batch,), device=self.device))

    def __call__(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = None
        ours = keyed_dropout(dropout_layers(self.model), 0, self.position)  # as the training loop has it
        with ours, torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            output = self.called(self.x, *self.arguments)
        (getattr(output, "sample", output).float() - self.noise).square().mean().backward()
        if self.device == "cuda":
            torch.cuda.synchronize()

    def flops(self) -> int:
        """Of a step: the backward pass does the products of the forward pass twice."""
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self.model(self.x, *self.arguments)
        return 3 * counter.get_total_flops()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--cpu-time", action="store_true", help="of the process, not of the clock on the wall")
    parser.add_argument("--only", action="append", help="a side; may be given several times")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    steps, first, times = {}, {}, {}
    for side, build in NETWORKS[options.network].items():
        if options.only and side not in options.only:
            continue
        try:
            steps[side] = Step(build(), options)
        except ImportError as error:
            print(f"{side}: left out, {error}")
            continue
        begin = clock()
        steps[side]()
        first[side], times[side] = clock() - begin, []
    for _ in range(options.rounds):
        for side, step in steps.items():
            begin = clock()
            step()
            times[side].append(clock() - begin)
    print(
        f"{options.network}, {options.precision}, batch {options.batch}, {options.device}, {options.threads} threads, "
        f"{'compiled' if options.compile else 'eager'}, {'CPU' if options.cpu_time else 'wall'} time, torch "
        f"{torch.__version__}, load {Path('/proc/loadavg').read_text().split()[0] if os.name == 'posix' else '?'}"
    )
    for side, step in steps.items():
        least, median = min(times[side]), statistics.median(times[side])
        print(
            f"{side:<11} {count_parameters(step.model):>11,} parameters  first {first[side]:8.2f} s"
            f"  least {least:.3f} s  median {median:.3f} s  {step.flops() / least / 1e9:7.1f} GFLOP/s"
        )


if __name__ == "__main__":
    main()
