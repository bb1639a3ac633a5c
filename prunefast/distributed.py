"""The processes of torchrun: who am I, what do the others have, and one of us writes the file.

    torchrun --nproc-per-node 4 -m prunefast ...

Without torchrun the world has one process and everything here is free. With it, the process group is made at the first
call that needs the others: gloo for tensors on the CPU, NCCL for tensors on a GPU.

Results must not depend on the number of processes. Sums of floating-point numbers do depend on their order, so the
work is cut into blocks that are the same for every world (fixed rows each, counted from the first row), each block is
computed whole by one process, and `sum_blocks` adds the blocks in their order:

    blocks = -(-rows // 4096)
    mine = [partial_sum(block) for block in owned(blocks)]  # float64 [...] each
    total = sum_blocks(stack(mine), blocks)  # the same bits in worlds of 1, 2 and 4, on every rank

Files: `on_main(lambda: save(path))` runs on rank 0 while the others wait; then everyone reads. The processes see one
file system, as those of one machine do.

A process that ends early leaves the others in an exchange that cannot end: every function here, and whatever runs in
`losses_named`, then raises one `MachineError` that names it, with the reason where it could still say one.
"""

import atexit
import contextlib
import datetime
import functools
import gc
import os
import pickle
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from prunefast.errors import InputError, MachineError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what env:// needs; torchrun sets all of them

# How long one process waits for the others, who may compute for hours on rank 0. torchrun ends them all when one dies.
_TIMEOUT = datetime.timedelta(days=7)


@dataclass(frozen=True)
class World:
    """rank       number of this process among all, 0 .. size - 1
    size       processes
    local_rank number of this process on its machine: which GPU is its own
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def world() -> World:
    """The processes of this run: of a process group that the caller made, else of torchrun's environment, else one.

    Costs microseconds and makes no process group. InputError where the environment is set in part or makes no sense.
    """
    dist = sys.modules.get("torch.distributed")  # not imported: nobody has made a group
    if dist is not None and dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size(), _whole("LOCAL_RANK", dist.get_rank()))
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        return World()
    rank, size = _whole("RANK"), _whole("WORLD_SIZE")
    if not 0 <= rank < size:
        raise InputError(f"RANK={rank}: must be from 0 to WORLD_SIZE - 1 = {size - 1}; start with torchrun")
    if size > 1:
        for name in _VARIABLES[2:]:
            if not os.environ.get(name):
                raise _half_set(name)
    return World(rank, size, _whole("LOCAL_RANK", rank))


def _whole(name: str, default: int | None = None) -> int:
    text = os.environ.get(name)
    if text is None:
        if default is None:
            raise _half_set(name)
        return default
    if not (text.isascii() and text.isdigit()):
        raise InputError(f"{name}={text!r}: is not a whole number; start with torchrun, or unset it")
    return int(text)


def _half_set(missing: str) -> InputError:
    given = " and ".join(name for name in _VARIABLES if os.environ.get(name))
    return InputError(f"{missing}: is not set although {given} is; start with torchrun, or unset RANK and WORLD_SIZE")


def share_of_processors() -> int | None:
    """Threads for each process of torchrun on this machine; None: there is one, which takes what it likes."""
    processes = _whole("LOCAL_WORLD_SIZE", 1)
    return None if processes < 2 else max(len(os.sched_getaffinity(0)) // processes, 1)


def is_main() -> bool:
    """Whether this process prints and writes."""
    return world().is_main


def connect() -> World:
    """The world, with its process group made. All processes call this, and anything below, equally often.

    On a machine with GPUs the process takes GPU `local_rank` as its current one.
    """
    import torch
    import torch.distributed as dist

    here = world()
    if here.size == 1:
        return here
    if dist.is_initialized():
        _introduce(here)
        return here
    if not dist.is_available():
        raise MachineError(
            "torch was built without torch.distributed; install another torch, or start without torchrun"
        )
    with_gpus = torch.cuda.is_available() and dist.is_nccl_available()
    if with_gpus:
        torch.cuda.set_device(here.local_rank % torch.cuda.device_count())
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if with_gpus else "gloo", timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise MachineError(f"rank {here.rank} of {here.size}: cannot reach the other processes ({reason})") from None
    atexit.register(_disconnect)
    _introduce(here)
    return here


def _disconnect() -> None:
    import torch.distributed as dist

    # The frames of an error hold the group too: of one that nobody caught, and of one raised on all ranks, which stands
    # in a cycle with its traceback. The group's threads have to end here: one that asks a finalizing interpreter for
    # its lock is killed, which aborts the process.
    sys.last_value = sys.last_traceback = sys.last_exc = None  # type: ignore[attr-defined, unused-ignore]
    gc.collect()
    if dist.is_initialized():
        with contextlib.suppress(RuntimeError):  # the others may be gone already
            dist.destroy_process_group()


def barrier() -> None:
    """Return when every process has come here."""
    gather_objects(None)


def broadcast_object(value: T, source: int = 0) -> T:
    """`value` of rank `source`, on every rank. Small things: it is pickled (between processes of one run)."""
    return gather_objects(value)[source]


def gather_objects(value: T) -> list[T]:
    """`value` of every rank, in the order of ranks, on every rank. Small things, as for `broadcast_object`."""
    import torch.distributed as dist

    here = connect()
    if here.size == 1:
        return [value]
    everybody: list[Any] = [None] * here.size
    with losses_named():
        dist.all_gather_object(everybody, value)
    return everybody


def largest(*values: int) -> list[int]:
    """The largest of every rank's values, each for itself, on every rank: whether anybody stops, is late, has failed.

    Between CPUs: no GPU is waited for.
    """
    import torch
    import torch.distributed as dist

    here = connect()
    if here.size == 1:
        return list(values)
    found = torch.tensor(values, dtype=torch.int64)
    with losses_named():
        dist.all_reduce(found, dist.ReduceOp.MAX, group=_cpu_group())
    return found.tolist()


@functools.cache
def _cpu_group() -> Any:
    """A group that exchanges tensors of CPUs: the world itself, unless its maker gave it NCCL alone."""
    import torch.distributed as dist

    return None if "cpu:" in dist.get_backend_config() else dist.new_group(backend="gloo", timeout=_TIMEOUT)


def on_main(work: Callable[[], T]) -> T:
    """`work()` on rank 0, once; its result, which is small and can be pickled, on every rank.

    An error of rank 0 is raised on every rank, so that nobody waits for a process that gave up.
    """
    if connect().size == 1:
        return work()
    result: Any = None
    error: Exception | None = None
    if is_main():
        try:
            result = work()
        except Exception as caught:
            error = caught
    failure, result = broadcast_object((_portable(error), result))
    if error is not None:
        raise error
    if failure is not None:
        raise _heard(failure)
    return result


def everywhere(work: Callable[[], T]) -> T:
    """`work()` on every rank; where it fails on some, the error of the first of them is raised on all."""
    if connect().size == 1:
        return work()
    result: Any = None
    error: Exception | None = None
    try:
        result = work()
    except Exception as caught:
        error = caught
    failures = gather_objects(_portable(error))
    first = next((rank for rank, failure in enumerate(failures) if failure is not None), None)
    if first is None:
        return result
    if first == world().rank and error is not None:
        raise error
    failure = failures[first]
    assert failure is not None
    raise _heard(failure)


def was_heard(error: BaseException) -> bool:
    """Whether another rank met this error, and has said so."""
    return getattr(error, "_heard", False)


def _heard(error: Exception) -> Exception:
    error._heard = True  # type: ignore[attr-defined]
    return error


def _portable(error: Exception | None) -> Exception | None:
    """The error, or one with its text where it does not survive pickling."""
    if error is None:
        return None
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return MachineError(f"rank {world().rank} failed: {type(error).__name__}: {error}")


# --- ranks that end early

_SEEN = "prunefast/rank-{}"  # in the group's store: where the process runs
_ENDED = "prunefast/ended-{}"  # and why it gave up, where it could say so
_FOUND = "prunefast/found"  # what the first to notice said: that one may have ended too when the next asks
_PATIENCE_SECONDS = 5.0  # for a process that was killed to be gone, or to say why it ends


class LostRank(MachineError):
    """Another process ended before the work was done."""


@contextlib.contextmanager
def losses_named() -> Iterator[None]:
    """Turns what gloo or NCCL say when a rank is gone into a MachineError that names it; an error that is this rank's
    own is left in the store for the others."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        if isinstance(error, MachineError) or not _is_of_the_transport(error):
            _tell(error)
            raise
        found = _who_ended()
        with contextlib.suppress(RuntimeError):
            _store().set(_FOUND, found)
        raise LostRank(found) from None
    except Exception as error:
        _tell(error)
        raise


def _is_of_the_transport(error: Exception) -> bool:
    import torch.distributed as dist

    words = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe", "TCPStore")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)


def _store() -> Any:
    """Of the group, or None: what outlives an exchange that failed."""
    dist = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_available() or not dist.is_initialized():
        return None
    return dist.distributed_c10d._get_default_store()


@functools.cache
def _introduce(here: World) -> None:
    with contextlib.suppress(RuntimeError):
        _store().set(_SEEN.format(here.rank), f"{socket.gethostname()} {os.getpid()}")


def _tell(error: Exception) -> None:
    if isinstance(error, LostRank) or was_heard(error) or (store := _store()) is None:
        return
    with contextlib.suppress(RuntimeError):
        reason = " ".join(str(error).split()) or type(error).__name__
        store.set(_ENDED.format(world().rank), reason[:500])


def _who_ended() -> str:
    """One line: which rank, of those that are gone by now, and why."""
    here, store = world(), _store()
    fix = "start again: what was finished is kept"
    give_up = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < give_up:
        with contextlib.suppress(RuntimeError):
            if store.check([_FOUND]):
                return store.get(_FOUND).decode()
        for rank in range(here.size):
            if rank == here.rank:
                continue
            try:
                if store.check([_ENDED.format(rank)]):
                    return f"rank {rank} of {here.size} ended: {store.get(_ENDED.format(rank)).decode()}"
                place = store.get(_SEEN.format(rank)).decode() if store.check([_SEEN.format(rank)]) else ""
            except RuntimeError:  # the store went with the process that held it
                return f"rank 0 of {here.size} ended without a word (killed?); {fix}"
            host, _, process = place.rpartition(" ")
            if host == socket.gethostname() and not _is_running(int(process)):
                return f"rank {rank} of {here.size} ended without a word (killed?); {fix}"
        time.sleep(0.05)
    return f"another process of the {here.size} ended, or the network between them failed; {fix}"


def _is_running(process: int) -> bool:
    """A killed process that nobody has asked after is a zombie: it has a number, and does not run."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except FileNotFoundError:
        return not os.path.isdir("/proc/self")  # a system without /proc: not known


def all_gather_rows(rows: Any) -> Any:
    """[n_0 + n_1 + ..., ...]: the rows [n_r, ...] of every rank, in the order of ranks, on every rank.

    Ranks may have different numbers of rows, also none; the shape of a row and the dtype must be the same everywhere
    (InputError on every rank otherwise). NumPy comes back as NumPy, a tensor on its device.
    """
    import numpy as np
    import torch
    import torch.distributed as dist

    as_numpy = isinstance(rows, np.ndarray)
    mine: Tensor = torch.from_numpy(np.ascontiguousarray(rows)) if as_numpy else rows.detach().contiguous()
    here = connect()
    if here.size == 1:
        return rows
    shapes = gather_objects((str(mine.dtype), tuple(mine.shape)))
    if len({(dtype, shape[1:]) for dtype, shape in shapes}) > 1 or mine.ndim == 0:
        raise InputError(f"rows: {shapes} on the ranks; all need one dtype and one shape of a row")
    row_bytes = mine.element_size() * int(np.prod(mine.shape[1:]))
    counts = [shape[0] for _, shape in shapes]
    sent = mine.new_zeros(max(counts) * row_bytes, dtype=torch.uint8)  # bytes: gloo and NCCL lack some dtypes
    if mine.numel():  # NumPy's empty arrays have strides that torch cannot view
        sent[: mine.shape[0] * row_bytes] = mine.reshape(-1).view(torch.uint8)
    received = [torch.empty_like(sent) for _ in counts]
    with losses_named():
        dist.all_gather(received, sent)
    whole = torch.cat([part[: count * row_bytes] for part, count in zip(received, counts, strict=True)])
    out = whole.view(mine.dtype).reshape(sum(counts), *mine.shape[1:])
    return out.numpy() if as_numpy else out


def owned(blocks: int) -> range:
    """The blocks this process computes, of 0 .. blocks - 1: every size-th from its rank on."""
    here = world()
    return range(here.rank, blocks, here.size)


def gather_blocks(mine: Any, blocks: int) -> Any:
    """[blocks, ...] in block order on every rank, from the blocks `owned` by each: [len(owned(blocks)), ...]."""
    if len(mine) != len(owned(blocks)):
        raise InputError(f"mine: {len(mine)} blocks where this rank owns {len(owned(blocks))} of {blocks}")
    size = connect().size
    gathered = all_gather_rows(mine)
    if size == 1:
        return gathered
    first = [sum(len(range(r, blocks, size)) for r in range(rank)) for rank in range(size)]
    return gathered[[first[block % size] + block // size for block in range(blocks)]]


def sum_blocks(mine: Any, blocks: int) -> Any:
    """The sum [...] over all blocks, added one after the other in block order: the same bits for every number of ranks.

    mine: [len(owned(blocks)), ...] as for `gather_blocks`, blocks at least 1. It gathers all blocks on every rank: keep
    blocks x row small, by larger blocks.
    """
    if blocks < 1:
        raise InputError(f"blocks: must be at least 1, not {blocks}")
    return functools.reduce(lambda total, block: total + block, gather_blocks(mine, blocks))


def add_over_ranks(tensors: Sequence["Tensor"]) -> None:
    """Replace each tensor by its sum over the ranks, in one exchange: gradients. All of one dtype and device.

    The order of the addition is the backend's: the last digits depend on the number of ranks.
    """
    import torch
    import torch.distributed as dist

    if connect().size == 1 or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    with losses_named():
        dist.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view(tensor.shape))
