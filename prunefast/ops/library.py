"""The `prunefast` namespace of torch operators: schemas, kernels per device, fakes for torch.compile.

Plain `define` and `impl` cost about a third of a call through `torch.library.custom_op`. Autograd is attached outside,
by `torch.autograd.Function`, because a registered formula is slower still.
"""

from collections.abc import Callable

import torch

_LIBRARY = torch.library.Library("prunefast", "DEF")


def define(schema: str, *, cpu: Callable, portable: Callable, fake: Callable, cuda: Callable | None = None) -> Callable:
    """Register an operator.

    `cpu` calls the native core, `cuda` the Triton kernel where there is one, `portable` is torch code for every other
    device, `fake` gives shapes only.
    """
    name = _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)).split("::")[-1]
    _LIBRARY.impl(name, cpu, "CPU")
    _LIBRARY.impl(name, portable, "CompositeExplicitAutograd")
    if cuda is not None:
        _LIBRARY.impl(name, cuda, "CUDA")
    torch.library.register_fake(f"prunefast::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.prunefast, name).default
