"""Which image comes at which position: a pure function of (seed, position), and nothing else.

Positions count images from the first of the first epoch on: position p lies in epoch p // n, and each epoch is a
permutation of the n items. So a stream resumes anywhere at no cost, and world sizes agree on it; there is no generator
whose state could differ.
"""

from collections import OrderedDict
from typing import Any, Protocol

import numpy as np

from prunefast.errors import InputError

ORDER_STREAM = 5  # the highest counter word: keeps these bits apart from other uses of the same key
MAX_SEED = (1 << 64) - 1


class CoresetLike(Protocol):
    """What streaming needs of a coreset; `prunefast.select.Coreset` has it."""

    @property
    def indices(self) -> np.ndarray: ...  # int64 [n]

    @property
    def fingerprint(self) -> str: ...


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of 0..n-1 in one epoch: int64 [n], the argsort of n raw 64-bit Philox numbers.

    Raw bits are the same in every version of NumPy, which promises no such thing for `Generator.permutation` (NEP 19).
    """
    return np.argsort(raw_bits(n, seed, epoch, ORDER_STREAM), kind="stable").astype(np.int64)


def raw_bits(n: int, seed: int, epoch: int, stream: int) -> np.ndarray:
    """n raw Philox numbers, uint64, of an epoch."""
    key = np.array([seed, epoch], dtype=np.uint64)  # from a plain list NumPy would go through float64 past 2^63
    return np.random.Philox(key=key, counter=[0, 0, 0, stream]).random_raw(n)


class EpochOrder:
    """Items of 0..n-1 by position; keeps the last two permutations, for batches that cross the border of an epoch."""

    def __init__(self, n: int, seed: int, shuffle: bool):
        self.n, self.seed, self.shuffle = n, seed, shuffle
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()

    def _permutation(self, epoch: int) -> np.ndarray:
        order = self._kept.get(epoch)
        if order is None:
            order = self._kept[epoch] = self._make(epoch)
            while len(self._kept) > 2:
                self._kept.popitem(last=False)
        return order

    def _make(self, epoch: int) -> np.ndarray:
        return epoch_order(self.n, self.seed, epoch)

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Items at ascending positions, int64 -> int64."""
        if not self.shuffle:
            return positions % self.n
        epochs, within = positions // self.n, positions % self.n
        if len(positions) and epochs[0] == epochs[-1]:
            return self._permutation(int(epochs[0]))[within]
        out = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            mine = epochs == epoch
            out[mine] = self._permutation(epoch)[within[mine]]
        return out


def check_whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """`value` as an int in [least, most], or an InputError naming the argument."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        upper = "" if most is None else f" and at most {most}"
        raise InputError(f"{name}={value!r}: give a whole number of at least {least}{upper}")
    return int(value)


def check_coreset(coreset: CoresetLike) -> np.ndarray:
    """The coreset's indices as int64 [n], n > 0."""
    indices = np.asarray(coreset.indices)
    if indices.ndim != 1 or (indices.size and indices.dtype.kind not in "iu"):
        raise InputError(
            f"coreset: its indices have shape {indices.shape} and type {indices.dtype}; give whole numbers [n]"
        )
    if not indices.size:
        raise InputError("coreset: is empty; keep at least one image")
    return indices.astype(np.int64)


class Position:
    """Where a stream stands: positions are global, `end` is that of the running pass (None: it has none).

    A pass is `epochs` epochs; after one has ended, the next iteration is the next pass, in a new order.
    """

    def __init__(self, n: int, epochs: int | None, start: int, rank: int, world_size: int):
        self.n = n
        self.epochs = None if epochs is None else check_whole("epochs", epochs, 1)
        self.value = check_whole("start", start, 0)
        self.world_size = check_whole("world_size", world_size, 1)
        self.rank = check_whole("rank", rank, 0, self.world_size - 1)

    def end(self) -> int | None:
        """Where the pass that begins or goes on at the present position ends."""
        if self.epochs is None:
            return None
        images = self.n * self.epochs
        return (self.value // images + 1) * images

    def batch(self, begin: int, batch_size: int, end: int | None) -> np.ndarray:
        """This rank's positions of the global batch that begins at `begin`: every world_size-th, from the rank-th on.

        So the global batch, batch_size * world_size positions, does not depend on how many ranks share it.
        """
        stop = begin + batch_size * self.world_size
        if end is not None:
            stop = min(stop, end)
        return np.arange(begin + self.rank, stop, self.world_size, dtype=np.int64)


def state_of(position: int, seed: int, fingerprint: str) -> dict[str, Any]:
    """What resuming needs: under 100 bytes as JSON."""
    return {"position": position, "seed": seed, "fingerprint": fingerprint[:32]}


def position_of(state: Any, seed: int, fingerprint: str) -> int:
    """The position in a saved state; InputError where it belongs to another coreset or seed."""
    if not isinstance(state, dict) or not {"position", "seed", "fingerprint"} <= set(state):
        raise InputError("state: is not what state_dict() gave; it needs position, seed and fingerprint")
    if state["fingerprint"] != fingerprint[:32]:
        raise InputError(
            f"state: was saved with another coreset ({state['fingerprint']}, not {fingerprint[:32]}); "
            "load that coreset, or start anew with start=position"
        )
    if state["seed"] != seed:
        raise InputError(f"state: was saved with seed {state['seed']}, this stream has seed {seed}; give that seed")
    return check_whole("state: position", state["position"], 0)
