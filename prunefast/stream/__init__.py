"""A coreset as batches on the device: by index, in an order that depends on the seed and the position alone."""

from prunefast.stream.dali import DaliOptions
from prunefast.stream.dynamic import DynamicPruning
from prunefast.stream.loader import Batch, CoresetLoader
from prunefast.stream.order import epoch_order
from prunefast.stream.sampler import CoresetSampler

__all__ = ["Batch", "CoresetLoader", "CoresetSampler", "DaliOptions", "DynamicPruning", "epoch_order"]
