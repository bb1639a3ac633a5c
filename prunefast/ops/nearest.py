"""The nearest row: `topk` with k = 1, without the last dimension."""

from typing import Any

from prunefast.ops.arrays import like
from prunefast.ops.topk import _checked_topk


def nearest(x: Any, y: Any, metric: str = "l2", certify: bool = True) -> tuple[Any, Any]:
    """The row of `y` nearest to each row of `x`; ties go to the smallest index.

    Args, errors and metrics as in `topk`.

    Returns:
        (index int64 `[N]`, squared_distance float32 `[N]`).
    """
    index, distance = _checked_topk(x, y, 1, metric, certify, exclude_self=False)
    return like(x, index[:, 0]), like(x, distance[:, 0])
