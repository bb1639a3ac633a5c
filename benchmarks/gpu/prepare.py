"""Everything about the data that needs no GPU, in one file that travels: features, coresets, statistics, weights.

    python benchmarks/gpu/prepare.py --data shared/data/cifar10-images.tar.xz \\
        --weights shared/data/cifar_resnet20.safetensors --out gpu-data/gpu-prepared.safetensors

Tensors: resnet20.* (the classifier), features float16 [N, 64] of the training images, mean and covariance float64 of
them, coreset.NAME int32. Metadata: the fingerprint of the data, how each coreset was made, versions.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import prunefast as pf
from prunefast.encode.resnet20 import resnet20_encoder
from prunefast.evaluate.frechet import feature_statistics

KEEP = 0.3
CLUSTERS = 10  # of each class, of equal size in the coreset
LIMIT = 40 << 20
CORESETS: dict[str, dict[str, Any]] = {
    "random": {"method": "random"},
    "gaussian": {"method": "gaussian"},
    "clusters": {"method": "clusters", "k": CLUSTERS, "quota": "equal"},
}


def prepare(data_path: str, weights: str, out: Path, keep: float = KEEP, clusters: int = CLUSTERS) -> dict[str, str]:
    """Writes `out`; returns its metadata."""
    data = pf.open_dataset(data_path)
    out.parent.mkdir(parents=True, exist_ok=True)
    kept = out.with_suffix(".features.npy")  # a call that was stopped goes on from it
    features = np.array(pf.embed(data, encoder=resnet20_encoder(weights), out=kept, progress=True))
    statistics = feature_statistics(features)
    tensors = {f"resnet20.{name}": tensor for name, tensor in load_file(weights).items()}
    tensors["features"] = torch.from_numpy(features).half()
    tensors["mean"] = torch.from_numpy(statistics.mean)
    tensors["covariance"] = torch.from_numpy(statistics.covariance)
    made = {}
    for name, options in CORESETS.items():
        options = options | ({"k": clusters} if "k" in options else {})
        given = {} if name == "random" else {"features": features}
        coreset = pf.select(data, keep=keep, per_class=True, seed=0, **given, **options)
        tensors[f"coreset.{name}"] = torch.from_numpy(coreset.indices.astype(np.int32))
        made[name] = coreset.manifest
    metadata = {
        "fingerprint": data.fingerprint,
        "images": str(len(data)),
        "keep": str(keep),
        "coresets": json.dumps(made),
        "prunefast": pf.__version__,
        "torch": torch.__version__,
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out, metadata)
    size = out.stat().st_size
    if size > LIMIT:
        raise SystemExit(f"{out}: {size / 1e6:.0f} MB; what travels must stay below {LIMIT / 1e6:.0f} MB")
    print(f"{out}: {size / 1e6:.1f} MB, {len(data):,} images, coresets of {', '.join(CORESETS)} at {keep:g}")
    return metadata


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="archive of images with a train split")
    parser.add_argument("--weights", required=True, help="CIFAR ResNet-20, safetensors")
    parser.add_argument("--out", default="gpu-data/gpu-prepared.safetensors", type=Path)
    parser.add_argument("--keep", type=float, default=KEEP)
    given = parser.parse_args()
    prepare(given.data, given.weights, given.out, given.keep)


if __name__ == "__main__":
    main()
