"""Where the pixels of a coreset live while it is trained on: on the device, in memory, in a pack, or where they are."""

import os
from typing import Literal

import torch

from prunefast.errors import InputError

Placement = Literal["auto", "device", "memory", "pack", "disk"]

DEVICE_SHARE = 0.2  # of free device memory: the rest belongs to the model and its activations
MEMORY_SHARE = 0.5  # of free main memory: the rest belongs to the page cache, other ranks and the user


def choose_placement(
    asked: str, needed_bytes: int, device: torch.device, memory_budget_bytes: int | None = None
) -> tuple[Literal["device", "memory", "pack", "disk"], str]:
    """(placement, the reason in words). A budget given by the user holds for device and memory alike."""
    if asked not in ("auto", "device", "memory", "pack", "disk"):
        raise InputError(f"placement={asked!r}: choose auto, device, memory, pack or disk")
    size = f"the coreset's pixels are {needed_bytes / 1e6:,.1f} MB"
    if asked != "auto":
        return asked, f"asked for; {size}"  # type: ignore[return-value]
    given = "the budget given" if memory_budget_bytes is not None else ""
    if device.type == "cuda":
        budget = memory_budget_bytes
        if budget is None:
            budget = int(DEVICE_SHARE * torch.cuda.mem_get_info(device)[0])
        if needed_bytes <= budget:
            return (
                "device",
                f"{size}, within {given or f'{DEVICE_SHARE:.0%} of free device memory'} ({budget / 1e6:,.0f} MB)",
            )
    budget = memory_budget_bytes
    if budget is None:
        budget = int(MEMORY_SHARE * free_memory_bytes())
    if needed_bytes <= budget:
        return "memory", f"{size}, within {given or f'{MEMORY_SHARE:.0%} of free memory'} ({budget / 1e6:,.0f} MB)"
    return "disk", f"{size}, more than {given or f'{MEMORY_SHARE:.0%} of free memory'} ({budget / 1e6:,.0f} MB)"


def free_memory_bytes() -> int:
    """Memory that can be had without swapping, within the limit of the container this runs in. 0 where it cannot be
    told.
    """
    free = 0
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    free = int(line.split()[1]) * 1024
    except OSError:
        try:
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError):
            return 0
    try:
        with (
            open("/sys/fs/cgroup/memory.max", encoding="ascii") as limit,
            open("/sys/fs/cgroup/memory.current", encoding="ascii") as used,
        ):
            text = limit.read().strip()
            if text != "max":
                free = min(free, max(int(text) - int(used.read()), 0))
    except (OSError, ValueError):
        pass
    return free
