"""Perceptual deduplication beside imagededup, pairs of hashes beside faiss, and what either finds and misses.

pytest benchmarks/bench_dedup.py       times, ours and the peer in one run
python benchmarks/bench_dedup.py       recall and precision on made duplicates, both hashes on the same files

imagededup imports torchvision for its CNN, which this does not use; where that import fails it is left out.
"""

import io
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from PIL import Image

import prunefast
from prunefast.data import open_dataset
from prunefast.dedup.perceptual import perceptual_hashes
from prunefast.ops import hamming_join

IMAGES = int(os.environ.get("PRUNEFAST_BENCH_IMAGES", "4000"))
THRESHOLDS = (0, 3, 5, 7, 10, 12, 16)


def phash() -> Any:
    """imagededup's PHash."""
    try:
        import torchvision  # noqa: F401
    except Exception:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name in ("torchvision", "imagededup.utils.models", "imagededup.methods.cnn"):
            sys.modules[name] = MagicMock()
    imagededup = pytest.importorskip("imagededup.methods")
    return imagededup.PHash(verbose=False)


def textures(count: int, width: int, height: int) -> np.ndarray:
    """float32 [count, height, width]: grey noise of unit variance whose spectrum falls like that of photographs."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    amplitude = 1 / np.maximum(frequency, 1 / width) ** 1.2
    out = np.empty((count, height, width), dtype=np.float32)
    for k in range(count):
        field = np.fft.irfft2(amplitude * np.exp(2j * np.pi * rng.random(amplitude.shape)), s=(height, width))
        out[k] = field / field.std()
    return out


def photo(seed: int, texture: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: a texture of its own roll, a random smooth light, and a few rectangles."""
    rng = np.random.default_rng([1, seed])
    count, height, width = texture.shape
    field = np.roll(texture[rng.integers(count)], (rng.integers(height), rng.integers(width)), (0, 1))
    light = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    image = 40 * field[..., None] + np.asarray(light, dtype=np.float32)
    for _ in range(rng.integers(2, 7)):
        y, x = rng.integers(0, height - 20), rng.integers(0, width - 20)
        image[y : y + rng.integers(20, height // 2), x : x + rng.integers(20, width // 2)] += rng.normal(0, 60, 3)
    return image.clip(0, 255).astype(np.uint8)


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    texture = textures(40, 640, 480)

    def write(seed: int) -> None:
        (root / f"{seed:05}.jpg").write_bytes(jpeg(Image.fromarray(photo(seed, texture))))

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, range(IMAGES)))
    return root


@pytest.mark.benchmark(group=f"perceptual duplicates of {IMAGES:,} JPEGs of 640 x 480")
class TestPerceptual:
    def test_prunefast(self, benchmark, folder):
        data = open_dataset(folder)  # the item table; its first making is in the next test
        assert len(benchmark.pedantic(lambda: prunefast.deduplicate(data, threshold=10), rounds=2)) <= IMAGES

    def test_prunefast_with_opening(self, benchmark, folder, tmp_path):
        caches = iter(tmp_path / str(k) for k in range(10))

        def run() -> int:
            return len(prunefast.deduplicate(open_dataset(folder, cache_dir=next(caches)), threshold=10))

        assert benchmark.pedantic(run, rounds=2) <= IMAGES

    def test_imagededup(self, benchmark, folder):
        """A process a processor, as is its default."""
        hasher = phash()
        assert (
            benchmark.pedantic(
                lambda: len(hasher.find_duplicates_to_remove(image_dir=folder, max_distance_threshold=10)), rounds=2
            )
            < IMAGES
        )


def random_hashes(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    copies = count // 20
    hashes[-copies:] = hashes[:copies] ^ (np.uint64(1) << rng.integers(0, 64, copies).astype(np.uint64))
    return hashes


@pytest.mark.parametrize("threshold", [4, 7, 10])
@pytest.mark.benchmark(group="pairs of 100,000 hashes of 64 bits")
class TestHamming:
    def test_prunefast(self, benchmark, threshold):
        hashes = random_hashes(100_000)
        assert len(benchmark.pedantic(lambda: hamming_join(hashes, threshold), rounds=3).index) >= 5000

    def test_faiss(self, benchmark, threshold):
        faiss = pytest.importorskip("faiss")
        faiss.omp_set_num_threads(torch.get_num_threads())
        codes = random_hashes(100_000).view(np.uint8).reshape(-1, 8)

        def run() -> int:
            index = faiss.IndexBinaryFlat(64)
            index.add(codes)
            limits, _, _ = index.range_search(codes, threshold + 1)  # strictly less
            return int(limits[-1] - len(codes)) // 2

        ours = len(hamming_join(random_hashes(100_000), threshold).index)
        assert benchmark.pedantic(run, rounds=2) == ours


@pytest.mark.benchmark(group="pairs of 1,000,000 hashes of 64 bits")
def test_a_million_hashes(benchmark):
    hashes = random_hashes(1_000_000)
    assert len(benchmark.pedantic(lambda: hamming_join(hashes, 7), rounds=1).index) >= 50_000


# --- recall and precision ---


def made_duplicates(image: Image.Image) -> dict[str, bytes]:
    width, height = image.size

    def cropped(share: float) -> Image.Image:
        x, y = round(share * width), round(share * height)
        return image.crop((x, y, width - x, height - y))

    pixels = np.asarray(image, dtype=np.float32)
    return {
        "original": jpeg(image, 92),
        "JPEG quality 30": jpeg(image, 30),
        "half the size": jpeg(image.resize((width // 2, height // 2), Image.Resampling.BICUBIC)),
        "a third, odd size": jpeg(image.resize((211, 157), Image.Resampling.LANCZOS)),
        "2 % cropped off each side": jpeg(cropped(0.02)),
        "5 % cropped off each side": jpeg(cropped(0.05)),
        "brighter by 15 %": jpeg(Image.fromarray((1.15 * pixels + 10).clip(0, 255).astype(np.uint8))),
        "gamma 0.8": jpeg(Image.fromarray((255 * (pixels / 255) ** 0.8).astype(np.uint8))),
        "mirrored": jpeg(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    }


def accuracy(count: int = 200) -> None:
    """Recall of each kind of copy, and different pictures taken for the same, by threshold."""
    texture = textures(40, 640, 480)
    with tempfile.TemporaryDirectory() as root:
        kinds: list[str] = []
        for seed in range(count):
            copies = made_duplicates(Image.fromarray(photo(seed, texture)))
            kinds = list(copies)
            for number, content in enumerate(copies.values()):
                Path(root, f"{seed:05}-{number}.jpg").write_bytes(content)
        data = open_dataset(root)
        ours, mirrored = (side[:, 0] for side in perceptual_hashes(data, 64, progress=False))
        hasher = phash()
        theirs = np.array([int(hasher.encode_image(str(Path(root, key))), 16) for key in data.keys], dtype=np.uint64)
    print(f"{count} pictures of 640 x 480, {len(kinds)} copies each")
    for name, hashes in (("prunefast", ours), ("imagededup PHash", theirs)):
        table = hashes.reshape(count, len(kinds))
        print(f"\n{name}: share found within t bits\n{'t':>28} " + " ".join(f"{t:6}" for t in THRESHOLDS))
        for number, kind in enumerate(kinds[1:], 1):
            bits = np.bitwise_count(table[:, 0] ^ table[:, number])
            print(f"{kind:>28} " + " ".join(f"{(bits <= t).mean():6.1%}" for t in THRESHOLDS))
        if name == "prunefast":
            flipped = mirrored.reshape(table.shape)
            bits = np.minimum(
                np.bitwise_count(table[:, 0] ^ table[:, -1]), np.bitwise_count(table[:, 0] ^ flipped[:, -1])
            )
            print(f"{'mirrored, mirrored=True':>28} " + " ".join(f"{(bits <= t).mean():6.1%}" for t in THRESHOLDS))
        pairs = hamming_join(hashes, max(THRESHOLDS))
        wrong = pairs.rows() // len(kinds) != pairs.index // len(kinds)
        total = len(hashes) * (len(hashes) - 1) // 2
        print(
            f"{'pairs of different pictures':>28} "
            + " ".join(f"{(pairs.distance[wrong] <= t).sum():6}" for t in THRESHOLDS)
        )
        print(f"{'':>28} of {total:,} pairs")


if __name__ == "__main__":
    accuracy()
