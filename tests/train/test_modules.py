"""Networks that are not ours in the loop: a module of the user's, diffusers' UNets from a local folder."""

import functools
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from prunefast.errors import InputError, InputTypeError
from prunefast.models import ModuleNetwork, build_model
from prunefast.train import sample, train
from prunefast.train.state import find_checkpoint, load_tensors


class Plain(nn.Module):
    """module(x, time, labels) -> a tuple, as many return it."""

    def __init__(self, inputs: int = 3):
        super().__init__()
        self.convolution = nn.Conv2d(inputs, 3, 3, padding=1)
        self.table = nn.Embedding(4, 3)

    def forward(self, x, t, condition):
        self.seen = condition
        return (self.convolution(x) + self.table(condition)[:, :, None, None] + 0.001 * t[:, None, None, None],)


class Unconditional(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x, t):
        return self.convolution(x)


def made(kind: type, seed: int = 0, *arguments) -> nn.Module:
    torch.manual_seed(seed)
    return kind(*arguments)


@pytest.fixture
def make_config(make_config):
    """Without the options of networks that prunefast builds."""
    return functools.partial(make_config, model_options={}, dropout=None)


def test_a_module_trains_resumes_and_samples(data, make_config, tmp_path):
    straight, stopped = (make_config(out=str(tmp_path / name)) for name in ("straight", "stopped"))
    module = made(Plain)
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    train(straight, data, model=module)
    assert all(not torch.equal(before[name], weight) for name, weight in module.state_dict().items())  # in place
    assert set(module.seen.tolist()) <= {0, 1, 2, 3}

    train(stopped.replace(images=40), data, model=made(Plain))
    again = made(Plain, 5)  # its weights give way to those of the checkpoint
    train(stopped, data, model=again)
    for name, weight in module.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    path, state = find_checkpoint(straight.out)
    assert state["model"]["name"] == "module"
    assert "Plain" in state["model"]["class"]
    assert set(load_tensors(path / "model.safetensors")) == {f"network.{name}" for name in module.state_dict()}

    images = sample(straight.out, 4, steps=2, model=made(Plain, 9), guidance=2.0)
    assert images.shape == (4, 8, 8, 3)
    assert (images == sample(straight.out, 4, steps=2, model=made(Plain, 8), guidance=2.0)).all()
    with pytest.raises(InputError, match="is of a module of your own; pass it"):
        sample(straight.out, 2, steps=2)


def test_a_module_without_labels(data, make_config):
    result = train(make_config(), data, model=made(Unconditional))
    assert find_checkpoint(result.folder)[1]["model"]["num_classes"] is None


def test_a_module_on_patches(data, make_config):
    result = train(make_config(patch_p=0.3), data, model=made(Plain, 0, 5))
    assert sample(result.folder, 2, steps=2, model=made(Plain, 1, 5)).shape == (2, 8, 8, 3)


def test_what_a_module_cannot_be(data, make_config, tmp_path):
    for model, error, message in (
        (nn.Identity(), InputError, "no parameter that requires a gradient"),
        ("unet", InputTypeError, "model is a str; give a torch.nn.Module"),
    ):
        with pytest.raises(error, match=message):
            train(make_config(class_conditional=False), data, model=model)
    assert not (tmp_path / "run").exists()
    for key, value in (("dropout", 0.1), ("model_options", {"width": 8})):
        with pytest.raises(InputError, match=f"{key}: is of a network that prunefast builds"):
            train(make_config(**{key: value}), data, model=made(Plain))
    train(make_config(), data, model=made(Plain))
    with pytest.raises(InputError, match="holds a run with other options"):
        train(make_config(), data, model=made(Unconditional))
    with pytest.raises(InputTypeError, match="model returned a dict"):
        ModuleNetwork(Returns(), image_size=8)(torch.zeros(1, 3, 8, 8), torch.zeros(1))
    named = make_config(out=str(tmp_path / "named"))
    train(named, data)
    with pytest.raises(InputError, match="is of a network by name; leave model out"):
        sample(named.out, 2, steps=2, model=made(Plain))


class Returns(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x, t):
        return {"x": x}


SMALL = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (8, 8),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


@pytest.fixture
def save_unet(diffusers, tmp_path):
    def save(**settings) -> str:
        torch.manual_seed(3)
        options = {**SMALL, "down_block_types": ("DownBlock2D", "DownBlock2D")}
        options |= {"up_block_types": ("UpBlock2D", "UpBlock2D"), "attention_head_dim": 4, **settings}
        diffusers.UNet2DModel(**options).save_pretrained(tmp_path / "model")
        return f"diffusers:{tmp_path / 'model'}"

    return save


def test_unet_of_diffusers_with_its_weights(save_unet, data, make_config, diffusers, tmp_path):
    name = save_unet(num_class_embeds=4)
    ours = build_model(name, image_size=8, num_classes=3)
    theirs = diffusers.UNet2DModel.from_pretrained(tmp_path / "model", local_files_only=True)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 800.0])
    ours.eval(), theirs.eval()
    labels = torch.tensor([0, 2])
    torch.testing.assert_close(ours(x, t, labels), theirs(x, t, class_labels=labels).sample)
    torch.testing.assert_close(ours(x, t), theirs(x, t, class_labels=torch.tensor([3, 3])).sample)

    config = make_config(model=name, model_options={}, dropout=None, images=32)
    train(config, data)
    state = find_checkpoint(config.out)[1]
    assert json.loads(json.dumps(state["model"]))["network"]["_class_name"] == "UNet2DModel"
    (Path(tmp_path) / "model").rename(tmp_path / "moved")  # a checkpoint needs the folder no more
    assert sample(config.out, 2, steps=2, guidance=1.5).shape == (2, 8, 8, 3)


def test_unet_of_diffusers_on_patches_with_a_learned_variance(save_unet, data, make_config):
    name = save_unet(in_channels=5, out_channels=6)
    options = {"patch_p": 0.5, "patch_levels": 2, "learn_sigma": True, "class_conditional": False, "images": 48}
    result = train(make_config(model=name, model_options={}, dropout=None, **options), data)
    assert sample(result.folder, 2, steps=2, sampler="ddpm").shape == (2, 8, 8, 3)


def test_conditional_unet_of_diffusers_from_its_settings(diffusers, data, make_config, tmp_path):
    """As a pipeline folder holds it, without weights: a row of the table a class is its one token."""
    settings = {**SMALL, "cross_attention_dim": 8, "attention_head_dim": 4}
    settings |= {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")}
    settings |= {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    diffusers.UNet2DConditionModel(**settings).save_config(tmp_path / "pipeline" / "unet")
    name = f"diffusers:{tmp_path / 'pipeline'}"
    result = train(make_config(model=name, model_options={}, dropout=None, images=32), data)
    tensors = load_tensors(result.checkpoint / "model.safetensors")
    assert tensors["tokens.weight"].shape == (4, 8)
    assert sample(result.folder, 2, steps=2, guidance=2.0).shape == (2, 8, 8, 3)


def test_what_a_folder_cannot_be(save_unet, data, make_config, tmp_path):
    def attempt(name, **options):
        train(make_config(model=name, dropout=None, **{"model_options": {}, **options}), data)

    with pytest.raises(InputError, match=r"no config\.json of a diffusers model there"):
        attempt(f"diffusers:{tmp_path / 'nowhere'}")
    name = save_unet()
    with pytest.raises(InputError, match="num_class_embeds None; 4 are needed"):
        attempt(name)
    with pytest.raises(InputError, match="has no argument 'width'"):
        attempt(name, model_options={"width": 4}, class_conditional=False)
    with pytest.raises(InputError, match="patches need 5"):
        attempt(name, patch_p=0.5, class_conditional=False)
    with pytest.raises(InputError, match="needs out_channels 6 for a learned variance"):
        attempt(name, learn_sigma=True, class_conditional=False)
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(InputError, match="is a AutoencoderKL; UNet2DModel or UNet2DConditionModel are supported"):
        attempt(name)
    config.write_text("[1")
    with pytest.raises(InputError, match=r"config.json: cannot be read"):
        attempt(name)
    assert not (tmp_path / "run").exists()
