"""Any torch module or function as an encoder."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from prunefast.encode.encoder import TorchEncoder


class ModuleEncoder(TorchEncoder):
    """`network` gets float32 [B, 3, size, size], (x / 255 - mean) / std, and returns [B, D].

    mean, std  default 0.5 and 0.5: values in [-1, 1], as diffusion models see images
    size       images are resized to it (bilinear, filtered); None: given as the data has them
    name       of the encoder, in manifests. A plain function shows nothing by which it could be told from another one,
               so its features are never reused unless it is named: change the name when you change the function.
    A module is called in evaluation mode and left as it was; its weights are part of the manifest.
    """

    def __init__(
        self,
        network: Callable[[torch.Tensor], Any],
        *,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.5,
        size: int | None = None,
        name: str | None = None,
    ):
        is_module = isinstance(network, torch.nn.Module)
        own_name = (
            type(network).__qualname__ if is_module else getattr(network, "__qualname__", type(network).__qualname__)
        )
        super().__init__(
            network,
            name=name or own_name,
            mean=mean,  # type: ignore[arg-type]  # one number or three
            std=std,  # type: ignore[arg-type]
            size=size,
        )
        self.reusable = is_module or name is not None
        if isinstance(network, torch.nn.Module):  # a user's module stays where it is
            parameter = next(network.parameters(), None)
            self.device = torch.device("cpu") if parameter is None else parameter.device

    def manifest(self) -> dict[str, Any]:
        structure = repr(self.network) if isinstance(self.network, torch.nn.Module) else None
        return super().manifest() | {"structure": structure}
