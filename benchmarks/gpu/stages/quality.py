"""CIFAR-10 at 32 x 32: the same network and wall time for several arms; samples, distances, a grid, EMA weights."""

import hashlib
import json
import os
import signal
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu.job import Job, Skip, Unit

if TYPE_CHECKING:
    import numpy as np
    import torch

ORDER, LIMIT = 60, 540
ARMS = Path(__file__).parents[1] / "arms.toml"
SPACES = 45.0  # seconds: data, the second feature space, its reference statistics
METRICS = 15.0  # seconds an arm after its samples are there
CLASSIFIER_EPOCHS = 12
SMALL = 10_500_000  # parameters of networks whose EMA weights come back
WEIGHTS_BYTES = 15 << 20  # of one file of them
PRECISION_RECALL = 10_000  # images of each kind at most


def read_arms(job: Job) -> dict[str, dict[str, Any]]:
    """name -> settings of the arms asked for, in their order; groups are opened, no arms means group A."""
    table = tomllib.loads(ARMS.read_text())
    names = [name for word in job.arms or ("A",) for name in table["groups"].get(word, [word])]
    unknown = [name for name in names if name not in table["arms"]]
    if unknown:
        there = ", ".join([*table["groups"], *table["arms"]])
        raise ValueError(f"quality: no arm or group {unknown[0]!r} in arms.toml; there are: {there}")
    over = table["rehearsal"] if job.rehearse else {}
    arms = {}
    for name in dict.fromkeys(names):
        arm = table["common"] | table["arms"][name] | over
        arm["options"] = table["common"].get("options", {}) | table["arms"][name].get("options", {})
        arms[name] = arm
    return arms


def units(job: Job) -> list[Unit]:
    arms = read_arms(job)
    return [Unit("spaces", SPACES), *(Unit(name, arm["seconds"] + METRICS) for name, arm in arms.items())]


def run(job: Job, name: str) -> Iterator[dict[str, Any]]:
    if name == "spaces":
        yield from spaces(job)
    else:
        yield from run_arm(job, name, read_arms(job)[name])


# ---- data


def opened(job: Job) -> dict[str, Any]:
    """{"data", "images", "labels", "prepared", "metadata"}: training images uint8 [N, 3, R, R] on the device."""
    import torch
    from safetensors import safe_open

    from prunefast.data import open_dataset

    archive, prepared_path = job.data, job.prepared
    if job.rehearse and archive is None:
        archive, prepared_path = rehearsal_data(job)
    if archive is None or prepared_path is None:
        raise Skip("needs --data (the images) and --prepared (the file of prepare.py)")
    data = open_dataset(archive)
    with safe_open(prepared_path, "pt") as file:
        metadata = file.metadata()
        prepared = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
    if metadata["fingerprint"] != data.fingerprint:
        raise Skip(f"{prepared_path} was made from other images than {archive}; run prepare.py again")
    images = torch.empty((len(data), 3, data.image_size, data.image_size), dtype=torch.uint8, device=job.device)
    images = images.contiguous(memory_format=torch.channels_last)
    for rows, some in data.batches(None, 1024):
        images[torch.from_numpy(rows).to(job.device)] = torch.from_numpy(some).permute(0, 3, 1, 2).to(job.device)
    labels = torch.as_tensor(data.labels).to(job.device)
    return {"data": data, "images": images, "labels": labels, "prepared": prepared, "metadata": metadata}


def rehearsal_data(job: Job) -> tuple[str, str]:
    """Coloured squares in ten classes and a classifier with random weights: the way through, not a result."""
    import numpy as np
    import torch
    from safetensors.torch import save_file

    from gpu.prepare import prepare
    from prunefast.encode.resnet20 import ResNet20

    folder = job.folder("rehearsal-data")
    archive, weights, out = folder / "images.npz", folder / "resnet20.safetensors", folder / "prepared.safetensors"
    if not out.exists():
        rng = np.random.default_rng(0)
        labels = np.repeat(np.arange(10), 40)
        pixels = rng.integers(0, 80, (400, 32, 32, 3)) + 17 * labels[:, None, None, None]
        np.savez(archive, images=pixels.astype(np.uint8), labels=labels)
        torch.manual_seed(0)
        save_file(ResNet20().state_dict(), weights)
        prepare(str(archive), str(weights), out, clusters=2)
    return str(archive), str(out)


def spaces(job: Job) -> Iterator[dict[str, Any]]:
    """The second feature space, kept on the machine's disk, and the references in both."""
    import numpy as np
    import torch
    from safetensors.torch import save_file

    from gpu import features

    started = time.perf_counter()
    here = opened(job)
    folder = job.folder("quality")
    path = folder / "classifier.safetensors"
    row: dict[str, Any] = {"images": len(here["images"]), "fingerprint": here["metadata"]["fingerprint"]}
    if not path.exists():
        begin = time.perf_counter()
        epochs, width = (1, 8) if job.rehearse else (CLASSIFIER_EPOCHS, 64)
        network = features.train_classifier(here["images"], here["labels"], epochs=epochs, width=width)
        save_file({k: v.contiguous() for k, v in network.state_dict().items()}, path, {"width": str(width)})
        row["training_seconds"] = time.perf_counter() - begin
    network, digest = classifier(job)
    row |= {"classifier": digest, "training_accuracy": features.accuracy(network, here["images"], here["labels"])}
    for name, function in feature_spaces(job, here).items():
        np.save(folder / f"reference-{name}.npy", features.embed(function, here["images"]))
    if "features" in here["prepared"]:
        stored = here["prepared"]["features"].float().numpy()
        mine = np.load(folder / "reference-resnet20.npy")
        row["against_prepared"] = float(np.linalg.norm(mine - stored) / np.linalg.norm(stored))
    del torch
    yield row | {"seconds": time.perf_counter() - started}


def classifier(job: Job) -> tuple[Any, str]:
    from safetensors import safe_open

    from gpu.features import Classifier

    path = job.folder("quality") / "classifier.safetensors"
    if not path.exists():
        raise Skip("the second feature space is not there: the unit 'spaces' comes first")
    with safe_open(path, "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        network = Classifier(int(file.metadata()["width"]), len(weights["last.bias"]))
    network.load_state_dict(weights)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return network.to(job.device).eval(), digest


def feature_spaces(job: Job, here: dict[str, Any]) -> dict[str, Any]:
    from gpu import features

    prefix = "resnet20."
    weights = {name.removeprefix(prefix): t for name, t in here["prepared"].items() if name.startswith(prefix)}
    return {"resnet20": features.given(weights, job.device), "trained": classifier(job)[0].features}


# ---- an arm


def run_arm(job: Job, name: str, arm: dict[str, Any]) -> Iterator[dict[str, Any]]:
    import torch

    begin = time.monotonic()
    torch._dynamo.reset()
    torch.backends.cuda.matmul.allow_tf32 = True
    here = opened(job)
    folder = job.folder("quality", name)
    model, trained = {"prunefast": train_prunefast, "plain": train_plain}[arm["loop"]](
        job, arm, here, folder, begin + arm["seconds"] - arm["sampling"]
    )
    samples, labels = sample(job, arm, model, begin + arm["seconds"])
    seconds = time.monotonic() - begin
    total = add_up(folder / "seconds.json", seconds)
    row = {"arm": name, **{k: arm[k] for k in ("loop", "model", "batch_size", "compile", "seed")}, **trained}
    row |= {"coreset": arm.get("coreset"), "parameters": sum(p.numel() for p in model.parameters())}
    row |= {"seconds": seconds, "seconds_all_calls": total, "aim_seconds": arm["seconds"], "samples": len(samples)}
    row |= {"sampler": f"ddim {arm['sampler_steps']}", "guidance": arm["guidance"]}
    yield row | {"what": "trained"}
    yield {"arm": name, "what": "metrics", "samples": len(samples), **metrics(job, here, samples)}
    yield {"arm": name, "what": "files", **artefacts(job, name, model, samples, labels)}


def add_up(path: Path, seconds: float) -> float:
    before = json.loads(path.read_text()) if path.exists() else 0.0
    path.write_text(json.dumps(before + seconds))
    return before + seconds


def train_prunefast(
    job: Job, arm: dict[str, Any], here: dict[str, Any], folder: Path, end: float
) -> tuple["torch.nn.Module", dict[str, Any]]:
    """`prunefast.train`, stopped at `end` as a user stops it; its EMA weights."""
    from gpu.backends import replaced
    from prunefast import Coreset, TrainConfig, train
    from prunefast.models import build_model
    from prunefast.train.interrupt import TrainingStopped
    from prunefast.train.state import find_checkpoint, load_weights
    from prunefast.train.step import TrainingStep

    data, coreset = here["data"], None
    if "coreset" in arm:
        coreset = Coreset.from_indices(data, here["prepared"][f"coreset.{arm['coreset']}"].numpy())
    keys = ("model", "model_options", "batch_size", "lr", "warmup_images", "ema_half_life_images", "compile", "seed")
    config = TrainConfig(
        out=str(folder),
        images=10**12,
        device=job.device.type,
        precision="fp32" if job.rehearse else "bf16",
        dropout=0.0,
        status_every_images=50 if job.rehearse else 50_000,
        checkpoint_every_seconds=1e6,
        **{key: arm[key] for key in keys},
        **arm["options"],
    )
    call = TrainingStep.__call__

    def watched(step: Any, *arguments: Any, **options: Any) -> Any:
        if time.monotonic() >= end:  # inside the loop, which turns it into a checkpoint after this step
            os.kill(os.getpid(), signal.SIGINT)
        return call(step, *arguments, **options)

    try:
        with replaced(TrainingStep, "__call__", watched):
            train(config, data, coreset)
    except TrainingStopped:
        pass
    path, state = find_checkpoint(folder)
    model = build_model(**state["model"])
    load_weights(path, model, ema=True)
    last = (folder / "train" / "metrics.jsonl").read_text().splitlines()[-1:]
    loss = json.loads(last[0])["loss"] if last else None
    return model.to(job.device), {
        "images_trained": state["images"],
        "epochs": state["images"] / len(coreset or data),
        "loss": loss,
    }


def train_plain(
    job: Job, arm: dict[str, Any], here: dict[str, Any], folder: Path, end: float
) -> tuple["torch.nn.Module", dict[str, Any]]:
    """The loop of plain.py on the same data, with the same settings, until the same time."""
    import torch

    from gpu.plain import PlainLoop
    from prunefast.models import build_model

    torch.manual_seed(arm["seed"])
    torch.backends.cudnn.benchmark = True
    options = {"image_size": here["images"].shape[-1], "num_classes": len(here["data"].classes), "dropout": 0.0}
    model = build_model(arm["model"], **options, **arm["model_options"])
    model = model.to(job.device, memory_format=torch.channels_last)
    images, labels = here["images"], here["labels"]
    if "coreset" in arm:
        kept = here["prepared"][f"coreset.{arm['coreset']}"].long().to(job.device)
        images, labels = images[kept], labels[kept]
    loop = PlainLoop(
        model,
        images,
        labels,
        len(here["data"].classes),
        batch=arm["batch_size"],
        lr=arm["lr"],
        warmup_images=arm["warmup_images"],
        half_life_images=arm["ema_half_life_images"],
        compile=arm["compile"],
    )
    path = folder / "plain.pt"
    if path.exists():
        loop.load(torch.load(path, map_location=job.device, weights_only=True))
    loss = None
    while loss is None or time.monotonic() < end:
        loss = loop.step()
        if loop.trained // loop.batch % 20 == 0 and job.device.type == "cuda":
            torch.cuda.synchronize()  # else the host runs ahead and the clock is read too early
    torch.save(loop.state(), path)
    averaged = build_model(arm["model"], **options, **arm["model_options"]).to(job.device)
    with torch.no_grad():
        for mine, other in zip(averaged.parameters(), loop.average, strict=True):
            mine.copy_(other)
    return averaged, {"images_trained": loop.trained, "epochs": loop.trained / len(images), "loss": float(loss)}


def sample(job: Job, arm: dict[str, Any], model: "torch.nn.Module", end: float) -> tuple["torch.Tensor", list[int]]:
    """uint8 [n, 3, R, R] on the device, of balanced classes: as many as the arm asks for, fewer where time is over."""
    import torch

    from prunefast.diffusion.samplers import Denoiser, sample_images

    model = model.to(memory_format=torch.channels_last).eval()
    denoiser = Denoiser(model, "ddpm-linear", "eps", arm["guidance"])
    size, parts, each = model.config["image_size"], [], 100 if job.rehearse else 1000
    slowest = 0.0
    for begin in range(0, arm["samples"], each):
        if parts and time.monotonic() + slowest > end:
            break
        started = time.monotonic()
        numbers = torch.arange(begin, min(begin + each, arm["samples"]))
        with torch.autocast(job.device.type, torch.bfloat16, enabled=not job.rehearse):
            made = sample_images(
                denoiser, numbers, image_size=size, labels=numbers % 10, steps=arm["sampler_steps"], batch_size=each
            )
        parts.append((made * 127.5 + 128).clamp(0, 255).to(torch.uint8).to(job.device))
        slowest = max(slowest, time.monotonic() - started)
    samples = torch.cat(parts)
    return samples, (torch.arange(len(samples)) % 10).tolist()


def metrics(job: Job, here: dict[str, Any], samples: "torch.Tensor") -> dict[str, Any]:
    """Frechet distance, precision and recall in both spaces, against all training images."""
    import numpy as np

    from gpu import features
    from prunefast.evaluate.features import seeded_subset
    from prunefast.evaluate.frechet import frechet_distance
    from prunefast.evaluate.precision_recall import precision_recall

    result: dict[str, Any] = {}
    for name, function in feature_spaces(job, here).items():
        reference = np.load(job.folder("quality") / f"reference-{name}.npy")
        mine = features.embed(function, samples)
        result[f"frechet {name}"] = frechet_distance(mine, reference)
        size = min(len(mine), len(reference), PRECISION_RECALL)
        found = precision_recall(
            mine[seeded_subset(len(mine), size, 0, 3)], reference[seeded_subset(len(reference), size, 0, 4)]
        )
        result |= {f"precision {name}": found.precision, f"recall {name}": found.recall}
    return result


def artefacts(
    job: Job, name: str, model: "torch.nn.Module", samples: "torch.Tensor", labels: list[int]
) -> dict[str, Any]:
    """The grid and, of a small network, the EMA weights in float16, in parts that may come back."""
    import io

    import torch
    from PIL import Image
    from safetensors.torch import save

    from gpu.results import LimitError, put

    out, work, row = Path(job.out), Path(job.work), {"files": [], "left_out": []}

    def store(file_name: str, content: bytes) -> None:
        try:
            row["files"].append(put(out, file_name, content, work))
        except LimitError as error:
            row["left_out"].append(str(error))

    png = io.BytesIO()
    Image.fromarray(grid(samples, labels)).save(png, format="PNG", optimize=True)
    store(f"grid-{name}.png", png.getvalue())
    weights = {key: tensor.half().cpu().contiguous() for key, tensor in model.state_dict().items()}
    if sum(tensor.numel() for tensor in weights.values()) > SMALL:
        row["left_out"].append(f"EMA weights: more than {SMALL / 1e6:.1f} M parameters")
        return row
    parts: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for key, tensor in weights.items():
        size += 2 * tensor.numel()
        if size > WEIGHTS_BYTES and parts[-1]:
            parts.append({})
            size = 2 * tensor.numel()
        parts[-1][key] = tensor
    metadata = {"model": json.dumps(model.config), "dtype": "float16", "parts": str(len(parts))}
    for number, part in enumerate(parts):
        suffix = f"-{number}" if len(parts) > 1 else ""
        store(f"ema-{name}{suffix}.safetensors", save(part, metadata))
    return row


def grid(samples: "torch.Tensor", labels: list[int]) -> "np.ndarray":
    """uint8 [10 R, 10 R, 3]: a row a class, ten of each; grey where a class has fewer."""
    import numpy as np

    side = samples.shape[-1]
    canvas = np.full((10 * side, 10 * side, 3), 128, np.uint8)
    pixels = samples[: 10 * 10].permute(0, 2, 3, 1).cpu().numpy()
    places = dict.fromkeys(range(10), 0)
    for image, label in zip(pixels, labels, strict=False):
        row, column = label % 10, places[label % 10]
        if column < 10:
            canvas[row * side : (row + 1) * side, column * side : (column + 1) * side] = image
            places[row] += 1
    return canvas


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    names = (
        "frechet resnet20",
        "frechet trained",
        "precision resnet20",
        "recall resnet20",
        "precision trained",
        "recall trained",
    )
    lines = [["arm", "images", "seconds", "samples", *names]]
    trained = {row["arm"]: row for row in rows if row.get("what") == "trained"}
    for row in rows:
        if row.get("what") == "metrics" and row["arm"] in trained:
            arm = trained[row["arm"]]
            lines.append([row["arm"], f"{arm['images_trained']:,}", f"{arm['seconds']:.0f}", f"{row['samples']:,}"])
            lines[-1] += [f"{row[name]:.4g}" for name in names]
    return lines
