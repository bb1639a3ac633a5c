"""Adding gradients over the ranks while the backward pass still makes others.

The parameters lie in buckets, in the reverse of their order in the module: about the order in which a backward pass
finishes them. The sum of a bucket begins when its last gradient is there and the buckets before it have begun, so every
rank exchanges the same in the same order, and a run repeats bit for bit.

A rank whose memory did not suffice for its backward pass takes part in the sums all the same, with whatever it has: the
others, who have begun them, are not left waiting, and all agree afterwards whether the step counts.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from prunefast import distributed

BUCKET_BYTES = 25 << 20  # as DistributedDataParallel: large enough for the wire, small enough to begin early


class GradientSum:
    """The sums of a step; all parameters are of one dtype and device.

    gradients.last_backward()
    loss.backward()
    gradients.wait()  # on every rank, also where the pass failed
    gradients.put()   # if all agree
    """

    def __init__(self, parameters: Iterable[nn.Parameter], bucket_bytes: int = BUCKET_BYTES):
        distributed.connect()
        self._buckets = _buckets(reversed([p for p in parameters if p.requires_grad]), bucket_bytes)
        self._bucket_of = {p: number for number, bucket in enumerate(self._buckets) for p in bucket}
        self._hooks = [p.register_post_accumulate_grad_hook(self._finished) for p in self._bucket_of]
        self._missing: list[int] | None = None  # gradients a bucket; None: this backward pass is not the last one
        self._begun: list[tuple[Tensor, dist.Work]] = []

    def close(self) -> None:
        """Leave no hook in the module, which is the caller's."""
        for hook in self._hooks:
            hook.remove()

    def last_backward(self) -> None:
        """The next backward pass is the last of this step."""
        self._missing = [len(bucket) for bucket in self._buckets]

    def _finished(self, parameter: Tensor) -> None:
        if self._missing is None:
            return
        self._missing[self._bucket_of[parameter]] -= 1  # type: ignore[index]
        while len(self._begun) < len(self._buckets) and self._missing[len(self._begun)] == 0:
            self._begin()

    def _begin(self) -> None:
        """The sum of the next bucket; a parameter without a gradient counts as zeros."""
        bucket = self._buckets[len(self._begun)]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        work = dist.all_reduce(flat, async_op=True)
        assert work is not None
        self._begun.append((flat, work))

    def wait(self) -> None:
        """Begin what has not begun, and wait for all sums."""
        self._missing = None
        with distributed.losses_named():
            while len(self._begun) < len(self._buckets):
                self._begin()
            for _, work in self._begun:
                work.wait()

    def put(self) -> None:
        """The sums become the gradients of the parameters that have one."""
        for (flat, _), bucket in zip(self._begun, self._buckets, strict=True):
            for p, part in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                if p.grad is not None:
                    p.grad.copy_(part.view(p.shape))
        self.drop()

    def drop(self) -> None:
        """Forget the sums."""
        self._begun.clear()


def _buckets(parameters: Iterable[nn.Parameter], most: int) -> list[list[nn.Parameter]]:
    buckets: list[list[nn.Parameter]] = []
    room = 0
    for p in parameters:
        if p.nbytes > room:
            buckets.append([])
            room = most
        buckets[-1].append(p)
        room -= p.nbytes
    return buckets
