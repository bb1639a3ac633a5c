"""The Triton kernels, compiled ahead of time for three generations of GPU on a machine that has none."""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from prunefast.kernels import add_noise, denoising_loss, group_norm_silu, mahalanobis, nearest, philox, topk  # noqa: E402
from prunefast.kernels.configs import load  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

ARCHITECTURES = [80, 90, 100]


STACK_LIMIT = 16  # bytes: Triton 3.6 leaves 8 in two kernels, at 128 registers; newer versions none
SHARED_LIMITS = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}


def compile_for(kernel, architecture, pointers, constants, multiples=(), **options):
    """`pointers`: argument -> type (or "fp32"); every other argument is an int32 unless it is a constant.

    `multiples` name the integers that are multiples of 16 in use, which the run-time compiler finds out by itself.
    """
    signature = {}
    for name in kernel.arg_names:
        signature[name] = "constexpr" if name in constants else pointers.get(name, "i32")
    wide = [name for name, kind in pointers.items() if kind.startswith("*")]
    aligned = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in (*wide, *multiples)}
    source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": 4, **options})


def find_cuobjdump():
    found = shutil.which("cuobjdump") or Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return str(found) if Path(found).exists() else None


def check_resources(compiled, shared_limit=48 * 1024):
    ptx = compiled.asm["ptx"]
    assert "ld.local" not in ptx
    assert "st.local" not in ptx
    assert compiled.metadata.shared <= shared_limit
    assert compiled.asm["cubin"]
    tool = find_cuobjdump()
    if tool:  # what ptxas made of it: no stack frame, nothing spilt
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            done = subprocess.run(
                [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
            )
        stack, local = map(int, re.findall(r"(?:STACK|LOCAL):(\d+)", done.stdout))
        assert stack <= STACK_LIMIT, done.stdout
        assert local == 0, done.stdout
    return ptx


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("out", ["*fp32", "*bf16"])
def test_philox(architecture, out):
    constants = {"NORMAL": True, "WORDS": False, "QUADS": philox.BLOCK_QUADS}
    compiled = compile_for(philox.philox_kernel, architecture, {"out": out, "position": "*i64"}, constants)
    ptx = check_resources(compiled)
    assert re.search(
        r"mul\.hi\.u32|mul\.wide\.u32", ptx
    )  # the cipher's product is one instruction, not a 64-bit emulation
    assert not re.search(r"lg2\.approx|sin\.approx|cos\.approx", ptx)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize("pred", ["*fp32", "*bf16", "*fp16"])
def test_denoising_loss(architecture, random, pred):
    pointers = {
        "pred": pred,
        "gradient": pred,
        "x0": "*u8",
        "noise": "*fp32",
        "position": "*i64",
        "corner": "*i64",
        "flip": "*u8",
        **dict.fromkeys(("a", "b", "scale", "partial"), "*fp32"),
    }
    constants = {"PHILOX": random, "CROP": True, "FLIP": True, "GRADIENT": True, "QUADS": philox.BLOCK_QUADS}
    check_resources(compile_for(denoising_loss.denoising_loss_kernel, architecture, pointers, constants))


STRIDES = [f"{name}_{axis}" for name in ("x0", "noise", "out") for axis in ("sample", "channel", "row")]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize("out", ["*fp32", "*bf16"])
def test_add_noise(architecture, random, out):
    pointers = {"x0": "*u8", "noise": "*fp32", "position": "*i64", "corner": "*i64", "flip": "*u8", "out": out}
    pointers |= {"alpha": "*fp32", "sigma": "*fp32"}
    constants = {"PHILOX": random, "CROP": True, "FLIP": True, "COORDINATES": True, "QUADS": philox.BLOCK_QUADS}
    check_resources(compile_for(add_noise.add_noise_kernel, architecture, pointers, constants, STRIDES))


MATRIX_INSTRUCTION = {80: r"mma\.sync", 90: r"wgmma", 100: r"tcgen05\.mma"}


def check_product(compiled, architecture):
    ptx = check_resources(compiled, SHARED_LIMITS[architecture])
    assert re.search(MATRIX_INSTRUCTION[architecture], ptx)
    assert re.search(r"ld\.global[.a-z0-9:]*\.v4|cp\.async[.a-z0-9:]* .*0x10|cp\.async\.bulk", ptx)


SCORE_POINTERS = {"x": "*fp16", "y": "*fp16", "start_score": "*fp32", "scale": "*fp32", "limits": "*fp32"}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("entry", "certify"), [("safe", True), ("tuned", True), ("tuned", False)])
def test_nearest(architecture, entry, certify):
    entries = load("nearest")
    tile = dict(entries["safe"] if entry == "safe" else entries[str(architecture)])
    options = {name: tile.pop(name) for name in ("num_warps", "num_stages")}
    pointers = {
        **SCORE_POINTERS,
        "length": "*fp32",
        "index": "*i64",
        "undecided": "*i64",
        "count": "*i32",
        "slack": "fp32",
    }
    constants = {"CERTIFY": certify, "SELF": False, "PRECISION": "ieee"}
    constants |= {name.upper(): value for name, value in tile.items()}
    compiled = compile_for(nearest.score_kernel, architecture, pointers, constants, ["padded"], **options)
    check_product(compiled, architecture)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores(architecture):
    tile = dict(load("nearest")[str(architecture)])
    options = {name: tile.pop(name) for name in ("num_warps", "num_stages")}
    constants = {"SELF": True, "PRECISION": "ieee", **{name.upper(): value for name, value in tile.items()}}
    pointers = {**SCORE_POINTERS, "out": "*fp32"}
    compiled = compile_for(topk.scores_kernel, architecture, pointers, constants, ["padded", "others"], **options)
    check_product(compiled, architecture)


@pytest.mark.parametrize("architecture", [80, 90])  # sm_100 takes cuBLAS: Triton has no float64 product for it yet
@pytest.mark.parametrize("x", ["*fp32", "*fp64"])
def test_mahalanobis(architecture, x):
    entries = load("mahalanobis")
    tile = dict(entries.get(str(architecture), entries["safe"]))
    options = {name: tile.pop(name) for name in ("num_warps", "num_stages")}
    constants = {name.upper(): value for name, value in tile.items()}
    pointers = {"x": x, **dict.fromkeys(("mean", "weight", "out"), "*fp64")}
    multiples = ["columns", "row_stride"]
    compiled = compile_for(mahalanobis.row_norm_kernel, architecture, pointers, constants, multiples, **options)
    ptx = check_resources(compiled, SHARED_LIMITS[architecture])
    assert re.search(r"mma\.sync[.a-z0-9]*\.f64", ptx)
    assert "tf32" not in ptx


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("inner", [False, True])
def test_what_surrounds_the_score(architecture, inner):
    floats = {"x": "*fp32", "y": "*fp32"}
    lists = {"index": "*i64", "distance": "*fp32", "undecided": "*i64", "count": "*i32", "unit": "fp32"}
    constants = {"INNER": inner, "SELF": True, "COLUMNS": 64, "DEPTH": 32}
    strides = ["row_stride", "y_row_stride"]
    check_resources(compile_for(nearest.exact_kernel, architecture, {**floats, **lists}, constants, strides))
    pointers = {**floats, "index": "*i64", "distance": "*fp32"}
    constants = {"INNER": inner, "PAIRS": 32, "DEPTH": 64}
    check_resources(compile_for(nearest.distance_kernel, architecture, pointers, constants, strides))
    pointers = dict.fromkeys(("x", "centre", "length", "scale", "common_scale"), "*fp32") | {"half": "*fp16"}
    constants = {"OWN_SCALE": inner, "BLOCK": 512}
    check_resources(compile_for(nearest.pack_kernel, architecture, pointers, constants, ["row_stride", "padded"]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("x", ["*fp32", "*bf16"])
def test_group_norm_silu(architecture, x):
    tile = {"PIXELS": group_norm_silu.PIXELS, "CHANNELS": group_norm_silu.CHANNELS}
    tables = dict.fromkeys(("centre", "factor", "offset_of", "inner", "constant", "partial"), "*fp32")
    images = dict.fromkeys(("x", "dy", "y", "dx"), x)
    for name in ("moments_kernel", "forward_kernel", "gradient_sums_kernel", "backward_kernel"):
        kernel = getattr(group_norm_silu, name)
        pointers = {key: kind for key, kind in (tables | images).items() if key in kernel.arg_names}
        constants = tile if name == "moments_kernel" else {**tile, "SILU": True}
        ptx = check_resources(compile_for(kernel, architecture, pointers, constants, ["channels"]))
        assert re.search(r"ld\.global[.a-z0-9:]*\.v4", ptx), name
