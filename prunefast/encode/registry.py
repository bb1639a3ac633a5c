"""From what a user writes to an encoder."""

import os
from collections.abc import Callable
from typing import Any

import torch

from prunefast.encode.encoder import Encoder
from prunefast.errors import InputError, InputTypeError

SPECS = (
    "pixels",
    "resnet20-cifar:FILE",
    "torchvision:NAME:FILE",
    "timm:NAME:FILE",
    "hf:FOLDER",
    "FILE.pt2",
    "FILE.pt",
)


def make_encoder(spec: Any, *, trust: bool = False, device: Any = None, **options: Any) -> Encoder:
    """The encoder that `spec` names.

    spec     "pixels" (or "pixels:FILE", one that was saved), "resnet20-cifar:FILE", "torchvision:NAME:FILE",
             "timm:NAME:FILE", "hf:FOLDER", a torch.export file "FILE.pt2" or TorchScript "FILE.pt" (with trust=True), a
             torch module, a function, or an Encoder (returned as it is)
    options  of that encoder: weights=FILE instead of a second part of the spec; pixels: size, dim; module, function and
             exported file: mean, std, size (and name); the others: size
    device   where a network runs, such as "cuda"

    Raises InputError naming the spec for anything else. Weights are never downloaded.
    """
    encoder = _make(spec, trust, options)
    return encoder if device is None else encoder.to(device)


def _make(spec: Any, trust: bool, options: dict[str, Any]) -> Encoder:
    if isinstance(spec, Encoder):
        if options:
            raise InputError(f"{next(iter(options))}: an encoder that is made already takes no options")
        return spec
    if isinstance(spec, str | os.PathLike):
        return _named(os.fspath(spec), trust, options)
    if callable(spec):
        from prunefast.encode.module import ModuleEncoder

        if isinstance(spec, type):
            raise InputTypeError(f"encoder: {spec.__name__} is a class; pass an instance of it")
        return _build(ModuleEncoder, type(spec).__name__, spec, **options)
    raise InputTypeError(f"encoder: must be a name, a torch module or a function, not {type(spec).__name__}")


def _named(spec: str, trust: bool, options: dict[str, Any]) -> Encoder:
    kind, _, rest = spec.partition(":")
    if kind == "pixels":
        from prunefast.encode.pixels import PixelsEncoder

        return _build(PixelsEncoder.load if rest else PixelsEncoder, spec, *([rest] if rest else []), **options)
    if kind == "resnet20-cifar":
        from prunefast.encode.resnet20 import resnet20_encoder

        weights = options.pop("weights", None) or rest
        if not weights:
            raise InputError("resnet20-cifar: needs a file of weights: resnet20-cifar:FILE.safetensors")
        return _build(resnet20_encoder, spec, weights, **options)
    if kind == "hf":
        from prunefast.encode.hf import hf_encoder

        return _build(hf_encoder, spec, rest, **options)
    if kind in ("torchvision", "timm"):
        if kind == "torchvision":
            from prunefast.encode.torchvision_ import torchvision_encoder as build
        else:
            from prunefast.encode.timm_ import timm_encoder as build
        local = rest.startswith("local-dir:")
        name, _, path = (rest, "", "") if local else rest.partition(":")
        if not name:
            raise InputError(f"encoder: {spec!r} names no network; write {kind}:NAME:FILE")
        return _build(build, spec, name, options.pop("weights", None) or path or None, **options)
    if spec.endswith((".pt2", ".pt")):
        from prunefast.encode.exported import ExportedEncoder

        return _build(ExportedEncoder, spec, spec, trust=trust, **options)
    if spec.endswith((".pth", ".safetensors", ".bin")):
        raise InputError(
            f"{spec}: holds weights only, not a network; write NETWORK:{spec}, such as resnet20-cifar:{spec}"
        )
    raise InputError(f"encoder: {spec!r} is unknown; there are {', '.join(SPECS)}")


def _build(function: Callable[..., Encoder], spec: str, *arguments: Any, **options: Any) -> Encoder:
    """Call `function`; an option it does not have is one clear error."""
    import inspect

    known = [
        name for name, p in inspect.signature(function).parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    for name in options:
        if name not in known:
            has = "its options are " + ", ".join(k for k in known if k != "trust") if known else "it has no options"
            raise InputError(f"{name}: encoder {spec!r} has no such option; {has}")
    return function(*arguments, **options)


def default_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
