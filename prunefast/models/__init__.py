"""Networks: the UNet of DDPM and DiT, by name."""

from prunefast.models.dit import DiT
from prunefast.models.presets import PRESETS, build_model, count_parameters
from prunefast.models.unet import UNet

__all__ = ["PRESETS", "DiT", "UNet", "build_model", "count_parameters"]
