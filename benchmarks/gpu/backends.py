"""Makes the operators take one backend, whatever they would choose."""

import contextlib
import importlib
import os
from collections.abc import Iterator
from typing import Any

INTERPRETED = ("denoising_loss", "add_noise", "philox", "topk", "group_norm_silu", "group_norm_silu_backward")


@contextlib.contextmanager
def forced(backend: str, rehearse: bool) -> Iterator[str]:
    """Inside, operators of the job's device run `backend`: "cuda" or "triton". Yields what really runs.

    In a rehearsal the native core stands in for "cuda", and Triton's interpreter runs the kernels of "triton".
    """
    if not rehearse:
        from prunefast.ops import cuda

        if backend == "cuda":
            module, reason = cuda.load()
            if module is None:
                raise RuntimeError(f"the CUDA C++ kernels do not serve: {reason}")
            yield "CUDA C++ (distances: Triton)"
            return
        with replaced(cuda, "live", lambda tensor: False):
            yield "Triton"
        return
    if backend == "cuda":
        yield "native core, in place of CUDA C++"
        return
    import torch

    if os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("TRITON_INTERPRET=1 must be set before Triton is imported")

    with replaced(torch.cuda, "device", lambda device: contextlib.nullcontext()):
        _redirect()
        _Redirected.on = True
        try:
            yield "Triton's interpreter"
        finally:
            _Redirected.on = False


def interpreter_runs_loops() -> bool:
    """Triton 3.6 makes a number of an array of one for the bounds of a run-time loop; NumPy 2.5 refuses that."""
    import numpy as np

    try:
        int(np.zeros(1))
    except TypeError:
        return False
    return True


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


class _Redirected:
    on = False
    done = False


def _redirect() -> None:
    """CPU tensors take the code of CUDA tensors while `_Redirected.on`: for the interpreter."""
    if _Redirected.done:
        return
    # the package's own names are functions
    names = ("add_noise", "denoising_loss", "group_norm_silu", "library", "native", "philox", "topk")
    modules = [importlib.import_module(f"prunefast.ops.{name}") for name in names]
    add_noise, denoising_loss, group_norm_silu, library, native, philox, topk = modules
    there = {
        "denoising_loss": (denoising_loss._denoising_loss_cpu, denoising_loss._denoising_loss_cuda),
        "add_noise": (add_noise._add_noise_cpu, add_noise._add_noise_cuda),
        "philox": (philox._philox_cpu, philox._philox_cuda),
        "topk": (native.topk, topk._topk_cuda),
        "group_norm_silu": (group_norm_silu._cpu, group_norm_silu._cuda),
        "group_norm_silu_backward": (group_norm_silu._cpu_backward, group_norm_silu._cuda_backward),
    }
    for name in INTERPRETED:
        cpu, gpu = there[name]
        library._LIBRARY.impl(name, _choice(cpu, gpu), "CPU", allow_override=True)
    _Redirected.done = True


def _choice(cpu: Any, gpu: Any) -> Any:
    def call(*arguments: Any) -> Any:
        return (gpu if _Redirected.on else cpu)(*arguments)

    return call
