"""`embed`: a data set and an encoder -> features."""

import contextlib
import functools
import os
from collections.abc import Callable, Generator
from typing import Any

import numpy as np

import prunefast
from prunefast.distributed import everywhere, gather_objects, world
from prunefast.encode.encoder import Encoder
from prunefast.encode.feature_file import FeatureFile
from prunefast.encode.reading import read_batches, with_one_size
from prunefast.encode.registry import default_device, make_encoder
from prunefast.errors import InputError
from prunefast.progress import progress as show_progress
from prunefast.together import handed_out, is_followed


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
    target = None if out is None else _feature_file(out, data, made, batch_size)
    if target is not None and _reusable(data, made):
        finished = target.finished()
        if finished is not None:
            return finished
        target.resume()
    first = target.done if target is not None else 0
    learns = not made.fitted
    if learns and first < len(data):
        made.fit(data, progress=progress)
    again = None
    if isinstance(encoder, str | os.PathLike):
        again = functools.partial(make_encoder, encoder, trust=trust, device=device, **options)
        again = functools.partial(make_encoder, made) if learns else again
    encoding = _Encoding(data, first, int(batch_size), threads, again, made)
    return _encode_all(encoding, progress) if target is None else _encode_to_file(encoding, target, progress)


def embedded(path: str | os.PathLike[str], data: Any, encoder: Encoder, *, batch_size: int = 256) -> np.ndarray | None:
    """What `embed(data, encoder, out=path, batch_size=batch_size)` has written before; None where it has not."""
    if not _reusable(data, encoder):
        return None
    return _feature_file(path, with_one_size(data, encoder), encoder, batch_size).finished()


def _feature_file(path: str | os.PathLike[str], data: Any, encoder: Encoder, batch_size: int) -> FeatureFile:
    request = {
        "data_fingerprint": getattr(data, "fingerprint", None),
        "image_size": getattr(data, "image_size", None),
        "encoder": encoder.manifest(),
        "batch_size": int(batch_size),
    }
    return FeatureFile(path, len(data), request)


def _reusable(data: Any, encoder: Encoder) -> bool:
    return encoder.reusable and getattr(data, "fingerprint", None) is not None


class _Encoding:
    """Batch after batch of the images from `first` on. The processes of torchrun share it: each encodes every size-th
    batch, and the one that leads takes them in their order.

    again  makes the encoder in another process; None: it cannot be made there, and nothing is shared
    take   gets (indices, features) of every batch, in the process that leads
    """

    def __init__(
        self,
        data: Any,
        first: int,
        batch_size: int,
        threads: int | None,
        again: Callable[[], Encoder] | None,
        encoder: Encoder | None = None,
    ):
        self.data, self.first, self.batch_size, self.threads, self.again = data, first, batch_size, threads, again
        self.encoder = encoder
        self.take: Callable[[np.ndarray, np.ndarray], None] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _Encoding, (self.data, self.first, self.batch_size, self.threads, self.again)

    def run(self, take: Callable[[np.ndarray, np.ndarray], None]) -> None:
        assert self.encoder is not None
        self.take = take
        while self.first < len(self.data):  # images that fitting still holds need no reading
            indices = np.arange(self.first, min(self.first + self.batch_size, len(self.data)))
            features = self.encoder.cached(self.data, indices)
            if features is None:
                break
            take(indices, features)
            self.first += len(indices)
        self.encoder.release()
        if self.again is not None and is_followed():
            handed_out(self)
            return
        for indices, features in self._read(0, 1):
            take(indices, features)

    def __call__(self) -> None:
        """In every process."""
        here = world()
        rounds = -(-(len(self.data) - self.first) // (self.batch_size * here.size))
        found: list[tuple[np.ndarray, np.ndarray] | None] = []

        def taken() -> None:
            for batch in found:
                if batch is not None and self.take is not None:
                    self.take(*batch)

        def next_one() -> tuple[np.ndarray, np.ndarray] | None:
            taken()
            return next(batches, None)

        with contextlib.closing(self._read(here.rank, here.size)) as batches:
            for _ in range(rounds):
                found = gather_objects(everywhere(next_one))
        everywhere(taken)

    def _read(self, rank: int, size: int) -> Generator[tuple[np.ndarray, np.ndarray]]:
        """(indices, features) of every size-th batch from batch `rank` on."""
        if self.encoder is None:
            assert self.again is not None
            self.encoder = self.again()
        starts = range(self.first + rank * self.batch_size, len(self.data), size * self.batch_size)
        mine = [np.arange(start, min(start + self.batch_size, len(self.data))) for start in starts]
        pending = np.concatenate(mine) if mine else np.zeros(0, np.int64)
        for indices, images in read_batches(self.data, pending, self.batch_size, self.threads):
            yield indices, self.encoder(images)


def _encode_all(encoding: _Encoding, progress: bool) -> np.ndarray:
    features: list[np.ndarray] = []
    total = len(encoding.data)

    def take(start: int, some: np.ndarray) -> None:
        if not features:
            features.append(np.empty((total, some.shape[1]), dtype=np.float32))
        features[0][start : start + len(some)] = some

    _encode(encoding, take, progress)
    return features[0]


def _encode_to_file(encoding: _Encoding, target: FeatureFile, progress: bool) -> np.ndarray:
    encoder = encoding.encoder
    assert encoder is not None
    try:
        _encode(encoding, lambda _, some: target.append(some), progress)
        return target.finish({"encoder": encoder.manifest(), "package_version": prunefast.__version__})
    except InputError:
        target.close(keep=False)  # a repeat would end the same way
        raise
    except BaseException:
        target.close(keep=encoder.reusable)
        raise


def _encode(encoding: _Encoding, keep: Callable[[int, np.ndarray], None], progress: bool) -> None:
    """keep(position of the first image, features) of every batch, checked."""
    data, encoder = encoding.data, encoding.encoder
    assert encoder is not None
    with show_progress(f"Embedding ({encoder.name})", len(data) - encoding.first, silent=not progress) as bar:

        def take(indices: np.ndarray, features: np.ndarray) -> None:
            finite = np.isfinite(features).all(axis=1)
            if not finite.all():
                bad = int(indices[int(finite.argmin())])
                key = data.keys[bad] if hasattr(data, "keys") else f"image {bad}"
                raise InputError(
                    f"{encoder.name}: NaN or infinity in the features of {key!r}; check the weights, or drop that image"
                )
            keep(int(indices[0]), features)
            bar.advance(len(features))

        encoding.run(take)
