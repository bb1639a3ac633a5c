"""Peak memory of every step over memory-mapped features: `python benchmarks/select_memory.py FOLDER [--rows 1000000]`.

Each step is a process of its own; what is printed is its peak resident memory (VmHWM, the pages of the mapped features
that it touched included), CPU seconds and wall seconds. The features are a Gaussian mixture of 1,000 centres, made
once in FOLDER (1.5 GB for 1,000,000 x 384) and left there.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np


class Data:
    """N images without classes."""

    labels = None
    classes = ()
    fingerprint = "benchmark"

    def __init__(self, total: int):
        import pyarrow as pa
        import pyarrow.compute as pc

        self.keys = pc.cast(pa.array(np.arange(total)), pa.string())

    def __len__(self) -> int:
        return len(self.keys)


def make_features(path: Path, rows: int, columns: int) -> None:
    generator = np.random.Generator(np.random.Philox(0))
    centres = generator.normal(size=(1000, columns)).astype(np.float32)
    with open(path, "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, columns)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, rows, 20_000):
            count = min(20_000, rows - start)
            noise = generator.standard_normal((count, columns), dtype=np.float32)
            (centres[generator.integers(1000, size=count)] + noise).tofile(file)


def step(name: str, folder: Path) -> None:
    """One step in this process."""
    import prunefast as pf
    from prunefast.graph import KnnGraph, build_graph

    features = np.load(folder / "features.npy", mmap_mode="r")
    scores = {name: {} for name in ("gaussian", "ppca", "moderate")} | {"clusters": {"k": 100, "iterations": 5}}
    scores |= {"prototypes": {"k": 100, "iterations": 5}, "coverage": {"draws": 20_000, "planes": 8}}
    data = Data(len(features))
    facts: dict[str, object] = {}
    wall, cpu = time.perf_counter(), time.process_time()
    if name in scores:
        pf.score(features, method=name, per_class=False, **scores[name])
    elif name == "graph":
        graph = build_graph(features, 10)
        graph.save(folder / "knn.npz")
        facts = graph.manifest
    elif name in ("knn", "density"):
        pf.score(features, method=name, per_class=False, k=5, graph=KnnGraph.load(folder / "knn.npz"))
    elif name == "k-center":
        pf.select(data, features=features, method=name, keep_n=1000)
    elif name == "d2":
        uniform = np.random.default_rng(0).random(len(features))
        pf.select(data, scores=uniform, graph=KnnGraph.load(folder / "knn.npz"), method=name, keep=0.1)
    elif name == "facility-location":
        pf.select(data, graph=KnnGraph.load(folder / "knn.npz"), method=name, keep=0.1, k=10)
    elif name == "hierarchical":
        pf.select(data, features=features, method=name, keep=0.1, k=100, iterations=5)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 2**20
    print(json.dumps({"step": name, "peak_gb": round(peak, 2), "cpu": round(cpu, 1), "wall": round(wall, 1), **facts}))


STEPS = ["gaussian", "ppca", "moderate", "clusters", "prototypes", "coverage", "graph", "knn", "density", "d2"]
STEPS += ["facility-location", "k-center", "hierarchical"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=384)
    parser.add_argument("--steps", nargs="*", default=STEPS, choices=STEPS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        step(options.child, options.folder)
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / "features.npy"
    if not path.is_file() or np.load(path, mmap_mode="r").shape != (options.rows, options.columns):
        make_features(path, options.rows, options.columns)
    for name in options.steps:
        done = subprocess.run([sys.executable, __file__, str(options.folder), "--child", name], check=False)
        if done.returncode:
            print(json.dumps({"step": name, "failed": done.returncode}), flush=True)
    print(f"load {Path('/proc/loadavg').read_text().split()[0]}", flush=True)


if __name__ == "__main__":
    main()
