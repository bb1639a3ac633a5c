"""The k nearest rows, certified: screened on centred data, decided and reported by direct differences in float64."""

from typing import Any

import torch

from prunefast.errors import InputError
from prunefast.ops import library, native
from prunefast.ops.arrays import as_tensor, check_integer, check_matrix, check_same_device, like
from prunefast.ops.backends import triton_is_live

METRICS = {"l2": 0, "ip": 1, "cosine": 2}
MAX_K = 1024
_UNIT_ROWS = 16_384  # rows scaled together: their quotients are float64
_CHUNK_VALUES = 1 << 22  # scores in float64 of one chunk of rows (32 MB): never an N x K matrix


def topk(
    x: Any, y: Any, k: int, metric: str = "l2", certify: bool = True, exclude_self: bool = False
) -> tuple[Any, Any]:
    """The k rows of `y` nearest to each row of `x`, nearest first; ties go to the smallest index.

    Args:
        x: `[N, D]`, y: `[K, D]`; converted to float32.
        k: 1 .. min(K, 1024) (one less with `exclude_self`).
        metric: "l2", squared Euclidean distance; "ip", the negated inner product; "cosine", the squared distance of the
            rows scaled to unit length, 2 - 2 cos (a row of zeros stays zero).
        certify: prove each pick by an error bound, and look at more rows of `y` where the bound cannot. The result is
            then that of comparing all float64 distances, whatever the offset or spread of the data. False compares at
            most the k + 8 rows of `y` that look nearest: faster among near-duplicates only.
        exclude_self: row i of `x` is row i of `y` and does not count as its own neighbour.

    Returns:
        (index int64 `[N, k]`, squared_distance float32 `[N, k]`) from direct differences: never negative, 0 for a
        duplicate.

    Raises:
        InputError, InputTypeError: wrong shapes or types, NaN or infinity, k out of range.
    """
    index, distance = _checked_topk(x, y, k, metric, certify, exclude_self)
    return like(x, index), like(x, distance)


def _checked_topk(x, y, k, metric, certify, exclude_self) -> tuple[torch.Tensor, torch.Tensor]:
    if metric not in METRICS:
        raise InputError(f"metric: {metric!r} is not one of {', '.join(METRICS)}")
    a, b = as_tensor("x", x), as_tensor("y", y)
    check_same_device("y", b, a.device)
    on_cpu = a.device.type == "cpu"  # a GPU is not waited for; a row with NaN gets some index in range there
    # the core refuses float32 rows of x that are not finite while it reads them
    a = check_matrix("x", a, read=on_cpu and a.dtype != torch.float32)
    b = check_matrix("y", b, read=on_cpu)
    if a.shape[1] != b.shape[1]:
        raise InputError(f"y: {b.shape[1]} columns where x has {a.shape[1]}")
    if b.shape[0] == 0:
        raise InputError("y: it has no rows")
    if exclude_self and a.shape[0] != b.shape[0]:
        raise InputError(f"exclude_self: x and y must be the same rows ({a.shape[0]} and {b.shape[0]} given)")
    k = check_integer("k", k, 1, min(b.shape[0] - bool(exclude_self), MAX_K) + 1)
    if metric == "cosine":
        a, b = _unit_rows(a), _unit_rows(b)
    return _topk(a, b, k, METRICS[metric] == METRICS["ip"], certify, exclude_self)


def _unit_rows(x: torch.Tensor) -> torch.Tensor:
    """Rows of length one in float32; the length is taken in float64 so that no square overflows."""
    unit = torch.empty_like(x)
    for part, out in zip(x.split(_UNIT_ROWS), unit.split(_UNIT_ROWS), strict=True):
        length = torch.linalg.vector_norm(part, dim=1, keepdim=True, dtype=torch.float64)
        out.copy_(part / torch.where(length > 0, length, 1.0))
    return unit


def _topk_portable(
    x: torch.Tensor, y: torch.Tensor, k: int, inner: bool, certify: bool, exclude_self: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Screens in float64, where the bound is so small that only ties widen the set of candidates."""
    rows, columns = x.shape[0], y.shape[0]
    index = torch.empty((rows, k), dtype=torch.int64, device=x.device)
    distance = torch.empty((rows, k), dtype=torch.float32, device=x.device)
    wide_y = y.double()
    centre = torch.zeros_like(wide_y[0]) if inner else wide_y.mean(0)
    centred = wide_y - centre
    half = torch.zeros_like(centred[:, 0]) if inner else centred.square().sum(1) / 2
    norm = torch.linalg.vector_norm(centred, dim=1)
    unit = 2.0**-52 * (x.shape[1] + 8)
    step = max(1, _CHUNK_VALUES // max(columns, 1))
    for start in range(0, rows, step):
        block = x[start : start + step].double()
        score = (block - centre) @ centred.T - half
        bound = unit * (torch.linalg.vector_norm(block - centre, dim=1)[:, None] * norm + half)
        if exclude_self:
            own = torch.arange(start, start + block.shape[0], device=x.device)
            score[torch.arange(block.shape[0], device=x.device), own] = -torch.inf
        keep = min(k + 8, columns)
        if certify:
            limit = torch.topk(score - bound, k, dim=1).values[:, -1:]
            keep = max(k, int((score + bound >= limit).sum(1).max()))
        candidate = torch.topk(score + bound, keep, dim=1).indices.sort(1).values
        index[start : start + step], distance[start : start + step] = _rescore(
            block, wide_y, candidate, k, inner, start if exclude_self else None
        )
    return index, distance


def _rescore(block, wide_y, candidate, k, inner, own_start) -> tuple[torch.Tensor, torch.Tensor]:
    """Direct distances to the candidates (ascending indices, so that a stable sort gives ties to the smallest)."""
    direct = torch.empty(candidate.shape, dtype=torch.float64, device=block.device)
    for column in range(candidate.shape[1]):
        other = wide_y[candidate[:, column]]
        direct[:, column] = -(block * other).sum(1) if inner else (block - other).square().sum(1)
    if own_start is not None:
        own = torch.arange(own_start, own_start + block.shape[0], device=block.device)
        direct[candidate == own[:, None]] = torch.inf
    order = torch.sort(direct, dim=1, stable=True)
    return candidate.gather(1, order.indices[:, :k]), order.values[:, :k].float()


def _topk_cuda(
    x: torch.Tensor, y: torch.Tensor, k: int, inner: bool, certify: bool, exclude_self: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Triton where it is installed; it never waits for the device."""
    if not triton_is_live() or y.shape[0] >= 1 << 31:
        return _topk_portable(x, y, k, inner, certify, exclude_self)
    x, y = native.unit_rows(x), native.unit_rows(y)
    with torch.cuda.device(x.device):
        if k == 1:
            from prunefast.kernels.nearest import nearest

            return nearest(x, y, inner, certify, exclude_self)
        from prunefast.kernels.topk import topk as select

        return select(x, y, k, inner, certify, exclude_self)


def _topk_fake(x, y, k, inner, certify, exclude_self):
    return x.new_empty((x.shape[0], k), dtype=torch.int64), x.new_empty((x.shape[0], k), dtype=torch.float32)


_topk = library.define(
    "topk(Tensor x, Tensor y, int k, bool inner, bool certify, bool exclude_self) -> (Tensor, Tensor)",
    cpu=native.topk,
    cuda=_topk_cuda,
    portable=_topk_portable,
    fake=_topk_fake,
)
