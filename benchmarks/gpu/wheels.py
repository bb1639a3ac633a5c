"""Downloads the wheels that the GPU machine lacks, for its Python, and cuts large ones into parts that may travel.

    python benchmarks/gpu/wheels.py --out gpu-data/wheels                    # what prunefast needs
    python benchmarks/gpu/wheels.py --out gpu-data/wheels --peers            # and diffusers, to be measured beside
    python benchmarks/gpu/wheels.py --out gpu-data/dali --dali               # what the stage `decode` needs: 270 MB

docs/gpu.md lists what the machine has. Nothing is resolved: each wheel is named here.
"""

import argparse
import subprocess
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpu.parts import PART_BYTES, split_file

PYTHON = "3.12"
# of the machine's glibc and older; pip matches each exactly
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any")
# prunefast imports tomli_w and tqdm everywhere and jinja2 in reports; without simplejpeg Pillow decodes, slower
NEEDED = ("tomli-w>=1.1", "jinja2>=3.1", "markupsafe", "tqdm>=4.66", "simplejpeg>=1.8")
# what `import nvidia.dali` and decoding JPEG take; its other dependencies are for other formats and for development
DALI = ("nvidia-dali-cuda130>=2.4", "nvidia-nvimgcodec-cu13>=0.9,<0.10", "nvidia-libnvcomp-cu13", "nvidia-nvjpeg")
DALI += ("astunparse", "gast", "six", "optree", "packaging")
PEERS = ("diffusers>=0.35", "importlib-metadata", "zipp")


def download(requirement: str, out: Path) -> None:
    """One wheel; a version that is there already is not fetched again."""
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    where = ["--python-version", PYTHON, "--implementation", "cp", *platforms]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", *where]
    done = subprocess.run([*command, "-d", str(out), requirement], capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()]
        raise SystemExit(f"{requirement}: {lines[-1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="gpu-data/wheels", type=Path)
    parser.add_argument("--peers", action="store_true", help="also diffusers")
    parser.add_argument("--dali", action="store_true", help="DALI instead, for the stage decode")
    parser.add_argument("more", nargs="*", metavar="PACKAGE==VERSION", help="further wheels")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for requirement in (*(DALI if given.dali else NEEDED), *(PEERS if given.peers else ()), *given.more):
        download(requirement, given.out)
    total = 0
    for wheel in sorted(given.out.glob("*.whl")):
        for part in split_file(wheel, PART_BYTES):
            total += part.stat().st_size
            print(f"{part.stat().st_size / 1e6:6.1f} MB  {part.name}")
    print(f"{total / 1e6:6.1f} MB together")


if __name__ == "__main__":
    main()
