"""Networks that come as a file with their code: torch.export (.pt2) and TorchScript (.pt).

Both formats carry pickled objects or code that runs on loading or calling, so a file is opened only with `trust=True`:
do that for files you made or whose maker you trust.
"""

import hashlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from prunefast.encode.encoder import TorchEncoder
from prunefast.errors import InputError


class ExportedEncoder(TorchEncoder):
    """A .pt2 or .pt file: float32 [B, 3, R, R] -> [B, D]; mean, std and size as for a module.

    A graph exported for one batch size or one image size says so by itself: batches are padded and images resized to
    it. The manifest has the digest of the file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        trust: bool = False,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.5,
        size: int | None = None,
    ):
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path}: no such file; name a torch.export (.pt2) or TorchScript (.pt) file")
        if trust is not True:
            raise InputError(
                f"{path}: opening it can run code that its maker put there; "
                "pass trust=True (--trust) if you trust where it comes from"
            )
        self._digest = hashlib.sha256(path.read_bytes()).hexdigest()[:32]
        try:
            network, batch, side = _open_exported(path) if path.suffix == ".pt2" else (_open_script(path), None, None)
        except Exception as error:  # loading runs foreign code: anything may be raised
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            kind = "torch.export" if path.suffix == ".pt2" else "TorchScript"
            raise InputError(
                f"{path}: is not a {kind} file that this torch reads ({reason}); export it again"
            ) from None
        super().__init__(
            network,
            name=path.name,
            mean=mean,  # type: ignore[arg-type]  # one number or three
            std=std,  # type: ignore[arg-type]
            size=size if size is not None else side,
            fixed_batch=batch,
        )

    def manifest(self) -> dict[str, Any]:
        return super().manifest() | {"weights": self._digest}


def _open_script(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch advises torch.export; the user has this file
        return torch.jit.load(str(path), map_location="cpu").eval()


def _open_exported(path: Path) -> tuple[Any, int | None, int | None]:
    """(callable, batch size and image size that the graph was fixed to, or None where they are free)."""
    program = torch.export.load(str(path))
    user_inputs = set(program.graph_signature.user_inputs)
    shape: Any = next(
        (
            node.meta["val"].shape
            for node in program.graph.nodes
            if node.op == "placeholder" and node.name in user_inputs
        ),
        (),
    )
    batch, side = (shape[0], shape[2]) if len(shape) == 4 else (None, None)
    return program.module(), batch if isinstance(batch, int) else None, side if isinstance(side, int) else None
