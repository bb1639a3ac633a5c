"""Vision models of Hugging Face `transformers` from a local folder: CLIP, SigLIP, DINOv2, ViT and their like.

Features: the projected image embedding where the model has one (CLIP: 512 numbers for ViT-B/32), else the CLS token
after the last norm (DINOv2: 384 for ViT-S/14). Nothing is read from the network.
"""

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunefast.encode.encoder import IMAGENET_MEAN, IMAGENET_STD, TorchEncoder
from prunefast.encode.optional import broken, import_optional
from prunefast.errors import InputError
from prunefast.files import read_json

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers, as preprocessor_config.json has them


class _ImageFeatures(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        # their CLS token has no last norm, but the pooled output has
        self.pooled = getattr(model.config, "model_type", "") in ("clip_vision_model", "siglip_vision_model")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if hasattr(self.model, "get_image_features"):
            image_features: Any = self.model.get_image_features
            output = image_features(pixel_values=x)
            return output if isinstance(output, torch.Tensor) else output.pooler_output
        output = self.model(pixel_values=x)
        if self.pooled:
            return output.pooler_output
        last = output.last_hidden_state
        return last[:, 0] if last.ndim == 3 else last.mean(dim=(2, 3))


def hf_encoder(folder: str | os.PathLike[str], *, size: int | None = None) -> TorchEncoder:
    """The model in `folder` (config.json, weights, and preprocessor_config.json where there is one).

    size  pixels the image is resized to and the model gets; default as the folder says.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise InputError(
            f"{folder}: has no config.json; name a local folder with a transformers model (none is downloaded)"
        )
    transformers = import_optional("transformers", f"hf:{folder.name}")
    try:
        auto_model, auto_config = transformers.AutoModel, transformers.AutoConfig
        config = auto_config.from_pretrained(folder, local_files_only=True)
    except (ModuleNotFoundError, RuntimeError) as error:
        raise broken("transformers", f"hf:{folder.name}", error) from None
    except Exception as error:  # its errors share no base
        raise InputError(f"{folder}: config.json is not one that transformers reads ({_first_line(error)})") from None
    model = _load(transformers, auto_model, config, folder)
    resize_to, crop, mean, std, mode = _preprocessing(folder, config)
    return TorchEncoder(
        _ImageFeatures(model.float().eval()),
        name=f"hf:{folder.name}",
        mean=mean,
        std=std,
        size=size or resize_to,
        crop=None if size else crop,
        resize_mode=mode,
    )


def _load(transformers: Any, auto_model: Any, config: Any, folder: Path) -> nn.Module:
    logging = transformers.utils.logging
    bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model, facts = auto_model.from_pretrained(
            folder, config=config, local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
    except ModuleNotFoundError as error:  # its lazy modules import torchvision, which may be broken
        raise broken("transformers", f"hf:{folder.name}", error) from None
    except Exception as error:
        raise InputError(f"{folder}: the model cannot be loaded ({_first_line(error)})") from None
    finally:
        if bar:
            logging.enable_progress_bar()
    missing = sorted(facts.get("missing_keys") or ())
    # transformers fills what is missing with random numbers and only warns; pooled outputs are not used for CLS
    # features
    missing = [name for name in missing if not name.startswith("pooler.")]
    if missing:
        raise InputError(
            f"{folder}: its weights lack {missing[0]!r} ({len(missing)} such names); fetch the whole model"
        )
    return model


def _preprocessing(folder: Path, config: Any) -> tuple[int, int | None, Any, Any, str]:
    """(resize to, crop or None, mean, std, mode) as the folder records it, else as the model family has it."""
    path = folder / "preprocessor_config.json"
    facts = read_json(path) if path.is_file() else {}
    if not isinstance(facts, dict):
        raise InputError(f"{path}: is not a JSON object; fetch the folder again")
    vision = getattr(config, "vision_config", config)
    own = getattr(vision, "image_size", None) or 224
    is_clip = "clip" in str(getattr(config, "model_type", ""))
    resize_to = _pixels(facts.get("size"), path) or int(own)
    crop = _pixels(facts.get("crop_size"), path) if facts.get("do_center_crop", True) else None
    mean = facts.get("image_mean") or (_CLIP_MEAN if is_clip else IMAGENET_MEAN)
    std = facts.get("image_std") or (_CLIP_STD if is_clip else IMAGENET_STD)
    return resize_to, crop, mean, std, _RESAMPLE.get(facts.get("resample", 3), "bicubic")


def _pixels(value: Any, path: Path) -> int | None:
    if isinstance(value, dict):
        value = value.get("shortest_edge") or value.get("height")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{path}: size {value!r} is not a number of pixels; fetch the folder again")
    return value


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
