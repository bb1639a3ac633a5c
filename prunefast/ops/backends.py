"""Which backends run here, and why the others do not: what `prunefast doctor` prints."""

import functools
import importlib.util
from typing import Any

import torch

from prunefast import _native
from prunefast.ops import cuda


@functools.cache
def triton_is_live() -> bool:
    """Whether Triton can be imported; asked once, and only for tensors on a GPU."""
    try:
        import triton  # noqa: F401
    except Exception:  # a broken installation fails in its own ways: the torch code serves then
        return False
    return True


def backends() -> dict[str, dict[str, Any]]:
    """For each backend `live` (bool) and `detail` (one line: what runs, or why it does not), and what else is known.

    Returns:
        {"cpu": {live, detail, isa, isas, openmp, threads}, "triton": {live, detail}, "cuda": {live, detail, devices}}
    """
    return {"cpu": _cpu(), "triton": _triton(), "cuda": _cuda()}


def _cpu() -> dict[str, Any]:
    isas = {name: bool(available) for name, available in _native.isas().items()}
    threads = _native.threads(torch.get_num_threads())
    parallel = f"OpenMP, {threads} thread{'s' * (threads != 1)}" if _native.has_openmp() else "one thread (no OpenMP)"
    others = ", ".join(name for name, available in isas.items() if available)
    return {
        "live": True,
        "detail": f"C++ {_native.isa_in_use()} (available: {others}), {parallel}",
        "isa": _native.isa_in_use(),
        "isas": isas,
        "openmp": bool(_native.has_openmp()),
        "threads": threads,
    }


def _triton() -> dict[str, Any]:
    if importlib.util.find_spec("triton") is None:
        return {"live": False, "detail": "not installed: pip install 'prunefast[triton]'"}
    if not torch.cuda.is_available():
        return {"live": False, "detail": "installed; it needs a GPU that torch sees"}
    if not triton_is_live():
        return {"live": False, "detail": "installed, but importing it fails"}
    return {"live": True, "detail": "distances of CUDA tensors, and what CUDA C++ does not serve"}


def _cuda() -> dict[str, Any]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = [torch.cuda.get_device_name(i) for i in range(count)]
    module, reason = cuda.load()
    if module is None:
        return {"live": False, "detail": f"CUDA C++ kernels: {reason}", "devices": devices}
    if not count:
        reason = "this torch is built without CUDA" if torch.version.cuda is None else "torch sees no GPU"
        return {"live": False, "detail": f"CUDA C++ kernels are built, but {reason}", "devices": devices}
    built = f"for sm {module.architectures()} and newer"
    detail = f"CUDA C++ {built} on {', '.join(devices)}: loss, noise, class sums, norm"
    return {"live": True, "detail": detail, "devices": devices}
