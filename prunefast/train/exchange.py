"""Models to and from diffusers: a folder that `DiffusionPipeline.from_pretrained` samples from, and back.

An unconditional UNet whose norms all have one number of groups is a `UNet2DModel` in other words: its weights are
renamed, and the folder needs diffusers alone. Any other network of ours (with classes, pruned, a DiT, narrow UNets
with fewer groups) goes as it is, with a module file that diffusers loads with `trust_remote_code=True` and that
imports prunefast.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from prunefast.data.latents import LatentScale
from prunefast.diffusion import make_process
from prunefast.encode.encoder import weights_digest
from prunefast.encode.latents import Autoencoder
from prunefast.encode.text import TextEncoder
from prunefast.errors import InputError
from prunefast.files import atomic_folder, explain_os_error, make_folder, read_json
from prunefast.models import UNet, build_model
from prunefast.models.norm import GroupNormSiLU
from prunefast.models.presets import PRESETS
from prunefast.models.unet import AttentionBlock
from prunefast.train.config import TrainConfig
from prunefast.train.ema import Ema, copy_tensors, named_weights
from prunefast.train.experts import is_tdc_folder
from prunefast.train.optim import Updater
from prunefast.train.state import find_checkpoint, load_tensors, load_weights, save_checkpoint

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
MODULE_NAME, CLASS_NAME = "prunefast_network", "PrunefastNetwork"
DIFFUSERS_VERSION = "0.35.0"  # whose names are written; from_pretrained asks for the key, and reads newer and older

# predictions by diffusers' names
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
SCHEDULES = {"ddpm-linear": "linear", "ddpm-scaled-linear": "scaled_linear", "ddpm-cosine": "squaredcos_cap_v2"}

# layers of a block: ours -> theirs
RESIDUAL = {"norm1": "norm1", "conv1": "conv1", "embedding": "time_emb_proj", "norm2": "norm2", "conv2": "conv2"}
RESIDUAL |= {"shortcut": "conv_shortcut"}
ATTENTION = {"norm": "group_norm", "query_key_value": ("to_q", "to_k", "to_v"), "project": "to_out.0"}
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # before diffusers 0.14

MODULE_TEXT = f'''"""A network of prunefast's for diffusers; made by prunefast, which must be installed."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from prunefast.models import build_model


class {CLASS_NAME}(ModelMixin, ConfigMixin):
    """forward(sample, timestep, class_labels=None): labels None is the null class of a network with classes."""

    @register_to_config
    def __init__(self, network: dict, sample_size: int, in_channels: int):
        super().__init__()
        self.inner = build_model(**network)

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        time = torch.as_tensor(timestep, device=sample.device).float().expand(len(sample))
        output = self.inner(sample, time, class_labels)[:, : sample.shape[1]]
        return UNet2DOutput(sample=output) if return_dict else (output,)
'''


def export_model(
    checkpoint: str | os.PathLike[str], out: str | os.PathLike[str], *, to: str = "diffusers", ema: bool = True
) -> bool:
    """Write a model as a diffusers folder: model_index.json, unet, scheduler.

        pf.export_model("run", "pipeline")
        diffusers.DDPMPipeline.from_pretrained("pipeline")(batch_size=4)

    A model of captions and latents becomes a StableDiffusionPipeline, with copies of the autoencoder, the tokenizer and
    the text model it was trained with.

    True where diffusers loads it alone; False where it needs trust_remote_code=True and prunefast (see above).

    Args:
        checkpoint: a run folder, its train folder or one checkpoint-* folder.
        out: a folder that does not exist or is empty.
        to: "diffusers", the only format so far.
        ema: the averaged weights; False: the raw ones.

    Raises:
        InputError: a process or prediction for which diffusers has no scheduler that a plain pipeline drives.
    """
    if to != "diffusers":
        raise InputError(f"to is {to!r}; there is 'diffusers'")
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is there already and not empty; choose another folder")
    if is_tdc_folder(Path(checkpoint)):
        raise InputError(
            f"{checkpoint}: holds a network a timestep group; export them one by one: {checkpoint}/group-1"
        )
    path, state = find_checkpoint(checkpoint)
    if state.get("text") is not None and state.get("latents") is not None:
        _export_text_pipeline(path, state, out, ema)
        return True
    if state.get("latents") is not None:
        raise InputError(f"{path}: makes latents, which a DDPMPipeline would show as images; there is no format for it")
    if state.get("text") is not None:
        raise InputError(f"{path}: makes images of captions, not latents; diffusers has no pipeline for it")
    scheduler = _scheduler(state["recipe"]["process"], state["recipe"]["prediction"])
    with torch.random.fork_rng(devices=[]):
        model = build_model(**state["model"])
    load_weights(path, model, ema=ema)
    plain = _unet_config(model)
    weights = {name: tensor.cpu().contiguous() for name, tensor in named_weights(model).items()}
    if plain is None:
        network = state["model"]
        config = {
            "_class_name": CLASS_NAME,
            "network": network,
            "sample_size": network["image_size"],
            "in_channels": network["channels"],
        }
        weights = {f"inner.{name}": tensor for name, tensor in weights.items()}
        unet = [MODULE_NAME, CLASS_NAME]
    else:
        assert isinstance(model, UNet)
        config, weights, unet = plain, _to_theirs(model, weights), ["diffusers", "UNet2DModel"]
    index = {"_class_name": "DDPMPipeline", "scheduler": ["diffusers", scheduler["_class_name"]], "unet": unet}
    with atomic_folder(out) as folder:
        for name in ("unet", "scheduler"):
            (folder / name).mkdir()
        _write(folder / "model_index.json", index)
        _write(folder / "unet" / "config.json", config)
        _write(folder / "scheduler" / "scheduler_config.json", scheduler)
        save_file(weights, folder / "unet" / WEIGHTS_FILE, metadata={"format": "pt"})
        if plain is None:
            (folder / "unet" / f"{MODULE_NAME}.py").write_text(MODULE_TEXT, encoding="utf-8")
    return plain is not None


def import_model(folder: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """A diffusers folder as a checkpoint of ours, OUT/train/checkpoint-000000000: to sample from, as `init_from` of
    a training, or for `tdc`. Returns its path.

    Takes what `export_model` writes, and a `UNet2DModel` whose architecture is our UNet's (google/ddpm-cifar10-32 and
    its relatives), with a DDPM, DDIM or flow-matching scheduler. Weights are read from safetensors only.

    Raises:
        InputError: what does not correspond, and why.
    """
    folder, out = Path(folder), Path(out)
    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    if not (unet / "config.json").is_file():
        raise InputError(f"{folder}: holds no unet/config.json; give a diffusers folder, with unet/ and scheduler/")
    config = read_json(unet / "config.json")
    if not isinstance(config, dict):
        raise InputError(f"{unet / 'config.json'}: is no configuration of a network")
    file = unet / WEIGHTS_FILE
    if not file.is_file():
        raise InputError(f"{file}: no such file; weights are read from safetensors only: save the model anew")
    process, prediction = _process(read_json(folder / "scheduler" / "scheduler_config.json"), folder)
    theirs = load_tensors(file)
    if config.get("_class_name") == CLASS_NAME:
        network = config.get("network")
        if not isinstance(network, dict) or network.get("name") not in PRESETS:
            raise InputError(f"{unet / 'config.json'}: is no network of prunefast's")
    else:
        network = _network(config, unet)
    with torch.random.fork_rng(devices=[]):
        model = build_model(**network)
    if config.get("_class_name") == CLASS_NAME:
        weights = {name.removeprefix("inner."): tensor for name, tensor in theirs.items()}
    else:
        assert isinstance(model, UNet)
        if (_unet_config(model) or {}).get("norm_num_groups") != config.get("norm_num_groups", 32):
            raise InputError(
                f"{unet}: its norms have {config.get('norm_num_groups')} groups, ours of these widths have others; "
                "it cannot be read as a UNet of prunefast's"
            )
        weights = _to_ours(model, theirs, file)
    copy_tensors(named_weights(model), weights, str(file))
    if (out / "train").exists():
        raise InputError(f"{out / 'train'}: is there already; choose another folder")
    overrides = {key: value for key, value in network.items() if key not in _BUILDERS and value is not None}
    train_config = TrainConfig(
        out=str(out),
        images=1,
        model=network["name"],
        model_options=overrides,
        dropout=network.get("dropout"),
        process=process,
        prediction=prediction,
        learn_sigma=network.get("learn_sigma", False),
        class_conditional=False if network["num_classes"] is None else "auto",
        image_size=network["image_size"],
    )
    classes = [str(number) for number in range(network["num_classes"] or 0)]
    state = {
        "steps": 0,
        "seconds": 0.0,
        "model": model.config,
        "classes": classes,
        "recipe": {"process": process, "prediction": prediction, "precision": "fp32", "imported": folder.name},
        "config": train_config.to_dict(),
    }
    ema = Ema(model, train_config.ema_half_life_images)
    return save_checkpoint(make_folder(out / "train"), 0, state, model, ema, Updater(model, train_config), 1)


def _export_text_pipeline(path: Path, state: Mapping[str, Any], out: Path, ema: bool) -> None:
    """The folder that `StableDiffusionPipeline.from_pretrained` loads."""
    latents, text = LatentScale(**state["latents"]), TextEncoder(state["text"]["folder"])
    autoencoder = Autoencoder(latents.vae)
    if text.digest() != state["text"]["digest"] or weights_digest(autoencoder.state_dict()) != latents.weights:
        changed = latents.vae if text.digest() == state["text"]["digest"] else text.folder
        raise InputError(f"{changed}: has other weights than at training")
    if latents.shift:
        raise InputError(
            f"{path}: its latents have a shift of {latents.shift:g}, which a StableDiffusionPipeline lacks"
        )
    kind = type(autoencoder.vae).__name__
    if kind != "AutoencoderKL":
        raise InputError(f"{latents.vae}: is a {kind}; a StableDiffusionPipeline has an AutoencoderKL")
    scheduler = _scheduler(state["recipe"]["process"], state["recipe"]["prediction"])
    if scheduler["_class_name"] != "DDPMScheduler":
        raise InputError(f"{path}: was trained by {state['recipe']['process']}; a StableDiffusionPipeline takes ddpm-*")
    del scheduler["variance_type"]
    # latents are not clipped; the offset is for a spacing that is not used, but the pipeline asks for it
    scheduler |= {"_class_name": "DDIMScheduler", "clip_sample": False, "steps_offset": 1}
    with torch.random.fork_rng(devices=[]):
        model = build_model(**state["model"])
    load_weights(path, model, ema=ema)
    network: Any = model.network
    index = {
        "_class_name": "StableDiffusionPipeline",
        **{part: [None, None] for part in ("feature_extractor", "safety_checker", "image_encoder")},
        "requires_safety_checker": False,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", type(network).__name__],
        "vae": ["diffusers", kind],
    }
    with atomic_folder(out) as folder:
        for name in ("unet", "scheduler"):
            (folder / name).mkdir()
        try:
            shutil.copytree(autoencoder.folder, folder / "vae")
            for part in ("tokenizer", "text_encoder"):
                shutil.copytree(text.folder / part, folder / part)
        except OSError as error:
            raise explain_os_error(error, out) from None
        _write(folder / "model_index.json", index)
        _write(folder / "scheduler" / "scheduler_config.json", scheduler)
        _write(folder / "unet" / "config.json", state["model"]["network"])
        weights = {name: tensor.cpu().contiguous() for name, tensor in named_weights(network).items()}
        save_file(weights, folder / "unet" / WEIGHTS_FILE, metadata={"format": "pt"})


_BUILDERS = ("name", "image_size", "channels", "num_classes", "dropout")


def _write(path: Path, content: Mapping[str, Any]) -> None:
    document = {"_diffusers_version": DIFFUSERS_VERSION, **content}
    path.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")


# --- noise: process and prediction <-> scheduler ---


def _scheduler(process: str, prediction: str) -> dict[str, Any]:
    base = process.partition(":")[0]
    if base in SCHEDULES:
        made: Any = make_process(process)
        return {
            "_class_name": "DDPMScheduler",
            "num_train_timesteps": made.steps,
            "beta_start": made.beta_start,
            "beta_end": made.beta_end,
            "beta_schedule": SCHEDULES[base],
            "prediction_type": PREDICTIONS[prediction],
            "variance_type": "fixed_small",
            "clip_sample": True,
            "timestep_spacing": "trailing",  # as `Process.sampling_times`
        }
    if process == "flow" and prediction == "flow":
        return {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}
    raise InputError(
        f"process {process!r} with prediction {prediction!r} has no scheduler in diffusers that its DDPMPipeline "
        f"drives; there are {', '.join(SCHEDULES)}, and flow with prediction flow"
    )


def _process(scheduler: Any, folder: Path) -> tuple[str, str]:
    kind = scheduler.get("_class_name") if isinstance(scheduler, dict) else None
    if kind == "FlowMatchEulerDiscreteScheduler" and scheduler.get("shift", 1.0) == 1.0:
        return "flow", "flow"
    if kind in ("DDPMScheduler", "DDIMScheduler"):
        process = _chain(scheduler)
        for prediction, theirs in PREDICTIONS.items():
            if process is not None and scheduler.get("prediction_type", "epsilon") == theirs:
                return process, prediction
    raise InputError(
        f"{folder / 'scheduler'}: is none that prunefast has a process for; there are DDPM and DDIM with linear "
        "(0.0001 ... 0.02, times 1,000 / steps), scaled_linear (0.00085 ... 0.012) or squaredcos_cap_v2 betas, and "
        "flow matching with shift 1"
    )


def _chain(scheduler: Mapping[str, Any]) -> str | None:
    """The process with the betas of a DDPMScheduler, None where there is none."""
    if scheduler.get("rescale_betas_zero_snr") or scheduler.get("trained_betas") is not None:
        return None
    given = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", **scheduler}
    for base, schedule in SCHEDULES.items():
        if given["beta_schedule"] != schedule:
            continue
        steps = given["num_train_timesteps"]
        process = base if steps == 1000 else f"{base}:{steps}"
        try:
            wanted = _scheduler(process, "eps")
            ends = () if base == "ddpm-cosine" else ("beta_start", "beta_end")
            # their configurations have rounded 20 / steps to what a person writes
            same = all(math.isclose(given[key], wanted[key], rel_tol=1e-6) for key in ends)
        except (InputError, TypeError):  # no whole number of steps, or betas above 1
            return None
        return process if same else None
    return None


# --- network: our UNet <-> UNet2DModel ---


def _unet_config(model: nn.Module) -> dict[str, Any] | None:
    """The configuration of the UNet2DModel that computes the same, or None where there is none."""
    config: dict[str, Any] = model.config  # type: ignore[assignment]
    if not isinstance(model, UNet) or config["num_classes"] is not None or config.get("widths"):
        return None
    if model.tail.out_channels != config["channels"] or model.head.in_channels != config["channels"]:
        return None
    groups = {module.groups for module in model.modules() if isinstance(module, GroupNormSiLU)}
    heads = [block.project.in_features // block.heads for block in model.modules() if isinstance(block, AttentionBlock)]
    if len(groups) != 1 or (config["heads"] != 1 and len(set(heads)) != 1):
        return None
    levels = range(len(config["channel_multipliers"]))
    attends = [level in config["attention_levels"] for level in levels]
    return {
        "_class_name": "UNet2DModel",
        "sample_size": config["image_size"],
        "in_channels": config["channels"],
        "out_channels": config["channels"],
        "block_out_channels": [config["width"] * multiplier for multiplier in config["channel_multipliers"]],
        "layers_per_block": config["blocks"],
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        "attention_head_dim": None if config["heads"] == 1 else heads[0],
        "norm_num_groups": groups.pop(),
        "norm_eps": config["norm_eps"],
        "dropout": config["dropout"],
        "downsample_padding": 0 if config["asymmetric_downsample"] else 1,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
    }


def _network(config: Mapping[str, Any], unet: Path) -> dict[str, Any]:
    """The configuration of our UNet for that of a UNet2DModel, or an error that names what does not correspond."""

    def need(key: str, default: Any, *allowed: Any) -> Any:
        value = config.get(key, default)
        if value not in allowed:
            raise InputError(f"{unet / 'config.json'}: {key} is {value!r}; our UNet has {allowed[0]!r}")
        return value

    need("_class_name", None, "UNet2DModel")
    for key, default, *allowed in (
        ("time_embedding_type", "positional", "positional"),
        ("flip_sin_to_cos", True, False),
        ("freq_shift", 0, 1),
        ("center_input_sample", False, False),
        ("resnet_time_scale_shift", "default", "default"),
        ("act_fn", "silu", "silu", "swish"),
        ("mid_block_type", "UNetMidBlock2D", "UNetMidBlock2D"),
        ("mid_block_scale_factor", 1, 1),
        ("add_attention", True, True),
        ("downsample_type", "conv", "conv"),
        ("upsample_type", "conv", "conv"),
        ("class_embed_type", None, None),
        ("num_class_embeds", None, None),
        ("time_embedding_dim", None, None),
    ):
        need(key, default, *allowed)
    padding = need("downsample_padding", 1, 1, 0)
    try:
        widths = [int(width) for width in config["block_out_channels"]]
        down, up = list(config["down_block_types"]), list(config["up_block_types"])
        size, channels, blocks = config["sample_size"], config["in_channels"], config.get("layers_per_block", 2)
        attends = [{"DownBlock2D": False, "AttnDownBlock2D": True}[kind] for kind in down]
        mirrored = up == ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)]
        multipliers = [width // widths[0] for width in widths]
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        raise InputError(f"{unet / 'config.json'}: is not that of a UNet2DModel our UNet corresponds to") from None
    whole = [widths[0] * multiplier for multiplier in multipliers] == widths
    if not mirrored or not whole or channels != config.get("out_channels", 3) or not isinstance(size, int):
        raise InputError(
            f"{unet / 'config.json'}: block types that are no mirror, widths that are no multiples of the first, a "
            "size that is no square, or other channels out than in; our UNet has none of these"
        )
    head = config.get("attention_head_dim", 8)
    if head is not None and len({widths[i] for i, a in enumerate(attends) if a} | {widths[-1]}) != 1:
        raise InputError(
            f"{unet / 'config.json'}: attentions of several widths have heads of {head}; ours of one width"
        )
    return {
        "name": "unet-cifar10",
        "image_size": size,
        "channels": channels,
        "num_classes": None,
        "width": widths[0],
        "channel_multipliers": multipliers,
        "blocks": blocks,
        "attention_levels": [level for level, a in enumerate(attends) if a],
        "heads": 1 if head is None else widths[-1] // head,
        "dropout": float(config.get("dropout", 0.0)),
        "asymmetric_downsample": padding == 0,
        "norm_eps": float(config.get("norm_eps", 1e-5)),
    }


def _layers(model: UNet) -> Iterator[tuple[str, str | tuple[str, ...]]]:
    """Every layer with weights: (our name, their name, or their three of query, key and value)."""
    yield from (("time1", "time_embedding.linear_1"), ("time2", "time_embedding.linear_2"))
    yield from (("head", "conv_in"), ("tail_norm", "conv_norm_out"), ("tail", "conv_out"))
    blocks = [("middle1", "mid_block.resnets.0"), ("middle2", "mid_block.resnets.1")]
    attentions = [("middle_attention", "mid_block.attentions.0")]
    for side, count in (("down", model.blocks), ("up", model.blocks + 1)):
        for index in range(model.levels * count):
            place = f"{side}_blocks.{index // count}"
            blocks.append((f"{side}_blocks.{index}", f"{place}.resnets.{index % count}"))
            attentions.append((f"{side}_attentions.{index}", f"{place}.attentions.{index % count}"))
        for level in range(model.levels - 1):
            yield f"{side}samples.{level}.conv", f"{side}_blocks.{level}.{side}samplers.0.conv"
    present = dict(model.named_modules())
    for block, theirs in blocks:
        for layer, other in RESIDUAL.items():
            if f"{block}.{layer}" in present:  # a shortcut only where the width changes
                yield f"{block}.{layer}", f"{theirs}.{other}"
    for block, theirs in attentions:
        if isinstance(present[block], AttentionBlock):
            for layer, names in ATTENTION.items():
                several = tuple(f"{theirs}.{name}" for name in names)
                yield f"{block}.{layer}", f"{theirs}.{names}" if isinstance(names, str) else several


def _to_theirs(model: UNet, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    out = {}
    for ours, theirs in _layers(model):
        for kind in ("weight", "bias"):
            tensor = weights[f"{ours}.{kind}"]
            if isinstance(theirs, str):
                out[f"{theirs}.{kind}"] = tensor
            else:
                parts = zip(theirs, tensor.chunk(len(theirs)), strict=True)
                out |= {f"{name}.{kind}": part.contiguous() for name, part in parts}
    return out


def _to_ours(model: UNet, weights: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in weights.items():
        layer, _, kind = name.rpartition(".")
        before, _, last = layer.rpartition(".")
        if ".attentions." in name and last in OLD_ATTENTION:
            name, tensor = f"{before}.{OLD_ATTENTION[last]}.{kind}", tensor.flatten(1) if kind == "weight" else tensor
        renamed[name] = tensor
    out = {}
    for ours, theirs in _layers(model):
        for kind in ("weight", "bias"):
            names = [f"{name}.{kind}" for name in ([theirs] if isinstance(theirs, str) else theirs)]
            missing = [name for name in names if name not in renamed]
            if missing:
                raise InputError(f"{file}: has no {missing[0]}; it is not the network of its config.json")
            out[f"{ours}.{kind}"] = torch.cat([renamed.pop(name) for name in names])
    if renamed:
        raise InputError(f"{file}: has {len(renamed)} tensors too many, among them {min(renamed)}")
    return out
