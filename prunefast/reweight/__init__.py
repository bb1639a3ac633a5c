"""Class weights by distributionally robust optimisation: what each class should count for in training.

weights = prunefast.reweight(config, reference="full-data-run")
prunefast.train(prunefast.TrainConfig(class_weights=weights, ...))
"""

from prunefast.reweight.ascent import Ascent
from prunefast.reweight.weights import ClassWeights

__all__ = ["Ascent", "ClassWeights", "ReweightOptions", "reweight"]


def __getattr__(name: str) -> object:
    # the training loop is imported with the function: whoever only reads weights does not need it
    if name in ("reweight", "ReweightOptions"):
        from prunefast.reweight import run

        return getattr(run, name)
    raise AttributeError(f"module 'prunefast.reweight' has no attribute {name!r}")
