"""Networks of torchvision by name, with weights from a file.

Images are prepared as instance selection does (DeVries et al. 2020): [0, 1], ImageNet mean and standard deviation,
bilinear with align_corners=True to 224 pixels (299 for Inception-v3). Features are what enters the last linear layer:
2,048 for Inception-v3 and ResNet-50, 512 for ResNet-18.
"""

import os

from torch import nn

from prunefast.encode.encoder import IMAGENET_MEAN, IMAGENET_STD, TorchEncoder
from prunefast.encode.optional import import_optional
from prunefast.encode.weights import fill, load_weights
from prunefast.errors import InputError

# torchvision's own weights of Inception-v3 were trained on [-1, 1]; it maps ImageNet-normalised images to that by
# itself
_SPECIAL = {
    "inception_v3": {"transform_input": True, "aux_logits": True, "init_weights": False},
    "googlenet": {"transform_input": True, "aux_logits": True, "init_weights": False},
}


def remove_head(network: nn.Module, name: str) -> None:
    """Replace the last linear layer of `network` by the identity."""
    for path in ("fc", "classifier", "head", "heads"):
        part = getattr(network, path, None)
        if isinstance(part, nn.Linear):
            setattr(network, path, nn.Identity())
            return
        if isinstance(part, nn.Sequential) and len(part) and isinstance(part[-1], nn.Linear):
            part[len(part) - 1] = nn.Identity()
            return
    raise InputError(f"torchvision:{name}: ends in no linear layer that could be removed; wrap it as a module yourself")


def torchvision_encoder(name: str, weights: str | os.PathLike[str] | None, *, size: int | None = None) -> TorchEncoder:
    """The network `name` without its last layer. `weights`: a local .pth or .safetensors file of the whole network."""
    if weights is None:
        raise InputError(f"torchvision:{name}: needs a file of weights: torchvision:{name}:FILE (none is downloaded)")
    state = load_weights(weights)
    models = import_optional("torchvision.models", f"torchvision:{name}")
    try:
        network = models.get_model(name, weights=None, **_SPECIAL.get(name, {}))
    except ValueError as error:
        raise InputError(f"torchvision:{name}: {error}") from None
    fill(network, state, weights, f"torchvision's {name}")
    remove_head(network, name)
    return TorchEncoder(
        network.eval(),
        name=f"torchvision:{name}",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        size=size or (299 if name == "inception_v3" else 224),
        resize_mode="corners",
        channels_last=True,
    )
