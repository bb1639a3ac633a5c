"""The bridge to the C++ core: addresses, sizes and strides out of tensors that the operators have checked."""

import math
from typing import Any

import torch

from prunefast import _native
from prunefast.errors import InputError
from prunefast.ops.arrays import SEED_LIMIT

WORDS, UNIFORM, NORMAL = 0, 1, 2  # prunefast_random_kind
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.uint8: 3}  # prunefast_dtype
ROW_DTYPES = {torch.float32: 0, torch.float64: 4}


def threads() -> int:
    return torch.get_num_threads()


def address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def philox(kind: int, out: torch.Tensor, seed: int, position: torch.Tensor, stream: int) -> None:
    """Fill contiguous `out` [samples, ...]."""
    samples, elements = out.shape[0], math.prod(out.shape[1:])
    position = position.contiguous()
    dtype = DTYPES.get(out.dtype, 0)
    _native.philox(
        kind, out.data_ptr(), dtype, samples, elements, seed % SEED_LIMIT, stream, position.data_ptr(), threads()
    )


def topk(
    x: torch.Tensor, y: torch.Tensor, k: int, inner: bool, certify: bool, exclude_self: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """`y` must be finite; a value of `x` that is not is an InputError."""
    return _topk(x, y, k, inner, certify, exclude_self, None)


def nearest_sums(
    x: torch.Tensor, y: torch.Tensor, sums: torch.Tensor, counts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest row of `y` [k, columns] and its squared distance, both [rows]; in the same read of `x` its rows are
    added to float64 `sums` [k, columns] and int64 `counts` [k] of their nearest, in their order."""
    index, distance = _topk(x, y, 1, False, True, False, (sums, counts))
    return index[:, 0], distance[:, 0]


def _topk(x, y, k, inner, certify, exclude_self, onto) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = unit_rows(x), unit_rows(y)
    index = torch.empty((x.shape[0], k), dtype=torch.int64)
    distance = torch.empty((x.shape[0], k), dtype=torch.float32)
    sizes = (x.shape[0], y.shape[0], x.shape[1], x.stride(0), y.stride(0))
    outputs = [address(tensor) for tensor in (index, distance, *(onto or (None, None)))]
    _call(_native.topk, x.data_ptr(), y.data_ptr(), *sizes, k, inner, certify, exclude_self, *outputs, threads())
    return index, distance


def unit_rows(x: torch.Tensor) -> torch.Tensor:
    """Rows without gaps; any distance between rows will do."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def class_sums(
    x: torch.Tensor, labels: torch.Tensor, classes: int, onto: tuple[torch.Tensor, torch.Tensor] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(float64 [classes, columns] sums of the rows of each class, int64 [classes] counts), or added to `onto`."""
    x, labels = unit_rows(x), labels.contiguous()
    if onto is None:
        sums = torch.empty((classes, x.shape[1]), dtype=torch.float64)
        counts = torch.empty(classes, dtype=torch.int64)
    else:
        sums, counts = onto
    sizes = (x.shape[0], x.shape[1], x.stride(0), labels.data_ptr(), classes)
    _native.class_sums(x.data_ptr(), *sizes, sums.data_ptr(), counts.data_ptr(), onto is not None, threads())
    return sums, counts


def _rows(x: torch.Tensor, rows: torch.Tensor | None) -> tuple:
    count = x.shape[0] if rows is None else len(rows)
    return (x.data_ptr(), ROW_DTYPES[x.dtype], count, x.shape[1], x.stride(0), address(rows), threads())


def moments(x: torch.Tensor, rows: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Float64 mean and covariance (divisor N) of some rows of float32 or float64 x; None: of all."""
    x = unit_rows(x)
    mean = torch.empty(x.shape[1], dtype=torch.float64)
    covariance = torch.empty((x.shape[1], x.shape[1]), dtype=torch.float64)
    _native.moments(_rows(x, rows), mean.data_ptr(), covariance.data_ptr())
    return mean, covariance


def mahalanobis(x: torch.Tensor, rows: torch.Tensor | None, mean: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Float64 |L^-1 (x - mean)|^2 of some rows; `factor` L is lower triangular."""
    x, mean, factor = unit_rows(x), mean.contiguous(), factor.contiguous()
    squared = torch.empty(x.shape[0] if rows is None else len(rows), dtype=torch.float64)
    _native.mahalanobis(_rows(x, rows), mean.data_ptr(), factor.data_ptr(), squared.data_ptr())
    return squared


def as_images(tensor: Any) -> Any:
    """[samples, channels, height, width]: anything that is not an image becomes one row a sample."""
    if tensor is None or tensor.ndim == 4:
        return tensor
    return tensor.reshape(tensor.shape[0], 1, 1, math.prod(tensor.shape[1:]))


def gradient_like(pred: torch.Tensor) -> torch.Tensor:
    """Room for the gradient: the layout of an image, one run a sample for anything else."""
    return torch.empty_like(pred) if pred.ndim == 4 else pred.new_empty(pred.shape)


def _operand(tensor: torch.Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else (tensor.data_ptr(), DTYPES[tensor.dtype], *tensor.stride())


def _image_arguments(like: torch.Tensor, x0, noise, seed, position, corner, flip, channels: int) -> tuple:
    sizes = (like.shape[0], channels, like.shape[2], like.shape[3], x0.shape[2], x0.shape[3])
    rest = (address(position), address(corner), address(flip), threads())
    return (*sizes, _operand(x0), _operand(noise), seed % SEED_LIMIT, *rest)


def denoising_loss(
    pred, x0, noise, seed, position, a, b, weight, labels, classes, reference, corner, flip, gradient_scale
) -> tuple[torch.Tensor, ...]:
    gradient = pred.new_empty(0) if gradient_scale is None else gradient_like(pred)
    loss, per_sample = a.new_empty(()), a.new_empty(a.shape)
    excess, count = a.new_empty(classes), a.new_empty(classes, dtype=torch.int64)
    if pred.numel() == 0:  # a mean of nothing, as torch has it
        return loss.fill_(math.nan), per_sample.fill_(math.nan), gradient, excess.zero_(), count.zero_()
    vectors = [None if v is None else v.contiguous() for v in (a, b, weight, gradient_scale, labels, reference)]
    x0, noise, pred = as_images(x0), as_images(noise), as_images(pred)
    written = None if gradient_scale is None else as_images(gradient)
    arguments = _image_arguments(pred, x0, noise, seed, position, corner, flip, pred.shape[1])
    outputs = [address(v) for v in (loss, per_sample, excess, count)]
    operands = (_operand(pred), _operand(written), *map(address, vectors), classes)
    _call(_native.denoising_loss, arguments, *operands, *outputs)
    return loss, per_sample, gradient, excess, count


def add_noise(
    x0, alpha, sigma, noise, seed, position, corner, height, width, flip, coordinates, dtype, channels_last
) -> torch.Tensor:
    if x0.ndim == 4:
        form = torch.channels_last if channels_last else torch.contiguous_format
        shape = (x0.shape[0], x0.shape[1] + 2 * coordinates, height, width)
        out = torch.empty(shape, dtype=dtype, memory_format=form)
    else:
        out = torch.empty(x0.shape, dtype=dtype)
    if out.numel() == 0:
        return out
    alpha, sigma = alpha.contiguous(), sigma.contiguous()
    x0, noise, written = as_images(x0), as_images(noise), as_images(out)
    arguments = _image_arguments(written, x0, noise, seed, position, corner, flip, x0.shape[1])
    _call(_native.add_noise, arguments, alpha.data_ptr(), sigma.data_ptr(), _operand(written), bool(coordinates))
    return out


def group_norm_silu(
    x: torch.Tensor, groups: int, weight, bias, scale, shift, eps: float, silu: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(y, mean, rstd [samples, groups]) of a dense NHWC x."""
    y = torch.empty_like(x)
    mean, rstd = weight.new_empty((x.shape[0], groups)), weight.new_empty((x.shape[0], groups))
    if x.numel():
        tensors = [address(t) for t in (x, weight, bias, scale, shift, mean, rstd, y)]
        _native.group_norm_silu(_norm_sizes(x, groups, silu, eps), tuple(tensors))
    return y, mean, rstd


def group_norm_silu_backward(
    gradient: torch.Tensor, x: torch.Tensor, mean, rstd, groups: int, weight, bias, scale, shift, silu: bool
) -> tuple[torch.Tensor, ...]:
    """Gradients of x, weight, bias, scale and shift (the last two empty without a scale)."""
    result = torch.empty_like(x)
    of_weight, of_bias = torch.empty_like(weight), torch.empty_like(bias)
    of_scale, of_shift = weight.new_empty(0), weight.new_empty(0)
    if scale is not None:
        of_scale, of_shift = torch.empty_like(scale), torch.empty_like(scale)
    written = [of_weight, of_bias, None if scale is None else of_scale, None if scale is None else of_shift]
    if x.numel():
        tensors = (x, weight, bias, scale, shift, mean, rstd, gradient, result, *written)
        _native.group_norm_silu(_norm_sizes(x, groups, silu, 0.0), tuple(address(t) for t in tensors))
    return result, of_weight, of_bias, of_scale, of_shift


def conv3x3(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Of bfloat16 x and float32 weight, both channels_last."""
    y = _image_like(x, weight.shape[0])
    _native.conv3x3(_conv_sizes(x, y), tuple(map(address, (x, weight, bias, None, y, None, None))))
    return y


def conv3x3_gradient_x(gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    result = _image_like(gradient, weight.shape[1])
    tensors = (None, weight, None, gradient, None, result, None)
    _native.conv3x3(_conv_sizes(result, gradient), tuple(map(address, tensors)))
    return result


def conv3x3_gradient_weight(gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """float32."""
    shape = (gradient.shape[1], x.shape[1], 3, 3)
    result = torch.empty(shape, dtype=torch.float32, memory_format=torch.channels_last)
    _native.conv3x3(_conv_sizes(x, gradient), tuple(map(address, (x, None, None, gradient, None, None, result))))
    return result


def _image_like(x: torch.Tensor, channels: int) -> torch.Tensor:
    shape = (x.shape[0], channels, *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)


def _conv_sizes(x: torch.Tensor, y: torch.Tensor) -> tuple[int, ...]:
    return (x.shape[0], x.shape[2], x.shape[3], x.shape[1], y.shape[1], threads())


def _norm_sizes(x: torch.Tensor, groups: int, silu: bool, eps: float) -> tuple:
    pixels = math.prod(x.shape[2:])
    return (x.shape[0], pixels, x.shape[1], groups, DTYPES[x.dtype], silu, threads(), eps)


def _call(function, *arguments) -> None:
    """The core refuses labels and boxes out of range and values that are not finite, where only it reads them."""
    try:
        function(*arguments)
    except ValueError as error:
        raise InputError(str(error)) from None
