"""`embed`: a data set and an encoder -> features."""

import os
from typing import Any

import numpy as np

import prunefast
from prunefast.encode.encoder import Encoder
from prunefast.encode.feature_file import FeatureFile
from prunefast.encode.reading import read_batches, with_one_size
from prunefast.encode.registry import default_device, make_encoder
from prunefast.errors import InputError
from prunefast.progress import progress as show_progress


def embed(
    data: Any,
    encoder: Any = "pixels",
    *,
    out: str | os.PathLike[str] | None = None,
    batch_size: int = 256,
    device: Any = None,
    threads: int | None = None,
    progress: bool = False,
    trust: bool = False,
    **options: Any,
) -> np.ndarray:
    """Features of every image: float32 [N, D], in the order of the data set.

    data        an ImageDataset, or anything with len() and `.images(indices)` -> uint8 [B, R, R, 3]
    encoder     a name, a torch module, a function or an Encoder; see `prunefast.encode.make_encoder`, which gets
                `options`. One that learns from data and is not fitted yet is fitted on `data`.
    out         a path ending in .npy: features go to that file as they come, with a manifest (.json) beside it, and a
                read-only np.memmap is returned. A call that finds them finished does nothing; one that was interrupted
                is continued.
    batch_size  images encoded together. Batch b holds the images b * batch_size and following, however the work is cut,
                because a network's last bits depend on the batch.
    device      for a network; default: the GPU where there is one, or where a module lies already
    threads     that decode images

    Raises InputError naming encoder and image for NaN or infinity in the features.

        features = prunefast.embed(data, "resnet20-cifar:weights.safetensors", out="run/features.npy")
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise InputError(f"batch_size: must be a whole number, at least 1, not {batch_size!r}")
    if len(data) == 0:
        raise InputError("data: has no images to embed")
    if device is None and isinstance(encoder, str | os.PathLike):
        device = default_device()
    made = make_encoder(encoder, trust=trust, device=device, **options)
    data = with_one_size(data, made)
    request = {
        "data_fingerprint": getattr(data, "fingerprint", None),
        "image_size": getattr(data, "image_size", None),
        "encoder": made.manifest(),
        "batch_size": int(batch_size),
    }
    target = None if out is None else FeatureFile(out, len(data), request)
    reusable = made.reusable and request["data_fingerprint"] is not None
    if target is not None and reusable:
        finished = target.finished()
        if finished is not None:
            return finished
        target.resume()
    first = target.done if target is not None else 0
    if not made.fitted and first < len(data):
        made.fit(data, progress=progress)
    if target is None:
        return _encode_all(data, made, batch_size, threads, progress)
    return _encode_to_file(data, made, target, batch_size, threads, progress)


def _encode_all(data: Any, encoder: Encoder, batch_size: int, threads: int | None, progress: bool) -> np.ndarray:
    features: np.ndarray | None = None
    for start, some in _encoded(data, encoder, 0, batch_size, threads, progress):
        if features is None:
            features = np.empty((len(data), some.shape[1]), dtype=np.float32)
        features[start : start + len(some)] = some
    if features is None:
        raise InputError("data: has no images to embed")
    return features


def _encode_to_file(
    data: Any, encoder: Encoder, target: FeatureFile, batch_size: int, threads: int | None, progress: bool
) -> np.ndarray:
    try:
        for _, some in _encoded(data, encoder, target.done, batch_size, threads, progress):
            target.append(some)
        return target.finish({"encoder": encoder.manifest(), "package_version": prunefast.__version__})
    except InputError:
        target.close(keep=False)  # a repeat would end the same way
        raise
    except BaseException:
        target.close(keep=encoder.reusable)
        raise


def _encoded(data: Any, encoder: Encoder, first: int, batch_size: int, threads: int | None, progress: bool) -> Any:
    """(position of the first image, features) of every batch from image `first` on, checked."""
    total = len(data)
    with show_progress(f"Embedding ({encoder.name})", total - first, silent=not progress) as bar:
        for indices, features in _features(data, encoder, np.arange(first, total), batch_size, threads):
            finite = np.isfinite(features).all(axis=1)
            if not finite.all():
                bad = int(indices[int(finite.argmin())])
                key = data.keys[bad] if hasattr(data, "keys") else f"image {bad}"
                raise InputError(
                    f"{encoder.name}: NaN or infinity in the features of {key!r}; check the weights, or drop that image"
                )
            yield int(indices[0]), features
            bar.advance(len(features))
    encoder.release()


def _features(data: Any, encoder: Encoder, indices: np.ndarray, batch_size: int, threads: int | None) -> Any:
    pending = indices
    while len(pending):  # images that fitting still holds need no reading
        features = encoder.cached(data, pending[:batch_size])
        if features is None:
            break
        yield pending[:batch_size], features
        pending = pending[batch_size:]
    for some, images in read_batches(data, pending, batch_size, threads):
        yield some, encoder(images)
