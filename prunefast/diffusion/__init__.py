"""Diffusion: processes, parameterisations, weightings, the loss, patches and the samplers."""

from prunefast.diffusion.groups import GroupedDenoiser, TimestepGroups, budgets, equal_snr, equal_times
from prunefast.diffusion.loss import DenoisingLoss
from prunefast.diffusion.masking import TokenMasking
from prunefast.diffusion.parameterisation import PREDICTIONS, target_coefficients, to_noise, to_x0
from prunefast.diffusion.patches import Patch, PatchSchedule
from prunefast.diffusion.process import DDPM, EDM, PROCESSES, Flow, Process, make_process
from prunefast.diffusion.samplers import SAMPLERS, Denoiser, ddim, ddpm, euler, heun, heun_times, sample_images
from prunefast.diffusion.variational import HybridLoss
from prunefast.diffusion.weighting import P2, WEIGHTINGS, EDMWeighting, MinSNR, Uniform, Weighting, make_weighting

__all__ = [
    "DDPM",
    "EDM",
    "P2",
    "PREDICTIONS",
    "PROCESSES",
    "SAMPLERS",
    "WEIGHTINGS",
    "Denoiser",
    "DenoisingLoss",
    "EDMWeighting",
    "Flow",
    "GroupedDenoiser",
    "HybridLoss",
    "MinSNR",
    "Patch",
    "PatchSchedule",
    "Process",
    "TimestepGroups",
    "TokenMasking",
    "Uniform",
    "Weighting",
    "budgets",
    "ddim",
    "ddpm",
    "equal_snr",
    "equal_times",
    "euler",
    "heun",
    "heun_times",
    "make_process",
    "make_weighting",
    "sample_images",
    "target_coefficients",
    "to_noise",
    "to_x0",
]
