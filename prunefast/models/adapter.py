"""Networks that are not ours in the place of one that is: any module taking (x_t, t, condition), and diffusers' UNets.

What the loop and the samplers ask of a network: forward(x [B, C, R, R], time float32 [B], labels int64 [B] or None) ->
[B, C, R, R], `config` with what was decided about it, and `size_multiple`, what R is a multiple of.
"""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunefast.errors import InputError, InputTypeError, MissingDependencyError
from prunefast.models.embedding import LabelEmbedding, check_condition
from prunefast.models.unet import check_size
from prunefast.ops.add_noise import COORDINATE_CHANNELS

MODULE = "module"  # config["name"] of a module of the user's: it cannot be built from its config
DIFFUSERS = "diffusers"
DIFFUSERS_CLASSES = ("UNet2DModel", "UNet2DConditionModel")


class ModuleNetwork(nn.Module):
    """module(x, time) or, with classes, module(x, time, labels); it returns the prediction, a tuple that begins with
    it, or an object with it as `.sample`.

    Args:
        module: trained in place, from the weights it has.
        num_classes: None: it is not given labels. Otherwise label `num_classes` is the null class.
        coordinates: its x has two more channels, the coordinates of `ops.add_noise`.
    """

    size_multiple = 1

    def __init__(
        self,
        module: nn.Module,
        *,
        image_size: int,
        channels: int = 3,
        num_classes: int | None = None,
        coordinates: bool = False,
        learn_sigma: bool = False,
    ):
        super().__init__()
        if not isinstance(module, nn.Module):
            raise InputTypeError(f"model is a {type(module).__name__}; give a torch.nn.Module")
        if not any(parameter.requires_grad for parameter in module.parameters()):
            raise InputError("model has no parameter that requires a gradient: there is nothing to train")
        self.network = module
        self.num_classes = num_classes
        self.config: dict[str, Any] = {
            "name": MODULE,
            "class": f"{type(module).__module__}.{type(module).__qualname__}",
            "image_size": image_size,
            "channels": channels,
            "num_classes": num_classes,
            "coordinates": coordinates,
            "learn_sigma": learn_sigma,
        }

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.num_classes is None:
            return _prediction(self.network(x, time))
        return _prediction(self.network(x, time, _or_null(labels, x, self.num_classes)))


def takes_labels(module: nn.Module) -> bool:
    """Whether module(x, time, labels) is a call that its forward can take."""
    try:
        inspect.signature(module.forward).bind(None, None, None)
    except TypeError:
        return False
    except ValueError:  # a forward without a signature, written in C
        return True
    return True


class DiffusersNetwork(nn.Module):
    """A `UNet2DModel` or `UNet2DConditionModel` of diffusers.

    Classes: a UNet2DModel needs num_class_embeds = classes + 1 (the last is the null class); a UNet2DConditionModel is
    given a learned row a class, the null class among them, as its one token of encoder_hidden_states; with text_width
    it is given the embeddings of a text, forward(x, time, text=[B, tokens, text_width]) (`PromptedNetwork`).
    Its in_channels are those of the images, two more with coordinates; its out_channels those of the images, or twice
    as many for a learned variance.
    """

    def __init__(
        self,
        network: Any,
        *,
        image_size: int,
        channels: int = 3,
        num_classes: int | None = None,
        text_width: int | None = None,
    ):
        super().__init__()
        self.network, self.num_classes = network, num_classes
        kind, settings = type(network).__name__, network.config
        where = f"the {kind} of diffusers"
        coordinates = settings.in_channels == channels + COORDINATE_CHANNELS
        if settings.in_channels != channels and not coordinates:
            raise InputError(
                f"model: {where} has in_channels {settings.in_channels}; the images have {channels} channels"
                f" ({channels + COORDINATE_CHANNELS} with coordinates)"
            )
        if settings.out_channels not in (channels, 2 * channels):
            raise InputError(
                f"model: {where} has out_channels {settings.out_channels}; give {channels}, or {2 * channels} for a "
                "learned variance"
            )
        self.inputs = settings.in_channels
        self.size_multiple = 2 ** (len(settings.block_out_channels) - 1)
        check_size(image_size, self.size_multiple)
        self.tokens: LabelEmbedding | None = None
        if kind == "UNet2DConditionModel":
            # one token; without classes it is the null class of none
            width = settings.cross_attention_dim
            if not isinstance(width, int):
                raise InputError(f"model: {where} has a cross_attention_dim a block; one number is supported")
            if text_width is None:
                self.tokens = LabelEmbedding(num_classes or 0, width)
            elif text_width != width:
                raise InputError(
                    f"text_encoder: is {text_width} wide; {where} attends to {width} (cross_attention_dim)"
                )
        elif text_width is not None:
            raise InputError(f"text_encoder: {where} attends to no text; give a UNet2DConditionModel")
        else:
            classes = settings.num_class_embeds
            wanted = None if num_classes is None else num_classes + 1
            if classes != wanted:
                raise InputError(
                    f"model: {where} has num_class_embeds {classes}; {wanted} are needed (the classes of the data and "
                    "a null class; class_conditional = false: none)"
                )
        self.text_width = text_width
        self.config: dict[str, Any] = {
            **({} if text_width is None else {"text_width": text_width}),
            "name": DIFFUSERS,
            "image_size": image_size,
            "channels": channels,
            "num_classes": num_classes,
            "coordinates": coordinates,
            "learn_sigma": settings.out_channels == 2 * channels,
            "network": {"_class_name": kind, **_plain(settings)},
        }

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None, text: Tensor | None = None) -> Tensor:
        check_condition(x, time, labels, self.inputs, self.num_classes)
        if self.text_width is not None:
            if text is None or text.ndim != 3 or text.shape[::2] != (len(x), self.text_width):
                shape = None if text is None else tuple(text.shape)
                raise InputError(f"text must be [{len(x)}, tokens, {self.text_width}] for this network, not {shape}")
            return self.network(x, time, text, return_dict=False)[0]
        if self.tokens is not None:
            return self.network(x, time, self.tokens(labels, len(x))[:, None], return_dict=False)[0]
        if self.num_classes is None:
            return self.network(x, time, return_dict=False)[0]
        labels = _or_null(labels, x, self.num_classes)
        return self.network(x, time, class_labels=labels, return_dict=False)[0]


def build_diffusers(
    name: str,
    *,
    image_size: int,
    channels: int = 3,
    num_classes: int | None = None,
    dropout: float | None = None,
    network: Mapping[str, Any] | None = None,
    coordinates: bool | None = None,
    learn_sigma: bool | None = None,
    text_width: int | None = None,
    **overrides: Any,
) -> DiffusersNetwork:
    """name "diffusers:FOLDER": the model in FOLDER, or in FOLDER/unet, with its weights where there are some (only
    safetensors are read), else fresh ones. name "diffusers" with `network`: from the settings in a checkpoint.

    coordinates, learn_sigma: what is wanted of it; None: whatever it has. dropout: in place of its own.
    """
    try:
        import diffusers
    except ImportError as error:
        raise MissingDependencyError(
            f"model {name!r} needs diffusers; run: pip install 'prunefast[diffusers]' [{error}]"
        ) from None
    if overrides:
        raise InputError(
            f"model '{name}' has no argument '{next(iter(overrides))}'; edit the config.json of its folder"
        )
    folder = None
    if network is None:
        folder = _model_folder(Path(name.partition(":")[2]))
        network = _read_settings(folder / "config.json")
    kind = network.get("_class_name")
    if kind not in DIFFUSERS_CLASSES:
        raise InputError(f"model: {folder or name} is a {kind}; {' or '.join(DIFFUSERS_CLASSES)} are supported")
    settings = {key: value for key, value in network.items() if not key.startswith("_")}
    if dropout is not None:
        settings["dropout"] = dropout
    factory = getattr(diffusers, kind)
    try:
        if folder is not None and any(folder.glob("diffusion_pytorch_model*.safetensors")):
            changed = {} if dropout is None else {"dropout": dropout}
            built = factory.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False, **changed
            ).float()
        else:
            built = factory.from_config(settings)
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        raise InputError(f"model: {folder or name} cannot be made: {str(error).splitlines()[0]}") from None
    adapted = DiffusersNetwork(
        built, image_size=image_size, channels=channels, num_classes=num_classes, text_width=text_width
    )
    if coordinates is not None and coordinates != adapted.config["coordinates"]:
        raise InputError(
            f"model: {folder or name} has in_channels {adapted.inputs}; patches need {channels + COORDINATE_CHANNELS} "
            "(the images and two coordinates)"
        )
    if learn_sigma is not None and learn_sigma != adapted.config["learn_sigma"]:
        raise InputError(f"model: {folder or name} needs out_channels {2 * channels} for a learned variance")
    return adapted


def _model_folder(path: Path) -> Path:
    for folder in (path, path / "unet"):
        if (folder / "config.json").is_file():
            return folder
    raise InputError(f"model: {path}: no config.json of a diffusers model there, nor in {path / 'unet'}")


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"model: {path}: cannot be read ({error})") from None
    if not isinstance(settings, dict):
        raise InputError(f"model: {path}: is no configuration of a diffusers model")
    return settings


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON holds them, without what diffusers notes for itself."""
    return json.loads(json.dumps({key: value for key, value in settings.items() if not key.startswith("_")}))


def _or_null(labels: Tensor | None, x: Tensor, num_classes: int) -> Tensor:
    return torch.full((len(x),), num_classes, device=x.device) if labels is None else labels


def _prediction(output: Any) -> Tensor:
    output = getattr(output, "sample", output) if not isinstance(output, Tensor) else output
    if isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise InputTypeError(f"model returned a {type(output).__name__}; a tensor [B, C, R, R] is needed")
    return output
