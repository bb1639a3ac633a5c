"""Captions to the embeddings a text-conditioned UNet attends to, by a local CLIP text model.

The text model is frozen, so each caption is encoded once: `encode_captions` writes the table that training reads, and
a run that goes on finds it.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunefast.encode.encoder import weights_digest
from prunefast.encode.optional import broken, import_optional
from prunefast.errors import InputError
from prunefast.files import atomic_path, read_json, write_json
from prunefast.progress import progress as show_progress

EMPTY = ""  # the caption of classifier-free guidance, and of images without one
_BATCH = 32


class TextEncoder(nn.Module):
    """The tokenizer and the `CLIPTextModel` of a diffusers pipeline in FOLDER (FOLDER/tokenizer, FOLDER/text_encoder).

    forward: n texts -> float32 [n, tokens, width], the last hidden state, padded and cut to the tokenizer's length as
    Stable Diffusion has it.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        super().__init__()
        self.folder = Path(folder).absolute()
        for part in ("tokenizer", "text_encoder"):
            if not (self.folder / part).is_dir():
                raise InputError(
                    f"text_encoder: {self.folder}: has no folder {part}; give that of a diffusers pipeline"
                )
        what = f"text_encoder: {self.folder}"
        transformers = import_optional("transformers", what)
        try:
            tokenizer, model = transformers.CLIPTokenizer, transformers.CLIPTextModel
        except Exception as error:  # it imports its parts late, and a torchvision for another torch fails in them
            raise broken("transformers", what, error) from None
        try:
            self.tokenizer: Any = tokenizer.from_pretrained(self.folder / "tokenizer", local_files_only=True)
            self.model: Any = model.from_pretrained(
                self.folder / "text_encoder", local_files_only=True, use_safetensors=True
            )
        except (OSError, ValueError, RuntimeError, TypeError) as error:
            raise InputError(f"{what}: cannot be loaded ({str(error).splitlines()[0]})") from None
        self.model = self.model.float().eval().requires_grad_(False)
        self.tokens = min(int(self.tokenizer.model_max_length), int(self.model.config.max_position_embeddings))
        self.width = int(self.model.config.hidden_size)

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Tensor:
        ids = self.tokenizer(
            list(texts), padding="max_length", max_length=self.tokens, truncation=True, return_tensors="pt"
        ).input_ids
        device = next(self.model.parameters()).device
        return self.model(ids.to(device)).last_hidden_state.float()

    def digest(self) -> str:
        """Of the weights, and of how the tokenizer cuts a text."""
        vocabulary = hashlib.sha256(repr(sorted(self.tokenizer.get_vocab().items())).encode()).hexdigest()[:16]
        return f"{weights_digest(self.model.state_dict())}-{vocabulary}-{self.tokens}"


@dataclass(frozen=True, eq=False)
class Captions:
    """The captions of a data set, each once.

    texts    different ones, in the order they first come; the last is the empty one, the null text of guidance
    numbers  int64 [N], the number in `texts` of each image's caption
    """

    texts: list[str]
    numbers: np.ndarray

    @classmethod
    def of(cls, captions: Sequence[str | None]) -> "Captions":
        """None and "" are the empty caption."""
        known: dict[str, int] = {}
        numbers = np.array([known.setdefault(text, len(known)) if text else -1 for text in captions], np.int64)
        numbers[numbers < 0] = len(known)
        return cls([*known, EMPTY], numbers)

    @property
    def null(self) -> int:
        return len(self.texts) - 1

    @property
    def digest(self) -> str:
        return hashlib.sha256("\0".join(self.texts).encode() + self.numbers.tobytes()).hexdigest()[:32]


def encode_captions(captions: Captions, encoder: TextEncoder, path: Path, *, progress: bool = False) -> np.ndarray:
    """float32 [texts, tokens, width] in a memory-mapped .npy file, which is made where it is missing or of others.

    tokens * width * 4 bytes a text: 0.24 MB for Stable Diffusion 1.
    """
    record = path.with_suffix(".json")
    wanted = {"captions": captions.digest, "text_encoder": encoder.digest()}
    if path.exists() and record.exists() and read_json(record) == wanted:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    record.unlink(missing_ok=True)
    shape = (len(captions.texts), encoder.tokens, encoder.width)
    with atomic_path(path) as temporary, show_progress("captions", shape[0], silent=not progress) as bar:
        table = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
        for begin in range(0, shape[0], _BATCH):
            texts = captions.texts[begin : begin + _BATCH]
            table[begin : begin + len(texts)] = encoder(texts).cpu().numpy()
            bar.advance(len(texts))
        table.flush()
    write_json(record, wanted)
    return np.load(path, mmap_mode="r", allow_pickle=False)
