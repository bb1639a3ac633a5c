"""Operators over the native core: checks, torch registration and autograd. docs/ops/ has a page an operator."""

from prunefast.ops.add_noise import add_noise
from prunefast.ops.backends import backends
from prunefast.ops.conv3x3 import conv3x3
from prunefast.ops.crop import Boxes
from prunefast.ops.denoising_loss import denoising_loss
from prunefast.ops.gaussian import Gaussian, fit_gaussian, gaussian_log_likelihood
from prunefast.ops.group_norm_silu import group_norm_silu
from prunefast.ops.hamming import HammingPairs, hamming_join
from prunefast.ops.kmeans import KMeans, kmeans
from prunefast.ops.nearest import nearest
from prunefast.ops.philox import Stream, randn_philox, uniform_philox
from prunefast.ops.ppca import Ppca, fit_ppca, ppca_log_likelihood
from prunefast.ops.topk import topk

__all__ = [
    "Boxes",
    "Gaussian",
    "HammingPairs",
    "KMeans",
    "Ppca",
    "Stream",
    "add_noise",
    "backends",
    "conv3x3",
    "denoising_loss",
    "fit_gaussian",
    "fit_ppca",
    "gaussian_log_likelihood",
    "group_norm_silu",
    "hamming_join",
    "kmeans",
    "nearest",
    "ppca_log_likelihood",
    "randn_philox",
    "topk",
    "uniform_philox",
]
