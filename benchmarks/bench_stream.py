"""Decoding and streaming 32 x 32 JPEGs: batches of uint8, against a torch DataLoader with two workers and Pillow.

pytest benchmarks/bench_stream.py
"""

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prunefast.data import ImageDataset, open_dataset
from prunefast.stream import CoresetLoader

DATA_FOLDER = Path(os.environ.get("PRUNEFAST_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
BATCH = 256


@pytest.fixture(scope="session")
def archive() -> Path:
    path = DATA_FOLDER / "cifar10-images.tar.xz"
    if not path.is_file():
        pytest.skip(f"{path.name} is not at {DATA_FOLDER} (set PRUNEFAST_TEST_DATA)")
    return path


@pytest.fixture(scope="session")
def packed(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    return open_dataset(archive, cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def unpacked(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    root = tmp_path_factory.mktemp("images")
    with tarfile.open(archive) as file:
        file.extractall(root, [member for member in file if member.name.startswith("train/")], filter="data")
    return open_dataset(root, cache_dir=tmp_path_factory.mktemp("cache"))


class Coreset:
    def __init__(self, indices: np.ndarray):
        self.indices = indices
        self.weights = np.ones(len(indices), np.float32)
        self.fingerprint = "bench"


class PillowFolder(torch.utils.data.Dataset):
    """ImageFolder with Pillow, as uint8 tensors: the peer everybody has."""

    def __init__(self, data: ImageDataset, indices: np.ndarray):
        self.paths = [os.path.join(data.path, data.keys[k]) for k in indices]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: int) -> torch.Tensor:
        with Image.open(self.paths[item]) as image:
            return torch.from_numpy(np.array(image.convert("RGB")))


def pixels_of_torch(data: ImageDataset, indices: np.ndarray) -> int:
    loader = torch.utils.data.DataLoader(PillowFolder(data, indices), batch_size=BATCH, num_workers=2)
    return sum(len(batch) for batch in loader)


def pixels_of_ours(data: ImageDataset, indices: np.ndarray) -> int:
    return sum(len(images) for _, images in data.batches(indices, BATCH, threads=2))


def full() -> np.ndarray:
    return np.arange(50_000)


def tenth() -> np.ndarray:
    return np.random.default_rng(0).permutation(50_000)[:5000]


@pytest.mark.parametrize("which", [full, tenth])
class TestDecode:
    """uint8 batches, 2 threads or workers, warm page cache."""

    @pytest.fixture(autouse=True)
    def _group(self, benchmark, which):
        benchmark.group = f"decode {'50,000 in order' if which is full else '5,000 of them at random'}"

    def test_prunefast_tar(self, benchmark, packed, which):
        indices = which()
        assert benchmark.pedantic(pixels_of_ours, (packed, indices), rounds=5) == len(indices)

    def test_prunefast_folder(self, benchmark, unpacked, which):
        indices = which()
        assert benchmark.pedantic(pixels_of_ours, (unpacked, indices), rounds=5) == len(indices)

    def test_torch_dataloader_pillow(self, benchmark, unpacked, which):
        indices = which()
        assert benchmark.pedantic(pixels_of_torch, (unpacked, indices), rounds=3) == len(indices)


@pytest.mark.benchmark(group="an epoch of a coreset of 5,000, shuffled, batches of 256 on the CPU")
class TestEpoch:
    @pytest.mark.parametrize("placement", ["memory", "disk"])
    def test_coreset_loader(self, benchmark, packed, placement):
        loader = CoresetLoader(
            packed, Coreset(np.sort(tenth())), batch_size=BATCH, epochs=1, threads=2, placement=placement
        )
        sum(len(batch) for batch in loader)  # "memory" decodes in its first epoch
        assert benchmark.pedantic(lambda: sum(len(batch) for batch in loader), rounds=5) == 5000

    def test_torch_dataloader_pillow(self, benchmark, unpacked):
        assert benchmark.pedantic(pixels_of_torch, (unpacked, tenth()), rounds=3) == 5000
