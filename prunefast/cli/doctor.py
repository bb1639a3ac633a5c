import argparse
import importlib
import importlib.metadata
import platform
from typing import Any

import prunefast
from prunefast.cli import common

# package -> (what it is for, the extra that brings it)
OPTIONAL = {
    "sklearn": ("the demo's images", "demo"),
    "triton": ("GPU kernels", "triton"),
    "transformers": ("CLIP and DINOv2 encoders", "encoders"),
    "torchvision": ("Inception and ResNet encoders", "encoders"),
    "timm": ("timm encoders", "encoders"),
    "diffusers": ("models of diffusers, autoencoders", "diffusers"),
    "torch_pruning": ("prunes for timestep groups", "tdc"),
    "optuna": ("proposes the widths of timestep groups", "tdc"),
    "nvidia.dali": ("decodes JPEG on the GPU", "dali"),
    "lmdb": ("LMDB data sets", "lmdb"),
    "torch_fidelity": ("evaluate --metric inception", "fid"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def main(options: argparse.Namespace) -> int:
    import torch

    from prunefast import ops
    from prunefast.data import native

    facts: dict[str, Any] = {
        "prunefast": prunefast.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "backends": ops.backends(),
        "decoding": {"live": native.decodes_jpeg(), "detail": native.describe()},
        "packages": {name: _state(name) for name in OPTIONAL},
    }
    common.say(options, f"prunefast {facts['prunefast']}, Python {facts['python']}, torch {facts['torch']}")
    for name, backend in (*facts["backends"].items(), ("images", facts["decoding"])):
        common.say(options, f"  {'live' if backend['live'] else 'off ':<5}{name:<12}{backend['detail']}")
    common.say(options, "optional packages")
    for name, (purpose, extra) in OPTIONAL.items():
        state = facts["packages"][name]
        hint = "" if state["live"] else f" (pip install 'prunefast[{extra}]')"
        common.say(options, f"  {'live' if state['live'] else 'off ':<5}{name:<15}{state['detail']}: {purpose}{hint}")
    return common.finish(options, facts)


def _state(name: str) -> dict[str, Any]:
    """Whether a package loads here; a broken install is told apart from a missing one."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if name.startswith(error.name or "?"):  # of "nvidia.dali" also "nvidia"
            return {"live": False, "detail": "not installed"}
        return {"live": False, "detail": f"does not load: {error}"}
    except Exception as error:  # a package that is built for another torch raises anything
        return {"live": False, "detail": f"does not load: {str(error).splitlines()[0][:100]}"}
    return {"live": True, "detail": str(getattr(module, "__version__", "installed"))}
