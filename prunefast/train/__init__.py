"""Training: the loop, its configuration, the moving average, checkpoints, and sampling from them."""

from prunefast.train.config import PRESETS, TrainConfig
from prunefast.train.exchange import export_model, import_model
from prunefast.train.interrupt import TrainingStopped
from prunefast.train.log import TIMING_KEYS, read_metrics
from prunefast.train.loop import TrainResult, train
from prunefast.train.posthoc import ChosenAverage, choose_ema
from prunefast.train.sample import sample
from prunefast.train.state import find_checkpoint

__all__ = [
    "PRESETS",
    "TIMING_KEYS",
    "ChosenAverage",
    "TrainConfig",
    "TrainResult",
    "TrainingStopped",
    "choose_ema",
    "export_model",
    "find_checkpoint",
    "import_model",
    "read_metrics",
    "sample",
    "train",
]
