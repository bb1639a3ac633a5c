"""Opening 60,000 JPEGs: the first time, and again from the item table; torchvision's ImageFolder-style walk beside it.

pytest benchmarks/bench_open.py
"""

import os
import tarfile
from pathlib import Path

import pytest

from prunefast.data import open_dataset

DATA_FOLDER = Path(os.environ.get("PRUNEFAST_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def archive() -> Path:
    path = DATA_FOLDER / "cifar10-images.tar.xz"
    if not path.is_file():
        pytest.skip(f"{path.name} is not at {DATA_FOLDER} (set PRUNEFAST_TEST_DATA)")
    return path


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def folder(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    with tarfile.open(archive) as file:
        file.extractall(root, filter="data")
    return root


def image_folder_walk(root: Path) -> list[tuple[str, int]]:
    """What torchvision.datasets.ImageFolder does to open a folder: walk it sorted and keep (path, class) tuples.

    It knows neither sizes nor whether a file changed.
    """
    samples = []
    for split in ("train", "test"):
        classes = sorted(entry.name for entry in os.scandir(root / split) if entry.is_dir())
        for number, name in enumerate(classes):
            for base, _, files in sorted(os.walk(root / split / name, followlinks=True)):
                samples += [
                    (os.path.join(base, file), number) for file in sorted(files) if file.lower().endswith(".jpg")
                ]
    return samples


@pytest.mark.benchmark(group="open 60,000 JPEGs in a folder")
class TestFolder:
    def test_first_time(self, benchmark, folder, tmp_path):
        caches = iter(tmp_path / str(k) for k in range(100))
        data = benchmark.pedantic(lambda: open_dataset(folder, split="all", cache_dir=next(caches)), rounds=2)
        assert len(data) == 60_000

    def test_again(self, benchmark, folder, cache):
        open_dataset(folder, split="all", cache_dir=cache)
        data = benchmark.pedantic(lambda: open_dataset(folder, split="all", cache_dir=cache), rounds=7)
        assert len(data) == 60_000

    def test_image_folder_walk(self, benchmark, folder):
        assert len(benchmark.pedantic(lambda: image_folder_walk(folder), rounds=7)) == 60_000


@pytest.mark.benchmark(group="open 60,000 JPEGs in a tar.xz")
class TestArchive:
    def test_first_time(self, benchmark, archive, tmp_path):
        caches = iter(tmp_path / str(k) for k in range(100))
        data = benchmark.pedantic(lambda: open_dataset(archive, split="all", cache_dir=next(caches)), rounds=2)
        assert len(data) == 60_000

    def test_again(self, benchmark, archive, cache):
        open_dataset(archive, split="all", cache_dir=cache)
        data = benchmark.pedantic(lambda: open_dataset(archive, split="all", cache_dir=cache), rounds=7)
        assert len(data) == 60_000

    def test_tarfile_members(self, benchmark, archive, cache):
        """The standard library's walk over the expanded tar, which every reader without an index does."""
        plain = open_dataset(archive, split="all", cache_dir=cache)._storage.containers[0][0]

        def walk() -> int:
            with tarfile.open(plain) as file:
                return sum(member.isfile() for member in file)

        assert benchmark.pedantic(walk, rounds=3) == 60_001
