"""The 3 x 3 convolutions of `unet-cifar10`, ours and torch's in turn: forward, gradient of the input, of the filters.

    python benchmarks/conv3x3.py                      # batch 8, CPU time of one thread
    python benchmarks/conv3x3.py --batch 32 --runs 7

A row is a shape: how often the network has it, then for each of the three the milliseconds of ours and of torch's (the
least of the runs), how many times faster ours is, and the rate at the products of the definition. Totals count every
convolution of the network.
"""

import argparse
import os
import time
from collections.abc import Callable

import torch
from torch.nn import functional

from prunefast.ops.conv3x3 import _forward, _gradient_weight, _gradient_x, can_speed_up

# pixels across, inputs, outputs, how many
SHAPES = (
    (32, 128, 128, 7),
    (32, 256, 128, 2),
    (32, 384, 128, 1),
    (16, 128, 256, 1),
    (16, 256, 256, 6),
    (16, 384, 256, 1),
    (16, 512, 256, 2),
    (8, 256, 256, 7),
    (8, 512, 256, 3),
    (4, 256, 256, 11),
    (4, 512, 256, 3),
)


def pairs(size: int, inputs: int, outputs: int, batch: int) -> dict[str, tuple[Callable, Callable]]:
    """Ours and torch's."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).contiguous(memory_format=torch.channels_last)

    x, slope = normal(batch, inputs, size, size).bfloat16(), normal(batch, outputs, size, size).bfloat16()
    weight, bias = normal(outputs, inputs, 3, 3), torch.randn(outputs, generator=generator)
    if not can_speed_up(x, weight, bias):
        raise SystemExit("conv3x3: torch's convolution runs here; it needs AVX512-BF16 and no PRUNEFAST_WINOGRAD=0")
    narrow = weight.bfloat16()

    def backward(of_x: bool) -> torch.Tensor:
        one, mask = [1, 1], [of_x, not of_x, False]
        results = torch.ops.aten.convolution_backward(
            slope, x, narrow, [outputs], one, one, one, False, [0, 0], 1, mask
        )
        return results[0] if of_x else results[1].float()

    return {
        "forward": (
            lambda: _forward(x, weight, bias),
            lambda: functional.conv2d(x, weight.bfloat16(), bias.bfloat16(), padding=1),
        ),
        "input": (lambda: _gradient_x(slope, weight), lambda: backward(True)),
        "filters": (lambda: _gradient_weight(slope, x), lambda: backward(False)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    print(f"batch {options.batch}, {options.threads} threads, torch {torch.__version__}, load {os.getloadavg()[0]:.2f}")
    totals = {"forward": [0.0, 0.0], "input": [0.0, 0.0], "filters": [0.0, 0.0]}
    for size, inputs, outputs, count in SHAPES:
        row = f"{size:2} px {inputs:3} -> {outputs} x {count:2}"
        for name, sides in pairs(size, inputs, outputs, options.batch).items():
            times: list[list[float]] = [[], []]
            for run in range(options.runs + 1):
                for side, taken in zip(sides, times, strict=True):
                    start = clock()
                    side()
                    if run:  # the first one warms up
                        taken.append(1e3 * (clock() - start))
            ours, theirs = map(min, times)
            flops = 2 * 9 * inputs * outputs * options.batch * size * size
            row += f"   {name} {ours:6.2f} {theirs:6.2f} {theirs / ours:4.2f}x {flops / ours / 1e6:4.0f} GFLOP/s"
            totals[name] = [total + count * taken for total, taken in zip(totals[name], (ours, theirs), strict=True)]
        print(row, flush=True)
    for name, (ours, theirs) in totals.items():
        print(f"{name}: {ours:.0f} and {theirs:.0f} ms, {theirs / ours:.2f}x")


if __name__ == "__main__":
    main()
