"""Are the samples good, varied and new: Frechet distance, KID, precision and recall, Vendi score, memorisation.

    evaluate(samples, reference, ...) -> Evaluation      images in, numbers and their protocol out

and the same metrics on features you have: `frechet_distance`, `kernel_distance`, `precision_recall`, `vendi_score`,
`memorisation`.
"""

from prunefast.evaluate.evaluate import evaluate
from prunefast.evaluate.frechet import FeatureStatistics, feature_statistics, frechet_distance
from prunefast.evaluate.kid import KernelDistance, kernel_distance
from prunefast.evaluate.memorisation import Memorisation, memorisation
from prunefast.evaluate.precision_recall import PrecisionRecall, precision_recall
from prunefast.evaluate.result import Evaluation
from prunefast.evaluate.vendi import vendi_score

__all__ = [
    "Evaluation",
    "FeatureStatistics",
    "KernelDistance",
    "Memorisation",
    "PrecisionRecall",
    "evaluate",
    "feature_statistics",
    "frechet_distance",
    "kernel_distance",
    "memorisation",
    "precision_recall",
    "vendi_score",
]
