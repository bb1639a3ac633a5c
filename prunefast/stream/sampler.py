"""A torch Sampler over a coreset, for people who keep their own DataLoader."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import Sampler

from prunefast.stream.draw import WeightedOrder, draw_fingerprint, make_draw
from prunefast.stream.order import (
    MAX_SEED,
    CoresetLike,
    EpochOrder,
    Position,
    check_coreset,
    check_whole,
    position_of,
    state_of,
)

_BLOCK = 1024  # indices made at a time


class CoresetSampler(Sampler[int]):
    """Indices into the data set, of the coreset's items only, in an order that depends on (seed, position) alone.

        DataLoader(dataset, sampler=CoresetSampler(coreset, seed=0), batch_size=128)

    epochs      how often an iteration goes through the coreset; None: for ever. The next iteration goes on with the
                next epoch.
    rank, world_size   this rank gets every world_size-th position. Where these do not divide the images of a pass,
                       ranks get counts that differ by one: under DDP use epochs=None, or its Join context.
    start       position (images of all ranks together) to begin at
    class_weights   what each class counts for, [C] summing to 1 or `ClassWeights`: classes are drawn by these shares,
                    with exact counts in every epoch (`prunefast.stream.draw`); do not weigh the loss by them as well
    groups      with class_weights: integers [N], the class of every image of the data set; default the coreset's labels

    `state_dict` counts what this sampler has given out. A DataLoader with workers takes ahead of training: resume such
    a one with `start=` set to the images trained on.
    Raises InputError for an empty coreset or arguments out of range.
    """

    def __init__(
        self,
        coreset: CoresetLike,
        *,
        seed: int = 0,
        shuffle: bool = True,
        epochs: int | None = 1,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        class_weights: Any = None,
        groups: Any = None,
    ):
        self._indices = check_coreset(coreset)
        self.seed = check_whole("seed", seed, 0, MAX_SEED)
        self._fingerprint = str(coreset.fingerprint)
        self._order = EpochOrder(len(self._indices), self.seed, bool(shuffle))
        if class_weights is not None:
            classes = getattr(coreset, "labels", None) if groups is None else groups
            draw = make_draw(class_weights, classes, self._indices)
            self._order = WeightedOrder(draw, self.seed, bool(shuffle))
            self._fingerprint = draw_fingerprint(self._fingerprint, draw)
        self._position = Position(len(self._indices), epochs, start, rank, world_size)

    def __iter__(self) -> Iterator[int]:
        position = self._position
        begin, end = position.value, position.end()
        while end is None or begin < end:
            places = position.batch(begin, _BLOCK, end)
            for place, index in zip(places.tolist(), self._indices[self._order.at(places)].tolist(), strict=True):
                position.value = place - position.rank + position.world_size
                yield index
            begin += _BLOCK * position.world_size
        if end is not None:
            position.value = end

    def __len__(self) -> int:
        """Indices this rank gets in a whole pass; TypeError where it has no end, as len() of such things does."""
        if self._position.epochs is None:
            raise TypeError("CoresetSampler with epochs=None has no length")
        return -(-(self._position.n * self._position.epochs - self._position.rank) // self._position.world_size)

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch, as torch's DistributedSampler has it."""
        self._position.value = check_whole("epoch", epoch, 0) * self._position.n

    def state_dict(self) -> dict[str, Any]:
        return state_of(self._position.value, self.seed, self._fingerprint)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; InputError where it is of another coreset or seed."""
        self._position.value = position_of(state, self.seed, self._fingerprint)
