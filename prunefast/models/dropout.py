"""Dropout that belongs to an image, not to a batch: the mask of sample i follows from (seed, its position, the layer).

So a batch dropped whole, in micro-batches or over ranks drops the same entries, which no generator's sequence gives.
On a CPU it is also the faster one: a word of Philox an entry, vectorised, for one of a serial generator (a layer of
32 x 128 x 32 x 32, one thread: 7 ns an entry, torch's 14).
"""

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn

from prunefast import ops
from prunefast.ops.philox import Stream


class Dropout(nn.Dropout):
    """`nn.Dropout` that takes its mask from the key set by `keyed_dropout`; without one it is `nn.Dropout` itself."""

    key: tuple[int, Tensor, int] | None = None  # seed, position int64 [B], stream

    def forward(self, x: Tensor) -> Tensor:
        if self.key is None or not self.training or self.p == 0:
            return super().forward(x)
        seed, position, stream = self.key
        # Images are drawn in the order of channels_last, in which our networks hold them, so that the product runs
        # linearly; whatever the format of x is here: it may differ from one size of micro-batch to another.
        image = x.ndim == 4
        shape = (x.shape[0], x.shape[2], x.shape[3], x.shape[1]) if image else x.shape
        drawn = ops.uniform_philox(shape, seed, position, stream)
        # 0 or 1 in the type of x: on a CPU a product with booleans, or their conversion, takes longer than the draw
        keep = drawn.ge_(self.p).to(x.dtype)
        return x * (keep.permute(0, 3, 1, 2) if image else keep) * (1.0 / (1.0 - self.p))


@contextlib.contextmanager
def keyed_dropout(layers: list[Dropout], seed: int, position: Tensor) -> Iterator[None]:
    """While it is open, `layers` (in a fixed order) drop by (seed, position int64 [B])."""
    for number, layer in enumerate(layers):
        layer.key = (seed, position, Stream.DROPOUT + number)
    try:
        yield
    finally:
        for layer in layers:
            layer.key = None


def dropout_layers(model: nn.Module) -> list[Dropout]:
    """Those of `model`, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, Dropout)]
