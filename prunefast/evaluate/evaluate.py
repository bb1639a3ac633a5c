"""`evaluate`: samples against a reference, the numbers together with the protocol they were made under."""

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import prunefast
from prunefast.data import ImageDataset
from prunefast.encode import Encoder, embed, embedded, make_encoder
from prunefast.encode.registry import default_device
from prunefast.errors import InputError
from prunefast.evaluate import sources
from prunefast.evaluate.features import as_features, seeded_subset
from prunefast.evaluate.frechet import frechet_distance
from prunefast.evaluate.gap import DRAWS, MOST_IMAGES, fixed_losses, gap_of
from prunefast.evaluate.inception import inception_metrics, load_torch_fidelity
from prunefast.evaluate.kid import DEGREE, kernel_distance
from prunefast.evaluate.memorisation import PERCENTILE, memorisation
from prunefast.evaluate.model import Subject, open_model
from prunefast.evaluate.overfitting import overfitting_signs
from prunefast.evaluate.precision_recall import precision_recall
from prunefast.evaluate.result import Evaluation
from prunefast.evaluate.vendi import vendi_score
from prunefast.progress import progress as show_progress
from prunefast.select import Coreset

FEATURE_METRICS = ("frechet_distance", "kid", "precision_recall", "vendi", "memorisation")
DEFAULT_METRICS = (*FEATURE_METRICS, "denoising_gap", "class_counts")
METRICS = (*DEFAULT_METRICS, "inception")

# Below, the Frechet distance is mostly bias: published tables use 10,000 or 50,000; 2,048 is one per Inception feature.
FEW_SAMPLES = 2048
INCEPTION_FEATURES = 2048
# Sets of one size for precision, recall and the Vendi score: 10,000 is what the papers use, and the cost grows with it.
COMPARED_IMAGES = 10_000


def evaluate(
    samples: Any,
    reference: Any,
    *,
    encoder: Any = "pixels",
    coreset: Coreset | str | os.PathLike[str] | None = None,
    training: Any = None,
    checkpoint: str | os.PathLike[str] | None = None,
    held_out: Any = None,
    metrics: str | Sequence[str] | None = None,
    n: int | None = None,
    k: int = 3,
    image_size: int | None = None,
    reference_features: NDArray[np.floating] | str | os.PathLike[str] | None = None,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    device: Any = None,
    batch_size: int = 256,
    threads: int | None = None,
    progress: bool = False,
    trust: bool = False,
    inception_weights: str | None = None,
    **encoder_options: Any,
) -> Evaluation:
    """How near generated images come to real ones, in the features of one encoder.

        result = pf.evaluate("run/samples", "cifar10", coreset="run/coreset.parquet", out="run/metrics.json")
        print(result)                                  # numbers and protocol
        result.metrics["frechet_distance"]

    samples     uint8 [N, H, W, 3], an ImageDataset or a folder (of prunefast.sample, whose protocol is then reported)
    reference   path (its train split) or ImageDataset: all real images, never only the coreset
    encoder     as `prunefast.embed` has it, with its options. One that learns ("pixels") is fitted on the reference,
                never on samples or coreset; an Encoder that was fitted before is used as it is.
    coreset     what the model was trained on: memorisation is measured against it, with the images it left out as the
                ones not trained on. Without it there is no memorisation number.
    training    data set of the coreset where that is not the reference (a reference of test images)
    checkpoint  the model (a run folder or checkpoint-*): its loss on held-out images against that on training images
    held_out    path or ImageDataset of images like the training images that were not trained on; without it, those that
                the coreset left out, which may be harder by the selection itself
    metrics     any of "frechet_distance", "kid", "precision_recall", "vendi", "memorisation", "denoising_gap",
                "class_counts" (these are the default, as far as the input allows), "inception" (FID and KID by
                torch-fidelity)
    n           evaluate a seeded draw of n samples (default: all)
    k           neighbours of precision and recall
    image_size  compare R x R squares; default: the reference's own size. Samples of another size are resized, and the
                protocol says so.
    reference_features   float [M, D] of the reference in this encoder, if they are there already; or the path of a file
                of `embed` (RUN/features.npy), taken where it is of this reference, encoder and batch_size
    out         write metrics.json there

    Raises InputError for fewer than 2 samples, NaN features (naming the image), a coreset of other data, and
    MissingDependencyError for "inception" without torch-fidelity; all but NaN before any work.
    """
    wanted = check_metrics(metrics)
    if out is not None and os.path.isdir(out):
        raise InputError(f"out: {os.fspath(out)}: is a folder; give the name of the file to write")
    if "inception" in wanted:
        load_torch_fidelity()
    real = sources.open_reference(reference, image_size)
    assert real.image_size is not None
    fake, resized = sources.open_samples(samples, real.image_size)
    chosen = sources.choose(fake, n, seed)
    sampling = sources.sampling_protocol(samples, len(fake))
    trained_on, kept = _training(real, training, coreset, real.image_size)
    if metrics is not None and "memorisation" in wanted and kept is None:
        raise InputError("coreset: 'memorisation' needs to know what was trained on; give coreset=")
    unseen = None if held_out is None else sources.open_reference(held_out, real.image_size, "held_out")
    if kept is None and (checkpoint is not None or unseen is not None):
        raise InputError(f"{'held_out' if checkpoint is None else 'checkpoint'}: says nothing without coreset=")
    if metrics is not None and "denoising_gap" in wanted and checkpoint is None:
        raise InputError("checkpoint: 'denoising_gap' is measured with the model; give checkpoint=")
    model = None
    if checkpoint is not None and kept is not None:
        model = open_model(checkpoint, trained_on, kept, unseen, device)
        kept = model.coreset
    if k < 1:
        raise InputError(f"k: {k} is not at least 1")
    network = make_encoder(
        encoder, trust=trust, device=default_device() if device is None else device, **encoder_options
    )

    values: dict[str, Any] = {}
    protocol: dict[str, Any] = {
        "prunefast_version": prunefast.__version__,
        "samples": fake.path or "array",
        "sample_count": len(chosen),
        "samples_available": len(fake),
        "samples_fingerprint": fake.fingerprint,
        "reference": _describe(real),
        "image_size": real.image_size,
        "resized": resized,
        "seed": seed,
        "sampling": sampling,
        "coreset": {"images": len(kept), "fingerprint": kept.fingerprint} if kept is not None else None,
    }
    warnings: list[str] = []

    if any(metric in wanted for metric in FEATURE_METRICS):
        settings: dict[str, Any] = {"batch_size": batch_size, "threads": threads, "progress": progress}
        if isinstance(reference_features, str | os.PathLike):
            reference_features = embedded(reference_features, real, network, batch_size=batch_size)
        if reference_features is None:
            y = embed(real, network, **settings)  # fits an encoder that learns: the reference goes first
        else:
            if not network.fitted:
                network.fit(real, progress=progress)
            y = _check_given(reference_features, real, network, batch_size)
        x = embed(fake if len(chosen) == len(fake) else sources.Subset(fake, chosen), network, **settings)
        protocol["encoder"] = _describe_encoder(network, y.shape[1])
        _feature_metrics(values, protocol, warnings, wanted, x, y, k, seed)
        if "memorisation" in wanted and kept is not None and len(kept) >= 2:
            z = y if trained_on is real else embed(trained_on, network, **settings)
            others = z[kept.dropped] if unseen is None else embed(unseen, network, **settings)
            _memorisation(values, protocol, x, z, others, kept, fake, chosen, seed)
    if model is not None and "denoising_gap" in wanted:
        _denoising_gap(values, protocol, warnings, model, unseen, seed, progress)
    if "class_counts" in wanted:
        counts = sources.class_counts(fake, chosen, real)
        if counts is not None:
            values["class_counts"] = counts
    if "inception" in wanted:
        more, how = inception_metrics(
            fake, real, chosen=chosen, seed=seed, device=device, inception_weights=inception_weights
        )
        values |= more
        protocol["inception"] = how
        _warn_of_few(warnings, len(chosen), len(real), INCEPTION_FEATURES)
    signs = overfitting_signs(values, len(chosen), len(kept) if kept is not None else 1)
    if signs is not None:
        values["overfitting"] = {"suspected": bool(signs), "signs": signs}
        warnings[:0] = [f"overfitting: {sign}" for sign in signs]
    protocol["warnings"] = warnings
    result = Evaluation(values, protocol)
    if out is not None:
        result.save(out)
    return result


def check_metrics(metrics: str | Sequence[str] | None) -> tuple[str, ...]:
    """The names asked for, each once; InputError for an unknown one."""
    if metrics is None:
        return DEFAULT_METRICS
    names = tuple(dict.fromkeys((metrics,) if isinstance(metrics, str) else metrics))
    for name in names:
        if name not in METRICS:
            raise InputError(f"metrics: {name!r} is unknown; there are {', '.join(METRICS)}")
    if not names:
        raise InputError(f"metrics: is empty; give some of {', '.join(METRICS)}")
    return names


def _check_given(
    features: NDArray[np.floating], data: ImageDataset, network: Encoder, batch_size: int
) -> NDArray[np.floating]:
    """Features that a caller has already: of this data and from this encoder, or InputError."""
    array = as_features("reference_features", features)
    if len(array) != len(data):
        raise InputError(f"reference_features: {len(array):,} rows for {len(data):,} reference images; embed again")
    # numbers from another encoder, or from one fitted on other images, would pass for a distance
    first = network(data.images(np.arange(min(batch_size, len(data)))))
    if first.shape[1] != array.shape[1] or not np.allclose(first, array[: len(first)], rtol=1e-2, atol=1e-2):
        raise InputError(f"reference_features: are not what {network.name} gives for the reference; leave them out")
    return array


def _feature_metrics(
    values: dict[str, Any],
    protocol: dict[str, Any],
    warnings: list[str],
    wanted: Sequence[str],
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    k: int,
    seed: int,
) -> None:
    fewest = min(len(x), len(y))
    if "frechet_distance" in wanted:
        values["frechet_distance"] = frechet_distance(x, y)
        _warn_of_few(warnings, len(x), len(y), x.shape[1])
    if "kid" in wanted:
        if fewest >= 4:
            kid = kernel_distance(x, y, seed=seed)
            values["kid"], values["kid_std"] = kid.mean, kid.standard_deviation
            protocol["kid"] = {"degree": DEGREE, "blocks": kid.blocks, "block_size": kid.block_size}
        else:
            warnings.append(f"KID needs 4 images of each kind, there are {fewest}: left out")
    if "precision_recall" in wanted:
        size = min(fewest, COMPARED_IMAGES)
        if size > k:
            found = precision_recall(
                x[seeded_subset(len(x), size, seed, purpose=3)], y[seeded_subset(len(y), size, seed, purpose=4)], k=k
            )
            values["precision"], values["recall"] = found.precision, found.recall
            protocol["precision_recall"] = {"k": k, "images": size}
        else:
            warnings.append(
                f"precision and recall with k = {k} need {k + 1} images of each kind, there are {size}: left out"
            )
    if "vendi" in wanted:
        size = min(fewest, COMPARED_IMAGES)
        try:
            for name, rows, purpose in (("vendi", x, 6), ("vendi_reference", y, 7)):
                values[name] = vendi_score(rows[seeded_subset(len(rows), size, seed, purpose)])
            protocol["vendi"] = {"images": size}
        except InputError as error:
            warnings.append(f"the Vendi score is left out: {error}")


def _denoising_gap(
    values: dict[str, Any],
    protocol: dict[str, Any],
    warnings: list[str],
    model: Subject,
    unseen: ImageDataset | None,
    seed: int,
    progress: bool,
) -> None:
    kept, held_out = model.coreset, model.set_aside
    data, rows = model.data, kept.dropped
    described: str | dict[str, Any] = f"left out by {kept.manifest.get('method')}"
    if unseen is not None:
        data, rows, described = unseen, np.arange(len(unseen)), _describe(unseen)
    elif held_out is not None:
        rows, described = held_out, "set aside by training"
    if len(rows) < 2 or len(kept) < 2:
        warnings.append("the denoising gap needs 2 images trained on and 2 that were not: left out; give held_out=")
        return
    if model.of_another_coreset:
        warnings.append("the checkpoint was trained on another coreset: its denoising gap compares the wrong images")
    picked = [seeded_subset(len(part), MOST_IMAGES, seed, purpose=5) for part in (kept.indices, rows)]
    with show_progress("denoising gap", sum(map(len, picked)), silent=not progress) as bar:
        losses = [
            fixed_losses(model.measured, images, part, seed=seed, bar=bar)
            for images, part in ((model.data, kept.indices[picked[0]]), (data, rows[picked[1]]))
        ]
    chosen_by_chance = isinstance(described, dict) or held_out is not None or kept.manifest.get("method") == "random"
    values["denoising_gap"] = {**gap_of(*losses).as_dict(), "comparable": chosen_by_chance}
    protocol["denoising_gap"] = {
        "checkpoint": model.digest,
        "weights": "EMA",
        "held_out": described,
        "draws": DRAWS,
        "seed": seed,
    }


def _memorisation(
    values: dict[str, Any],
    protocol: dict[str, Any],
    x: NDArray[np.float32],
    z: NDArray[np.float32],
    held_out: NDArray[np.float32],
    kept: Coreset,
    fake: ImageDataset,
    chosen: NDArray[np.int64],
    seed: int,
) -> None:
    found = memorisation(x, z[kept.indices], held_out, seed=seed)
    values["memorisation"] = found.as_dict() | {
        "closest": [
            {
                "sample": str(fake.keys[int(chosen[sample])]),
                "training": str(kept.keys[int(kept.indices[row])]),
                "training_index": int(kept.indices[row]),
                "distance": distance,
            }
            for sample, row, distance in found.closest
        ]
    }
    protocol["memorisation"] = {
        "training_images": len(kept),
        "held_out_images": len(held_out),
        "percentile": PERCENTILE,
    }


def _training(
    real: ImageDataset, training: Any, coreset: Coreset | str | os.PathLike[str] | None, image_size: int
) -> tuple[ImageDataset, Coreset | None]:
    """The data set that the coreset indexes, and the coreset."""
    data = real if training is None else sources.open_reference(training, image_size, "training")
    if coreset is None:
        if training is not None:
            raise InputError("training: says nothing without coreset=")
        return data, None
    kept = coreset if isinstance(coreset, Coreset) else Coreset.load(coreset, data)
    if kept.data_fingerprint != data.fingerprint:
        raise InputError(
            "coreset: was selected from another data set than the reference; give its data set as training="
        )
    return data, kept


def _describe(data: ImageDataset) -> dict[str, Any]:
    return {
        "name": os.path.basename(data.path.rstrip("/")) or "array",
        "path": data.path,
        "split": data.split,
        "count": len(data),
        "fingerprint": data.fingerprint,
    }


def _describe_encoder(network: Encoder, dim: int) -> dict[str, Any]:
    """Name and manifest; the digest is over the manifest, which holds that of the weights."""
    manifest = network.manifest()
    digest = (
        hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16] if network.reusable else None
    )
    return {"name": network.name, "dim": dim, "digest": digest, "manifest": manifest}


def _warn_of_few(warnings: list[str], samples: int, reference: int, dim: int) -> None:
    for name, count in (("samples", samples), ("reference images", reference)):
        few = [f"fewer than {FEW_SAMPLES:,}"] if count < FEW_SAMPLES else []
        if count <= dim:
            few.append(f"no more than the {dim:,} features")
        if few:
            text = (
                f"{count:,} {name} ({' and '.join(few)}): the Frechet distance is biased upward; "
                "compare these numbers only with others from as many images"
            )
            if text not in warnings:
                warnings.append(text)
