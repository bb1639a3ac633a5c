"""Networks of timm by name, with weights from a file: pooled features before the classifier."""

import os
from pathlib import Path

from prunefast.encode.encoder import TorchEncoder
from prunefast.encode.optional import import_optional
from prunefast.encode.weights import fill, load_weights
from prunefast.errors import InputError

_LOCAL = "local-dir:"  # timm's own way to name a folder with config.json and weights


def timm_encoder(name: str, weights: str | os.PathLike[str] | None, *, size: int | None = None) -> TorchEncoder:
    """The network `name` with num_classes=0; size, mean, std as timm records them for it.

    weights  a local .safetensors or .pth file; a classifier in it is left out. Or `name` is "local-dir:FOLDER", a
             folder with config.json and weights as the Hugging Face hub has them.
    """
    what = f"timm:{name}"
    if name.startswith(_LOCAL):
        folder = Path(name.removeprefix(_LOCAL))
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder}: has no config.json; name a folder with config.json and weights")
    elif weights is None:
        raise InputError(
            f"{what}: needs a file of weights: timm:{name}:FILE, or timm:local-dir:FOLDER (none is downloaded)"
        )
    state = None if weights is None else load_weights(weights)
    timm = import_optional("timm", what)
    try:
        network = timm.create_model(name, pretrained=state is None, num_classes=0)
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(f"{what}: {str(error).splitlines()[0]}") from None
    if state is not None:
        known = network.state_dict()
        head = (getattr(network, "default_cfg", None) or {}).get("classifier") or ()
        heads = (head,) if isinstance(head, str) else tuple(head)
        state = {k: v for k, v in state.items() if k in known or not k.startswith(tuple(f"{h}." for h in heads))}
        fill(network, state, weights or name, f"timm's {name}")
    config = timm.data.resolve_model_data_config(network)
    interpolation = config.get("interpolation", "bicubic")
    return TorchEncoder(
        network.eval(),
        name=what,
        mean=config["mean"],
        std=config["std"],
        size=size or config["input_size"][-1],
        resize_mode=interpolation if interpolation in ("bilinear", "bicubic") else "bicubic",
    )
