"""The gradient of one global batch, which several processes share, each in micro-batches that fit its device.

The loss of a batch is a mean over its images. Every rank holds an equal part of them; every micro-batch of m images out
of the batch's B weighs m / B, so the sum of all gradients, over micro-batches and then over ranks, is that of the whole
batch, whatever the cut. What is random in a step follows from the images' positions, so a micro-batch that did not fit
is simply done again in halves.

Ranks add their gradients while the last micro-batch runs backward (gradients.py), and then agree whether everybody's
memory sufficed.
"""

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prunefast import distributed
from prunefast.diffusion import Patch
from prunefast.errors import InputError, MachineError
from prunefast.train.gradients import GradientSum
from prunefast.train.step import derived_seed, seed_generators

if TYPE_CHECKING:
    from prunefast.stream import Batch

Observe = Callable[[Tensor, Tensor, Tensor], None]  # items, shares of the times, errors: [B] each, in order of position


class WholeBatch:
    """Gives the parameters of a network the gradient of a global batch.

    Args:
        step: batch -> loss, a mean over the batch's images (`TrainingStep`).
        model: not compiled; its parameters get the gradient.
        seed: of what a network draws from torch's generators.
        batch_size: images of a global batch, a multiple of the ranks.
        batch_device: images of full size that a rank takes at a time; None: its whole part of the batch. It is halved
            when they do not fit.
        observe: told of every batch, once it is done.
        sharded: the ranks hold parts of the parameters (FSDP2), and the backward pass exchanges gradients itself.
    """

    def __init__(
        self,
        step: Any,
        model: nn.Module,
        *,
        seed: int,
        device: torch.device,
        batch_size: int,
        batch_device: int | None = None,
        observe: Observe | None = None,
        sharded: bool = False,
    ):
        self.step, self.model, self.seed, self.device, self.sharded = step, model, seed, device, sharded
        self.world = distributed.world()
        check_shares(batch_size, self.world.size)
        self.batch_size = batch_size
        part = batch_size // self.world.size
        self.batch_device = part if batch_device is None else min(batch_device, part)
        self.halved = False
        self.observe = observe
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []  # of the micro-batches of this step
        if observe is not None:
            step.observe = lambda *of_images: self._seen.append(of_images)
        shares_gradients = self.world.size > 1 and not sharded
        self._gradients = GradientSum(model.parameters()) if shares_gradients else None
        persistent = model.state_dict().keys()  # statistics of norm layers: a repeated step must not count twice
        self._buffers = [buffer for name, buffer in model.named_buffers() if name in persistent]

    def __call__(self, batch: "Batch", begin: int, patch: Patch | None = None, masked: bool = True) -> Tensor:
        """The loss of the global batch, a float32 scalar; the gradients are in the parameters.

        batch: this rank's part, every world-size-th position from `begin` + rank on. patch, masked: of `TrainingStep`.
        """
        before = [buffer.clone() for buffer in self._buffers]
        while True:
            loss = self._attempt(batch, begin, patch, masked)
            if self._gradients is not None:
                self._gradients.wait()
            if not self._agree(loss is None):
                break
            self._forget(before)
            self._halve()
        assert loss is not None
        if self._gradients is not None:
            self._gradients.put()
        distributed.add_over_ranks([loss])
        if self.observe is not None:
            self.observe(*self._of_all_ranks())
        return loss

    def fitted(self) -> dict[str, Any] | None:
        """What was found to fit, for a checkpoint: a run that goes on on such a machine begins with it, and so has the
        bits of one that was never stopped. None where nothing was halved."""
        return {**self._machine(), "batch_device": self.batch_device} if self.halved else None

    def take_over(self, fitted: Mapping[str, Any] | None) -> None:
        """Begin with what `fitted` gave, if it was found with as many processes on the same kind of device."""
        if fitted is not None and fitted == {**self._machine(), "batch_device": fitted["batch_device"]}:
            self.halved = self.halved or fitted["batch_device"] < self.batch_device
            self.batch_device = min(fitted["batch_device"], self.batch_device)

    def _machine(self) -> dict[str, Any]:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return {"processes": self.world.size, "device": name}

    def _attempt(self, batch: "Batch", begin: int, patch: Patch | None, masked: bool) -> Tensor | None:
        """This rank's part of the loss; None where its memory did not suffice."""
        try:
            return self._accumulate(batch, begin, patch, masked)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        if self.sharded and self.world.size > 1:  # the others wait inside the network, for this rank's part of a layer
            raise MachineError(self._too_many_for_shards())
        return None  # outside of the handler: the error holds the frames, and they the activations

    def _accumulate(self, batch: "Batch", begin: int, patch: Patch | None, masked: bool) -> Tensor:
        self._seen.clear()
        total = torch.zeros((), device=self.device)
        size = self.batch_device * (1 if patch is None else patch.multiplier)
        images = len(batch) * self.world.size
        for start, part in micro_batches(batch, size):
            if self.sharded:
                self.model.set_requires_gradient_sync(start + len(part) == len(batch))  # type: ignore[operator]
            first = begin + self.world.rank + start * self.world.size
            seed_generators(self.device, derived_seed("step", self.seed, first))
            if self._gradients is not None and start + len(part) == len(batch):
                self._gradients.last_backward()
            if len(part) != images:  # exact for powers of two; by the weight, which costs no pass of its own
                part = dataclasses.replace(part, weight=part.weight * (len(part) / images))
            loss = self.step(part, patch, masked=masked)
            loss.backward()
            total += loss.detach()
        return total

    def _agree(self, failed: bool) -> bool:
        """Whether the memory of any rank did not suffice. If not, all have gradients for the same parameters."""
        if self.world.size == 1:
            return failed
        parameters = [] if self.sharded else [p for p in self.model.parameters() if p.requires_grad]
        failed_somewhere, *used = distributed.largest(failed, *(p.grad is not None for p in parameters))
        for parameter, by_any in zip(parameters, used, strict=True):
            if by_any and parameter.grad is None and not failed_somewhere:
                parameter.grad = torch.zeros_like(parameter)
        return bool(failed_somewhere)

    def close(self) -> None:
        """Leave the model as it was found."""
        if self._gradients is not None:
            self._gradients.close()

    def _forget(self, buffers: Sequence[Tensor]) -> None:
        if self._gradients is not None:
            self._gradients.drop()
        for parameter in self.model.parameters():
            parameter.grad = None
        for buffer, before in zip(self._buffers, buffers, strict=True):
            buffer.copy_(before)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _halve(self) -> None:
        if self.batch_device == 1:
            raise MachineError(
                f"a single image does not fit into the memory of {self.device}; take a smaller model or image_size, "
                'precision="bf16", or parallel="fsdp" on several devices'
            )
        self.batch_device //= 2
        self.halved = True
        if self.world.is_main:
            warnings.warn(
                f"batch_device: {2 * self.batch_device} images at a time do not fit into the memory of {self.device}; "
                f"going on with {self.batch_device}, from the same step",
                stacklevel=2,
            )

    def _too_many_for_shards(self) -> str:
        what = f"batch_device: {self.batch_device} images at a time do not fit into the memory of {self.device}"
        if self.batch_device == 1:
            return f"{what} even in parts of a network; take a smaller model or image_size, or more devices"
        fewer = self.batch_device // 2
        return f"{what}; start again with batch_device={fewer} (--batch-device {fewer}): what was saved is kept"

    def _of_all_ranks(self) -> Iterator[Tensor]:
        """What the micro-batches of all ranks told, each [B] in order of position."""
        for mine in zip(*self._seen, strict=True):
            rows = distributed.all_gather_rows(torch.cat(mine))
            yield rows.view(self.world.size, -1).T.reshape(-1)  # rank r has every size-th position from r on


def micro_batches(batch: "Batch", size: int) -> Iterator[tuple[int, "Batch"]]:
    """(place of its first image, the micro-batch): `size` images each, the last one what is left."""
    for start in range(0, len(batch), size):
        if size >= len(batch):
            yield start, batch
        else:
            cut = slice(start, start + size)
            yield start, type(batch)(*(getattr(batch, f.name)[cut] for f in dataclasses.fields(batch)))


def check_shares(batch_size: int, ranks: int) -> None:
    """Every rank takes as many images as the others."""
    if batch_size % ranks:
        raise InputError(f"batch_size is {batch_size}: must be a multiple of the {ranks} processes")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that a device, or the machine, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = [f"DefaultCPUAllocator: {what}" for what in ("can't allocate", "not enough memory")]
    words += ["CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "CUDA error: out of memory"]
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
