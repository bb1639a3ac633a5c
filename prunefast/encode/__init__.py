"""Surrogate encoders: image -> feature.

    features = prunefast.embed(data, encoder="pixels")

One file an encoder; `make_encoder` knows them all, `embed` runs one over a data set.
"""

from prunefast.encode.embed import embed, embedded
from prunefast.encode.encoder import Encoder
from prunefast.encode.feature_file import open_features
from prunefast.encode.registry import make_encoder

__all__ = ["Encoder", "embed", "embedded", "make_encoder", "open_features"]
