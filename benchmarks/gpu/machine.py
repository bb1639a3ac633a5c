"""Which machine and which sources a result belongs to. Standard library and command lines only; nothing is changed."""

import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from gpu.job import ROOT

SOURCES = ("CMakeLists.txt", "pyproject.toml", "csrc", "kernels", "prunefast", "benchmarks/gpu")
PACKAGES = ("torch", "triton", "torchvision", "numpy", "diffusers", "faiss-gpu", "faiss-gpu-cu12", "faiss-gpu-cuvs")


def answer(*command: str) -> str | None:
    """The last line a command prints, or None where it is not there or fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=ROOT)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[-1].strip() if done.returncode == 0 and lines else None


def tree_digest() -> str:
    """16 hex digits over the sources: a copy of the tree may come without its history."""
    digest = hashlib.sha256()
    for name in SOURCES:
        top = ROOT / name
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".so", ".pyc"):
                digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe() -> dict[str, Any]:
    query = "--query-gpu=name,driver_version,memory.total"
    gpu = answer("nvidia-smi", query, "--format=csv,noheader")
    name, driver, memory = (part.strip() for part in gpu.split(",")) if gpu else (None, None, None)
    return {
        "gpu": name,
        "driver": driver,
        "gpu_memory": memory,
        "nvcc": answer("nvcc", "--version"),
        "cpu": processor(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {package: found for package in PACKAGES if (found := version(package))},
        "commit": os.environ.get("PRUNEFAST_COMMIT") or answer("git", "rev-parse", "HEAD"),
        "tree": tree_digest(),
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
