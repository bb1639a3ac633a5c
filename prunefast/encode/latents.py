"""Images to latents of a local autoencoder of diffusers, once, and back."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunefast.data.dataset import ImageDataset
from prunefast.data.latents import ITEMS, MOMENTS, SCALE, LatentDataset, LatentScale, open_latents
from prunefast.encode.embed import embed
from prunefast.encode.encoder import TorchEncoder, weights_digest
from prunefast.encode.optional import broken
from prunefast.errors import InputError, MissingDependencyError
from prunefast.files import lock_folder, make_folder, read_json, write_json

VAE_CLASSES = ("AutoencoderKL", "VQModel")


class Autoencoder(nn.Module):
    """An `AutoencoderKL` or `VQModel` of diffusers in FOLDER, or in FOLDER/vae or FOLDER/vqvae of a pipeline.

    forward: images [B, 3, R, R] in [-1, 1] -> float32 [B, side * side * 2 * channels], a pixel's means, then its
    standard deviations (0 for a VQModel, whose latents are the ones before quantisation).
    """

    def __init__(self, folder: str | os.PathLike[str]):
        super().__init__()
        self.folder = _vae_folder(Path(folder))
        self.vae = _load(self.folder)
        settings = self.vae.config
        self.channels = int(settings.latent_channels)
        self.scale = float(getattr(settings, "scaling_factor", None) or 1.0)
        self.shift = float(getattr(settings, "shift_factor", None) or 0.0)
        if settings.in_channels != 3 or settings.out_channels != 3:
            raise InputError(f"{self.folder}: takes {settings.in_channels} channels; images have 3")
        self._means: Tensor | None = None
        self._stds: Tensor | None = None
        self.reduction = 2 ** (len(settings.block_out_channels) - 1)  # pixels of a side in one of the latent's

    def forward(self, images: Tensor) -> Tensor:
        encoded = self.vae.encode(images)
        if hasattr(encoded, "latent_dist"):
            mean, std = encoded.latent_dist.mean, encoded.latent_dist.std
        else:
            mean, std = encoded.latents, torch.zeros_like(encoded.latents)
        return torch.cat((mean, std), dim=1).permute(0, 2, 3, 1).flatten(1).float()

    def unscale(self, latents: LatentScale) -> None:
        """Decode latents that were brought to unit variance otherwise than this autoencoder's configuration says."""
        if latents.means is None or latents.stds is None or len(latents.means) != self.channels:
            raise InputError(f"{self.folder}: has {self.channels} channels, the latents have {latents.channels}")
        self._means = torch.tensor(latents.means)[:, None, None]
        self._stds = torch.tensor(latents.stds)[:, None, None]

    def decode(self, latents: Tensor) -> Tensor:
        """Images of scaled latents [B, channels, side, side], not clipped."""
        if self._stds is not None and self._means is not None:
            return self.vae.decode(latents * self._stds.to(latents) + self._means.to(latents)).sample
        return self.vae.decode(latents / self.scale + self.shift).sample


def encode_latents(
    data: ImageDataset,
    vae: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    batch_size: int = 16,
    device: Any = None,
    threads: int | None = None,
    progress: bool = False,
) -> LatentDataset:
    """Write mean and standard deviation of every image's latent into the folder `out`, and open it.

        latents = encode_latents(pf.open_dataset("photos", image_size=256), "sd/vae", "photos-latents")
        pf.train(pf.TrainConfig(data="photos-latents", out="run", model="dit-s/2", images=1_000_000))

    A call that finds them finished does nothing; one that was interrupted is continued.
    Raises InputError for an autoencoder or images that do not fit, NaN in a latent, or another data set in `out`.
    """
    if isinstance(data, LatentDataset):
        raise InputError(f"data: {data.path} holds latents already")
    if data.image_size is None:
        raise InputError("image_size: the images are not squares of one size; give --image-size 256 (image_size=256)")
    network = Autoencoder(vae)
    if data.image_size % network.reduction:
        raise InputError(
            f"image_size: {data.image_size} is not a multiple of {network.reduction}, which {network.folder} takes"
        )
    latents = LatentScale(
        channels=network.channels,
        side=data.image_size // network.reduction,
        pixels=data.image_size,
        scale=network.scale,
        shift=network.shift,
        vae=str(network.folder),
        weights=weights_digest(network.state_dict()),
    )
    folder = make_folder(out)
    with lock_folder(folder, "encoding"):
        record = folder / SCALE
        if record.exists():
            known, wanted = open_latents(folder), asdict(latents)
            same = {key: value for key, value in asdict(known.latents).items() if key != "vae"}
            if known.fingerprint != data.fingerprint or any(wanted[key] != value for key, value in same.items()):
                raise InputError(
                    f"{folder}: holds latents of other images or another autoencoder; choose another folder"
                )
        else:
            data.save_items(folder / ITEMS)
        encoder = TorchEncoder(network, name=f"vae:{network.folder.name}", mean=(0.5,) * 3, std=(0.5,) * 3)
        if device is not None:
            encoder.to(device)
        embed(data, encoder, out=folder / MOMENTS, batch_size=batch_size, threads=threads, progress=progress)
        if not record.exists():
            write_json(record, asdict(latents))
    return open_latents(folder)


def _vae_folder(path: Path) -> Path:
    for folder in (path, path / "vae", path / "vqvae"):
        if (folder / "config.json").is_file():
            return folder.absolute()
    raise InputError(f"{path}: no config.json of an autoencoder there, nor in its folders vae and vqvae")


def _load(folder: Path) -> Any:
    try:
        import diffusers
    except ModuleNotFoundError:
        raise MissingDependencyError(
            f"{folder}: needs diffusers, which is not installed; run: pip install 'prunefast[diffusers]'"
        ) from None
    except Exception as error:  # a build for another torch fails in many ways
        raise broken("diffusers", str(folder), error) from None
    settings = read_json(folder / "config.json")
    kind = settings.get("_class_name") if isinstance(settings, dict) else None
    if kind not in VAE_CLASSES:
        raise InputError(f"{folder}: is a {kind}; {' or '.join(VAE_CLASSES)} are supported")
    try:
        model = getattr(diffusers, kind).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False
        )
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise InputError(f"{folder}: cannot be loaded ({str(error).splitlines()[0]})") from None
    return model.float().eval().requires_grad_(False)
