"""Fair selection of a skewed data set without labels: how far are the kept class counts from uniform?

    python benchmarks/skewed_cifar10.py CIFAR10 --encoder resnet20-cifar:WEIGHTS

CIFAR-10 is skewed first: of classes 0 to 4 all training images stay, of 5 to 9 every `--skew`-th. A tenth of what is
left is then kept by each way of selecting; KL(kept || uniform) = sum_c p_c log(C p_c) in nats, 0 where every class has
the same number. Only the last way looks at labels. The experiment of "Data Pruning in Generative Diffusion Models"
(arXiv 2411.12523) in kind; its own is on attributes of faces.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import prunefast as pf

WAYS = {
    "random": {"method": "random"},
    "clusters, proportional": {"method": "clusters", "quota": "proportional", "pick": "random"},
    "clusters, equal": {"method": "clusters", "quota": "equal", "pick": "random"},
    "hierarchical": {"method": "hierarchical"},
    "facility location": {"method": "facility-location"},
    "k-center": {"method": "k-center"},
    "label-aware": {"method": "random", "class_target": "uniform"},
}
CLUSTERED = ("clusters", "hierarchical")


@dataclass
class Skewed:
    """What `select` looks at, of a part of a data set."""

    labels: np.ndarray
    classes: list[str]
    keys: list[str]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.labels)


def skewed_rows(labels: np.ndarray, skew: int) -> np.ndarray:
    """int64: all images of the first half of the classes, every `skew`-th of each of the others."""
    half = (labels.max() + 1) // 2
    rows = [np.flatnonzero(labels == c)[:: 1 if c < half else skew] for c in range(labels.max() + 1)]
    return np.sort(np.concatenate(rows))


def divergence(labels: np.ndarray, classes: int) -> float:
    """KL of the class shares of `labels` from uniform, in nats."""
    share = np.bincount(labels, minlength=classes) / len(labels)
    share = share[share > 0]
    return float((share * np.log(classes * share)).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="CIFAR-10 in any form prunefast opens")
    parser.add_argument("--encoder", default="pixels")
    parser.add_argument("--features", type=Path, help="features.npy to write, or to read where they are there already")
    parser.add_argument("--skew", type=int, default=10)
    parser.add_argument("--keep", type=float, default=0.1)
    parser.add_argument("--k", type=int, nargs="*", default=[10, 27, 100, 300], help="clusters")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS), help="of selecting")
    options = parser.parse_args()
    data = pf.open_dataset(options.data)
    features = pf.embed(data, encoder=options.encoder, out=options.features, progress=True)
    rows = skewed_rows(data.labels, options.skew)
    part = Skewed(
        data.labels[rows], list(data.classes), [data.keys[i] for i in rows], f"{data.fingerprint}:{options.skew}"
    )
    counts = np.bincount(part.labels)
    print(f"{options.encoder}: {len(part):,} images, {counts.tolist()}, KL {divergence(part.labels, len(counts)):.3f}")
    print("| selection | k | KL, mean of seeds (range) | smallest class | largest class | seconds |")
    print("|---|---|---|---|---|---|")
    for name in options.ways:
        way = WAYS[name]
        for k in options.k if way["method"] in CLUSTERED else [None]:
            found, kept = [], []
            begun = time.perf_counter()
            for seed in range(options.seeds):
                more = {} if k is None else {"k": k}
                inputs = {} if way["method"] == "random" else {"features": features[rows]}
                coreset = pf.select(part, keep=options.keep, seed=seed, **way, **more, **inputs)
                found.append(divergence(part.labels[coreset.indices], len(counts)))
                kept.append(np.bincount(part.labels[coreset.indices], minlength=len(counts)))
            seconds = (time.perf_counter() - begun) / options.seeds
            small, large = np.min(kept, axis=1).mean(), np.max(kept, axis=1).mean()
            spread = f"{np.mean(found):.3f} ({min(found):.3f} to {max(found):.3f})"
            print(f"| {name} | {k or ''} | {spread} | {small:.0f} | {large:.0f} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
