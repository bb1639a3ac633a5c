"""The Triton kernels, compiled ahead of time for three generations of GPU on a machine that has none."""

import re

import pytest

triton = pytest.importorskip("triton")

from prunefast.kernels import denoising_loss, philox  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

ARCHITECTURES = [80, 90, 100]


def compile_for(kernel, architecture, pointers, constants):
    """`pointers`: argument -> type; every other argument is an int32 unless it is a constant."""
    signature = {}
    for name in kernel.arg_names:
        signature[name] = "constexpr" if name in constants else pointers.get(name, "i32")
    aligned = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in pointers}
    source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": 4})


def check_resources(compiled):
    ptx = compiled.asm["ptx"]
    assert "ld.local" not in ptx
    assert "st.local" not in ptx
    assert compiled.metadata.shared <= 48 * 1024
    assert compiled.asm["cubin"]
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
