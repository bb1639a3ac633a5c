"""Peak memory of every step at scale: `python benchmarks/select_memory.py FOLDER [--rows 1000000] [--steps ...]`.

The features are a Gaussian mixture of 1,000 centres with 2 % near copies (half of them exact), made once in FOLDER
(1.5 GB for 1,000,000 x 384), left there and memory-mapped by every step. Steps named "top", "band", ... of "10M" select
a tenth of ten million scores; those with "classes" in the name, a thousand classes. "15k d2" is D2 with its graph on
15,000 x 512, "15k d2 dense" the same by all N x N distances (benchmarks/bench_select.py has both).

Each step is a process of its own. `anonymous_gb` is the peak of its own memory (RssAnon, looked at every 5 ms):
pages of the mapped features are left out, since the system takes them back when it needs them. `peak_gb` is the peak
of everything (VmHWM), those pages and the code of the libraries included. Both in 2^30 bytes, both with the 0.25 that
importing torch and this package takes. `PRUNEFAST_BENCH_PROBES` makes the search for the graph shorter; its memory
hardly depends on it.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from prunefast.files import atomic_path

CENTRES = 1000
TEN_MILLION = 10_000_000
SMALL_FILE, SMALL_SHAPE = "features-15k.npy", (15_000, 512)
BY_SCORE = ("top", "random", "band", "stratified", "interval")


class Data:
    """N images, of `classes` classes in turn."""

    fingerprint = "benchmark"

    def __init__(self, total: int, classes: int = 0):
        import pyarrow as pa
        import pyarrow.compute as pc

        parts = [np.arange(start, min(start + 100_000, total)) for start in range(0, total, 100_000)]
        self.keys = pa.chunked_array([pc.cast(pa.array(part), pa.string()) for part in parts])
        self.labels = np.arange(total) % classes if classes else None
        self.classes = [str(number) for number in range(classes)]

    def __len__(self) -> int:
        return len(self.keys)


def make_features(path: Path, rows: int, columns: int) -> None:
    generator = np.random.Generator(np.random.Philox(0))
    centres = generator.normal(size=(CENTRES, columns)).astype(np.float32)
    with open(path, "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, columns)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, rows, 20_000):
            count = min(20_000, rows - start)
            noise = generator.standard_normal((count, columns), dtype=np.float32)
            block = centres[generator.integers(CENTRES, size=count)] + noise
            copies = count // 100
            block[-copies:] = block[:copies]
            block[-2 * copies : -copies] = block[:copies] + 0.1 * noise[-copies:]
            block.tofile(file)


def make_once(path: Path, shape: tuple[int, int]) -> None:
    if not path.is_file() or np.load(path, mmap_mode="r").shape != shape:
        with atomic_path(path) as temporary:
            make_features(temporary, *shape)


def step(name: str, folder: Path) -> None:
    """One step in this process."""
    facts: dict[str, object] = {}
    work = prepare(name, folder, facts)
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**20
    print(json.dumps({"peak_gb": round(peak, 2), "cpu": round(cpu, 1), "wall": round(wall, 1), **facts}))


def prepare(name, folder, facts):
    """The step as a function; what it needs beforehand is there, its results go into `facts`."""
    import prunefast as pf
    from prunefast.dedup import Deduplication
    from prunefast.dedup.semantic import find_semantic
    from prunefast.graph import KnnGraph, build_graph
    from prunefast.select.compare import compare

    if name.startswith("10M "):
        method = name.split()[1]
        data = Data(TEN_MILLION, 1000 if "classes" in name or "uniform" in name else 0)
        how = {"class_target": "uniform"} if "uniform" in name else {"per_class": data.labels is not None}
        if method != "random":
            how["scores"] = np.random.default_rng(0).normal(size=TEN_MILLION)

        def select():
            facts["coreset"] = pf.select(data, method=method, keep=0.1, **how).fingerprint

        return select

    if name.startswith("15k "):
        from bench_select import dense_d2, our_d2

        x = np.load(folder / SMALL_FILE, mmap_mode="r")
        uniform = np.random.default_rng(0).random(len(x))

        def spread():
            facts["picks"] = len((dense_d2 if "dense" in name else our_d2)(x, uniform, 4500))

        return spread

    features = np.load(folder / "features.npy", mmap_mode="r")
    data = Data(len(features))
    scores = {"gaussian": {}, "ppca": {}, "moderate": {}, "clusters": {"k": 100, "iterations": 5}}
    scores |= {"prototypes": {"k": 100, "iterations": 5}, "coverage": {"draws": 20_000, "planes": 8}}
    selections = {"k-center": {"keep_n": 1000}, "herding": {"keep_n": 100}}
    selections |= {"hierarchical": {"keep": 0.1, "k": 100, "iterations": 5}}

    def graph(metric="l2", k=10):
        made = build_graph(features, k, metric=metric, probes=int(os.environ.get("PRUNEFAST_BENCH_PROBES", "16")))
        made.save(folder / f"knn-{metric}.npz")
        facts.update(made.manifest)

    def load(metric="l2"):
        return KnnGraph.load(folder / f"knn-{metric}.npz")

    def dedup():
        pairs = find_semantic(features, None, 0.1, within=True, graph=load("cosine"))
        found = Deduplication(pairs, np.arange(len(data)), level="semantic", threshold=0.05, max_threshold=0.1)
        facts.update(dropped=len(found.dropped), pairs=len(pairs.first))

    def compared():
        ways = {"gaussian": {"features": features}, "random": {}}
        ways["clusters"] = {"features": features, "k": 100, "iterations": 5}
        sets = {name: pf.select(data, method=name, keep=0.1, **way) for name, way in ways.items()}
        facts["compared"] = len(compare(sets, features, dict.fromkeys(sets, 0.0)).names)

    if name in scores:
        return lambda: pf.score(features, method=name, per_class=False, **scores[name])
    if name in selections:
        return lambda: pf.select(data, features=features, method=name, **selections[name])
    if name in ("knn", "density"):
        return lambda: pf.score(features, method=name, per_class=False, k=5, graph=load())
    uniform = np.random.default_rng(0).random(len(features))
    return {
        "graph": graph,
        "graph cosine": lambda: graph("cosine", 16),
        "d2": lambda: pf.select(data, scores=uniform, graph=load(), method="d2", keep=0.1),
        "facility-location": lambda: pf.select(data, graph=load(), method="facility-location", keep=0.1, k=10),
        "dedup": dedup,
        "compare": compared,
    }[name]


STEPS = ["gaussian", "ppca", "moderate", "clusters", "prototypes", "coverage", "graph", "knn", "density", "d2"]
STEPS += ["facility-location", "k-center", "herding", "hierarchical", "graph cosine", "dedup", "compare"]
STEPS += [f"10M {method}{kind}" for method in BY_SCORE for kind in ("", " classes")] + ["10M top uniform"]
STEPS += ["15k d2", "15k d2 dense"]


def watched(name: str, folder: Path) -> dict[str, object]:
    """The step in a process of its own, with the peak of its anonymous memory."""
    child = subprocess.Popen(
        [sys.executable, __file__, str(folder), "--child", name], stdout=subprocess.PIPE, text=True
    )
    status, anonymous = Path(f"/proc/{child.pid}/status"), 0
    while child.poll() is None:
        found = status.read_text().partition("RssAnon:")[2].split()
        anonymous = max(anonymous, int(found[0]) if found else 0)
        time.sleep(0.005)
    assert child.stdout is not None
    printed = child.stdout.read()
    if child.returncode:
        return {"step": name, "failed": child.returncode}
    return {"step": name, "anonymous_gb": round(anonymous / 2**20, 2), **json.loads(printed)}


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
    if any(not name.startswith(("10M", "15k")) for name in options.steps):
        make_once(options.folder / "features.npy", (options.rows, options.columns))
    if any(name.startswith("15k") for name in options.steps):
        make_once(options.folder / SMALL_FILE, SMALL_SHAPE)
    for name in options.steps:
        load = Path("/proc/loadavg").read_text().split()[0]
        print(json.dumps({**watched(name, options.folder), "load": float(load)}), flush=True)


if __name__ == "__main__":
    main()
