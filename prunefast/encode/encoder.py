"""What an encoder is, and what all that run a torch network share.

An encoder maps square uint8 images [B, R, R, 3] to float32 features [B, D]. It resizes by itself, so any R will do. The
same images in the same batch give the same features on one machine; `embed` cuts batches at fixed positions for that
reason.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from prunefast.errors import InputError, InputTypeError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Encoder:
    """Base of all encoders.

    name        short, for error messages and manifests
    dim         D, or None while it is not known
    input_size  R of the images it would like (used where a data set has no size of its own), or None: no preference
    fitted      False: `fit` must see data before the encoder can be called
    reusable    False: `manifest` cannot tell this encoder from another, so stored features are never taken for its own
    """

    name: str = "encoder"
    dim: int | None = None
    input_size: int | None = None
    fitted: bool = True
    reusable: bool = True

    def manifest(self) -> dict[str, Any]:
        """JSON-able: everything that decides the features, with a digest of the weights."""
        raise InputTypeError(f"{type(self).__name__}: an encoder needs a manifest method")

    def fit(self, data: Any, progress: bool = False) -> "Encoder":
        """Learn from `data` what the encoder learns from data; most learn nothing."""
        return self

    def cached(self, data: Any, indices: np.ndarray) -> np.ndarray | None:
        """Features of images whose pixels `fit` still holds, or None: they have to be read."""
        return None

    def release(self) -> None:
        """Drop what `fit` holds in memory for `cached`."""

    def to(self, device: Any) -> "Encoder":
        """Compute on `device` from now on."""
        return self

    def __call__(self, images: np.ndarray) -> np.ndarray:
        raise InputTypeError(f"{type(self).__name__}: an encoder must be callable")


def check_images(images: Any) -> np.ndarray:
    """`images` as uint8 [B, R, R, 3]."""
    array = np.asarray(images)
    if array.dtype != np.uint8:
        raise InputTypeError(f"images: must be uint8, not {array.dtype}")
    if array.ndim != 4 or array.shape[3] != 3 or array.shape[1] != array.shape[2] or array.shape[1] == 0:
        raise InputError(f"images: must be [B, R, R, 3], square and RGB, not {list(array.shape)}")
    return array


def weights_digest(tensors: dict[str, torch.Tensor]) -> str:
    """32 hex digits over names, types, shapes and values; the order of the names does not matter."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def resize(images: torch.Tensor, size: int, mode: str) -> torch.Tensor:
    """float [B, 3, R, R] -> [B, 3, size, size]; unchanged when it has that size.

    "bilinear" and "bicubic" filter when they shrink (as Pillow does); "corners" is bilinear with align_corners=True and
    no filter, which is what instance selection computes its features with.
    """
    if images.shape[-1] == size:
        return images
    if mode == "corners":
        return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=True)
    return F.interpolate(images, size=(size, size), mode=mode, align_corners=False, antialias=True)


def check_statistics(name: str, values: Any) -> tuple[float, float, float]:
    """Three finite numbers from one or three."""
    try:
        numbers = tuple(float(v) for v in ([values] * 3 if isinstance(values, int | float) else values))
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != 3 or not np.isfinite(numbers).all() or (name == "std" and min(numbers) <= 0):
        raise InputError(f"{name}: must be a number or three of them (R, G, B), not {values!r}")
    return numbers[0], numbers[1], numbers[2]


class TorchEncoder(Encoder):
    """An encoder around `network`: float32 [B, 3, size, size], (x / 255 - mean) / std -> [B, D].

    network   a module or any function of such a tensor
    size      images are resized to it; None: taken as they come
    crop      the centre of that size is cut out after resizing; None: nothing is
    fixed_batch  the network takes batches of exactly this size (an exported graph): shorter ones are padded
    channels_last  the layout of images and convolutions: 20 % faster for a ResNet on a CPU. Off for networks we do not
              know, which may call view() on their input
    """

    def __init__(
        self,
        network: Callable[[torch.Tensor], Any],
        *,
        name: str,
        mean: Sequence[float],
        std: Sequence[float],
        size: int | None = None,
        crop: int | None = None,
        resize_mode: str = "bilinear",
        fixed_batch: int | None = None,
        dim: int | None = None,
        channels_last: bool = False,
    ):
        if size is not None and (isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1):
            raise InputError(f"size: must be a whole number of pixels, not {size!r}")
        self.network = network
        self.name = name
        self.mean, self.std = check_statistics("mean", mean), check_statistics("std", std)
        self.input_size = self.size = size
        self.crop = crop
        self.resize_mode = resize_mode
        self.fixed_batch = fixed_batch
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        if channels_last and isinstance(network, torch.nn.Module):
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        self.device = torch.device("cpu")
        self.dim = dim

    def to(self, device: Any) -> "TorchEncoder":
        try:
            self.device = torch.device(device)
            if isinstance(self.network, torch.nn.Module):
                self.network.to(self.device)
        except (RuntimeError, AssertionError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"device: {device!r} cannot be used here ({reason}); leave it out for the CPU") from None
        return self

    def weights(self) -> dict[str, torch.Tensor]:
        """Everything the network has learned."""
        return self.network.state_dict() if isinstance(self.network, torch.nn.Module) else {}

    def manifest(self) -> dict[str, Any]:
        return {
            "encoder": self.name,
            "size": self.size,
            "crop": self.crop,
            "resize": self.resize_mode,
            "mean": list(self.mean),
            "std": list(self.std),
            "weights": weights_digest(self.weights()),
        }

    def __call__(self, images: np.ndarray) -> np.ndarray:
        images = check_images(images)
        with torch.inference_mode(), _evaluation_mode(self.network):
            if self.fixed_batch is None:
                features = self._forward(images)
            else:
                features = np.concatenate(
                    [self._padded(images[i : i + self.fixed_batch]) for i in range(0, len(images), self.fixed_batch)]
                )
        self.dim = features.shape[1]
        return features

    def _padded(self, images: np.ndarray) -> np.ndarray:
        missing = (self.fixed_batch or 0) - len(images)
        return self._forward(np.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)]))[: len(images)]

    def _forward(self, images: np.ndarray) -> np.ndarray:
        x = torch.tensor(images, device=self.device).permute(0, 3, 1, 2).to(torch.float32) / 255
        if self.size is not None:
            x = resize(x, self.size, self.resize_mode)
            if self.resize_mode == "bicubic":
                x = x.clamp(0, 1)  # it overshoots at edges, where uint8 images are clipped
        if self.crop is not None and self.crop < x.shape[-1]:
            start = round((x.shape[-1] - self.crop) / 2)
            x = x[..., start : start + self.crop, start : start + self.crop]
        mean = torch.tensor(self.mean, device=self.device).reshape(1, 3, 1, 1)
        std = torch.tensor(self.std, device=self.device).reshape(1, 3, 1, 1)
        try:
            output = self.network(((x - mean) / std).contiguous(memory_format=self.layout))
        except (RuntimeError, ValueError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"{self.name}: fails on images {list(x.shape)} ({reason}); set size= to what it takes"
            ) from error
        return self._checked(output, len(images))

    def _checked(self, output: Any, count: int) -> np.ndarray:
        if not isinstance(output, torch.Tensor):
            try:
                output = torch.as_tensor(output)
            except (TypeError, ValueError, RuntimeError):
                raise InputTypeError(
                    f"{self.name}: returned {type(output).__name__}; an encoder returns one tensor [B, D]"
                ) from None
        if output.ndim == 4 and output.shape[2:] == (1, 1):
            output = output.flatten(1)
        if output.ndim != 2 or len(output) != count or output.shape[1] == 0:
            raise InputError(
                f"{self.name}: returned shape {list(output.shape)} for {count} images; "
                "an encoder returns [B, D]: pool or flatten its output"
            )
        return output.to(torch.float32).cpu().numpy()


class _evaluation_mode:
    """Puts a module into evaluation (no dropout, BatchNorm by its statistics) and every part back as it was."""

    def __init__(self, network: Any):
        self.parts = list(network.modules()) if isinstance(network, torch.nn.Module) else []

    def __enter__(self) -> None:
        self.training = [part.training for part in self.parts]
        for part in self.parts:
            part.training = False

    def __exit__(self, *_: Any) -> None:
        for part, was in zip(self.parts, self.training, strict=True):
            part.training = was
