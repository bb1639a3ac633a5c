"""A small random Stable Diffusion, made here: captions through the loop, prompts through the sampler, and back."""

import json
import shutil

import numpy as np
import pytest
import torch

import prunefast as pf
from prunefast.cli import main
from prunefast.data import open_dataset
from prunefast.encode.latents import encode_latents
from prunefast.encode.text import Captions, TextEncoder, encode_captions
from prunefast.errors import InputError
from prunefast.ops import randn_philox, uniform_philox
from prunefast.ops.philox import Stream
from prunefast.train import TrainConfig, export_model, read_metrics, sample, train
from prunefast.train.holdout import make_holdout
from prunefast.train.network import load_network
from prunefast.train.setup import build_parts, make_plan, open_inputs
from prunefast.train.state import WEIGHT_FILES, find_checkpoint

CAPTIONS = ["a red cat", "a dog", None, "a red cat", "dog", ""]
WORDS = ["a</w>", "red</w>", "cat</w>", "dog</w>"]


@pytest.fixture(scope="module")
def pipeline(diffusers, tmp_path_factory):
    """A pipeline of a UNet, an autoencoder, a CLIP text model and a tokenizer of four words."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("pipeline")
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=2,
        norm_num_groups=4,
        scaling_factor=0.7,
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=4,
        in_channels=2,
        out_channels=2,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=12,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    for parameter in unet.parameters():  # so that what it is told reaches its output
        torch.nn.init.normal_(parameter, std=0.2)
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=32, hidden_size=12, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=7, bos_token_id=30, eos_token_id=31, pad_token_id=31,
        )
    )  # fmt: skip
    vae.save_pretrained(folder / "vae")
    unet.save_pretrained(folder / "unet")
    text.save_pretrained(folder / "text_encoder")
    words = {word: number for number, word in enumerate(WORDS)}
    letters = {letter: len(words) + number for number, letter in enumerate("abcdegortxyz")}
    ends = {f"{letter}</w>": 16 + number for number, letter in enumerate("bcdegortxyz")}
    tokens = words | letters | ends | {"<|startoftext|>": 30, "<|endoftext|>": 31}
    (folder / "raw").mkdir()
    (folder / "raw" / "vocab.json").write_text(json.dumps(tokens))
    merges = ["r e", "re d</w>", "c a", "ca t</w>", "d o", "do g</w>"]
    (folder / "raw" / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    tokens |= {"re": 27, "ca": 28, "do": 29}
    (folder / "raw" / "vocab.json").write_text(json.dumps(tokens))
    tokenizer = transformers.CLIPTokenizer(
        str(folder / "raw" / "vocab.json"), str(folder / "raw" / "merges.txt"), model_max_length=7
    )
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture
def latents(pipeline, tmp_path):
    """Latents of captioned photos in a Parquet file."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    from io import BytesIO

    from PIL import Image

    generator, files = np.random.default_rng(0), []
    for _ in CAPTIONS:
        file = BytesIO()
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file, format="PNG")
        files.append({"bytes": file.getvalue(), "path": None})
    parquet.write_table(pa.table({"image": files, "caption": CAPTIONS}), tmp_path / "photos.parquet")
    return encode_latents(open_dataset(tmp_path / "photos.parquet"), pipeline, tmp_path / "latents")


@pytest.fixture
def make_config(pipeline, tmp_path):
    def make(**values):
        defaults = {"out": str(tmp_path / "run"), "data": str(tmp_path / "latents"), "images": 24, "batch_size": 4}
        defaults |= {"model": f"diffusers:{pipeline}", "text_encoder": str(pipeline), "device": "cpu"}
        defaults |= {"precision": "fp32", "warmup_images": 4, "status_every_images": 8, "label_drop": 0.3}
        return TrainConfig(**{**defaults, "process": "ddpm-scaled-linear", **values})

    return make


def test_the_text_model_is_asked_as_by_the_pipeline(pipeline, diffusers):
    """Padding, cutting and the hidden state, against diffusers' own StableDiffusionPipeline."""
    encoder = TextEncoder(pipeline)
    theirs = diffusers.StableDiffusionPipeline(
        vae=None, text_encoder=encoder.model, tokenizer=encoder.tokenizer, unet=None, scheduler=None,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    texts = ["a red cat", "a dog a dog a dog a dog", ""]
    expected, _ = theirs.encode_prompt(texts, "cpu", 1, do_classifier_free_guidance=False)
    assert torch.equal(encoder(texts), expected)
    assert encoder(texts).shape == (3, 7, 12)


def test_captions_are_encoded_once(pipeline, tmp_path, monkeypatch):
    captions = Captions.of(CAPTIONS)
    assert captions.texts == ["a red cat", "a dog", "dog", ""]
    assert captions.numbers.tolist() == [0, 1, 3, 0, 2, 3]
    encoder = TextEncoder(pipeline)
    table = encode_captions(captions, encoder, tmp_path / "table.npy")
    np.testing.assert_array_equal(table, encoder(captions.texts).numpy())
    asked = []
    monkeypatch.setattr(TextEncoder, "forward", lambda self, texts: asked.append(texts))
    np.testing.assert_array_equal(encode_captions(captions, encoder, tmp_path / "table.npy"), table)
    assert not asked
    monkeypatch.undo()
    other = encode_captions(Captions.of(["dog"]), encoder, tmp_path / "table.npy")
    np.testing.assert_array_equal(other, encoder(["dog", ""]).numpy())


def test_each_image_is_shown_with_its_caption_or_none(latents, make_config):
    """The embeddings that reach the UNet, against the text model; the drop against its Philox stream."""
    config = make_config()
    plan = make_plan(config, *open_inputs(config, None, None))
    parts = build_parts(plan)
    told = []
    parts.model.network.register_forward_pre_hook(lambda _, inputs: told.append(inputs[2]))
    encoder, dropped = TextEncoder(config.text_encoder), 0
    for _, batch in zip(range(6), parts.loader, strict=False):
        parts.step(batch)
        drop = uniform_philox((4,), config.seed, batch.position, Stream.LABEL_DROP) < 0.3
        texts = ["" if gone else CAPTIONS[i] or "" for i, gone in zip(batch.index.tolist(), drop.tolist(), strict=True)]
        torch.testing.assert_close(told.pop(), encoder(texts), atol=1e-6, rtol=1e-6)
        dropped += int(drop.sum())
    assert 0 < dropped < 24


def test_train_resume_sample_and_export(latents, make_config, pipeline, diffusers, tmp_path, capsys):
    straight = make_config(out=str(tmp_path / "straight"))
    train(straight)
    stopped = make_config(out=str(tmp_path / "stopped"))
    train(stopped.replace(images=8))
    train(stopped)
    online = make_config(out=str(tmp_path / "online"), caption_cache=False)
    train(online)
    assert not (tmp_path / "online" / "captions.npy").exists()
    for other in (stopped, online):
        for name in WEIGHT_FILES:
            a, b = ((find_checkpoint(c.out)[0] / name).read_bytes() for c in (straight, other))
            if other is stopped:
                assert a == b, name
    losses = [read_metrics(tmp_path / c / "train/metrics.jsonl")[-1]["loss"] for c in ("straight", "online")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)

    prompts = ["a red cat", "dog"]
    images = sample(straight.out, 3, prompts=prompts, steps=3, guidance=4.0, batch_size=2)
    assert images.shape == (3, 8, 8, 3)
    assert not np.array_equal(images, sample(straight.out, 3, prompts=["a dog"], steps=3, guidance=4.0))
    one = sample(straight.out, 1, prompts="a red cat", steps=3, guidance=4.0)
    assert np.abs(images[:1].astype(int) - one).max() <= 1
    arguments = ["sample", straight.out, "-n", "3", "--steps", "3", "--guidance", "4", "-o", str(tmp_path / "images")]
    arguments += ["--prompt", "a red cat", "--prompt", "dog", "--json"]
    for _ in range(2):  # the second time there is nothing to do
        assert main(arguments) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["n"] == 3
    protocol = json.loads((tmp_path / "images" / "samples.json").read_text())["protocol"]
    assert protocol["prompts"] == prompts

    assert export_model(straight.out, tmp_path / "exported")
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(
        tmp_path / "exported", local_files_only=True, safety_checker=None
    )
    theirs.set_progress_bar_config(disable=True)
    assert theirs("a dog", num_inference_steps=2, height=8, width=8, output_type="np").images.shape == (1, 8, 8, 3)
    unet = theirs.unet.state_dict()
    from safetensors.torch import load_file

    averaged = load_file(find_checkpoint(straight.out)[0] / "ema.safetensors")
    assert {f"network.{name}" for name in unet} <= set(averaged)
    assert all(torch.equal(averaged[f"network.{name}"], tensor) for name, tensor in unet.items())


def test_held_out_images_are_told_their_captions(latents, make_config, pipeline, tmp_path):
    """With lr 0 against diffusers' own UNet, autoencoder and text model; while it trains and afterwards."""
    config = make_config(holdout=0.5, holdout_every_images=8, lr=0.0)
    train(config)
    line = [line for line in read_metrics(tmp_path / "run/train/metrics.jsonl") if "held_out_loss" in line][-1]
    _, holdout = make_holdout(config, latents, pf.Coreset.full(latents))

    def expected(moments, items, captions, draws):
        mean, std = torch.from_numpy(moments).permute(0, 3, 1, 2).chunk(2, dim=1)
        places = torch.arange(len(items))
        clean = (mean + std * randn_philox(mean.shape, 0, places, Stream.LATENT)) * 0.7
        text = TextEncoder(pipeline)([captions[item] or "" for item in items])
        unet = load_network(config.out, ema=False).model.network
        kept = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
        found = []
        for k in range(draws):
            t = int((k + 0.5) / draws * 1000)
            noise = randn_philox(clean.shape, 0, places, 512 + k)
            x = kept[t] ** 0.5 * clean + (1 - kept[t]) ** 0.5 * noise
            with torch.no_grad():
                answer = unet(x.float(), torch.full((len(x),), t), encoder_hidden_states=text).sample
            found.append((answer - noise).double().square().mean(dim=(1, 2, 3)))
        return float(torch.stack(found).mean())

    wanted = expected(latents.images(holdout.items), holdout.items, CAPTIONS, 4)
    assert line["held_out_loss"] == pytest.approx(wanted, rel=1e-4)

    photos = open_dataset(tmp_path / "photos.parquet")
    everything = pf.Coreset.full(photos)
    result = pf.evaluate(photos.images(range(6)), photos, coreset=everything, checkpoint=config.out, encoder="pixels")
    rows = np.sort(holdout.items)
    gap = result.metrics["denoising_gap"]
    assert gap["images"] == [3, 3]
    assert gap["held_out"] == pytest.approx(expected(latents.images(rows), rows, CAPTIONS, 8), rel=1e-4)
    # other images, which are encoded as the training images were
    result = pf.evaluate(photos.images(range(6)), photos, coreset=everything, checkpoint=config.out, held_out=photos)
    gap, rows = result.metrics["denoising_gap"], np.arange(6)
    assert gap["held_out"] == pytest.approx(expected(latents.images(rows), rows, CAPTIONS, 8), rel=1e-3)


def test_errors(latents, make_config, pipeline, tmp_path):
    def refuses(message, **values):
        with pytest.raises(InputError, match=message):
            train(make_config(**values))

    refuses("text_encoder: goes with model", model="dit-tiny/2")
    refuses("has no folder tokenizer", text_encoder=str(tmp_path))
    refuses("caption_cache: means nothing without text_encoder", text_encoder=None, caption_cache=False)
    np.savez(tmp_path / "plain.npz", images=np.zeros((4, 8, 8, 3), np.uint8), labels=np.arange(4) % 2)
    plain = encode_latents(open_dataset(tmp_path / "plain.npz"), pipeline, tmp_path / "plain")
    refuses("text_encoder: the data has no captions", data=plain.path)
    refuses("text_encoder: the network is told captions", data=plain.path, class_conditional=True)
    config = make_config(images=4)
    train(config)
    with pytest.raises(InputError, match=r"prompts: the model of .* was trained on captions; say what to show"):
        sample(config.out, 1)
    with pytest.raises(InputError, match="labels: the model has no classes"):
        sample(config.out, 1, prompts="dog", labels=0)
    other = tmp_path / "other"
    shutil.copytree(pipeline, other)
    weights = other / "text_encoder" / "model.safetensors"
    from safetensors.torch import load_file, save_file

    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"text_encoder: .* has other weights than the one of training"):
        sample(config.out, 1, prompts="dog", text_encoder=other)
