"""Random scores: the baseline that every method has to beat, and often does not.

Score i is the i-th draw of a Philox generator keyed by the seed: uniform in [0, 1), the same on every machine, and a
larger data set only adds draws at the end.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RandomOptions:
    """No options: the seed is an argument of `score` and `select`."""


DIRECTION = "uniform random numbers; the largest are kept"


def random_scores(rows: int, seed: int, stream: int = 0) -> np.ndarray:
    """float64 [rows] in [0, 1). O(N). Another `stream` for a method that draws too: it shares nothing with "random"."""
    return np.random.Generator(np.random.Philox(key=[seed, stream])).random(rows)
