"""What every operator does at its door: NumPy or torch in, checks that name the argument, the same kind out."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from prunefast.errors import InputError, InputTypeError

Array = np.ndarray | torch.Tensor

SEED_LIMIT = 1 << 64
WORD_LIMIT = 1 << 32


class _Writable:
    """A read-only array (a memory map) shown as writable, so that torch shares it without a warning.

    Operators never write to their inputs.
    """

    def __init__(self, array: np.ndarray):
        self._array = array  # keeps the memory alive
        self.__array_interface__ = {
            **array.__array_interface__,
            "data": (array.__array_interface__["data"][0], False),
        }


def as_tensor(name: str, value: Any) -> torch.Tensor:
    """`value` as a tensor that shares its memory where it can."""
    if isinstance(value, torch.Tensor):
        return value
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise InputTypeError(f"{name}: an array of numbers is needed, not {array.dtype}")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        if array.size and int(array.max()) > np.iinfo(np.int64).max:
            raise InputError(f"{name}: unsigned values above 2^63 - 1 are not supported")
        array = array.astype(np.int64)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype == np.longdouble and array.dtype.itemsize > 8:
        raise InputTypeError(f"{name}: {array.dtype} is not supported; use float64")
    if any(stride < 0 for stride in array.strides) or not array.flags.aligned:
        array = array.copy()
    if array.size and not array.flags.writeable:
        array = np.asarray(_Writable(array))
    return torch.from_numpy(array)


def like(value: Any, tensor: torch.Tensor) -> Any:
    """`tensor` in the kind of `value`: a tensor for a tensor, a NumPy array for anything else."""
    return tensor if isinstance(value, torch.Tensor) else tensor.numpy()


def check_matrix(name: str, tensor: torch.Tensor, *, read: bool = True) -> torch.Tensor:
    """Float32 [rows, columns] with finite values; integers and other floats are converted.

    read=False looks at no value: for operators that must not wait for a device, or that refuse such values themselves.
    """
    if tensor.ndim != 2:
        raise InputError(f"{name}: shape [rows, columns] is needed, not {list(tensor.shape)}")
    if tensor.shape[1] == 0:
        raise InputError(f"{name}: it has no columns (shape {list(tensor.shape)})")
    if tensor.dtype.is_complex or tensor.dtype == torch.bool:
        raise InputTypeError(f"{name}: real numbers are needed, not {tensor.dtype}")
    if read:
        check_finite(name, tensor)
    if tensor.dtype != torch.float32:
        converted = tensor.to(torch.float32)
        if read and tensor.dtype == torch.float64:
            check_finite(name, converted, "does not fit float32")
        return converted
    return tensor


def check_finite(name: str, tensor: torch.Tensor, problem: str = "is NaN or infinite") -> None:
    """One pass without a temporary: a sum is finite only if every value is; a sum that overflows is looked at again."""
    if not tensor.dtype.is_floating_point or tensor.numel() == 0:
        return
    wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    if math.isfinite(float(tensor.sum(dtype=wide))):
        return
    finite = torch.isfinite(tensor)
    if not bool(finite.all()):
        where = tuple(int(i) for i in torch.nonzero(~finite)[0])
        raise InputError(f"{name}: the value at {list(where)} {problem}; remove such rows first")


def check_labels(name: str, labels: torch.Tensor, length: int, classes: int | None = None) -> torch.Tensor:
    """Int64 [length] in 0 .. classes - 1."""
    check_label_type(name, labels, length)
    if length:
        low, high = (int(v) for v in torch.aminmax(labels))
        if low < 0 or (classes is not None and high >= classes):
            wrong = low if low < 0 else high
            raise InputError(f"{name}: label {wrong} is outside 0 .. {classes - 1 if classes is not None else 'C - 1'}")
    return labels.to(torch.int64)


def check_label_type(name: str, labels: torch.Tensor, length: int) -> None:
    if labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool:
        raise InputTypeError(f"{name}: integers are needed, not {labels.dtype}")
    if labels.shape != (length,):
        raise InputError(f"{name}: shape [{length}] is needed, not {list(labels.shape)}")


def check_per_sample(
    name: str, value: Any, length: int, dtype: torch.dtype, device: torch.device, *, scalar: bool = True
) -> torch.Tensor:
    """One number a sample: a tensor [length], or one number for all."""
    if isinstance(value, int | float):
        if not scalar:
            raise InputError(f"{name}: shape [{length}] is needed, not one number")
        return torch.full((length,), float(value), dtype=dtype, device=device)
    tensor = as_tensor(name, value)
    if tensor.dtype.is_complex:
        raise InputTypeError(f"{name}: real numbers are needed, not {tensor.dtype}")
    if tensor.ndim == 0 and scalar:
        tensor = tensor.expand(length)
    if tensor.shape != (length,):
        raise InputError(f"{name}: shape [{length}] is needed, not {list(tensor.shape)}")
    check_same_device(name, tensor, device)
    return tensor.to(dtype)


def check_same_device(name: str, tensor: torch.Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise InputError(f"{name}: it is on {tensor.device}, the first argument on {device}; move one of them")


def check_position(name: str, position: Any, device: torch.device | None = None) -> torch.Tensor:
    """Global image positions: int64 [samples] (on `device`, when one is given)."""
    tensor = as_tensor(name, position)
    empty = isinstance(position, Sequence) and not position  # an empty list has no type
    if not empty and (tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype == torch.bool):
        raise InputTypeError(f"{name}: integers are needed, not {tensor.dtype}")
    if tensor.ndim != 1:
        raise InputError(f"{name}: shape [samples] is needed, not {list(tensor.shape)}")
    tensor = tensor.to(torch.int64)
    return tensor if device is None else tensor.to(device)


def check_integer(name: str, value: Any, low: int, high: int) -> int:
    """An int with low <= value < high."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise InputTypeError(f"{name}: an integer is needed, not {type(value).__name__}")
    value = int(value)
    if not low <= value < high:
        raise InputError(f"{name}: {value} is outside {low} .. {high - 1}")
    return value


def signed(seed: int) -> int:
    """A 64-bit word as the signed integer that an operator schema carries."""
    return seed - SEED_LIMIT if seed >= SEED_LIMIT // 2 else seed
