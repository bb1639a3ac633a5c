"""Latents of small random autoencoders: against diffusers itself, and through the loader, the loop and the samplers."""

import json

import numpy as np
import pytest
import torch

from prunefast.cli import main
from prunefast.data import from_arrays, open_dataset
from prunefast.diffusion.latents import draw_latents
from prunefast.encode.latents import Autoencoder, encode_latents
from prunefast.errors import InputError
from prunefast.ops import randn_philox
from prunefast.ops.philox import Stream
from prunefast.select import Coreset
from prunefast.stream import CoresetLoader
from prunefast.train import TrainConfig, read_metrics, sample, train
from prunefast.train.setup import build_parts, make_plan, open_inputs
from prunefast.train.state import WEIGHT_FILES, find_checkpoint

SMALL = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "latent_channels": 2,
    "norm_num_groups": 4,
}


@pytest.fixture(scope="module")
def vaes(diffusers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vaes")
    torch.manual_seed(0)
    kl = diffusers.AutoencoderKL(**SMALL, scaling_factor=0.7, shift_factor=0.1)
    kl.save_pretrained(folder / "pipeline" / "vae")
    diffusers.VQModel(**SMALL, num_vq_embeddings=16, scaling_factor=0.5).save_pretrained(folder / "vq")
    torch.manual_seed(1)
    diffusers.AutoencoderKL(**SMALL, scaling_factor=0.7, shift_factor=0.1).save_pretrained(folder / "other")
    return folder


@pytest.fixture
def photos(tmp_path):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (11, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "photos.npz", images=images, labels=np.arange(11) % 2)
    return open_dataset(tmp_path / "photos.npz")


@pytest.fixture
def config(tmp_path):
    def make(**values):
        network = {"width": 8, "channel_multipliers": [1, 2], "blocks": 1, "attention_levels": []}
        defaults = {"out": str(tmp_path / "run"), "data": str(tmp_path / "latents"), "images": 48, "batch_size": 8}
        defaults |= {"model": "unet-tiny", "model_options": network, "device": "cpu", "precision": "fp32"}
        return TrainConfig(**{**defaults, "warmup_images": 8, "status_every_images": 16, **values})

    return make


def test_moments_are_those_of_diffusers(vaes, photos, tmp_path, diffusers):
    latents = encode_latents(photos, vaes / "pipeline", tmp_path / "latents", batch_size=4)
    vae = diffusers.AutoencoderKL.from_pretrained(vaes / "pipeline" / "vae", local_files_only=True).eval()
    x = torch.from_numpy(photos.images(range(11))).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        expected = vae.encode(x).latent_dist
    rows = torch.from_numpy(latents.images(range(11))).permute(0, 3, 1, 2)
    torch.testing.assert_close(rows[:, :2], expected.mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(rows[:, 2:], expected.std, atol=1e-5, rtol=1e-4)
    assert latents.image_size == 4
    assert (latents.latents.channels, latents.latents.scale, latents.latents.shift) == (2, 0.7, 0.1)
    assert latents.fingerprint == photos.fingerprint
    assert (latents.labels == photos.labels).all()
    assert list(latents.keys) == list(photos.keys)
    decoded = Autoencoder(vaes / "pipeline").decode((rows[:, :2] - 0.1) * 0.7)
    with torch.no_grad():
        torch.testing.assert_close(decoded, vae.decode(rows[:, :2]).sample, atol=1e-5, rtol=1e-4)


def test_latents_of_a_vq_model_have_no_variance(vaes, photos, tmp_path, diffusers):
    latents = encode_latents(photos, vaes / "vq", tmp_path / "latents")
    vae = diffusers.VQModel.from_pretrained(vaes / "vq", local_files_only=True).eval()
    x = torch.from_numpy(photos.images([3])).permute(0, 3, 1, 2) / 127.5 - 1
    rows = torch.from_numpy(latents.images([3])).permute(0, 3, 1, 2)
    with torch.no_grad():
        torch.testing.assert_close(rows[:, :2], vae.encode(x).latents, atol=1e-5, rtol=1e-4)
    assert (rows[:, 2:] == 0).all()


def test_a_second_call_does_nothing_and_a_stopped_one_goes_on(vaes, photos, tmp_path, monkeypatch):
    encode_latents(photos, vaes / "vq", tmp_path / "whole", batch_size=4)
    original, calls = Autoencoder.forward, []

    def forward(self, images):
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, images)

    monkeypatch.setattr(Autoencoder, "forward", forward)
    with pytest.raises(KeyboardInterrupt):
        encode_latents(photos, vaes / "vq", tmp_path / "latents", batch_size=4)
    with pytest.raises(InputError):
        open_dataset(tmp_path / "latents")  # not finished: not latents
    latents = encode_latents(photos, vaes / "vq", tmp_path / "latents", batch_size=4)
    assert calls == [4, 4, 3, 3]
    assert (latents.images(range(11)) == open_dataset(tmp_path / "whole").images(range(11))).all()
    encode_latents(photos, vaes / "vq", tmp_path / "latents", batch_size=4)
    assert len(calls) == 4


@pytest.mark.parametrize("placement", ["memory", "disk"])
def test_the_step_draws_from_the_posterior_by_position(placement, vaes, photos, tmp_path, config):
    latents = encode_latents(photos, vaes / "pipeline", tmp_path / "latents")
    parts = build_parts(make_plan(config(placement=placement), *open_inputs(config(), None, None)))
    batch = next(iter(parts.loader))
    assert batch.images.shape == (8, 4, 4, 4)
    moments = torch.from_numpy(latents.images(batch.index)).permute(0, 3, 1, 2)
    assert torch.equal(batch.images, moments)
    drawn = draw_latents(batch.images, latents.latents, 0, batch.position)
    noise = randn_philox((8, 2, 4, 4), 0, batch.position, Stream.LATENT)
    torch.testing.assert_close(drawn, (moments[:, :2] + moments[:, 2:] * noise - 0.1) * 0.7)
    other = draw_latents(batch.images, latents.latents, 0, batch.position + 8)
    assert not torch.equal(drawn, other)
    assert (parts.step.latents, parts.step.seed, parts.step.flip) == (latents.latents, 0, False)


def test_training_and_sampling(vaes, photos, tmp_path, config):
    """With a coreset selected from the images, on patches; stopped and continued; decoded samples."""
    encode_latents(photos, vaes / "pipeline", tmp_path / "latents")
    coreset = Coreset.from_indices(photos, np.arange(0, 11, 2))
    coreset.save(tmp_path / "coreset.parquet")
    options = {"coreset": str(tmp_path / "coreset.parquet"), "patch_p": 0.5}
    straight, stopped = config(**options), config(**options, out=str(tmp_path / "stopped"))
    train(straight)
    train(stopped.replace(images=16))
    train(stopped)
    for name in WEIGHT_FILES:
        a, b = ((find_checkpoint(c.out)[0] / name).read_bytes() for c in (straight, stopped))
        assert a == b, name
    state = find_checkpoint(straight.out)[1]
    assert (state["model"]["channels"], state["recipe"]["patch_levels"], state["recipe"]["flip"]) == (2, 2, False)
    assert read_metrics(tmp_path / "run" / "train" / "metrics.jsonl")

    images = sample(straight.out, 3, steps=2, guidance=2.0, out=tmp_path / "samples")
    assert images.shape == (3, 8, 8, 3)
    assert images.std() > 1
    assert (sample(straight.out, 3, steps=2, guidance=2.0) == images).all()
    with pytest.raises(InputError, match="has other weights than those that encoded the data"):
        sample(straight.out, 3, steps=2, vae=vaes / "other")
    with pytest.raises(InputError, match=r"holds latents of 8 pixel images"):
        train(config(image_size=16, out=str(tmp_path / "sized")))
    with pytest.raises(InputError, match="placement: latents are packed already"):
        train(config(placement="pack", out=str(tmp_path / "packed")))
    assert not (tmp_path / "packed").exists()
    with pytest.raises(InputError, match="holds latents, not images"):
        open_dataset(tmp_path / "latents").read_many([0])


def test_a_run_does_not_begin_with_latents(vaes, photos, tmp_path, capsys):
    encode_latents(photos, vaes / "pipeline", tmp_path / "latents")
    assert main(["embed", str(tmp_path / "latents"), "-o", str(tmp_path / "begun")]) == 2
    error = capsys.readouterr().err
    assert f"holds latents, a run begins with images; give {photos.path}" in error
    assert not (tmp_path / "begun").exists()


def test_the_command(vaes, photos, tmp_path, capsys):
    words = ["encode-latents", str(tmp_path / "photos.npz"), "--vae", str(vaes / "vq"), "-o", str(tmp_path / "latents")]
    assert main([*words, "--dry-run"]) == 0
    assert not (tmp_path / "latents").exists()
    assert main([*words, "--json", "--device", "cpu"]) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts == {"images": 11, "channels": 2, "side": 4, "folder": str(tmp_path / "latents")}
    assert main(words) == 0
    capsys.readouterr()
    for change, message in (
        (["--vae", str(vaes / "other")], "holds latents of other images or another autoencoder"),
        (["--vae", str(tmp_path)], "no config.json of an autoencoder there"),
        (["--image-size", "9", "-o", str(tmp_path / "odd")], "9 is not a multiple of 2"),
        (["--batch-size", "0"], "--batch-size"),
    ):
        assert main([*words, *change]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1
    assert not (tmp_path / "odd").exists()


def test_what_latents_cannot_do(vaes, photos, tmp_path):
    latents = encode_latents(photos, vaes / "vq", tmp_path / "latents")
    with pytest.raises(InputError, match="holds latents already"):
        encode_latents(latents, vaes / "vq", tmp_path / "twice")
    for call in (lambda: latents.image(0), lambda: latents.read(0)):
        with pytest.raises(InputError, match="holds latents, not images; open"):
            call()
    with pytest.raises(InputError, match="image_size"):
        encode_latents(from_arrays([np.zeros((4, 6, 3), np.uint8)]), vaes / "vq", tmp_path / "wide")
    with pytest.raises(InputError, match=r"split='test': .* holds latents of the split 'all'"):
        open_dataset(tmp_path / "latents", split="test")
    np.save(tmp_path / "latents" / "latents.npy", np.zeros((11, 3), np.float32))
    with pytest.raises(InputError, match="encode them again"):
        open_dataset(tmp_path / "latents")
    (tmp_path / "latents" / "latents-scale.json").write_text('{"side": 4}')
    with pytest.raises(InputError, match="is no record of latents"):
        open_dataset(tmp_path / "latents")
    loader_of_images = CoresetLoader(photos, Coreset.full(photos), batch_size=2)
    assert next(iter(loader_of_images)).images.dtype == torch.uint8


def test_latents_made_elsewhere_are_decoded_as_they_were_normalised(vaes, tmp_path, config):
    """By numbers a channel, which the autoencoder's own configuration does not know."""
    latents = np.random.default_rng(0).normal(size=(12, 2, 4, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", latents)
    record = {"latents_mean": [0.5, -1.0], "latents_std": [2.0, 3.0], "pixels": 8}
    (tmp_path / "x.json").write_text(json.dumps(record))
    trained = train(config(data=str(tmp_path / "x.npy"), images=16))
    with pytest.raises(InputError, match="made elsewhere; give the folder"):
        sample(trained.checkpoint, 2, steps=2)
    made = sample(trained.checkpoint, 2, steps=2, vae=str(vaes / "pipeline"))
    assert made.shape == (2, 8, 8, 3)
    decoder = Autoencoder(vaes / "pipeline")
    decoder.unscale(open_dataset(tmp_path / "x.npy").latents)
    z = torch.from_numpy(latents[:2])
    scaled = (z - torch.tensor([0.5, -1.0])[:, None, None]) / torch.tensor([2.0, 3.0])[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(decoder.decode(scaled), decoder.vae.decode(z).sample, rtol=1e-4, atol=1e-5)
