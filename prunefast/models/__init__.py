"""Networks by name: the UNet of DDPM, the two of EDM, and DiT."""

from prunefast.models.dit import DiT
from prunefast.models.edm_unet import EDMUNet
from prunefast.models.presets import PRESETS, build_model, count_parameters
from prunefast.models.unet import UNet

__all__ = ["PRESETS", "DiT", "EDMUNet", "UNet", "build_model", "count_parameters"]
