"""Models to and from diffusers: the same noise and scheduler give the same samples, both ways, and names are one to
one."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import prunefast as pf
from prunefast.cli import main
from prunefast.diffusion import Denoiser, ddim, euler, make_process
from prunefast.errors import InputError
from prunefast.models import build_model
from prunefast.train import find_checkpoint, train
from prunefast.train.exchange import _process, _to_ours, _to_theirs, _unet_config
from prunefast.train.state import load_weights

# 128 channels are the fewest whose norms all have 32 groups
WIDE = {"width": 128, "channel_multipliers": [1, 1], "blocks": 1, "attention_levels": [1]}
DIT = {"model": "dit-tiny/2", "model_options": {"depth": 1, "width": 32, "heads": 2}}


def network(folder: Path) -> torch.nn.Module:
    path, state = find_checkpoint(folder)
    model = build_model(**state["model"]).eval()
    load_weights(path, model, ema=True)
    return model


def shaken(config, data) -> Path:
    """A run whose weights are no longer the zeros they began as."""
    train(config, data)
    path = find_checkpoint(config.out)[0]
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    weights = load_file(path / "ema.safetensors")
    weights = {name: w + 0.05 * torch.randn(w.shape, generator=generator) for name, w in weights.items()}
    save_file(weights, path / "ema.safetensors")
    _sign(path)
    return Path(config.out)


def _sign(path: Path) -> None:
    """New digests for a checkpoint that was changed on purpose."""
    from prunefast.train.state import WEIGHT_FILES, _digest, _file_digest, _render

    state = json.loads((path / "state.json").read_text())
    state.pop("digest")
    state["files"] = {name: _file_digest(path / name) for name in WEIGHT_FILES}
    (path / "state.json").write_bytes(_render({**state, "digest": _digest(_render(state))}))


def theirs(pipeline, steps: int, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """(the noise a pipeline begins with, its images [n, C, R, R] in 0 ... 1)."""
    shape = (2, 3, 8, 8)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        batch_size=2,
        generator=torch.Generator().manual_seed(5),
        num_inference_steps=steps,
        output_type="np",
        **options,
    ).images
    return noise, torch.from_numpy(images).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("process", "prediction"),
    [("ddpm-linear", "eps"), ("ddpm-cosine", "eps"), ("ddpm-linear", "v"), ("ddpm-cosine", "x0")],
)
def test_ddim_pipeline_samples_the_same_images(diffusers, make_config, data, tmp_path, process, prediction) -> None:
    config = make_config(model_options=WIDE, images=8, process=process, prediction=prediction, class_conditional=False)
    run = shaken(config, data)
    assert pf.export_model(run, tmp_path / "pipe") is True
    pipeline = diffusers.DDIMPipeline.from_pretrained(tmp_path / "pipe")
    assert type(pipeline.unet).__name__ == "UNet2DModel"
    noise, images = theirs(pipeline, 5, eta=0.0, use_clipped_model_output=True)
    made = make_process(process)
    denoise = Denoiser(network(run), made, prediction)
    with torch.no_grad():
        ours = ddim(denoise, made, noise.double(), made.sampling_times(5))
    torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1).float(), images, rtol=0, atol=2e-4)
    assert images.std() > 0.01


def test_flow_pipeline_samples_the_same_images(diffusers, make_config, data, tmp_path) -> None:
    run = shaken(make_config(model_options=WIDE, images=8, process="flow", class_conditional=False), data)
    pf.export_model(run, tmp_path / "pipe")
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "pipe")
    noise, images = theirs(pipeline, 4)
    process = make_process("flow")
    times = pipeline.scheduler.sigmas[:-1].double()  # their grid
    with torch.no_grad():
        ours = euler(Denoiser(network(run), process), process, noise.double(), times)
    torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1).float(), images, rtol=0, atol=2e-4)


@pytest.mark.parametrize("more", [{}, DIT], ids=["unet", "dit"])
def test_other_networks_go_with_their_module(diffusers, make_config, data, tmp_path, more) -> None:
    run = shaken(make_config(images=8, **more), data)  # with classes, narrow
    assert pf.export_model(run, tmp_path / "pipe") is False
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path / "pipe", trust_remote_code=True)
    model = network(run)
    x, time, labels = torch.randn(2, 3, 8, 8), torch.tensor([3, 700]), torch.tensor([0, 2])
    with torch.no_grad():
        assert torch.equal(pipeline.unet(x, time, class_labels=labels).sample, model(x, time.float(), labels))
        assert torch.equal(pipeline.unet(x, 5).sample, model(x, torch.tensor([5.0, 5.0]), None))
    _, images = theirs(pipeline, 3)
    assert images.shape == (2, 3, 8, 8)


def test_there_and_back(make_config, data, tmp_path) -> None:
    """Export, import: the same bits, whichever way the network went."""
    for name, options in (
        ("plain", {"model_options": WIDE, "class_conditional": False}),
        ("module", {"process": "flow"}),
        ("dit", DIT),
    ):
        run = shaken(make_config(out=str(tmp_path / name), images=8, **options), data)
        pf.export_model(run, tmp_path / f"{name}-pipe")
        path = pf.import_model(tmp_path / f"{name}-pipe", tmp_path / f"{name}-back")
        before, after = (load_file(find_checkpoint(p)[0] / "ema.safetensors") for p in (run, path))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
        labels = find_checkpoint(run)[1]["model"]["num_classes"] and [0, 1]
        arguments = {"steps": 3, "device": "cpu", "labels": labels}
        assert (pf.sample(run, 2, **arguments) == pf.sample(tmp_path / f"{name}-back", 2, **arguments)).all()
    # and training begins there
    config = make_config(
        out=str(tmp_path / "on"),
        images=8,
        model_options=WIDE,
        class_conditional=False,
        init_from=str(tmp_path / "plain-back"),
    )
    train(config, data)


def test_a_model_of_diffusers_own(diffusers, tmp_path) -> None:
    """The architecture of google/ddpm-cifar10-32, smaller, saved by diffusers itself; also with its old names."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(128, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=None,
        norm_eps=1e-6,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
    ).eval()
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000)
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / "pipe")
    pf.import_model(tmp_path / "pipe", tmp_path / "run")
    model = network(tmp_path / "run")
    x, time = torch.randn(2, 3, 8, 8), torch.tensor([3, 871])
    with torch.no_grad():
        torch.testing.assert_close(model(x, time.float()), unet(x, time).sample, rtol=1e-4, atol=2e-5)
    weights = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in weights.items():
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        renamed[name] = tensor
    ours = _to_ours(model, renamed, tmp_path)
    assert all(torch.equal(ours[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "process"),
    [
        ({}, "ddpm-linear"),
        ({"num_train_timesteps": 4000, "beta_schedule": "squaredcos_cap_v2"}, "ddpm-cosine:4000"),
        ({"num_train_timesteps": 500, "beta_start": 2e-4, "beta_end": 0.04}, "ddpm-linear:500"),
        (
            {"num_train_timesteps": 250, "beta_schedule": "scaled_linear", "beta_start": 0.0034, "beta_end": 0.048},
            "ddpm-scaled-linear:250",
        ),
        ({"num_train_timesteps": 500}, None),  # the noise would not end where ours does
        ({"beta_end": 0.03}, None),
        ({"rescale_betas_zero_snr": True}, None),
        ({"trained_betas": [0.1, 0.2]}, None),
    ],
)
def test_chains_of_any_length_are_read(options, process, diffusers, tmp_path) -> None:
    scheduler = diffusers.DDPMScheduler(**options)
    if process is None:
        with pytest.raises(InputError, match="is none that prunefast has a process for"):
            _process(dict(scheduler.config, _class_name="DDPMScheduler"), tmp_path)
        return
    assert _process(dict(scheduler.config, _class_name="DDPMScheduler"), tmp_path) == (process, "eps")
    ours = pf.diffusion.make_process(process)
    t = torch.arange(ours.steps)
    torch.testing.assert_close(
        ours.alpha_sigma(t, torch.float64)[0] ** 2, scheduler.alphas_cumprod.double(), rtol=2e-4, atol=1e-6
    )


def test_the_preset_corresponds_one_to_one() -> None:
    with torch.device("meta"):
        model = build_model("unet-cifar10", image_size=32)
    config = _unet_config(model)
    assert config is not None
    assert config["down_block_types"] == ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"]
    weights = _to_theirs(model, model.state_dict())
    assert sum(tensor.numel() for tensor in weights.values()) == 35_746_307
    assert _unet_config(build_model("unet-tiny", image_size=8)) is None


def test_what_does_not_correspond_is_said(make_config, data, tmp_path) -> None:
    run = shaken(make_config(model_options=WIDE, images=8, class_conditional=False), data)
    pf.export_model(run, tmp_path / "pipe")
    with pytest.raises(InputError, match="not empty"):
        pf.export_model(run, tmp_path / "pipe")
    with pytest.raises(InputError, match="no checkpoint"):
        pf.export_model(tmp_path, tmp_path / "x")
    with pytest.raises(InputError, match="'diffusers'"):
        pf.export_model(run, tmp_path / "x", to="onnx")
    edm = make_config(out=str(tmp_path / "edm"), images=8, process="edm")
    train(edm, data)
    with pytest.raises(InputError, match="no scheduler"):
        pf.export_model(edm.out, tmp_path / "x")
    assert not (tmp_path / "x").exists()

    def broken(file: str, **changes: object) -> Path:
        copy = tmp_path / "broken"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(tmp_path / "pipe", copy)
        content = json.loads((copy / file).read_text())
        (copy / file).write_text(json.dumps({**content, **changes}))
        return copy

    for file, changes, message in (
        ("unet/config.json", {"freq_shift": 0}, "freq_shift"),
        ("unet/config.json", {"norm_num_groups": 16}, "groups|norm"),
        ("unet/config.json", {"block_out_channels": [128, 200]}, "multiples"),
        ("unet/config.json", {"block_out_channels": [0, 0]}, "corresponds"),
        ("unet/config.json", {"block_out_channels": [128, 256]}, "another network|too many|has no"),
        ("unet/config.json", {"_class_name": "UNet2DConditionModel"}, "_class_name"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "scaled_linear"}, "scheduler"),
        ("scheduler/scheduler_config.json", {"beta_end": 0.5}, "scheduler"),
    ):
        with pytest.raises(InputError, match=message):
            pf.import_model(broken(file, **changes), tmp_path / "y")
        assert not (tmp_path / "y").exists()
    copy = broken("unet/config.json")
    (copy / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="cannot be read"):
        pf.import_model(copy, tmp_path / "y")
    (copy / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError, match="safetensors only"):
        pf.import_model(copy, tmp_path / "y")
    with pytest.raises(InputError, match=r"holds no unet/config\.json"):
        pf.import_model(tmp_path / "nowhere", tmp_path / "y")


def test_command_line(make_config, data, tmp_path, capsys) -> None:
    config = make_config(images=8)
    train(config, data)
    pipe, back = str(tmp_path / "pipe"), str(tmp_path / "back")
    assert main(["export-model", config.out, "--to", "diffusers", "-o", pipe]) == 0
    assert "trust_remote_code=True" in capsys.readouterr().out
    assert main(["import-model", pipe, "-o", back, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["checkpoint"].startswith(back)
    assert main(["import-model", pipe, "-o", back]) == 2
    assert "is there already" in capsys.readouterr().err
