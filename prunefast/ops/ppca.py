"""Probabilistic PCA, fit and log-likelihood: a Gaussian with q directions of its own and one variance for all the rest.

Tipping & Bishop, Probabilistic principal component analysis, JRSS B 61 (1999). Float64 throughout.
"""

import math
from typing import Any, NamedTuple

import torch

from prunefast.errors import InputError
from prunefast.ops.arrays import check_finite, check_integer, check_same_device, like
from prunefast.ops.gaussian import (
    check_classes,
    check_model,
    check_ridge,
    check_rows,
    chunks,
    fit_moments,
    rows_of_classes,
    rows_of_fit,
)


class Ppca(NamedTuple):
    """Float64, with a leading [C] when fitted per class; q is the number of components.

    mean [D]; components [q, D], orthonormal rows, the largest variance first; explained_variance [q], that along
    each; noise_variance [], that of every other direction. The model's covariance is
    components' diag(explained_variance - noise_variance) components + noise_variance I.
    """

    mean: Any
    components: Any
    explained_variance: Any
    noise_variance: Any


@torch.no_grad()
def fit_ppca(x: Any, labels: Any = None, *, components: int) -> Ppca:
    """Maximum-likelihood PPCA of the rows of `x` `[N, D]`, or of each class 0 .. max(labels).

    The components are the leading eigenvectors of the covariance (divisor N, as `fit_gaussian`), the noise variance the
    mean of the other D - q eigenvalues (equations 7 and 8). The sign of a component is arbitrary; the largest entry is
    made positive.

    Args:
        components: q, 1 .. D - 1, and fewer than the rows of the smallest class: n rows span n - 1 directions.

    Raises:
        InputError, InputTypeError: no rows, NaN or infinity, wrong labels, a class with too few rows.
    """
    data = check_rows(x)
    rows_by_class = rows_of_fit(data, labels)
    q = check_integer("components", components, 1, 1 << 31)
    if q >= data.shape[1]:
        raise InputError(f"components: {q} of {data.shape[1]} columns leave no noise; fit_gaussian has them all")
    for c, rows in enumerate([data] if rows_by_class is None else rows_by_class):
        if len(rows) <= q:
            who = "x: it" if rows_by_class is None else f"labels: class {c}"
            raise InputError(f"{who} has {len(rows)} rows; {q} components need at least {q + 1}")
    if rows_by_class is None:
        return Ppca(*(like(x, value) for value in _fit(data, None, q)))
    fits = zip(*(_fit(data, rows, q) for rows in rows_by_class), strict=True)
    return Ppca(*(like(x, torch.stack(values)) for values in fits))


@torch.no_grad()
def ppca_log_likelihood(x: Any, ppca: Ppca, labels: Any = None, ridge: float = 1e-5) -> Any:
    """log N(x_i; mean, C + ridge I) with the model's covariance C, of row i's class when `labels` are given.

    With z the coordinates of x - mean along the components and r what they leave:
    -(sum z_j^2 / (explained_j + ridge) + |r|^2 / (noise + ridge) + log det + D log(2 pi)) / 2. r is computed
    itself: the difference |x - mean|^2 - |z|^2 has no digits where the noise is small.

    Args:
        x: `[N, D]`. ppca: of `fit_ppca`, with classes if and only if `labels` int `[N]` are given.
        ridge: added to the covariance as in `gaussian_log_likelihood`; of use where there is no noise.

    Returns:
        float64 `[N]`.

    Raises:
        InputError, InputTypeError: shapes that do not fit, NaN or infinity, a variance of 0 even with this ridge.
    """
    data = check_rows(x)
    model = check_model("ppca", ppca, Ppca)
    check_ridge(ridge)
    classes = _check_model(model, data, labels)
    result = torch.empty(data.shape[0], dtype=torch.float64, device=data.device)
    if classes is None:
        _score(result, data, None, model, ridge, "ppca")
        return like(x, result)
    for c, rows in enumerate(rows_of_classes(check_classes(labels, data, classes), classes)):
        if len(rows):
            _score(result, data, rows, Ppca(*(value[c] for value in model)), ridge, f"ppca: class {c}")
    return like(x, result)


def _check_model(model: Ppca, data: torch.Tensor, labels: Any) -> int | None:
    """The number of classes; None without labels."""
    lead: list[int] = [] if labels is None else [model.mean.shape[0]] if model.mean.ndim == 2 else [-1]
    q, columns = model.explained_variance.shape[-1] if model.explained_variance.ndim else 0, data.shape[1]
    expected = Ppca([*lead, columns], [*lead, q, columns], [*lead, q], lead)
    for name, value, shape in zip(Ppca._fields, model, expected, strict=True):
        check_same_device("ppca", value, data.device)
        if list(value.shape) != shape:
            raise InputError(
                f"ppca: {name} {list(value.shape)} does not fit {columns} columns; "
                "a fit per class needs labels, and a fit of all takes none"
            )
        check_finite("ppca", value)
    return None if labels is None else lead[0]


def _fit(data: torch.Tensor, rows: torch.Tensor | None, q: int) -> tuple[torch.Tensor, ...]:
    """Mean, components, variances and noise of some rows."""
    count, columns = data.shape[0] if rows is None else len(rows), data.shape[1]
    if count > columns:
        mean, covariance = fit_moments(data, rows)
        values, vectors = torch.linalg.eigh(covariance)  # ascending
        values, components = values.flip(0), vectors[:, -q:].flip(1).T
    else:  # fewer directions than columns: the rows' own singular vectors cost less than D^3
        wide = (data if rows is None else data[rows]).double()
        mean = wide.mean(0)
        _, singular, vectors = torch.linalg.svd(wide - mean, full_matrices=False)
        values, components = singular.square() / count, vectors[:q]
    values = values.clamp_min(0.0)
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    components = components * torch.where(largest < 0, -1.0, 1.0)
    return mean, components.contiguous(), values[:q].clone(), values[q:].sum() / (columns - q)


def _score(result, data, rows, model: Ppca, ridge: float, name: str) -> None:
    along, noise = model.explained_variance + ridge, float(model.noise_variance) + ridge
    if not (noise > 0 and bool((along > 0).all())):
        raise InputError(f"{name}: a variance is 0; use a ridge above 0")
    q, columns = model.components.shape
    constant = float(along.log().sum()) + (columns - q) * math.log(noise) + columns * math.log(2 * math.pi)
    for part, values in chunks(data, rows):
        centred = values - model.mean
        coordinates = centred @ model.components.T
        rest = centred.addmm_(coordinates, model.components, alpha=-1)
        result[part] = -((coordinates.square() / along).sum(1) + rest.square().sum(1) / noise + constant) / 2
