"""Class weights by distributionally robust optimisation: what each class should count for in training.

weights = prunefast.reweight(config, reference="full-data-run")
prunefast.train(prunefast.TrainConfig(class_weights=weights, ...))
"""

from typing import TYPE_CHECKING, Any

from prunefast.reweight.ascent import Ascent
from prunefast.reweight.weights import ClassWeights

if TYPE_CHECKING:
    from prunefast.reweight.run import ReweightOptions, reweight

__all__ = ["Ascent", "ClassWeights", "ReweightOptions", "reweight"]


def __getattr__(name: str) -> Any:
    # the training loop is imported with the function: whoever only reads weights does not need it
    if name in ("reweight", "ReweightOptions"):
        from prunefast.reweight import run

        return getattr(run, name)
    raise AttributeError(f"module 'prunefast.reweight' has no attribute {name!r}")
