"""Gaussian fit and log-likelihood, per class in one call: centred, float64, whitened by Cholesky, not expanded."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from prunefast.errors import InputError, InputTypeError
from prunefast.ops import native
from prunefast.ops.arrays import as_tensor, check_finite, check_labels, check_same_device, like
from prunefast.ops.backends import triton_is_live

_CHUNK_VALUES = 1 << 22  # float64 values of one chunk of rows (32 MB)


class Gaussian(NamedTuple):
    """mean float64 [D] and covariance float64 [D, D] (divisor N, no ridge); [C, D] and [C, D, D] with classes."""

    mean: Any
    covariance: Any


@torch.no_grad()
def fit_gaussian(x: Any, labels: Any = None) -> Gaussian:
    """Mean and covariance of the rows of `x` `[N, D]`, or of each class 0 .. max(labels).

    The covariance is that of maximum likelihood (divisor N, as scikit-learn's), taken about the mean in float64. A
    class of one row has covariance zero: the ridge of `gaussian_log_likelihood` makes it usable.

    Raises:
        InputError, InputTypeError: no rows, NaN or infinity, wrong labels, a class without rows.
    """
    data = check_rows(x)
    rows_by_class = rows_of_fit(data, labels)
    if rows_by_class is None:
        mean, covariance = fit_moments(data, None)
        return Gaussian(like(x, mean), like(x, covariance))
    classes, columns = len(rows_by_class), data.shape[1]
    mean = torch.empty((classes, columns), dtype=torch.float64, device=data.device)
    covariance = torch.empty((classes, columns, columns), dtype=torch.float64, device=data.device)
    for c, rows in enumerate(rows_by_class):
        mean[c], covariance[c] = fit_moments(data, rows)
    return Gaussian(like(x, mean), like(x, covariance))


@torch.no_grad()
def gaussian_log_likelihood(x: Any, gaussian: Gaussian, labels: Any = None, ridge: float = 1e-5) -> Any:
    """log N(x_i; mean, covariance + ridge I), of row i's class when `labels` are given.

    With L L' the covariance and its ridge: -|L^-1 (x - mean)|^2 / 2 - D log(2 pi) / 2 - sum(log diag L), the quadratic
    form by triangular solve on centred rows (an expanded form loses digits as the condition number grows).

    Args:
        x: `[N, D]`. gaussian: of `fit_gaussian`, with classes if and only if `labels` int `[N]` are given.
        ridge: added to the diagonal, in squared units of x; makes a singular covariance (fewer rows than D) usable.

    Returns:
        float64 `[N]`.

    Raises:
        InputError, InputTypeError: shapes that do not fit, NaN or infinity, a covariance singular even with this ridge.
    """
    data = check_rows(x)
    mean, covariance = check_model("gaussian", gaussian, Gaussian)
    check_same_device("gaussian", mean, data.device)
    classes = None if labels is None else len(mean)
    expected = [data.shape[1]] if classes is None else [classes, data.shape[1]]
    if list(mean.shape) != expected or list(covariance.shape) != [*expected, data.shape[1]]:
        hint = "; give the labels of a fit per class, and none to a fit of all" if mean.ndim != len(expected) else ""
        raise InputError(
            f"gaussian: mean {list(mean.shape)} and covariance {list(covariance.shape)} "
            f"do not fit {data.shape[1]} columns{hint}"
        )
    check_ridge(ridge)
    check_finite("gaussian", mean)
    check_finite("gaussian", covariance)
    result = torch.empty(data.shape[0], dtype=torch.float64, device=data.device)
    if classes is None:
        _score(result, data, None, mean, covariance, ridge, "gaussian")
        return like(x, result)
    for c, rows in enumerate(rows_of_classes(check_classes(labels, data, classes), classes)):
        if len(rows):
            _score(result, data, rows, mean[c], covariance[c], ridge, f"gaussian: class {c}")
    return like(x, result)


def check_rows(x: Any) -> torch.Tensor:
    """Real, finite [rows, columns] of any dtype."""
    data = as_tensor("x", x)
    if data.ndim != 2 or data.shape[1] == 0:
        raise InputError(f"x: shape [rows, columns] is needed, not {list(data.shape)}")
    if data.dtype.is_complex or data.dtype == torch.bool:
        raise InputTypeError(f"x: real numbers are needed, not {data.dtype}")
    check_finite("x", data)
    return data


def check_classes(labels: Any, data: torch.Tensor, classes: int | None = None) -> torch.Tensor:
    label = as_tensor("labels", labels)
    check_same_device("labels", label, data.device)
    return check_labels("labels", label, data.shape[0], classes)


def check_model(name: str, model: Any, kind: type) -> Any:
    """A `kind` of float64 tensors."""
    fields = getattr(kind, "_fields", ())
    if not (isinstance(model, tuple | list) and len(model) == len(fields)):
        raise InputTypeError(f"{name}: what fit_{name} gives is needed, not {type(model).__name__}")
    return kind(*(as_tensor(name, value).double() for value in model))


def check_ridge(ridge: float) -> None:
    if not (isinstance(ridge, int | float) and ridge >= 0 and math.isfinite(ridge)):
        raise InputError(f"ridge: {ridge!r} is not a number of at least 0")


def rows_of_classes(label: torch.Tensor, classes: int) -> tuple[torch.Tensor, ...]:
    """The rows of each class, in their order."""
    counts = torch.bincount(label, minlength=classes).tolist()
    return torch.sort(label, stable=True).indices.split(counts)


def rows_of_fit(data: torch.Tensor, labels: Any) -> tuple[torch.Tensor, ...] | None:
    """The rows of each class 0 .. max(labels), none of them empty; None, for all rows, without labels."""
    if data.shape[0] == 0:
        raise InputError("x: it has no rows")
    if labels is None:
        return None
    label = check_classes(labels, data)
    present = torch.unique(label)  # sorted
    missing = torch.nonzero(present != torch.arange(len(present), device=present.device))
    if len(missing):
        raise InputError(f"labels: class {int(missing[0])} of 0 .. {int(present[-1])} has no rows")
    return rows_of_classes(label, len(present))


def chunks(data: torch.Tensor, rows: torch.Tensor | None) -> Iterator[tuple[Any, torch.Tensor]]:
    """(rows, their values in float64), some megabytes at a time."""
    step = max(1, _CHUNK_VALUES // data.shape[1])
    for start in range(0, data.shape[0] if rows is None else len(rows), step):
        part = slice(start, start + step) if rows is None else rows[start : start + step]
        yield part, data[part].double()


def fit_moments(data: torch.Tensor, rows: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance (divisor N) of some rows; None: of all."""
    if data.device.type == "cpu":
        return native.moments(_wide(data), rows)
    return _portable_moments(data, rows)


def _portable_moments(data: torch.Tensor, rows: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    count = data.shape[0] if rows is None else len(rows)
    mean = torch.zeros(data.shape[1], dtype=torch.float64, device=data.device)
    for _, values in chunks(data, rows):
        mean += values.sum(0)
    mean /= count
    covariance = torch.zeros((data.shape[1], data.shape[1]), dtype=torch.float64, device=data.device)
    for _, values in chunks(data, rows):
        centred = values - mean
        covariance.addmm_(centred.T, centred)
    covariance /= count
    return mean, (covariance + covariance.T) / 2


def _score(result, data, rows, mean, covariance, ridge, name) -> None:
    dimension = data.shape[1]
    loaded = covariance + ridge * torch.eye(dimension, dtype=torch.float64, device=data.device)
    factor, failed = torch.linalg.cholesky_ex(loaded)
    if int(failed):
        raise InputError(f"{name}: the covariance plus ridge {ridge} is not positive definite; use a larger ridge")
    constant = dimension * math.log(2 * math.pi) / 2 + float(torch.log(torch.diagonal(factor)).sum())
    if data.device.type == "cpu":
        squared = native.mahalanobis(_wide(data), rows, mean, factor)
    elif _triton_serves(data.device):
        from prunefast.kernels.mahalanobis import squared_mahalanobis

        with torch.cuda.device(data.device):
            squared = squared_mahalanobis(_wide(data if rows is None else data[rows]), mean, factor)
    else:
        squared = _portable_mahalanobis(data, rows, mean, factor)
    result[slice(None) if rows is None else rows] = -squared / 2 - constant


def _portable_mahalanobis(data, rows, mean, factor) -> torch.Tensor:
    """|L^-1 (x - mean)|^2 of some rows, by triangular solve."""
    squared = [
        torch.linalg.solve_triangular(factor.T, values - mean, upper=True, left=False).square().sum(1)
        for _, values in chunks(data, rows)
    ]
    return torch.cat(squared) if squared else mean.new_empty(0)


def _wide(data: torch.Tensor) -> torch.Tensor:
    """Float32 or float64 that holds every value."""
    if data.dtype in native.ROW_DTYPES:
        return data
    small = data.dtype.is_floating_point or data.dtype.itemsize < 4
    return data.to(torch.float32 if small else torch.float64)


def _triton_serves(device: torch.device) -> bool:
    """Float64 tensor cores that Triton compiles for: it does not yet for sm_100, where cuBLAS has them."""
    return triton_is_live() and torch.cuda.get_device_capability(device)[0] in (8, 9)
