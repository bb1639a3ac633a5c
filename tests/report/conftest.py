"""Run folders as the steps leave them, small enough to make in a second."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prunefast.data import open_dataset
from prunefast.dedup import deduplicate
from prunefast.encode import embed
from prunefast.evaluate import evaluate
from prunefast.score import score
from prunefast.score.table import save_scores
from prunefast.select import Coreset, select

CLASSES = ("apple", "pear", "plum")


def draw(label: int, number: int, size: int = 16) -> np.ndarray:
    """A disc on a background, coloured by class, with noise: enough for features to tell classes apart."""
    rng = np.random.default_rng([label, number])
    y, x = np.mgrid[:size, :size]
    centre, radius = rng.uniform(5, 11, 2), rng.uniform(3, 6)
    disc = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2
    colours = np.array([[220, 60, 50], [200, 200, 60], [120, 60, 160]]) + rng.normal(scale=25, size=(3, 3))
    image = np.where(disc[..., None], colours[label], 235 - 60 * rng.random())
    return np.clip(image + rng.normal(scale=8, size=image.shape), 0, 255).astype(np.uint8)


def make_data(folder: Path, classes: tuple[str, ...] = CLASSES, each: int = 30) -> Path:
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            Image.fromarray(draw(label % 3, number)).save(folder / name / f"{number:03d}.png")
    return folder


def start_run(folder: Path, data_folder: Path) -> Path:
    """items, features, scores."""
    folder.mkdir(parents=True, exist_ok=True)
    data = open_dataset(data_folder)
    data.save_items(folder / "items.parquet")
    features = embed(data, out=folder / "features.npy")
    save_scores(
        folder / "scores.parquet", data, "gaussian", score(features, data.labels, per_class=data.labels is not None)
    )
    deduplicate(data).save(folder, data)
    return folder


def finish_arm(folder: Path, data_folder: Path, coreset: Coreset, seed: int = 0, samples: int = 12) -> Path:
    """coreset, train/, samples/, metrics.json."""
    folder.mkdir(parents=True, exist_ok=True)
    coreset.save(folder / "coreset.parquet")
    rng = np.random.default_rng(seed)
    train = folder / "train"
    train.mkdir()
    losses = 0.05 + np.exp(-np.arange(1, 81) / 10) + rng.normal(scale=0.004, size=80)
    lines = [
        json.dumps({"images": 100 * (i + 1), "loss": float(loss), "steps": 5, "skipped": 0, "images_per_second": 90.0})
        for i, loss in enumerate(losses)
    ]
    (train / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    summary = {
        "images": 8000,
        "steps": 400,
        "seconds": 88.9,
        "images_per_second": 90.0 + seed,
        "loss": float(losses[-1]),
    }
    summary |= {"model": "unet-tiny", "parameters": 123456, "finished": True}
    (train / "summary.json").write_text(json.dumps(summary))
    for k in range(samples):
        name = CLASSES[k % 3]
        (folder / "samples" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw(k % 3, 1000 + 50 * seed + k)).save(folder / "samples" / name / f"{k:06d}.png")
    protocol = {"n": samples, "sampler": "ddim", "steps": 20, "guidance": 1.0, "ema": True, "seed": seed}
    (folder / "samples" / "samples.json").write_text(json.dumps({"protocol": protocol, "finished": True}))
    evaluate(folder / "samples", data_folder, coreset=coreset, out=folder / "metrics.json")
    return folder


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("report") / "fruit")


@pytest.fixture
def run(tmp_path, data_folder) -> Path:
    """A whole run: gaussian, 30 % of each class."""
    folder = start_run(tmp_path / "run", data_folder)
    data = open_dataset(data_folder)
    features = np.load(folder / "features.npy")
    coreset = select(data, features=features, method="gaussian", keep=0.3, per_class=True)
    return finish_arm(folder, data_folder, coreset)


@pytest.fixture
def arms(tmp_path, data_folder) -> tuple[Path, dict[str, Path]]:
    """(run folder, arms): four selections of one data set."""
    folder = start_run(tmp_path / "run", data_folder)
    data = open_dataset(data_folder)
    features = np.load(folder / "features.npy")
    coresets = {
        "all data": Coreset.full(data),
        "random": select(data, method="random", keep=0.3),
        "gaussian per class": select(data, features=features, method="gaussian", keep=0.3, per_class=True),
        "equal clusters": select(data, features=features, method="clusters", k=6, quota="equal", keep=0.3),
    }
    made = {}
    for seed, (name, coreset) in enumerate(coresets.items()):
        made[name] = finish_arm(tmp_path / "arms" / name.replace(" ", "-"), data_folder, coreset, seed)
    return folder, made
