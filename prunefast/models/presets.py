"""Networks by name."""

from typing import Any

from torch import nn

from prunefast.errors import InputError
from prunefast.models.adapter import DIFFUSERS, MODULE, DiffusersNetwork, build_diffusers
from prunefast.models.dit import DiT
from prunefast.models.edm_unet import EDMUNet
from prunefast.models.masked_dit import MaskedDiT
from prunefast.models.mdt import MDT
from prunefast.models.unet import UNet, check_size
from prunefast.models.widths import set_widths

# name -> (kind, the arguments of its class). Changing a preset leaves old checkpoints alone: `config` stores every
# argument.
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    # 35,746,307 parameters unconditional with 3 channels: the CIFAR-10 network of Ho et al. 2020
    "unet-cifar10": (
        "unet",
        {
            "width": 128,
            "channel_multipliers": [1, 2, 2, 2],
            "blocks": 2,
            "attention_levels": [1],
            "heads": 1,
            "dropout": 0.1,
        },
    ),
    # for images of 16 ... 64 pixels where the full network is too slow
    "unet-small": (
        "unet",
        {
            "width": 48,
            "channel_multipliers": [1, 2, 2],
            "blocks": 2,
            "attention_levels": [1],
            "heads": 1,
            "dropout": 0.1,
        },
    ),
    # for images of 8 ... 32 pixels on a CPU; widths grow towards the small levels, where a convolution is cheap
    "unet-tiny": (
        "unet",
        {
            "width": 16,
            "channel_multipliers": [1, 2, 4],
            "blocks": 1,
            "attention_levels": [1],
            "heads": 1,
            "dropout": 0.1,
        },
    ),
    # 55,733,891 parameters unconditional with 3 channels: Karras et al. 2022, CIFAR-10
    "edm-ddpmpp": (
        "edm",
        {
            "style": "ddpmpp",
            "width": 128,
            "channel_multipliers": [2, 2, 2],
            "blocks": 4,
            "attention_levels": [1],
            "dropout": 0.13,
            "augment_labels": 9,
        },
    ),
    # 295,899,267 parameters with 1,000 classes: Karras et al. 2022, ImageNet at 64 pixels
    "edm-adm": (
        "edm",
        {
            "style": "adm",
            "width": 192,
            "channel_multipliers": [1, 2, 3, 4],
            "blocks": 3,
            "attention_levels": [1, 2, 3],
            "dropout": 0.10,
            "augment_labels": 0,
        },
    ),
    "dit-tiny/2": ("dit", {"patch_size": 2, "depth": 6, "width": 128, "heads": 4, "dropout": 0.0}),
}
_DIT_SIZES = {"s": (12, 384, 6), "b": (12, 768, 12), "l": (24, 1024, 16), "xl": (28, 1152, 16)}  # paper, table 1
for _size, (_depth, _width, _heads) in _DIT_SIZES.items():
    for _patch in (2, 4, 8):
        PRESETS[f"dit-{_size}/{_patch}"] = (
            "dit",
            {"patch_size": _patch, "depth": _depth, "width": _width, "heads": _heads, "dropout": 0.0},
        )

# the decoder of the paper at every size of the encoder (MaskDiT, section 4.1); a small one for small machines
for _name in [name for name in PRESETS if name.startswith("dit-")]:
    _decoder: dict[str, Any] = {"decoder_depth": 8, "decoder_width": 512, "decoder_heads": 16}
    if _name.startswith("dit-tiny"):
        _decoder = {"decoder_depth": 2, "decoder_width": 64, "decoder_heads": 4}
    PRESETS[f"mask{_name}"] = ("maskdit", {**PRESETS[_name][1], **_decoder})
    # the last two blocks decode (MDT, section 4.1); its blocks are those of the DiT and one more, in training only
    PRESETS[_name.replace("dit", "mdt")] = ("mdt", {**PRESETS[_name][1], "decoder_depth": 2})

# arguments that a caller may override beyond those the preset names
_FURTHER: dict[str, dict[str, Any]] = {
    "unet": {"asymmetric_downsample": False, "norm_eps": 1e-6, "learn_sigma": False, "coordinates": False},
    "edm": {"learn_sigma": False, "coordinates": False},
    "dit": {"mlp_ratio": 4.0, "learn_sigma": False, "coordinates": False},
    "maskdit": {"mlp_ratio": 4.0, "learn_sigma": False},
    "mdt": {"mlp_ratio": 4.0, "learn_sigma": False},
}


def build_model(
    name: str,
    *,
    image_size: int,
    channels: int = 3,
    num_classes: int | None = None,
    dropout: float | None = None,
    **overrides: Any,
) -> UNet | EDMUNet | DiT | DiffusersNetwork:
    """A network with fresh weights: forward(x [B, C, R, R], time float32 [B], labels int64 [B] or None) -> [B, C, R,
    R].

        model = build_model("unet-tiny", image_size=16, num_classes=10)
        same = build_model(**model.config)

    Args:
        name: one of `PRESETS`; or "diffusers:FOLDER", a local UNet2DModel or UNet2DConditionModel with its weights.
        image_size: R. UNets take multiples of 2^(levels - 1), DiTs of the patch size.
        channels: of the images.
        num_classes: None: unconditional. Otherwise labels are 0 ... num_classes, the last being the null class.
        dropout: None: the preset's.
        overrides: arguments of `UNet`, `EDMUNet`, `DiT`, `MaskedDiT` or `MDT` by name, in place of the preset's; and
            `widths`, the inner widths of blocks of a pruned network (`prunefast.models.widths`).

    `model.config` holds all of this, resolved, ready for JSON. The weights come from torch's global generator: call
    torch.manual_seed, or fork it, before.
    """
    if name == DIFFUSERS or name.startswith(f"{DIFFUSERS}:"):
        return build_diffusers(
            name, image_size=image_size, channels=channels, num_classes=num_classes, dropout=dropout, **overrides
        )
    if name == MODULE:
        raise InputError(
            "model: this network is a module of its user's and cannot be built from here; pass it (model=)"
        )
    if name not in PRESETS:
        raise InputError(f"model '{name}' is not one of {', '.join(PRESETS)}, or diffusers:FOLDER")
    kind, preset = PRESETS[name]
    widths = dict(overrides.pop("widths", None) or {})
    arguments = {**_FURTHER[kind], **preset}
    for override, value in overrides.items():
        if override not in arguments:
            raise InputError(f"model '{name}' has no argument '{override}'; it has {', '.join(sorted(arguments))}")
        arguments[override] = list(value) if isinstance(value, tuple) else value
    if dropout is not None:
        arguments["dropout"] = dropout
    if not 0 <= arguments["dropout"] < 1:
        raise InputError(f"dropout must be at least 0 and less than 1, not {arguments['dropout']}")
    if image_size < 1:
        raise InputError(f"image_size must be positive, not {image_size}")
    if channels < 1:
        raise InputError(f"channels must be at least 1, not {channels}")
    if num_classes is not None and num_classes < 1:
        raise InputError(f"num_classes must be at least 1, or None for an unconditional model, not {num_classes}")
    model: UNet | EDMUNet | DiT
    if kind in ("unet", "edm"):
        check_size(image_size, 2 ** (len(arguments["channel_multipliers"]) - 1))
        model = (UNet if kind == "unet" else EDMUNet)(channels=channels, num_classes=num_classes, **arguments)
    else:
        transformer = {"dit": DiT, "maskdit": MaskedDiT, "mdt": MDT}[kind]
        model = transformer(image_size=image_size, channels=channels, num_classes=num_classes, **arguments)
    model.config = {
        "name": name,
        "image_size": image_size,
        "channels": channels,
        "num_classes": num_classes,
        **arguments,
    }
    if widths:
        set_widths(model, widths)
        model.config["widths"] = widths
    return model


def count_parameters(model: nn.Module) -> int:
    """Number of trainable numbers."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
