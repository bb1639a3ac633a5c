"""The demo: real images that scikit-learn carries, four ways to choose, the same network and the same training time."""

import argparse
import importlib.util
import time
from pathlib import Path
from typing import Any

import numpy as np

from prunefast.cli import common
from prunefast.errors import MissingDependencyError
from prunefast.files import RunFolder, atomic_path, make_folder

KEEP = 0.3
# arm -> (selection method, its options); None: all images
ARMS: dict[str, tuple[str, dict[str, Any]] | None] = {
    "all": None,
    "random": ("random", {}),
    "gaussian": ("gaussian", {}),
    "clusters": ("clusters", {"k": 20, "quota": "equal"}),
}
# Digits are not mirrored: a mirrored 2 is no digit. Small batches: in a run this short the number of steps counts.
TRAINING: dict[str, Any] = {"model": "unet-tiny", "batch_size": 64, "lr": 2e-3, "warmup_images": 2_000, "flip": False}
SAMPLES = 1_000
SAMPLING: dict[str, Any] = {"sampler": "heun", "steps": 16, "batch_size": 250}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--out", metavar="FOLDER", default="demo", help="default: demo")
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="of training for each of the four arms (default: 30)"
    )


def main(options: argparse.Namespace) -> int:
    from prunefast import pipeline
    from prunefast.select import Coreset
    from prunefast.train import TrainConfig

    started = time.monotonic()
    run = RunFolder(options.out)
    show = common.show_progress(options)
    with pipeline.writing(run, new=True):
        data = pipeline.open_run(run, write_digits(run.path / "digits.npz"))
        common.say(options, common.describe(data))
        common.say(options, f"embed: {pipeline.embed_run(run, data, encoder='pixels', progress=show)}")
        common.say(options, f"score: {pipeline.score_run(run, data, 'gaussian')}")

        rows = []
        arms = {name: run.path / name for name in ARMS}
        for name, choice in ARMS.items():
            arm = RunFolder(make_folder(arms[name]))
            if choice is None:
                coreset = Coreset.full(data)
                if not arm.coreset.exists():
                    coreset.save(arm.coreset)
            else:
                method, method_options = choice
                pipeline.select_run(
                    run, data, method, coreset_path=arm.coreset, budget={"keep": KEEP}, **method_options
                )
                coreset = Coreset.load(arm.coreset, data)
            config = TrainConfig.from_preset(
                "cpu", **TRAINING, images=None, max_seconds=options.seconds, out=str(arm.path)
            )
            trained = pipeline.train_run(config, data, coreset, progress=show)
            common.say(options, f"{name}: trained: {trained}")
            pipeline.sample_run(arm.path, SAMPLES, progress=show, **SAMPLING)
            evaluated = pipeline.evaluate_run(
                arm.samples,
                data,
                arm.metrics,
                coreset=coreset,
                features=run.features,
                encoder="pixels",
                progress=show,
            )
            rows.append({"arm": name, "kept": len(coreset), **_numbers(trained.facts, evaluated.facts["metrics"])})
        page = pipeline.report_run(run, arms=arms, title="prunefast demo: handwritten digits")
        common.say(options, f"\n{table(rows)}\nreport: {page} ({time.monotonic() - started:.0f} s in all)")
        return common.finish(options, {"rows": rows, **page.facts})


def write_digits(path: Path) -> Path:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels (from the UCI repository), as .npz."""
    if path.exists():
        return path
    if importlib.util.find_spec("sklearn") is None:
        raise MissingDependencyError('the demo\'s images are in scikit-learn; run: pip install "prunefast[demo]"')
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)  # 0..16 ink
    with atomic_path(path) as temporary:
        np.savez(temporary, images=images, labels=digits.target.astype(np.int64))
    return path


def _numbers(trained: dict[str, Any], metrics: dict[str, Any]) -> dict[str, Any]:
    return {
        "images_per_second": trained["images_per_second"],
        "loss": trained["loss"],
        "frechet_distance": metrics["frechet_distance"],
        "precision": metrics["precision"],
        "recall": metrics["recall"],
        "seconds": trained["seconds"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The arms as a text table."""
    columns = {
        "arm": ("arm", "{}"),
        "kept": ("kept", "{:,}"),
        "images_per_second": ("img/s", "{:,.0f}"),
        "loss": ("training loss", "{:.4f}"),
        "frechet_distance": ("Frechet distance", "{:.3f}"),
        "precision": ("precision", "{:.3f}"),
        "recall": ("recall", "{:.3f}"),
        "seconds": ("seconds", "{:.1f}"),
    }
    cells = [[title for title, _ in columns.values()]]
    cells += [
        [form.format(row[key]) if row[key] is not None else "-" for key, (_, form) in columns.items()] for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    )
