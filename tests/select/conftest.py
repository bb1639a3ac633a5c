"""A stand-in for a data set: only what a selection looks at."""

import numpy as np
import pytest


class Data:
    def __init__(self, labels=None, total=None, classes=None, fingerprint="f" * 64, keys=None):
        self.labels = None if labels is None else np.asarray(labels, dtype=np.int64)
        total = len(self.labels) if total is None else total
        names = [] if self.labels is None else [f"class{c}" for c in range(int(self.labels.max(initial=-1)) + 1)]
        self.classes = names if classes is None else classes
        self.keys = [f"{i:05}.png" for i in range(total)] if keys is None else keys
        self.fingerprint = fingerprint

    def __len__(self):
        return len(self.keys)


@pytest.fixture(scope="session")
def make_data():
    return Data
