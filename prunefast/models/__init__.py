"""Networks by name: the UNet of DDPM, the two of EDM, DiT and the two masked ones."""

from prunefast.models.adapter import DiffusersNetwork, ModuleNetwork
from prunefast.models.dit import DiT
from prunefast.models.edm_unet import EDMUNet
from prunefast.models.masked_dit import MaskedDiT
from prunefast.models.mdt import MDT
from prunefast.models.presets import PRESETS, build_model, count_parameters
from prunefast.models.unet import UNet

__all__ = [
    "MDT",
    "PRESETS",
    "DiT",
    "DiffusersNetwork",
    "EDMUNet",
    "MaskedDiT",
    "ModuleNetwork",
    "UNet",
    "build_model",
    "count_parameters",
]
