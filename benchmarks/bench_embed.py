"""Embedding with `pixels` against a torch DataLoader with two workers and Pillow that does the same work.

Both read the same JPEG files of a folder, shrink each image to an 8 x 8 thumbnail by area, learn mean and 64 principal
components from the thumbnails, and project. Set PRUNEFAST_TEST_DATA to the folder with cifar10-images.tar.xz for real
images; without it JPEG files are made.

    pytest benchmarks/bench_embed.py
"""

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prunefast.data import open_dataset
from prunefast.encode import embed
from prunefast.encode.pixels import exact_moments

WORKERS = 2
THUMBNAIL, COMPONENTS = 8, 64
IMAGES = 10_000  # of the test split: seconds, not minutes


class Thumbnails(torch.utils.data.Dataset):
    """What a user would write: one file an item, Pillow decodes and shrinks."""

    def __init__(self, files):
        self.files = files

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        with Image.open(self.files[i]) as image:
            small = image.convert("RGB").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
        return np.asarray(small).reshape(-1)


def peer(files):
    loader = torch.utils.data.DataLoader(Thumbnails(files), batch_size=256, num_workers=WORKERS)
    small = torch.cat(list(loader))
    mean, covariance = exact_moments(small.numpy())
    variance, vectors = np.linalg.eigh(covariance)
    projection = vectors[:, ::-1][:, :COMPONENTS] / np.sqrt(variance[::-1][:COMPONENTS])
    return ((small.float() - torch.from_numpy(mean).float()) @ torch.from_numpy(projection).float()).numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("images")
    default = Path(__file__).parents[2] / "shared" / "data"
    archive = Path(os.environ.get("PRUNEFAST_TEST_DATA", default)) / "cifar10-images.tar.xz"
    if archive.is_file():
        with tarfile.open(archive) as tar:
            members = [m for m in tar if m.name.removeprefix("./").startswith("test/")]
            tar.extractall(target, members=members, filter="data")
        return target / "test"
    random = np.random.default_rng(0)
    for number in range(IMAGES):
        path = target / f"class{number % 10}" / f"{number:05}.jpg"
        path.parent.mkdir(exist_ok=True)
        coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC).save(path, quality=90)
    return target


@pytest.mark.benchmark(group="embed: 10,000 JPEG of 32 x 32, open data set -> features")
def test_prunefast(benchmark, folder):
    data = open_dataset(folder)
    features = benchmark.pedantic(lambda: embed(data, "pixels", threads=WORKERS), rounds=3, warmup_rounds=1)
    assert features.shape == (len(data), COMPONENTS)


@pytest.mark.benchmark(group="embed: 10,000 JPEG of 32 x 32, open data set -> features")
def test_dataloader_and_pillow(benchmark, folder):
    files = sorted(folder.rglob("*.jpg"))
    features = benchmark.pedantic(lambda: peer(files), rounds=3, warmup_rounds=1)
    assert features.shape == (len(files), COMPONENTS)


def test_both_do_the_same_work(folder):
    data = open_dataset(folder)
    files = sorted(folder.rglob("*.jpg"))
    ours, theirs = embed(data, "pixels"), peer(files)
    # the same but for the sign of a component, Pillow's rounding, and decoders that differ by a grey level now and then
    agreement = np.abs((ours * theirs).mean(axis=0))
    assert agreement[:8].min() > 0.99
