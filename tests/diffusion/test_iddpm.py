"""IDDPM's setting: 4,000 times, a learned variance, sampling over a part of the times (Nichol & Dhariwal 2021)."""

import json
import math

import numpy as np
import pytest
import torch

from prunefast.cli import main
from prunefast.diffusion import Denoiser, HybridLoss, make_process
from prunefast.diffusion.samplers import ddpm
from prunefast.errors import InputError
from prunefast.models import build_model
from prunefast.train.state import find_checkpoint

F64 = torch.float64


def test_cosine_of_4000_times():
    """abar_t = f(t) / f(0), f(t) = cos^2((t / T + 0.008) / 1.008 pi / 2); betas at most 0.999 (their eq. 17)."""
    process = make_process("ddpm-cosine:4000")
    assert (process.name, process.steps) == ("ddpm-cosine:4000", 4000)
    f = [math.cos((t / 4000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(4001)]
    betas = np.minimum(1 - np.array(f[1:]) / np.array(f[:-1]), 0.999)
    alpha, _ = process.alpha_sigma(torch.arange(4000), F64)
    np.testing.assert_allclose(alpha.numpy() ** 2, np.cumprod(1 - betas), rtol=1e-10)
    assert make_process("ddpm-cosine:1000").name == "ddpm-cosine"


@pytest.mark.parametrize("name", ["ddpm-linear", "ddpm-scaled-linear"])
def test_a_longer_chain_of_the_linear_ones_ends_at_the_same_noise(name):
    short, long = make_process(name), make_process(f"{name}:4000")
    for process in (short, long):
        assert make_process(process.name) == process
    ends = [process.ratio(torch.tensor([process.steps - 1.0])).log().item() for process in (short, long)]
    assert ends[0] == pytest.approx(ends[1], rel=0.02)
    np.testing.assert_allclose(long.betas()[[0, -1]], short.betas()[[0, -1]] / 4, rtol=1e-12)


@pytest.mark.parametrize("name", ["flow:4000", "edm:10", "ddpm-cosine:", "ddpm-cosine:x", "ddpm-linear:5", "ddpm:10"])
def test_names_that_are_none(name):
    with pytest.raises(InputError, match="process '"):
        make_process(name)


def test_sampling_over_a_part_of_the_times_is_iddpms():
    """Their respacing: betas of the kept times from their abar, beta_t = 1 - abar_t / abar_s, and the variance between
    that and its posterior's by (o + 1) / 2; the mean from the clipped-off x0. In float64 by hand."""
    process = make_process("ddpm-cosine:4000")
    generator = torch.Generator().manual_seed(0)
    share = torch.rand(2, 3, 4, 4, dtype=F64, generator=generator) * 2 - 1
    direction = torch.randn(2, 3, 4, 4, dtype=F64, generator=generator)
    noise = torch.randn(11, 2, 3, 4, 4, dtype=F64, generator=generator)
    times = process.sampling_times(10)
    assert times.tolist() == [3999, 3599, 3199, 2799, 2399, 1999, 1599, 1199, 799, 399]

    def denoise(x, t):
        return 0.3 * x + 0.1 * math.sin(t) * direction, share

    f = torch.cos((torch.arange(4001, dtype=F64) / 4000 + 0.008) / 1.008 * math.pi / 2) ** 2
    abar = torch.cumprod(1 - (1 - f[1:] / f[:-1]).clamp(max=0.999), 0)
    x = noise[0]
    for step, t in enumerate(times.tolist()):
        before = abar[times[step + 1]] if step + 1 < len(times) else torch.tensor(1.0, dtype=F64)
        beta = 1 - abar[t] / before
        x0, o = denoise(x, t)
        mean = beta * before.sqrt() / (1 - abar[t]) * x0 + (1 - before) * (1 - beta).sqrt() / (1 - abar[t]) * x
        if step + 1 == len(times):
            x = mean
            break
        small = beta * (1 - before) / (1 - abar[t])
        log_variance = (o + 1) / 2 * beta.log() + (1 - (o + 1) / 2) * small.log()
        x = mean + (0.5 * log_variance).exp() * noise[step + 1]
    got = ddpm(denoise, process, noise[0], times, noise=lambda step: noise[step], variance="learned", clip=False)
    torch.testing.assert_close(got, x, rtol=1e-8, atol=1e-8)


def test_the_bound_sums_over_4000_times():
    """T times the mean of the terms, with the betas of the long chain: at o = -1 and a perfect mean the variance is
    the posterior's own and every term but t = 0 vanishes."""
    loss = HybridLoss("ddpm-cosine:4000")
    x0 = torch.rand(3, 3, 4, 4) * 2 - 1
    noise = torch.randn(3, 3, 4, 4)
    pred = torch.cat((noise, torch.full_like(noise, -1.0)), dim=1)
    bound = loss.bound(pred, x0, noise, torch.tensor([1, 2000, 3999]))
    assert bound.abs().max() < 1e-6


def test_the_command_line_trains_and_samples_it(tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "photos.npz", images=images)
    out = str(tmp_path / "run")
    arguments = ["train", "--data", str(tmp_path / "photos.npz"), "-o", out, "--images", "16", "--model", "unet-tiny"]
    arguments += ["--process", "ddpm-cosine:4000", "--device", "cpu", "--json"]
    for option in ("learn_sigma=true", "batch_size=4", "warmup_images=4"):
        arguments += ["--set", option]
    assert main(arguments) == 0
    assert find_checkpoint(out)[1]["recipe"]["process"] == "ddpm-cosine:4000"
    arguments = [
        "sample",
        out,
        "-n",
        "2",
        "--sampler",
        "ddpm",
        "--steps",
        "5",
        "-o",
        str(tmp_path / "images"),
        "--json",
    ]
    assert main(arguments) == 0
    protocol = json.loads((tmp_path / "images" / "samples.json").read_text())["protocol"]
    assert (protocol["process"], protocol["variance"]) == ("ddpm-cosine:4000", "learned")
    capsys.readouterr()
    assert main([*arguments[:6], "--steps", "4001", "-o", str(tmp_path / "more")]) == 2
    assert "steps must be from 1 to 4000 for process 'ddpm-cosine:4000'" in capsys.readouterr().err


def test_the_tables_of_diffusers(diffusers):
    for name, schedule, ends in (
        ("ddpm-scaled-linear", "scaled_linear", (0.00085, 0.012)),
        ("ddpm-cosine:4000", "squaredcos_cap_v2", (1e-4, 0.02)),
    ):
        process = make_process(name)
        theirs = diffusers.DDPMScheduler(
            process.steps, beta_start=ends[0], beta_end=ends[1], beta_schedule=schedule
        ).betas
        torch.testing.assert_close(process.betas().float(), theirs, rtol=1e-5, atol=1e-7)


def test_a_denoiser_of_4000_times():
    torch.manual_seed(0)
    model = build_model("unet-tiny", image_size=8, learn_sigma=True)
    x0, share = Denoiser(model, "ddpm-cosine:4000").with_share(torch.randn(2, 3, 8, 8), 3999)
    assert x0.shape == share.shape == (2, 3, 8, 8)
