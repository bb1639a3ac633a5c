"""Reading a file of weights without running anything in it. Weights are never downloaded."""

import os
from pathlib import Path
from typing import Any

import torch

from prunefast.errors import InputError


def load_weights(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """State dict of a .safetensors, .pth, .pt or .bin file; a `module.` prefix of all names is removed.

    Pickles are read by torch's allow-list (`weights_only=True`).
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file of weights; prunefast downloads none, fetch it and name it")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format has its own errors, and a broken pickle may raise any
        # torch writes essays: their first sentence says what is wrong
        reason = str(error).splitlines()[0].split(". ")[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path}: cannot be read as weights ({reason}); use safetensors or a plain state dict"
        ) from None
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path}: holds no state dict (a mapping from names to tensors)")
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def fill(network: torch.nn.Module, state: dict[str, torch.Tensor], path: str | os.PathLike[str], what: str) -> None:
    """Load `state` into `network`, all names matching; `InputError` naming the file and the first that does not."""
    expected = network.state_dict()
    # BatchNorm's counter of batches has no influence on features, and old files lack it
    missing = sorted(name for name in expected if name not in state and not name.endswith("num_batches_tracked"))
    surplus = sorted(name for name in state if name not in expected)
    shapes = sorted(name for name in expected if name in state and state[name].shape != expected[name].shape)
    for names, word in ((missing, "lacks"), (surplus, "has an unknown"), (shapes, "has another shape for")):
        if names:
            raise InputError(f"{path}: are not the weights of {what}: {word} {names[0]!r} ({len(names)} such names)")
    network.load_state_dict(state, strict=False)
