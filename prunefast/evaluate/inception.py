"""The published numbers: FID and KID on the Inception network of the original TensorFlow code, by torch-fidelity."""

import importlib
import pickle
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prunefast.data import ImageDataset
from prunefast.errors import InputError, MissingDependencyError

KID_SUBSET_SIZE = 1000  # torch-fidelity's default; cut where there are fewer images


class _Images(torch.utils.data.Dataset):
    """uint8 [3, R, R] by index, which is what torch-fidelity reads."""

    def __init__(self, data: ImageDataset, indices: NDArray[np.int64]):
        self.data, self.indices = data, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> torch.Tensor:
        if not 0 <= index < len(self.indices):
            raise IndexError(index)  # ends Python's iteration over this object
        image = self.data.images([int(self.indices[index])])[0]
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def inception_metrics(
    samples: ImageDataset,
    reference: ImageDataset,
    *,
    chosen: NDArray[np.int64] | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    batch_size: int = 64,
    inception_weights: str | None = None,
) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics {inception_frechet_distance, inception_kid, inception_kid_std} and their protocol.

    chosen              int64 [n], the samples to take (default: all)
    inception_weights   path of torch-fidelity's weight file where it cannot be downloaded

    Images go in at their own size; torch-fidelity resizes them to 299 as TensorFlow did. Raises MissingDependencyError
    without torch-fidelity or its weights.
    """
    fidelity = load_torch_fidelity()
    chosen = np.arange(len(samples)) if chosen is None else chosen
    fewest = min(len(chosen), len(reference))
    subset = min(KID_SUBSET_SIZE, max(2, fewest // 2))  # as prunefast.evaluate.kid has it
    if inception_weights is not None:
        _check_weights(inception_weights)
    try:
        values = fidelity.calculate_metrics(
            input1=_Images(samples, chosen),
            input2=_Images(reference, np.arange(len(reference))),
            fid=True,
            kid=True,
            kid_subset_size=subset,
            rng_seed=seed,
            batch_size=min(batch_size, fewest),
            cuda=device is not None and torch.device(device).type == "cuda",
            feature_extractor_weights_path=inception_weights,
            cache=False,
            save_cpu_ram=True,  # one loading process: the images may be archives that are open here
            verbose=False,
        )
    except OSError as error:  # urllib's errors are OSErrors
        raise MissingDependencyError(
            f"torch-fidelity could not load its Inception weights ({error}); download them on a machine with "
            "network and name the file: inception_weights=FILE"
        ) from None
    metrics = {
        "inception_frechet_distance": float(values["frechet_inception_distance"]),
        "inception_kid": float(values["kernel_inception_distance_mean"]),
        "inception_kid_std": float(values["kernel_inception_distance_std"]),
    }
    return metrics, {
        "package": f"torch-fidelity {getattr(fidelity, '__version__', 'unknown')}",
        "features": "Inception-v3 (TensorFlow 2015 weights), 2,048 features",
        "kid_subset_size": subset,
    }


def load_torch_fidelity() -> Any:
    try:
        return importlib.import_module("torch_fidelity")
    except (ImportError, RuntimeError, OSError) as error:  # the last two: it is there but what it needs is broken
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MissingDependencyError(
            f"metric 'inception' needs torch-fidelity ({reason}); install it: pip install 'prunefast[fid]'"
        ) from None


def _check_weights(path: str) -> None:
    """InputError unless `path` holds tensors only: torch-fidelity would run whatever code a pickle carries."""
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"inception_weights: {path}: {error.strerror or error}") from None
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError):
        raise InputError(f"inception_weights: {path}: is not a file of torch weights; download it again") from None
