"""Batches of a coreset for a training loop: on the device, resumable, the same for every number of ranks."""

import functools
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch

from prunefast.data.buffers import Buffers
from prunefast.data.dataset import ImageDataset, Windows
from prunefast.data.table import worker_count
from prunefast.errors import InputError
from prunefast.stream.dali import DaliDecoder, DaliOptions
from prunefast.stream.draw import PLACES, Place, WeightedOrder, draw_fingerprint, make_draw
from prunefast.stream.dynamic import DynamicPruning
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
from prunefast.stream.pack import pack
from prunefast.stream.placement import Placement, choose_placement
from prunefast.stream.replacement import Replaced, Replacements
from prunefast.stream.transfer import CudaCopies, moved, pinned, sent_ahead

# libgomp's threads do not live on in a forked child: torch, which copies and gathers rows below, would wait for them
# without end. torch's own DataLoader does this in its workers; csrc/cpu/parallel.cpp does it for our operators.
os.register_at_fork(after_in_child=functools.partial(torch.set_num_threads, 1))

LOADERS = ("native", "dali")
_LOAD_BATCH = 256  # images decoded at a time into the resident tensor

_Asked = tuple[np.ndarray, np.ndarray, np.ndarray | None]  # positions, places, factors of a batch


@dataclass(frozen=True, slots=True)
class Batch:
    """B images with what a loss needs to know of them, all on the loader's device.

    images    uint8 [B, 3, R, R], channels_last, or `windows` of them; of latents float32 [B, 2 C, R, R],
              means, then standard deviations
    labels    int64 [B], -1 where the data set has none
    index     int64 [B], which item of the data set
    position  int64 [B], which image of the whole stream, over all ranks and epochs: the key of everything random
    weight    float32 [B], the coreset's, times the class weights' where they act in the loss
    """

    images: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor
    position: torch.Tensor
    weight: torch.Tensor

    def __len__(self) -> int:
        return len(self.index)


class CoresetLoader:
    """Iterate over `Batch`es of exactly the images of a coreset.

        loader = CoresetLoader(data, coreset, batch_size=128, seed=0, device="cuda")
        for batch in loader: ...

    data         ImageDataset with a common image size
    batch_size   images a rank and step
    multiplier   begin -> how many times batch_size the batch has that begins at this position (default: 1, always);
                 Patch Diffusion's `PatchSchedule.multiplier`. A function of the position: resuming needs no more
    windows      (begin, positions) -> (corners int32 [B, 2], size), or None for whole images: what of a batch's
                 images is used. Where they are decoded for it (placement "disk"), only that is read, and `Batch.images`
                 are the windows; elsewhere they are whole. Patch Diffusion's `PatchSchedule.windows`
    epochs       how often an iteration goes through the coreset; None: for ever, batches then cross the borders of
                 epochs. The last batch of a finite pass may be smaller; a rank for which nothing is left of it gets
                 none (under DDP use None).
    start        position to begin at, in images over all ranks
    rank, world_size   the global batch has batch_size * world_size positions; rank r takes every world_size-th from the
                       r-th on
    threads      that decode; default one a processor
    loader       "native": prunefast's decoders. "dali": NVIDIA's decodes the baseline JPEGs, on the GPU where the
                 batches go there (extra prunefast[dali]). The same order, labels and state, and the same pixels but
                 for how a GPU rounds (docs/streaming.md)
    dali         with loader="dali": how (`DaliOptions`)
    device       of the batches; default the CPU
    placement    "device" or "memory": the coreset is decoded once, at the first iteration, into one uint8 tensor there.
                 "disk": each batch is read and decoded when its turn comes, ahead of the training loop.
                 "pack": like "disk", but from a file of decoded pixels, made at the first iteration of any loader of
                 these images (`prunefast.stream.pack`). Not chosen by "auto": it writes 3 R^2 bytes an image.
                 "auto": the first that fits; `.placement` and `.placement_reason` tell.
    on_error     "raise": an image that cannot be read ends the iteration with an InputError that names it. "replace":
                 another of its class is shown in its place, the same on all ranks, with a warning; `.replaced` lists
                 them. An error all the same from 1 % of the coreset (and 10 images) on.
    memory_budget_bytes   what "auto" may use; default 20 % of free device memory, 50 % of free main memory
    class_weights   what each class counts for, [C] summing to 1 or `ClassWeights`; None: each image counts the same
    class_weights_in   "loss": `Batch.weight` carries weight_c / p_c (p_c: share of class c in the coreset). "sampler":
                       classes are drawn by weight. Both have the same expected loss (`prunefast.stream.draw`)
    groups       with class_weights: integers [N], the class of every image of `data`; default `data.labels`

    pruning      leaves images out of every epoch by what was observed of them (`prunefast.stream.dynamic`); its state
                 is saved beside this one's; every rank has one, and tells it what all ranks observed. Without an end;
                 from "disk" nothing is read ahead of the present epoch

    The order depends on (seed, position) alone. `state_dict` counts images handed to the training loop, so that saving
    it there and loading it into a new loader goes on with the very next image, whatever was read ahead.
    Raises InputError for an empty coreset, one of another data set, or arguments out of range.
    """

    def __init__(
        self,
        data: ImageDataset,
        coreset: CoresetLike,
        *,
        batch_size: int,
        multiplier: Callable[[int], int] | None = None,
        windows: Callable[[int, np.ndarray], tuple[np.ndarray, int] | None] | None = None,
        seed: int = 0,
        shuffle: bool = True,
        epochs: int | None = None,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        threads: int | None = None,
        loader: Literal["native", "dali"] = "native",
        dali: DaliOptions | None = None,
        device: torch.device | str | None = None,
        placement: Placement = "auto",
        on_error: Literal["raise", "replace"] = "raise",
        memory_budget_bytes: int | None = None,
        class_weights: Any = None,
        class_weights_in: Place = "loss",
        groups: Any = None,
        pruning: DynamicPruning | None = None,
    ):
        self.batch_size = check_whole("batch_size", batch_size, 1)
        self._multiplier = multiplier
        self.seed = check_whole("seed", seed, 0, MAX_SEED)
        self.threads = worker_count(threads)
        if memory_budget_bytes is not None:
            check_whole("memory_budget_bytes", memory_budget_bytes, 0)
        try:
            self.device = torch.device("cpu" if device is None else device)
        except RuntimeError as error:
            raise InputError(f"device={device!r}: {str(error).splitlines()[0]}") from None
        self._indices = check_coreset(coreset)
        _check_belongs(coreset, data, self._indices)
        if data.image_size is None:
            raise InputError(
                f"data: the images of {data.path} have different shapes; open it with image_size= (pixels)"
            )
        self._data = data
        self._fingerprint = str(coreset.fingerprint)
        self._order = EpochOrder(len(self._indices), self.seed, bool(shuffle))
        self._pruning = pruning
        if pruning is not None and (epochs is not None or not shuffle or start):
            raise InputError("pruning: goes with epochs=None, shuffle=True and start=0 only")
        self._position = Position(len(self._indices), epochs, start, rank, world_size)
        labels = np.full(len(self._indices), -1) if data.labels is None else data.labels[self._indices]
        weights = getattr(coreset, "weights", None)
        weights = np.ones(len(self._indices)) if weights is None else np.asarray(weights)
        if weights.shape != self._indices.shape:
            raise InputError(f"coreset: {weights.shape} weights for {len(self._indices):,} images")
        if class_weights_in not in PLACES:
            raise InputError(f"class_weights_in={class_weights_in!r}: choose one of {', '.join(PLACES)}")
        if class_weights is not None:
            draw = make_draw(class_weights, data.labels if groups is None else groups, self._indices)
            if class_weights_in == "loss":
                weights = weights * draw.image_factors()
            elif pruning is not None:
                raise InputError('pruning: chooses the images itself; leave class_weights_in at "loss"')
            else:
                self._order = WeightedOrder(draw, self.seed, bool(shuffle))
                self._fingerprint = draw_fingerprint(self._fingerprint, draw)
        self._labels = torch.from_numpy(labels.astype(np.int64)).to(self.device)
        self._weights = torch.from_numpy(weights.astype(np.float32)).to(self.device)
        self._index = torch.from_numpy(self._indices).to(self.device)
        needed = len(self._indices) * math.prod(data.row_shape) * data.row_dtype.itemsize
        self.placement, self.placement_reason = choose_placement(placement, needed, self.device, memory_budget_bytes)
        self._windows = windows if self.placement == "disk" and loader == "native" and data.reads_windows else None
        self._resident: torch.Tensor | None = None
        self._packed: ImageDataset | None = None
        self._buffers = Buffers(pinned if self.device.type == "cuda" else None)
        if on_error not in ("raise", "replace"):
            raise InputError(f"on_error={on_error!r}: choose 'raise' or 'replace'")
        self._replacements = Replacements(data, self._indices) if on_error == "replace" else None
        if loader not in LOADERS:
            raise InputError(f"loader={loader!r}: choose one of {', '.join(LOADERS)}")
        if dali is not None and loader != "dali":
            raise InputError("dali: goes with loader='dali' only")
        if loader == "dali" and placement == "pack":
            raise InputError("placement='pack': is read as it lies, DALI has nothing to decode; use loader='native'")
        self._dali = None
        if loader == "dali":
            self._dali = DaliDecoder(
                data,
                device=self.device,
                threads=self.threads,
                batch_size=self.batch_size,
                options=dali or DaliOptions(),
            )

    def __iter__(self) -> Iterator[Batch]:
        position = self._position
        end = position.end()
        batches = self._from_disk(end) if self.placement in ("disk", "pack") else self._from_memory(end)
        for batch in batches:
            # before the yield: the loop has this batch now
            position.value += self._images(position.value) * position.world_size
            if end is not None:
                position.value = min(position.value, end)
            yield batch
        if end is not None:
            position.value = end  # also for a rank that got nothing of the last batch

    def _steps(self, end: int | None) -> Iterator[np.ndarray]:
        """This rank's positions of each batch from here on."""
        begin = self._position.value
        while end is None or begin < end:
            images = self._images(begin)
            positions = self._position.batch(begin, images, end)
            if len(positions):
                yield positions
            begin += images * self._position.world_size

    def _images(self, begin: int) -> int:
        """Of a rank, in the batch that begins at this position."""
        return self.batch_size * (1 if self._multiplier is None else self._multiplier(begin))

    def _from_memory(self, end: int | None) -> Iterator[Batch]:
        if self._resident is None:
            self._resident = self._load()
        pixels = self._resident
        shape = self._data.row_shape
        for positions in self._steps(end):
            chosen, factors = self._at(positions)
            places = moved(torch.from_numpy(chosen), pixels.device)
            rows = pixels.index_select(0, places).view(len(places), *shape)
            yield self._batch(rows, places, positions, factors)

    def _at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Places in the coreset, and what they count beside their weight (None: 1)."""
        if self._pruning is None:
            return self._order.at(positions), None
        # asked for the whole batch: all ranks go on to the next epoch at the same step, on the same observations
        rank, ranks = self._position.rank, self._position.world_size
        places, factors = self._pruning.at(self._of_all_ranks(positions))
        return places[rank::ranks], factors[rank::ranks]

    def _of_all_ranks(self, positions: np.ndarray) -> np.ndarray:
        """The positions of the batch of which this rank has `positions`."""
        begin = int(positions[0]) - self._position.rank
        return np.arange(begin, begin + len(positions) * self._position.world_size)

    def _is_known(self, positions: np.ndarray) -> bool:
        """Whether what comes there can be asked for ahead of training: pruning chooses an epoch when it begins."""
        return self._pruning is None or self._pruning.knows(int(self._of_all_ranks(positions)[-1]) + 1)

    def _from_disk(self, end: int | None) -> Iterator[Batch]:
        if self.placement == "pack" and self._packed is None:
            self._packed = pack(self._data, self._indices, threads=self.threads, replace=self._replacements)
        data, replace = (self._packed, None) if self._packed else (self._data, self._replacements)

        def items_at(places: np.ndarray) -> np.ndarray:
            return places if self._packed else self._indices[places]

        rank = self._position.rank
        waiting: list[_Asked] = []  # of what is being decoded
        steps = self._steps(end)
        upcoming = next(steps, None)

        def parts() -> Iterator[np.ndarray | Windows]:
            """The next batch, and those after it that are known by now."""
            nonlocal upcoming
            first = True
            while upcoming is not None and (first or self._is_known(upcoming)):
                positions, upcoming, first = upcoming, next(steps, None), False
                places, factors = self._at(positions)
                waiting.append((positions, places, factors))
                window = None if self._windows is None else self._windows(int(positions[0]) - rank, positions)
                yield items_at(places) if window is None else Windows(items_at(places), *window)

        def decoded() -> Iterator[tuple[_Asked, np.ndarray]]:
            for _, images in data.decode_ahead(parts(), self.threads, self._buffers, replace):
                yield waiting.pop(0), images

        batches: Iterator[tuple[_Asked, torch.Tensor]]
        while upcoming is not None:
            if self._dali is not None:
                whole = cast(Iterator[np.ndarray], parts())  # windows are the native loader's
                batches = ((waiting.pop(0), images) for _, images in self._dali.decode_ahead(whole, replace))
            elif self.device.type == "cuda":
                batches = sent_ahead(decoded(), CudaCopies(self.device))
            else:
                batches = ((asked, torch.from_numpy(images)) for asked, images in decoded())
            for (positions, places, factors), rows in batches:
                yield self._batch(rows, torch.from_numpy(places), positions, factors)

    def _batch(
        self, rows: torch.Tensor, places: torch.Tensor, positions: np.ndarray, factors: np.ndarray | None = None
    ) -> Batch:
        """rows: [B, R, R, 3], windows, or what the data set has; permuted it is [B, 3, R, R], channels_last."""
        places = moved(places, self.device)
        weight = self._weights[places]
        if factors is not None:
            weight = weight * moved(torch.from_numpy(factors), self.device)
        return Batch(
            images=moved(rows, self.device).permute(0, 3, 1, 2),
            labels=self._labels[places],
            index=self._index[places],
            position=moved(torch.from_numpy(positions), self.device),
            weight=weight,
        )

    def _load(self) -> torch.Tensor:
        """All rows of the coreset, uint8 [n, R * R * 3], where they are to live."""
        count = len(self._indices)
        where = self.device if self.placement == "device" else torch.device("cpu")
        kind = torch.from_numpy(np.empty(0, self._data.row_dtype)).dtype
        pixels = torch.empty((count, math.prod(self._data.row_shape)), dtype=kind, device=where)
        done = 0
        parts = (self._indices[start : start + _LOAD_BATCH] for start in range(0, count, _LOAD_BATCH))
        if self._dali is not None:
            decoded = self._dali.decode_ahead(parts, self._replacements)
        else:
            arrays = self._data.decode_ahead(parts, self.threads, replace=self._replacements)
            decoded = ((items, torch.from_numpy(images)) for items, images in arrays)
        for items, images in decoded:
            pixels[done : done + len(items)] = images.view(len(items), -1)
            done += len(items)
        return pixels

    def __len__(self) -> int:
        """Batches this rank gets in a whole pass; TypeError where it has no end, or batches of several sizes."""
        if self._position.epochs is None:
            raise TypeError("CoresetLoader with epochs=None has no length")
        if self._multiplier is not None:
            raise TypeError("CoresetLoader with a multiplier has no length")
        position = self._position
        mine = -(-(position.n * self._position.epochs - position.rank) // position.world_size)
        return -(-mine // self.batch_size)

    @property
    def replaced(self) -> list[Replaced]:
        """Images that could not be read so far, what was shown instead, and why."""
        return [] if self._replacements is None else self._replacements.all

    @property
    def decoded_by(self) -> dict[str, int]:
        """With loader="dali": how many images DALI has decoded, and how many were left to prunefast. Else empty."""
        return {} if self._dali is None else dict(self._dali.counts)

    @property
    def position(self) -> int:
        """Images handed out so far, over all ranks."""
        return self._position.value

    def state_dict(self) -> dict[str, Any]:
        return state_of(self._position.value, self.seed, self._fingerprint)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; InputError where it is of another coreset or seed."""
        self._position.value = position_of(state, self.seed, self._fingerprint)


def _check_belongs(coreset: CoresetLike, data: ImageDataset, indices: np.ndarray) -> None:
    theirs = getattr(coreset, "data_fingerprint", None)
    if theirs is not None and theirs != data.fingerprint:
        raise InputError(
            f"coreset: was selected from another data set than {data.path or 'this one'}; select again, or open "
            "that data set"
        )
    if indices.min() < 0 or indices.max() >= len(data):
        raise InputError(
            f"coreset: has index {int(indices.max())}, the data set has {len(data):,} images; select again from "
            "this data set"
        )
