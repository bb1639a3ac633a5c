"""The folder of a TDC run as one model: a checkpoint for each timestep group, and the file that says which is whose."""

import hashlib
from pathlib import Path
from typing import Any

from prunefast.diffusion import TimestepGroups, make_process
from prunefast.errors import InputError
from prunefast.files import read_json
from prunefast.train.state import find_checkpoint

TDC_FILE = "tdc.json"
FORMAT_VERSION = 1


def group_folder(folder: Path, group: int) -> Path:
    return folder / f"group-{group}"


def is_tdc_folder(path: Path) -> bool:
    return (path / TDC_FILE).is_file()


def read_tdc(folder: Path) -> dict[str, Any]:
    """tdc.json, or an error that names it."""
    record = read_json(folder / TDC_FILE)
    if not isinstance(record, dict) or not {"format", "process", "edges", "options"} <= record.keys():
        raise InputError(f"{folder / TDC_FILE}: is not what prunefast wrote; delete {folder} and start again")
    if record["format"] != FORMAT_VERSION:
        raise InputError(f"{folder}: has format {record['format']}; update prunefast (it reads {FORMAT_VERSION})")
    return record


def read_groups(record: dict[str, Any]) -> TimestepGroups:
    return TimestepGroups(make_process(record["process"]), tuple(record["edges"]))


def find_experts(folder: Path) -> tuple[list[Path], dict[str, Any]]:
    """The checkpoints of groups 1 ... N, checked, and a state like that of a checkpoint for all together.

    Its "edges" tell it from a single network's; "model" is group N's, of which image size, channels and classes are
    everybody's.
    """
    record = read_tdc(folder)
    groups = read_groups(record)
    found = []
    for group in range(1, len(groups) + 1):
        try:
            found.append(find_checkpoint(group_folder(folder, group)))
        except InputError as error:
            raise InputError(f"{folder}: group {group} is not trained ({error}); run prunefast tdc again") from None
    states = [state for _, state in found]
    digest = hashlib.sha256("".join(state["digest"] for state in states).encode()).hexdigest()
    together = {
        **states[-1],
        "digest": digest,
        "edges": record["edges"],
        "networks": [state["model"] for state in states],
        "images": record["base"]["images"] + sum(state["images"] for state in states),
    }
    return [path for path, _ in found], together
