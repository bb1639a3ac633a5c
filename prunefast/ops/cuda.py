"""The bridge to the CUDA kernels: as `native`, with workspace, device and stream. Nothing here waits for the device.

The module `prunefast._cuda` is there where nvcc was found at build time; it is loaded when a CUDA tensor first asks.
"""

import functools
import math
from types import ModuleType
from typing import Any

import torch

from prunefast.ops import native
from prunefast.ops.arrays import SEED_LIMIT

OLDEST = (8, 0)  # compute capability of the oldest GPUs with machine code
SAMPLE_LIMIT = 0x7FFFFFF0  # elements of a sample: the kernels count them in 32 bits


@functools.cache
def load() -> tuple[ModuleType | None, str]:
    """(the module, "") or (None, why not)."""
    try:
        from prunefast import _cuda
    except ImportError as error:
        if "_cuda" in str(error) and "cannot import name" in str(error):
            return None, "not built: nvcc was not there, or PRUNEFAST_CUDA=OFF"
        return None, f"built, but loading it fails: {error}"
    count, reason = _cuda.devices()
    return (_cuda, "") if count else (None, reason.removeprefix("devices: "))


@functools.cache
def _serves(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= OLDEST


def kernels() -> Any:
    """The module; only after `live`."""
    return load()[0]


def live(tensor: torch.Tensor) -> bool:
    """Whether the CUDA kernels serve the device of `tensor`."""
    return load()[0] is not None and _serves(tensor.device)


def place(tensor: torch.Tensor) -> tuple[int, int]:
    """(device, stream) for a call."""
    device = tensor.device
    return device.index or 0, torch.cuda.current_stream(device).cuda_stream


def _bytes(size: int, like: torch.Tensor) -> torch.Tensor:
    return torch.empty(max(size, 16), dtype=torch.uint8, device=like.device)


def takes(*tensors: torch.Tensor | None) -> bool:
    """Whether formats and sizes are those of the image kernels (no float64; 2^31 elements a sample)."""
    there = [t for t in tensors if t is not None]
    return all(t.dtype in native.DTYPES and math.prod(t.shape[1:]) <= SAMPLE_LIMIT for t in there)


def philox(kind: int, out: torch.Tensor, seed: int, position: torch.Tensor, stream: int) -> None:
    """Fill contiguous `out` [samples, ...]; words are int32 with the bits of uint32."""
    samples, elements = out.shape[0], math.prod(out.shape[1:])
    position = position.contiguous()
    dtype = native.DTYPES.get(out.dtype, 0)
    sizes = (samples, elements, seed % SEED_LIMIT, stream)
    kernels().philox(kind, out.data_ptr(), dtype, *sizes, position.data_ptr(), *place(out))


def denoising_loss(
    pred, x0, noise, seed, position, a, b, weight, labels, classes, reference, corner, flip, gradient_scale
) -> tuple[torch.Tensor, ...]:
    """`pred` has elements."""
    gradient = pred.new_empty(0) if gradient_scale is None else native.gradient_like(pred)
    loss, per_sample = a.new_empty(()), a.new_empty(a.shape)
    excess, count = a.new_empty(classes), a.new_empty(classes, dtype=torch.int64)
    vectors = [None if v is None else v.contiguous() for v in (a, b, weight, gradient_scale, labels, reference)]
    x0, noise, pred = (native.as_images(tensor) for tensor in (x0, noise, pred))
    written = None if gradient_scale is None else native.as_images(gradient)
    arguments = native._image_arguments(pred, x0, noise, seed, position, corner, flip, pred.shape[1])
    workspace = _bytes(kernels().denoising_loss_workspace(pred.shape[0], math.prod(pred.shape[1:])), pred)
    outputs = [native.address(v) for v in (loss, per_sample, excess, count, workspace)]
    operands = (native._operand(pred), native._operand(written), *map(native.address, vectors), classes)
    kernels().denoising_loss(arguments, *operands, *outputs, *place(pred))
    return loss, per_sample, gradient, excess, count


def add_noise(
    x0, alpha, sigma, noise, seed, position, corner, height, width, flip, coordinates, dtype, channels_last
) -> torch.Tensor:
    if x0.ndim == 4:
        form = torch.channels_last if channels_last else torch.contiguous_format
        shape = (x0.shape[0], x0.shape[1] + 2 * coordinates, height, width)
        out = torch.empty(shape, dtype=dtype, device=x0.device, memory_format=form)
    else:
        out = x0.new_empty(x0.shape, dtype=dtype)
    if out.numel() == 0:
        return out
    alpha, sigma = alpha.contiguous(), sigma.contiguous()
    x0, noise, written = native.as_images(x0), native.as_images(noise), native.as_images(out)
    arguments = native._image_arguments(written, x0, noise, seed, position, corner, flip, x0.shape[1])
    operands = (alpha.data_ptr(), sigma.data_ptr(), native._operand(written), bool(coordinates))
    kernels().add_noise(arguments, *operands, *place(x0))
    return out


def class_sums(x: torch.Tensor, labels: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(float64 [classes, columns] sums of the rows of each class, int64 [classes] counts)."""
    x = native.unit_rows(x)
    ordered, order = torch.sort(labels, stable=True)
    start = torch.searchsorted(ordered, torch.arange(classes + 1, device=x.device, dtype=labels.dtype))
    sums = torch.empty((classes, x.shape[1]), dtype=torch.float64, device=x.device)
    workspace = _bytes(kernels().class_sums_workspace(x.shape[1], classes), x)
    outputs = (classes, sums.data_ptr(), workspace.data_ptr())
    operands = (x.data_ptr(), x.shape[1], x.stride(0), order.data_ptr(), start.data_ptr())
    kernels().class_sums(*operands, *outputs, *place(x))
    return sums, start.diff()


def takes_norm(x: torch.Tensor, *parameters: torch.Tensor | None) -> bool:
    """Whether the norm kernels take it: pixels of channels side by side, 16 bytes of them a multiple."""
    floats = (torch.float32, torch.bfloat16, torch.float16)
    if any(t is not None and t.dtype not in floats for t in (x, *parameters)) or x.numel() == 0:
        return False
    dense = x.is_contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x.ndim == 2 and x.is_contiguous()
    return dense and x.shape[1] * x.element_size() % 16 == 0 and x.data_ptr() % 16 == 0


def _norm_arguments(x, groups, weight, bias, scale, shift, eps, silu, mean, rstd) -> tuple:
    sizes = (x.shape[0], math.prod(x.shape[2:]), x.shape[1], groups)
    addresses = [native.address(t) for t in (x, weight, bias, scale, shift)]
    modulation = (0, 0) if scale is None else (scale.stride(0), native.DTYPES[scale.dtype])
    formats = (modulation[0], native.DTYPES[x.dtype], native.DTYPES[weight.dtype], modulation[1])
    return (*sizes, *addresses, *formats, silu, eps, mean.data_ptr(), rstd.data_ptr())


def group_norm_silu(x, groups, weight, bias, scale, shift, eps, silu) -> tuple[torch.Tensor, ...]:
    """(y, mean, rstd); mean and rstd float32 [samples, groups]. What `takes_norm` allows, rows of parameters dense."""
    y = torch.empty_like(x)
    mean, rstd = (torch.empty((x.shape[0], groups), dtype=torch.float32, device=x.device) for _ in range(2))
    fields = _norm_arguments(x, groups, weight, bias, scale, shift, eps, silu, mean, rstd)
    workspace = _bytes(kernels().group_norm_silu_workspace(fields), x)
    kernels().group_norm_silu(fields, y.data_ptr(), workspace.data_ptr(), *place(x))
    return y, mean, rstd


def group_norm_silu_backward(
    gradient, x, mean, rstd, groups, weight, bias, scale, shift, silu
) -> tuple[torch.Tensor, ...]:
    """Gradients of x, weight, bias, scale and shift (the last two empty without modulation), float32 but for x's."""
    dx = torch.empty_like(x)
    shapes = [(x.shape[1],)] * 2 + [x.shape[:2] if scale is not None else (0,)] * 2
    written = [torch.empty(shape, dtype=torch.float32, device=x.device) for shape in shapes]
    fields = _norm_arguments(x, groups, weight, bias, scale, shift, 0.0, silu, mean, rstd)
    workspace = _bytes(kernels().group_norm_silu_workspace(fields), x)
    outputs = [t.data_ptr() if t.numel() else 0 for t in (gradient, dx, *written)]
    kernels().group_norm_silu_backward(fields, *outputs, workspace.data_ptr(), *place(x))
    return dx, *written
