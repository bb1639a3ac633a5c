"""The CUDA module as built: architectures, registers, wide accesses, symbols; and what it says without a driver."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

_cuda = pytest.importorskip("prunefast._cuda", reason="built without CUDA kernels (no nvcc)", exc_type=ImportError)

ARCHITECTURES = ["sm_80", "sm_90", "sm_100"]
SHARED_LIMIT = 48 * 1024  # static shared memory of a block on every architecture


def find_cuobjdump():
    """From the toolkit, or the copy that Triton brings; with the folder of nvdisasm for its PATH."""
    found = shutil.which("cuobjdump")
    if found:
        return found
    try:
        import triton
    except ImportError:
        return None
    ours = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return str(ours) if ours.exists() else None


cuobjdump = find_cuobjdump()
needs_cuobjdump = pytest.mark.skipif(cuobjdump is None, reason="needs cuobjdump (CUDA toolkit or Triton)")


def dump(*arguments):
    environment = {**os.environ, "PATH": f"{Path(cuobjdump).parent}:{os.environ['PATH']}"}
    command = [cuobjdump, *arguments, _cuda.__file__]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


@needs_cuobjdump
def test_architectures():
    built = set(re.findall(r"sm_\d+", dump("--list-elf")))
    assert built == set(ARCHITECTURES)
    assert set(re.findall(r"sm_\d+", dump("--list-ptx"))) == {"sm_100"}  # for GPUs to come
    assert _cuda.architectures() == "80, 90, 100"


@needs_cuobjdump
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_spills_and_shared_memory_within_limits(architecture):
    usage = re.findall(r"Function (\S+?):\s+(REG:.*)", dump("-arch", architecture, "--dump-resource-usage"))
    assert len(usage) > 40
    for name, line in usage:
        numbers = {key: int(value) for key, value in re.findall(r"([A-Z]+):(\d+)", line)}
        assert numbers["STACK"] == 0, name
        assert numbers["LOCAL"] == 0, name
        assert numbers["SHARED"] <= SHARED_LIMIT, name
        assert numbers["REG"] <= 128, name  # two blocks of 256 threads a multiprocessor at least


# kernel -> (loads, stores) of 16 bytes that its code has at least
WIDE = {
    "loss_kernel": {"tensor": (4, 1), "linear": (3, 1)},
    "noise_kernel": {"tensor": (3, 1), "linear": (2, 1)},
    "philox_kernelILi2EfLb1": (0, 1),
    "part_kernel": (1, 0),
    "moments_kernel": (2, 0),
    "gradient_sums_kernel": (4, 0),
    "14forward_kernel": (3, 1),
    "15backward_kernel": (4, 1),
}


def wide_accesses(architecture):
    """{function: (16-byte loads, 16-byte stores)}."""
    counts, name = {}, None
    for line in dump("-arch", architecture, "-sass").splitlines():
        header = re.search(r"Function : (\S+)", line)
        if header:
            name = header[1]
            counts[name] = [0, 0]
        elif name and re.search(r"\bLDG\.E\.128", line):
            counts[name][0] += 1
        elif name and re.search(r"\bSTG\.E\.128", line):
            counts[name][1] += 1
    return counts


@needs_cuobjdump
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_accesses_of_16_bytes(architecture):
    counts = wide_accesses(architecture)
    for kernel, least in WIDE.items():
        mine = {name: found for name, found in counts.items() if kernel in name}
        assert mine, kernel
        for name, (loads, stores) in mine.items():
            if isinstance(least, dict):
                if "NoiseE2" in name:  # pixels of channels_last with Philox: four values of one channel
                    continue
                wanted = least["tensor" if "NoiseE0" in name else "linear"]
            else:
                wanted = (0, 0) if kernel == "part_kernel" and "ILb0E" in name else least
            assert loads >= wanted[0], (name, loads)
            assert stores >= wanted[1], (name, stores)


@needs_cuobjdump
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_atomics(architecture):
    assert not re.search(r"\b(ATOM|ATOMG|RED)\.", dump("-arch", architecture, "-sass"))


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_symbols():
    listing = subprocess.run(["nm", "-D", "--defined-only", _cuda.__file__], capture_output=True, text=True, check=True)
    names = {line.split()[-1] for line in listing.stdout.splitlines()}
    assert "PyInit__cuda" in names
    assert {name for name in names if not name.startswith("prunefast_cuda_")} == {"PyInit__cuda"}


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
def test_needs_neither_driver_nor_runtime_to_load():
    done = subprocess.run(["readelf", "-d", _cuda.__file__], capture_output=True, text=True, check=True)
    needed = re.findall(r"NEEDED.*\[(.*)\]", done.stdout)
    assert needed
    assert not [name for name in needed if re.search("cuda|torch|c10|stdc", name)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_a_call_explains_itself():
    count, reason = _cuda.devices()
    assert count == 0
    assert re.search("no CUDA driver|finds no GPU|driver serves", reason)
    out, position = torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(RuntimeError, match=r"philox: (no CUDA driver|the driver)"):
        _cuda.philox(2, out.data_ptr(), 0, 2, 5, 0, 0, position.data_ptr(), 0, 0)
    assert not out.any()


def test_bad_arguments_are_a_status_not_a_crash():
    with pytest.raises(RuntimeError, match="philox: sizes"):
        _cuda.philox(2, 0, 0, -1, 5, 0, 0, 0, 0, 0)
    with pytest.raises(RuntimeError, match="class_sums: negative size"):
        _cuda.class_sums(0, -1, 0, 0, 0, 1, 0, 0, 0, 0)
    empty = (0,) * 16
    with pytest.raises(RuntimeError, match="group_norm_silu: sizes"):
        _cuda.group_norm_silu((*empty, 0), 0, 0, 0, 0)
