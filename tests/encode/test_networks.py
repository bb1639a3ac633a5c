"""Networks from files: CIFAR ResNet-20, exported graphs, transformers, torchvision, timm."""

import importlib.metadata
import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from prunefast.data import open_dataset
from prunefast.encode import embed, make_encoder
from prunefast.encode.encoder import weights_digest
from prunefast.encode.optional import import_optional
from prunefast.encode.resnet20 import load_resnet20
from prunefast.encode.torchvision_ import remove_head
from prunefast.errors import InputError, MissingDependencyError

# --- ResNet-20


def test_resnet20_features_feed_its_classifier(resnet20_weights, pictures):
    data = pictures(12, 32)
    network = load_resnet20(resnet20_weights)
    features = embed(data, f"resnet20-cifar:{resnet20_weights}")
    assert features.shape == (12, 64)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    x = torch.from_numpy(((data.array / 255 - mean) / std).transpose(0, 3, 1, 2)).float()
    with torch.inference_mode():
        scores = network(x)
    weight, bias = network.linear.weight.detach().numpy(), network.linear.bias.detach().numpy()
    np.testing.assert_allclose(features @ weight.T + bias, scores.numpy(), rtol=1e-4, atol=1e-4)


def test_resnet20_resizes(resnet20_weights, pictures):
    assert embed(pictures(3, 48), "resnet20-cifar", weights=resnet20_weights).shape == (3, 64)


def test_resnet20_manifest_has_a_digest_of_the_weights(resnet20_weights, tmp_path):
    from safetensors.torch import load_file, save_file

    one = make_encoder(f"resnet20-cifar:{resnet20_weights}").manifest()
    state = load_file(resnet20_weights)
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "same.pth")
    assert make_encoder(f"resnet20-cifar:{tmp_path / 'same.pth'}").manifest() == one
    state["linear.bias"][0] += 1
    save_file(state, tmp_path / "other.safetensors")
    assert make_encoder(f"resnet20-cifar:{tmp_path / 'other.safetensors'}").manifest() != one


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("layer2.1.bn1.weight"), r"lacks 'layer2\.1\.bn1\.weight' \(1 such"),
        (lambda s: s.update(extra=torch.zeros(1)), "has an unknown 'extra'"),
        (lambda s: s.update({"conv1.weight": torch.zeros(16, 3, 5, 5)}), r"has another shape for 'conv1\.weight'"),
    ],
)
def test_weights_of_another_network(resnet20_weights, tmp_path, change, words):
    from safetensors.torch import load_file, save_file

    state = load_file(resnet20_weights)
    change(state)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=words) as caught:
        make_encoder(f"resnet20-cifar:{tmp_path / 'w.safetensors'}")
    assert "w.safetensors: are not the weights of a CIFAR ResNet-20" in str(caught.value)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_broken_weights(tmp_path, name):
    (tmp_path / name).write_bytes(b"not weights at all")
    with pytest.raises(InputError, match="cannot be read as weights"):
        make_encoder(f"resnet20-cifar:{tmp_path / name}")


class Harmful:
    def __reduce__(self):
        return (print, ("this code must never run",))


def test_pickled_code_in_weights_is_not_run(tmp_path, capsys):
    torch.save({"conv1.weight": Harmful()}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="cannot be read as weights"):
        make_encoder(f"resnet20-cifar:{tmp_path / 'w.pth'}")
    assert "never run" not in capsys.readouterr().out


@pytest.mark.slow
def test_resnet20_classifies_the_real_test_images(cifar_archive, resnet20_weights):
    """75 % and more of 10,000 JPEG images: normalisation, shortcuts and names are right (chance is 10 %)."""
    data = open_dataset(cifar_archive, split="test")
    network = load_resnet20(resnet20_weights)
    features = embed(data, f"resnet20-cifar:{resnet20_weights}")
    with torch.inference_mode():
        guess = network.linear(torch.from_numpy(features)).argmax(dim=1).numpy()
    accuracy = (guess == data.labels).mean()
    assert accuracy > 0.75, accuracy


# --- exported files


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 5, 3)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(self.conv(x)).mean(dim=(2, 3))


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return Small().eval()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript(small, pictures, tmp_path):
    torch.jit.trace(small, torch.zeros(2, 3, 16, 16)).save(str(tmp_path / "net.pt"))
    data = pictures(20)
    found = embed(data, str(tmp_path / "net.pt"), trust=True)
    np.testing.assert_allclose(found, embed(data, small), atol=1e-6)
    torch.jit.script(small.train()).save(str(tmp_path / "train.pt"))
    small.eval()
    np.testing.assert_allclose(embed(data, tmp_path / "train.pt", trust=True), embed(data, small), atol=1e-6)


@pytest.mark.parametrize("dynamic", [True, False])
def test_torch_export(small, pictures, tmp_path, dynamic):
    """A graph for 8 images of 16 pixels takes 20 images of 32 pixels: in padded batches, resized."""
    shapes = {"x": {0: torch.export.Dim("batch")}} if dynamic else None
    program = torch.export.export(small, (torch.zeros(8, 3, 16, 16),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "net.pt2")
    encoder = make_encoder(tmp_path / "net.pt2", trust=True)
    assert encoder.input_size == 16
    assert encoder.fixed_batch == (None if dynamic else 8)
    data = pictures(20, 32)
    found = embed(data, encoder)
    np.testing.assert_allclose(found, embed(data, small, size=16), atol=1e-6)


@pytest.mark.parametrize("name", ["net.pt", "net.pt2"])
def test_files_with_code_need_trust(tmp_path, name):
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(InputError, match=r"opening it can run code .* pass trust=True"):
        make_encoder(str(tmp_path / name))
    with pytest.raises(InputError, match=r"is not a .* file that this torch reads"):
        make_encoder(str(tmp_path / name), trust=True)


def test_digest_depends_on_names_and_values_not_on_order():
    one = {"a": torch.zeros(2), "b": torch.ones(1, dtype=torch.bfloat16)}
    assert weights_digest(one) == weights_digest(dict(reversed(one.items())))
    assert weights_digest(one) != weights_digest({**one, "a": torch.tensor([0.0, 1e-9])})
    assert weights_digest(one) != weights_digest({"c": one["a"], "b": one["b"]})
    assert weights_digest({"a": torch.zeros(4)}) != weights_digest({"a": torch.zeros(2, 2)})


# --- optional packages. They run in a process of their own: a torchvision made for another torch breaks their import,
# and there it can be repaired without touching other tests.

PREPARE = """
    import json, sys
    import numpy as np, torch
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for _ in range(9):
        try:
            import torchvision
        except ImportError:
            pass
        except RuntimeError as e:  # operator torchvision::NAME does not exist: these networks do not use it
            for name in [n for n in sys.modules if n.startswith("torchvision")]:
                del sys.modules[name]
            torch.library.define(str(e).split()[1], "(Tensor a, Tensor b, float c) -> Tensor")
        else:
            break
    from prunefast.encode import embed, make_encoder
    from prunefast.errors import InputError
    folder = sys.argv[1]
    images = np.random.default_rng(0).integers(0, 256, (5, 40, 40, 3), dtype=np.uint8)
    class Data:
        image_size, fingerprint, keys = 40, "f", list("abcde")
        def __len__(self): return 5
        def images(self, indices): return images[indices]
    def error(call):
        try:
            call()
        except InputError as e:
            return str(e)
    facts = {}
"""


def run_alone(script, folder):
    code = textwrap.dedent(PREPARE) + textwrap.dedent(script) + "\nprint(json.dumps(facts))"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def needs(name):
    installed = {distribution.metadata["Name"] for distribution in importlib.metadata.distributions()}
    return pytest.mark.skipif(name not in installed, reason=f"{name} is not installed")


@needs("transformers")
def test_transformers(tmp_path):
    """Random CLIP and DINOv2 from a local folder: the features are those of the model called by hand."""
    script = """
    from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model
    from PIL import Image
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    text = {**sizes, "num_hidden_layers": 1, "vocab_size": 50}
    vision = {**sizes, "num_hidden_layers": 2, "image_size": 24, "patch_size": 8}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).eval()
    clip.save_pretrained(folder + "/clip")
    prepare = {"image_mean": [.1, .2, .3], "image_std": [.4, .5, .6], "size": {"shortest_edge": 28},
               "crop_size": {"height": 24, "width": 24}, "resample": 3}
    json.dump(prepare, open(folder + "/clip/preprocessor_config.json", "w"))
    small = [np.asarray(Image.fromarray(i).resize((28, 28), Image.Resampling.BICUBIC))[2:26, 2:26] for i in images]
    x = torch.tensor((np.stack(small) / 255 - prepare["image_mean"]) / prepare["image_std"]).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        by_hand = clip.visual_projection(clip.vision_model(pixel_values=x).pooler_output).numpy()
    found = embed(Data(), "hf:" + folder + "/clip")
    facts["clip"] = [list(found.shape), float(np.abs(found - by_hand).max()), float(by_hand.std())]

    dino = Dinov2Model(Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28,
                                    patch_size=7)).eval()
    dino.save_pretrained(folder + "/dino")
    encoder = make_encoder("hf:" + folder + "/dino", size=40)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    x = torch.tensor((images / 255 - mean) / std).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        by_hand = dino(pixel_values=x).last_hidden_state[:, 0].numpy()
    found = encoder(images)
    facts["dino"] = [list(found.shape), float(np.abs(found - by_hand).max()), encoder.manifest()["mean"]]
    facts["digests"] = [encoder.manifest()["weights"], make_encoder("hf:" + folder + "/clip").manifest()["weights"]]

    from safetensors.torch import load_file, save_file
    state = load_file(folder + "/dino/model.safetensors")
    del state["layernorm.weight"]
    save_file(state, folder + "/dino/model.safetensors", metadata={"format": "pt"})
    facts["lacking"] = error(lambda: make_encoder("hf:" + folder + "/dino"))
    open(folder + "/clip/config.json", "w").write("{}")
    facts["broken"] = error(lambda: make_encoder("hf:" + folder + "/clip"))
    """
    facts, _ = run_alone(script, tmp_path)
    shape, difference, spread = facts["clip"]
    assert shape == [5, 12]
    assert difference < 0.02 * spread  # Pillow rounds the resized image to whole levels
    assert facts["dino"][0] == [5, 16]
    assert facts["dino"][1] < 1e-5
    assert facts["dino"][2] == [0.485, 0.456, 0.406]
    assert len(set(facts["digests"])) == 2
    assert "its weights lack 'layernorm.weight'" in facts["lacking"]
    assert "config.json" in facts["broken"]


@pytest.mark.slow
@needs("torchvision")
def test_torchvision(tmp_path):
    """Random weights through a file: features are those of the network with its head replaced by hand."""
    script = """
    import torch.nn.functional as F
    from torchvision import models
    def by_hand(network, size):
        network.fc = torch.nn.Identity()
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        x = ((torch.tensor(images).float() / 255 - mean) / std).permute(0, 3, 1, 2)
        x = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=True)
        with torch.inference_mode():
            return network.eval()(x).numpy()
    for name, size, make in (
        ("resnet18", 224, lambda: models.resnet18(weights=None)),
        ("inception_v3", 299, lambda: models.inception_v3(weights=None, init_weights=False, transform_input=True)),
    ):
        network = make()
        torch.save(network.state_dict(), folder + f"/{name}.pth")
        found = embed(Data(), f"torchvision:{name}:{folder}/{name}.pth")
        expected = by_hand(network, size)
        facts[name] = [list(found.shape), float(np.abs(found - expected).max() / np.abs(expected).max())]
    facts["wrong"] = error(lambda: make_encoder(f"torchvision:resnet50:{folder}/resnet18.pth"))
    facts["unknown"] = error(lambda: make_encoder(f"torchvision:resnet7:{folder}/resnet18.pth"))
    """
    facts, _ = run_alone(script, tmp_path)
    assert facts["resnet18"][0] == [5, 512]
    assert facts["resnet18"][1] < 1e-5
    assert facts["inception_v3"][0] == [5, 2048]
    assert facts["inception_v3"][1] < 1e-5
    assert "resnet18.pth: are not the weights of torchvision's resnet50" in facts["wrong"]
    assert "resnet7" in facts["unknown"]


@pytest.mark.slow
@needs("timm")
def test_timm(tmp_path):
    script = """
    import timm
    network = timm.create_model("resnet10t", pretrained=False).eval()
    from safetensors.torch import save_file
    save_file(network.state_dict(), folder + "/w.safetensors")
    encoder = make_encoder(f"timm:resnet10t:{folder}/w.safetensors", size=40)
    mean, std = np.array(encoder.mean), np.array(encoder.std)
    x = torch.tensor((images / 255 - mean) / std).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        expected = network.forward_head(network.forward_features(x), pre_logits=True).numpy()
    found = encoder(images)
    facts["timm"] = [list(found.shape), float(np.abs(found - expected).max()), encoder.dim]
    facts["unknown"] = error(lambda: make_encoder(f"timm:resnet7:{folder}/w.safetensors"))
    """
    facts, _ = run_alone(script, tmp_path)
    assert facts["timm"] == [[5, 512], pytest.approx(0, abs=1e-4), 512]
    assert "timm:resnet7" in facts["unknown"]


def test_missing_and_broken_packages(monkeypatch):
    with pytest.raises(MissingDependencyError, match=r"x: needs no_such_package, .*prunefast\[encoders\]"):
        import_optional("no_such_package", "x")

    def broken(name):
        raise RuntimeError("operator torchvision::nms does not exist\nand more lines")

    monkeypatch.setattr("importlib.import_module", broken)
    with pytest.raises(MissingDependencyError) as caught:
        import_optional("torchvision.models", "torchvision:resnet18")
    message = str(caught.value)
    assert message.startswith("torchvision:resnet18: torchvision.models does not load beside torch")
    assert "operator torchvision::nms does not exist" in message
    assert "prunefast[encoders]" in message
    assert "\n" not in message


def test_broken_torchvision_is_one_line(tmp_path, monkeypatch):
    torch.save({}, tmp_path / "w.pth")

    def broken(name, what):
        raise MissingDependencyError(f"{what}: {name} does not load")

    monkeypatch.setattr("prunefast.encode.torchvision_.import_optional", broken)
    with pytest.raises(MissingDependencyError, match=r"torchvision:resnet18: torchvision\.models does not load"):
        make_encoder(f"torchvision:resnet18:{tmp_path / 'w.pth'}")


def test_heads():
    network = torch.nn.Module()
    network.classifier = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(3, 2))
    remove_head(network, "x")
    assert isinstance(network.classifier[1], torch.nn.Identity)
    with pytest.raises(InputError, match="ends in no linear layer"):
        remove_head(torch.nn.Module(), "x")
