"""Training on captions: what the loop needs to know of them, and the network that is told them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunefast import distributed
from prunefast.data import ImageDataset
from prunefast.encode.text import Captions, TextEncoder, encode_captions
from prunefast.errors import InputError
from prunefast.models.prompted import PromptedNetwork
from prunefast.train.config import TrainConfig

TABLE = "captions.npy"  # in the run folder
RESIDENT_SHARE = 0.1  # of a GPU's free memory that the table may take; beyond it its rows are copied a step


@dataclass(frozen=True, eq=False)
class TextCondition:
    """captions   of the data, by item
    encoder    the frozen text model, on the CPU
    table      the file of embeddings, or None: each batch is encoded when it comes
    """

    captions: Captions
    encoder: TextEncoder
    table: Path | None

    def numbers(self, device: torch.device) -> Tensor:
        """int64 [N], the number of each item's caption."""
        return torch.from_numpy(self.captions.numbers).to(device)

    def network(self, network: nn.Module, device: torch.device, progress: bool = False) -> PromptedNetwork:
        """`network`, told captions by their numbers. Rank 0 writes the table where it is missing."""
        if self.table is None:
            return PromptedNetwork(network, _Encoding(self.encoder.to(device), self.captions.texts), self.captions.null)
        path = self.table
        distributed.on_main(lambda: encode_captions(self.captions, self.encoder.to(device), path, progress=progress))
        self.encoder.to("cpu")
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
        return PromptedNetwork(network, Lookup(rows, device), self.captions.null)

    def record(self) -> dict[str, Any]:
        """What a checkpoint says of it."""
        return {"folder": str(self.encoder.folder), "digest": self.encoder.digest()}


class Lookup:
    """numbers int64 [B] -> rows of a table [M, tokens, width], on the device."""

    def __init__(self, rows: np.ndarray, device: torch.device):
        self.rows, self.device = rows, device
        self.resident: Tensor | None = None
        if device.type == "cuda" and rows.nbytes < RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]:
            self.resident = torch.from_numpy(np.array(rows)).to(device)

    def __call__(self, numbers: Tensor) -> Tensor:
        if self.resident is not None:
            return self.resident.index_select(0, numbers)
        return torch.from_numpy(self.rows[numbers.cpu().numpy()]).to(self.device)


class _Encoding:
    """The same without a table: the text model runs for every batch."""

    def __init__(self, encoder: TextEncoder, texts: list[str]):
        self.encoder, self.texts = encoder, texts

    def __call__(self, numbers: Tensor) -> Tensor:
        with torch.autocast(numbers.device.type, enabled=False):
            return self.encoder([self.texts[number] for number in numbers.tolist()])


class Remembered:
    """texts -> float32 [n, tokens, width] on the CPU, each encoded once: those of held-out images come again at every
    measurement."""

    def __init__(self, encoder: TextEncoder):
        self.encoder = encoder
        self._known: dict[str, Tensor] = {}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known |= zip(new, self.encoder(new).cpu(), strict=True)
        return torch.stack([self._known[text] for text in texts])


def make_text(config: TrainConfig, data: ImageDataset, module: nn.Module | None) -> TextCondition | None:
    """The captions of a run, None without `text_encoder`."""
    if config.text_encoder is None:
        return None
    if module is not None or not config.model.startswith("diffusers"):
        raise InputError('text_encoder: goes with model = "diffusers:FOLDER", a UNet2DConditionModel; or leave it out')
    if config.class_conditional is True:
        raise InputError("text_encoder: the network is told captions in place of classes; leave class_conditional out")
    if data.captions is None:
        raise InputError(
            "text_encoder: the data has no captions; WebDataset (.txt, .json), Parquet and Arrow have them"
        )
    table = Path(config.out) / TABLE if config.caption_cache else None
    return TextCondition(Captions.of(data.captions), TextEncoder(config.text_encoder), table)
