"""`embed`: what it returns, and that nothing is done twice."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch

from prunefast.data import from_arrays
from prunefast.encode import embed, make_encoder, open_features
from prunefast.errors import InputError, InputTypeError


class Linear(torch.nn.Module):
    """Three features with dropout: it would be seen if evaluation mode were forgotten."""

    def __init__(self, side=16, dim=3):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(3 * side * side, dim, generator=generator))
        self.dropout = torch.nn.Dropout(0.5)
        self.seen = []

    def forward(self, x):
        self.seen.append(tuple(x.shape))
        return self.dropout(x.flatten(1)) @ self.weight


def formula(images, network):
    x = (images.astype(np.float64) / 255 - 0.5) / 0.5
    return x.transpose(0, 3, 1, 2).reshape(len(images), -1) @ network.weight.detach().numpy().astype(np.float64)


def test_module(pictures):
    data, network = pictures(50), Linear()
    network.train()
    features = embed(data, network, batch_size=20)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, formula(data.array, network), rtol=1e-4, atol=1e-4)
    assert network.seen == [(20, 3, 16, 16), (20, 3, 16, 16), (10, 3, 16, 16)]
    assert network.training
    assert network.dropout.training


def test_function_with_own_statistics(pictures):
    data = pictures(10)
    features = embed(data, lambda x: x.flatten(1), mean=(0, 0.1, 0.2), std=(1, 2, 4))
    expected = (data.array / 255.0 - [0, 0.1, 0.2]) / [1, 2, 4]
    np.testing.assert_allclose(features, expected.transpose(0, 3, 1, 2).reshape(10, -1), atol=1e-6)


def test_size_resizes(pictures):
    features = embed(pictures(4, 16), lambda x: x.flatten(1), size=8, mean=0, std=1)
    assert features.shape == (4, 3 * 8 * 8)


def test_batches_are_cut_at_fixed_positions(pictures, tmp_path):
    network = Linear()
    encoder = make_encoder(network)
    data = pictures(25)
    whole = embed(data, encoder, batch_size=8)
    for position in (0, 8, 16, 24):
        np.testing.assert_array_equal(encoder(data.array[position : position + 8]), whole[position : position + 8])


def test_data_of_the_library(pictures):
    images = pictures(30).array
    data = from_arrays(images)
    np.testing.assert_array_equal(embed(data, "pixels", threads=2), embed(pictures(30), "pixels"))


def test_images_of_different_sizes_get_the_encoders(pictures, make_pictures):
    asked = []

    class Mixed(make_pictures):
        def with_image_size(self, size):
            asked.append(size)
            return make_pictures(self.array[:, :size, :size])

    data = Mixed(pictures(20).array, image_size=None)
    assert embed(data, "pixels", size=4).shape[0] == 20
    assert asked == [4]
    with pytest.raises(InputError, match=r"different sizes.*pass size="):
        embed(data, lambda x: x.flatten(1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_device(pictures):
    data, network = pictures(30), Linear()
    on_cpu = embed(data, network)
    np.testing.assert_allclose(embed(data, Linear(), device="cuda"), on_cpu, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(embed(data, network.cuda()), on_cpu, rtol=1e-3, atol=1e-3)  # stays where it lies


def test_torchs_generator_is_untouched(pictures):
    state = torch.get_rng_state()
    embed(pictures(20), Linear())
    embed(pictures(20), "pixels")
    assert torch.equal(state, torch.get_rng_state())


# --- files


def test_written_once(pictures, tmp_path):
    out = tmp_path / "run" / "features.npy"
    data, network = pictures(50), Linear()
    first = embed(data, network, out=out)
    assert isinstance(first, np.memmap)
    assert not first.flags.writeable
    np.testing.assert_array_equal(first, embed(data, network))
    assert sorted(p.name for p in out.parent.iterdir()) == ["features.json", "features.npy"]
    facts = json.loads((tmp_path / "run" / "features.json").read_text())
    assert facts["request"]["data_fingerprint"] == data.fingerprint
    assert facts["encoder"]["weights"]
    assert facts["dim"] == 3
    assert facts["images"] == 50
    data.read.clear()
    network.seen.clear()
    before = out.stat().st_mtime_ns
    np.testing.assert_array_equal(embed(data, network, out=out), first)
    assert data.read == []
    assert network.seen == []
    assert out.stat().st_mtime_ns == before
    np.testing.assert_array_equal(open_features(out, data), first)


def test_pixels_repeat_reads_nothing(pictures, tmp_path):
    data = pictures(50)
    first = np.array(embed(data, "pixels", out=tmp_path / "f.npy"))
    data.read.clear()
    np.testing.assert_array_equal(embed(data, "pixels", out=tmp_path / "f.npy"), first)
    assert data.read == []


@pytest.mark.parametrize("change", ["weights", "data", "batch_size", "options"])
def test_another_request_is_done_again(pictures, tmp_path, change):
    """IS-GAN's cache ignores the parameters (defect 9)."""
    data, network = pictures(50), Linear()
    embed(data, network, out=tmp_path / "f.npy")
    options = {}
    if change == "weights":
        with torch.no_grad():
            network.weight[0, 0] += 1
    elif change == "data":
        data = pictures(50, seed=1)
    else:
        options = {"batch_size": 7} if change == "batch_size" else {"mean": 0.1}
    data.read.clear()
    again = np.array(embed(data, network, out=tmp_path / "f.npy", **options))
    assert data.read == list(range(50))
    np.testing.assert_array_equal(again, embed(data, network, **options))


def test_an_unnamed_function_is_never_reused(pictures, tmp_path):
    data = pictures(10)
    embed(data, lambda x: x.flatten(1)[:, :2], out=tmp_path / "f.npy")
    again = embed(data, lambda x: x.flatten(1)[:, 2:4], out=tmp_path / "f.npy")
    np.testing.assert_array_equal(again, embed(data, lambda x: x.flatten(1)[:, 2:4]))
    calls = []

    def named(x):
        calls.append(len(x))
        return x.flatten(1)[:, :2]

    for _ in range(2):
        embed(data, named, out=tmp_path / "g.npy", name="two numbers")
    assert calls == [10]


@pytest.mark.parametrize("damage", ["short", "gone", "no manifest", "broken manifest"])
def test_damaged_results_are_made_again(pictures, tmp_path, damage):
    data, out = pictures(20), tmp_path / "f.npy"
    expected = np.array(embed(data, Linear(), out=out))
    if damage == "short":
        out.write_bytes(out.read_bytes()[:-10])
    elif damage == "gone":
        out.unlink()
    elif damage == "no manifest":
        (tmp_path / "f.json").unlink()
    else:
        (tmp_path / "f.json").write_text("{")
    np.testing.assert_array_equal(embed(data, Linear(), out=out), expected)
    assert not list(tmp_path.glob("*partial*"))


def test_interrupted_and_continued(pictures, tmp_path):
    data, out = pictures(50), tmp_path / "features.npy"
    network = Linear()
    encoder = make_encoder(network)

    class Interrupted(type(encoder)):
        def __call__(self, images):
            if len(network.seen) == 3:
                raise KeyboardInterrupt
            return super().__call__(images)

    with pytest.raises(KeyboardInterrupt):
        embed(data, Interrupted(network), out=out, batch_size=10)
    assert not out.exists()
    assert json.loads((tmp_path / "features.npy.partial.json").read_text())["done"] == 30
    network.seen.clear()
    data.read.clear()
    features = embed(data, encoder, out=out, batch_size=10)
    assert len(network.seen) == 2
    assert data.read == list(range(30, 50))
    np.testing.assert_array_equal(features, embed(data, encoder, batch_size=10))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["features.json", "features.npy"]


def test_what_is_left_of_another_request_is_not_continued(pictures, tmp_path):
    data, network = pictures(50), Linear()

    def stop(images):
        raise KeyboardInterrupt

    encoder = make_encoder(network)
    good = encoder._forward
    count = iter(range(10))
    encoder._forward = lambda images: good(images) if next(count) < 3 else stop(images)
    with pytest.raises(KeyboardInterrupt):
        embed(data, encoder, out=tmp_path / "f.npy", batch_size=10)
    del encoder._forward
    with torch.no_grad():
        network.weight += 1
    data.read.clear()
    features = embed(data, encoder, out=tmp_path / "f.npy", batch_size=10)
    assert data.read == list(range(50))
    np.testing.assert_array_equal(features, embed(data, encoder, batch_size=10))


SLOW = """
    import sys, time
    import numpy as np, torch
    import prunefast.encode.feature_file as feature_file
    from prunefast.data import from_arrays
    from prunefast.encode import embed
    feature_file.RECORD_SECONDS = 0.0
    torch.set_num_threads(1)
    images = np.random.default_rng(0).integers(0, 256, (400, 8, 8, 3), dtype=np.uint8)
    def network(x):
        time.sleep(float(sys.argv[2]))
        print(len(x), flush=True)
        return x.flatten(1)[:, :5]
    embed(from_arrays(images), network, name="slow", out=sys.argv[1], batch_size=10)
"""


def test_killed_and_continued(tmp_path):
    """kill -9 in the middle: the second call does what is missing, and the result is that of one call."""
    out = tmp_path / "features.npy"
    script = tmp_path / "slow.py"
    script.write_text(textwrap.dedent(SLOW))
    process = subprocess.Popen([sys.executable, script, out, "0.02"], stdout=subprocess.PIPE)
    record = tmp_path / "features.npy.partial.json"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (record.exists() and json.loads(record.read_text())["done"] >= 60):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    done = json.loads(record.read_text())["done"]
    assert 60 <= done < 400
    assert not out.exists()
    again = subprocess.run([sys.executable, script, out, "0"], capture_output=True, text=True, check=True)
    assert len(again.stdout.split()) == (400 - done) // 10
    images = np.random.default_rng(0).integers(0, 256, (400, 8, 8, 3), dtype=np.uint8)
    expected = (images.astype(np.float32) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(np.load(out), expected.transpose(0, 3, 1, 2).reshape(400, -1)[:, :5], atol=1e-6)
    assert not list(tmp_path.glob("*partial*"))


def test_full_disk(pictures, tmp_path, monkeypatch):
    import prunefast.encode.feature_file as feature_file
    from prunefast.errors import MachineError

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_file, "RECORD_SECONDS", 0.0)
    monkeypatch.setattr(feature_file.os, "fsync", full)
    with pytest.raises(MachineError, match=r"features\.npy: no space left"):
        embed(pictures(50), Linear(), out=tmp_path / "features.npy")
    assert not (tmp_path / "features.npy").exists()


def test_out_that_cannot_be(pictures, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file: (is a file|a file stands)"):
        embed(pictures(5), Linear(), out=tmp_path / "file" / "features.npy")
    with pytest.raises(InputError, match=r"must end in \.npy"):
        embed(pictures(5), Linear(), out=tmp_path / "features.bin")
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        embed(pictures(5), Linear(), out=tmp_path / "folder.npy")


def test_open_features(pictures, tmp_path):
    with pytest.raises(InputError, match="no finished features"):
        open_features(tmp_path / "features.npy")
    embed(pictures(20), Linear(), out=tmp_path / "features.npy")
    with pytest.raises(InputError, match="of another data set"):
        open_features(tmp_path / "features.npy", pictures(20, seed=4))


# --- what is refused


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite(pictures, tmp_path, bad):
    def network(x):
        features = x.flatten(1)[:, :3].clone()
        if network.calls == 1:
            features[4, 1] = bad
        network.calls += 1
        return features

    for out in (None, tmp_path / "features.npy"):
        network.calls = 0
        with pytest.raises(InputError, match=r"nets: NaN or infinity in the features of '00014\.png'"):
            embed(pictures(30), network, name="nets", out=out, batch_size=10)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("network", "error", "words"),
    [
        (lambda x: x, InputError, r"returned shape \[10, 3, 16, 16\].*pool or flatten"),
        (lambda x: x.mean(), InputError, r"returned shape \[\]"),
        (lambda x: x.flatten(1)[:5], InputError, r"returned shape \[5, 768\] for 10"),
        (lambda x: {"features": x}, InputTypeError, "returned dict; an encoder returns one tensor"),
        (lambda x: x @ torch.zeros(3, 3), InputError, r"fails on images \[10, 3, 16, 16\].*set size="),
    ],
)
def test_networks_that_do_not_fit(pictures, network, error, words):
    with pytest.raises(error, match=words):
        embed(pictures(10), network)


def test_pooled_maps_are_flattened(pictures):
    assert embed(pictures(10), torch.nn.AdaptiveAvgPool2d(1)).shape == (10, 3)


def test_changing_dimension(pictures, tmp_path):
    with pytest.raises(InputError, match="gave 4 features after 10 before"):
        embed(pictures(14), lambda x: x.flatten(1)[:, : len(x)], out=tmp_path / "f.npy", batch_size=10)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch_size": 0}, "batch_size: must be"),
        ({"encoder": "resnet"}, "encoder: 'resnet' is unknown; there are pixels, resnet20-cifar:FILE"),
        ({"encoder": "weights.pth"}, "holds weights only, not a network"),
        ({"encoder": "resnet20-cifar"}, "needs a file of weights"),
        ({"encoder": "resnet20-cifar:none.safetensors"}, r"none\.safetensors: no such file of weights"),
        ({"encoder": "torchvision:resnet18"}, "needs a file of weights: torchvision:resnet18:FILE"),
        ({"encoder": "torchvision:"}, "names no network"),
        ({"encoder": "timm:resnet18"}, "needs a file of weights: timm:resnet18:FILE"),
        ({"encoder": "timm:local-dir:nowhere"}, r"nowhere: has no config\.json"),
        ({"encoder": "hf:openai/clip-vit-base-patch32"}, "name a local folder"),
        ({"encoder": "none.pt2"}, r"none\.pt2: no such file"),
        ({"encoder": "pixels", "dims": 4}, "dims: encoder 'pixels' has no such option; its options are size, dim"),
        ({"encoder": "pixels", "device": "warp"}, None),
        ({"encoder": torch.nn.Identity(), "device": "warp"}, "device: 'warp' cannot be used here"),
        ({"encoder": torch.nn.Identity(), "std": 0}, "std: must be"),
        ({"encoder": torch.nn.Identity(), "mean": (1, 2)}, "mean: must be"),
        ({"encoder": torch.nn.Identity(), "size": 0}, "size: must be"),
    ],
)
def test_bad_arguments(pictures, arguments, words):
    if words is None:  # pixels compute on the CPU whatever the device
        assert embed(pictures(5), **arguments).shape == (5, 4)
        return
    with pytest.raises(InputError, match=words) as caught:
        embed(pictures(5), **arguments)
    assert "\n" not in str(caught.value)


def test_classes_and_numbers_are_no_encoders(pictures):
    with pytest.raises(InputTypeError, match="Linear is a class; pass an instance"):
        embed(pictures(5), Linear)
    with pytest.raises(InputTypeError, match="must be a name, a torch module or a function"):
        embed(pictures(5), 3)


def test_no_images(make_pictures):
    with pytest.raises(InputError, match="has no images"):
        embed(make_pictures(np.zeros((0, 8, 8, 3))), "pixels")
