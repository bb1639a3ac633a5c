"""A coreset in the forms that other tools read: `prunefast.export(data, coreset, "out", to="webdataset")`.

Bytes are copied or linked as they lie, never encoded again; only raw pixels (arrays, CIFAR batches), which are no image
files yet, become PNG, without loss.
"""

from prunefast.export.export import FORMATS, export

__all__ = ["FORMATS", "export"]
