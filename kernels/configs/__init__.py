"""Tuned tile sizes as data: one JSON file an op, by compute capability, with a safe default."""

import functools
import json
from importlib import resources

import torch


@functools.cache
def load(op: str) -> dict[str, dict[str, int]]:
    text = resources.files(__package__).joinpath(f"{op}.json").read_text()
    return {name: entry for name, entry in json.loads(text).items() if name != "note"}


def choose(op: str, device: torch.device) -> dict[str, int]:
    """The entry of the device's compute capability (80 serves 86 and 89), else `safe`."""
    entries = load(op)
    if device.type != "cuda":
        return entries["safe"]
    major, minor = torch.cuda.get_device_capability(device)
    return entries.get(f"{major}{minor}", entries.get(f"{major}0", entries["safe"]))
