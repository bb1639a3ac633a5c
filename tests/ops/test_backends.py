"""Dispatch: what is said to run does run, PRUNEFAST_ISA is obeyed, and every instruction set gives the same bits."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

from prunefast import _native, ops

# Everything that promises the same bits on every instruction set: random numbers, noising, loss and gradient, distances
# of real-valued data (certified, so decided by float64 sums of one order) and clusters.
DIGEST = """
import hashlib, torch
from prunefast import _native, ops
g = torch.Generator().manual_seed(0)
pos = torch.arange(9)
out = [ops.randn_philox((9, 3, 17, 5), 3, pos), ops.uniform_philox((9, 31), 3, pos)]
x0 = torch.randint(0, 256, (9, 3, 17, 21), generator=g, dtype=torch.uint8)
pred = torch.randn(9, 3, 17, 21, generator=g)
a, b, w = torch.rand(3, 9, generator=g)
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for last in (False, True):
        form = torch.channels_last if last else torch.contiguous_format
        p = pred.to(dtype).clone(memory_format=form).requires_grad_()
        loss, per_sample = ops.denoising_loss(p, x0, (3, pos), a, b, w)
        loss.backward()
        out += [loss.detach(), per_sample.detach(), p.grad, ops.add_noise(x0, a, b, (3, pos), dtype=dtype)]
x, y = torch.randn(400, 37, generator=g), torch.randn(150, 37, generator=g)
out += [*ops.topk(x, y, 5), *ops.topk(x.round(), y.round(), 5), *ops.topk(x, x, 3, exclude_self=True)]
k = ops.kmeans(x, 12, iterations=4)
out += [k.centroids, k.labels]
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for channels in (24, 67):
        image = pred.to(dtype).repeat(1, 23, 1, 1)[:, :channels].contiguous(memory_format=torch.channels_last)
        small = (*torch.randn(2, channels, generator=g), *torch.randn(2, 9, channels, generator=g))
        w = [t.requires_grad_() for t in (image, *small)]
        y = ops.group_norm_silu(w[0], 1 if channels == 67 else 6, *w[1:])
        out += [y.detach(), *torch.autograd.grad(y, w, pred.to(dtype).repeat(1, 23, 1, 1)[:, :channels])]
digest = hashlib.sha256()
for t in out:
    digest.update(t.reshape(-1).view(torch.uint8).numpy().tobytes())
print(_native.isa_in_use(), digest.hexdigest())
"""


def run(isa, script=DIGEST):
    environment = {**os.environ, "PRUNEFAST_ISA": isa, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_every_instruction_set_gives_the_same_bits():
    available = [isa for isa, there in ops.backends()["cpu"]["isas"].items() if there]
    results = {isa: run(isa) for isa in available}
    assert "baseline" in results
    for isa, (used, _) in results.items():
        assert used == isa
    assert len({digest for _, digest in results.values()}) == 1, results


GAUSSIANS = """
import hashlib, torch
from prunefast import _native
from prunefast.ops import native

x = torch.randn(300, 75, generator=torch.Generator().manual_seed(0))
mean, covariance = native.moments(x, None)
factor = covariance.tril() + torch.eye(75)
result = torch.cat([mean, covariance.flatten(), native.mahalanobis(x, None, mean, factor)])
print(_native.isa_in_use(), hashlib.sha256(result.numpy().tobytes()).hexdigest())
"""


def test_gaussians_have_the_same_bits_where_multiply_adds_are_fused():
    isas = ops.backends()["cpu"]["isas"]
    results = {run(isa, GAUSSIANS)[1] for isa in ("avx2", "avx512") if isas[isa]}
    assert len(results) <= 1, results


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_only_the_c_interface_is_visible():
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", _native.__file__], capture_output=True, text=True, check=True
    )
    names = {line.split()[-1] for line in listing.stdout.splitlines()}
    assert "PyInit__native" in names
    assert {name for name in names if not name.startswith("prunefast_")} == {"PyInit__native"}
    needed = subprocess.run(
        ["nm", "-D", "--undefined-only", _native.__file__], capture_output=True, text=True, check=True
    )
    assert not any(word in needed.stdout for word in ("c10", "torch", "at::"))


def test_an_unknown_set_is_ignored():
    assert run("sse9")[0] in ops.backends()["cpu"]["isas"]


def test_backends_tell_what_runs():
    found = ops.backends()
    assert set(found) == {"cpu", "triton", "cuda"}
    assert found["cpu"]["live"]
    assert found["cpu"]["isas"]["baseline"]
    for backend in found.values():
        assert isinstance(backend["live"], bool)
        assert backend["detail"]
        assert "\n" not in backend["detail"]
    if not torch.cuda.is_available():
        assert not found["triton"]["live"]
        assert not found["cuda"]["live"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_computes_the_same_and_does_not_hang():
    script = """
import os, signal, torch
from prunefast import _native, ops
torch.set_num_threads(4)
position = torch.arange(16)
before = ops.randn_philox((16, 70000), 0, position)
child = os.fork()
if child == 0:
    signal.alarm(60)
    after = ops.randn_philox((16, 70000), 0, position)
    os._exit(0 if _native.threads(4) == 1 and (before.numpy() == after.numpy()).all() else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-P", "-c", script], timeout=120).returncode == 0
