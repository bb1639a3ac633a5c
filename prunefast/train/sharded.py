"""FSDP2: every rank holds a part of every weight, of its averages and of its moments, for networks that one device
cannot hold.

`shard` cuts each parameter along its first dimension (torch.distributed.fsdp.fully_shard, one unit a block). Averaging
and AdamW are elementwise: they work on the parts as they are (`named_weights`, `ShardedUpdater`). Only the norm of the
gradient and the checkpoints cross ranks.

A checkpoint on the way is written by all ranks, each its part, through torch.distributed.checkpoint: in the place of
model.safetensors stands a folder `model` of safetensors files, one a rank, with the place of every part in their
headers; any number of ranks reads it again, also one. What a finished run leaves is the ordinary checkpoint.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard

from prunefast import distributed
from prunefast.errors import InputError
from prunefast.files import atomic_folder, explain_os_error
from prunefast.train.blocks import blocks_of
from prunefast.train.config import TrainConfig
from prunefast.train.ema import local_part
from prunefast.train.optim import Updater


def shard(model: nn.Module, device: torch.device) -> None:
    """Cut the parameters of `model`, which lie on the CPU, over the ranks, in place; each part goes to `device`. Blocks
    are gathered one after the other, not the whole network at once.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim == 0:
            raise InputError(f'parallel: "fsdp" cannot cut {name}, which is a single number; take "ddp"')
        parameter.data = parameter.data.contiguous()
    mesh = init_device_mesh(device.type, (distributed.connect().size,))
    for unit in (*blocks_of(model), model):
        sharded: FSDPModule = fully_shard(unit, mesh=mesh)
        # gradients are added, not averaged: micro-batches weigh by their share of the whole batch already
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)  # gloo adds, and knows no factor


class ShardedUpdater(Updater):
    """An `Updater` on the parts of this rank."""

    def __init__(self, model: nn.Module, config: TrainConfig):
        self._sharded = [parameter for parameter in model.parameters() if parameter.requires_grad]
        super().__init__(_Parts(model), config)

    def step(self, loss: Tensor, images: int, count: int | None = None) -> tuple[Tensor, Tensor]:
        for parameter, part in zip(self._sharded, self._parameters.values(), strict=True):
            part.grad = None if parameter.grad is None else local_part(parameter.grad)
            parameter.grad = None
        return super().step(loss, images, count)

    def _norm(self, gradients: list[Tensor]) -> Tensor:
        squared = super()._norm(gradients).double().square().to(gradients[0].device)
        distributed.add_over_ranks([squared])
        return squared.sqrt().float()


class _Parts(nn.Module):
    """The parameters of a sharded network as ordinary ones that share its memory."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self._named = [
            (name, nn.Parameter(local_part(parameter), parameter.requires_grad))
            for name, parameter in model.named_parameters()
        ]

    def named_parameters(self, *_: Any, **__: Any) -> Iterator[tuple[str, nn.Parameter]]:
        return iter(self._named)


class Shards:
    """Which part of every tensor this rank has."""

    def __init__(self, model: nn.Module):
        self._model = model
        self._of: dict[str, DTensor] = dict(model.named_parameters())  # type: ignore[arg-type]
        self.mesh = next(iter(self._of.values())).device_mesh

    def close(self) -> None:
        """Give back what a pass without a backward one (a measurement) has left gathered."""
        self._model.reshard()  # type: ignore[operator]

    def _parameter(self, key: str, dimensions: int) -> DTensor | None:
        """That by which a tensor is cut, which is itself NAME, NAME.MOMENT or AVERAGE/NAME; None: it is nobody's part,
        every rank has it."""
        for name in (key, key.rpartition(".")[0], key.partition("/")[2]):
            if name in self._of:
                return self._of[name] if dimensions == self._of[name].ndim and dimensions else None
        return None

    def _distributed(self, key: str, part: Tensor) -> Tensor:
        parameter = self._parameter(key, part.ndim)
        if parameter is None:
            return part
        shape, stride = parameter.shape, parameter.stride()
        return DTensor.from_local(part, self.mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All parts of all ranks, on rank 0's CPU; the others get nothing. One tensor at a time."""
        found = {}
        for key, part in tensors.items():
            tensor = self._distributed(key, part)
            full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if distributed.is_main():
                found[key] = full.detach().cpu()
        return found

    def save(self, path: Path, files: Mapping[str, Mapping[str, Tensor]], seal: Callable[[Path], None]) -> None:
        """Write the checkpoint `path`, which appears whole or not at all: every rank its parts, then rank 0 what
        `seal(folder)` adds."""
        with contextlib.ExitStack() as held:
            temporary = distributed.on_main(lambda: held.enter_context(atomic_folder(path)))
            for name, tensors in files.items():
                with _explained(path / name):
                    _save(temporary / Path(name).stem, {k: self._distributed(k, t) for k, t in tensors.items()})
            distributed.on_main(lambda: seal(temporary))
            distributed.on_main(lambda: held.pop_all().close())  # the folder gets its name

    def load(self, path: Path) -> dict[str, Tensor]:
        """The parts that are this rank's, of what stands in `path` (model.safetensors) or in its folder."""
        folder = path.with_suffix("")
        if not folder.is_dir():
            return self._cut(path)
        shapes = _shapes(folder)
        state = {}
        for key, (shape, dtype) in shapes.items():
            parameter = self._parameter(key, len(shape))
            local = shape if parameter is None else parameter.to_local().shape
            state[key] = self._distributed(key, torch.empty(local, dtype=dtype))
        _load(folder, state)
        return {key: tensor.to_local() if isinstance(tensor, DTensor) else tensor for key, tensor in state.items()}

    def _cut(self, path: Path) -> dict[str, Tensor]:
        """Of an ordinary file; only these rows are read."""
        found = {}
        try:
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118  not a mapping
                    rows = file.get_slice(key)
                    parameter = self._parameter(key, len(rows.get_shape()))
                    if parameter is None or list(parameter.shape) != rows.get_shape():  # who copies it says what is odd
                        found[key] = file.get_tensor(key)
                    else:
                        first = self._first_row(parameter)
                        found[key] = rows[first : first + len(parameter.to_local())]
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: cannot be read ({error})") from None
        return found

    def _first_row(self, parameter: DTensor) -> int:
        rows = -(-parameter.shape[0] // self.mesh.size())  # as torch.chunk cuts
        return min(self.mesh.get_local_rank() * rows, parameter.shape[0])


def load_shards(folder: Path) -> dict[str, Tensor]:
    """Whole tensors of a folder that `Shards.save` wrote, in one process."""
    state = {key: torch.empty(shape, dtype=dtype) for key, (shape, dtype) in _shapes(folder).items()}
    _load(folder, state)
    return state


def _save(folder: Path, state: dict[str, Tensor]) -> None:
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)  # safetensors; the usual one pickles
    dcp.save(state, storage_writer=writer)


def _load(folder: Path, state: dict[str, Tensor]) -> None:
    with _explained(folder), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(state, storage_reader=dcp.HuggingFaceStorageReader(str(folder)), no_dist=True)


def _shapes(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    with _explained(folder):
        metadata = dcp.HuggingFaceStorageReader(str(folder)).read_metadata()
    entries: dict[str, Any] = dict(metadata.state_dict_metadata)
    return {key: (entry.size, entry.properties.dtype) for key, entry in entries.items()}


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """torch.distributed.checkpoint gathers the errors of all ranks in one of its own, with their tracebacks."""
    try:
        yield
    except dcp.CheckpointException as error:
        _, (reason, _) = next(iter(error.failures.items()))
        if isinstance(reason, OSError):
            raise explain_os_error(reason, path) from None
        raise InputError(f"{path}: cannot be written or read ({reason})") from None
    except (SafetensorError, OSError) as error:
        raise (
            explain_os_error(error, path)
            if isinstance(error, OSError)
            else InputError(f"{path}: cannot be read ({error})")
        ) from None
