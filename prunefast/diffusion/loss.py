"""The training loss of a diffusion model, as a module that drops into an existing loop."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunefast import ops
from prunefast.diffusion.parameterisation import check_prediction, target_coefficients
from prunefast.diffusion.process import Process, make_process
from prunefast.diffusion.weighting import Weighting, make_weighting
from prunefast.errors import InputError, InputTypeError
from prunefast.ops.crop import Boxes

SIMPLEX_TOLERANCE = 1e-4  # how far from 1 the class weights may sum: they are read back from float32 and from JSON


class DenoisingLoss(nn.Module):
    """Mean over the batch of weight_i * mean over pixels of (pred_i - a_i x0_i - b_i noise_i)^2.

        loss = DenoisingLoss("ddpm-linear", weighting="min_snr")
        t = loss.process.sample_time(torch.rand(len(x0), dtype=torch.float64))
        alpha, sigma = loss.process.input_coefficients(t)
        x_t = prunefast.ops.add_noise(x0, alpha, sigma, noise)
        loss(model(x_t, loss.process.network_time(t), labels), x0, noise, t, labels).backward()

    weight_i is the product of three factors, each 1 by default: the noise level's (`weighting`), the class's
    (`class_weights`) and the image's (`sample_weight`). They are not normalised over the batch: an expectation under
    other weights is estimated without bias, and gradient accumulation gives what one large batch gives.

    Args:
        process: a name of `make_process` or a Process.
        prediction: what pred is, "eps", "x0", "v", "flow" or "edm"; None takes the process's default.
        weighting: "uniform", "min_snr", "edm", "p2", a `Weighting` with its options, or a function
            (alpha, sigma) -> weight on the x0-error.
        class_weights: what each class should count for, not negative, summing to 1: an array of C numbers, a mapping
            class index -> number, or an object with `.average` (`prunefast.ClassWeights`). An image of class c weighs
            class_weights[c] / class_frequencies[c], so the expected weight is 1.
        class_frequencies: share of each class among the images drawn, [C] summing to 1; None: balanced classes, 1 / C.
    """

    class_factor: Tensor | None

    def __init__(
        self,
        process: str | Process = "ddpm-linear",
        prediction: str | None = None,
        weighting: str | Weighting | Callable[[Tensor, Tensor], Tensor] = "uniform",
        class_weights: Any = None,
        class_frequencies: Any = None,
    ):
        super().__init__()
        self.process = make_process(process)
        self.prediction = prediction or self.process.default_prediction
        check_prediction(self.prediction)
        if self.prediction not in self.process.predictions:
            raise InputError(
                f"prediction '{self.prediction}' does not go with process '{self.process.name}'; "
                f"it takes {', '.join(self.process.predictions)}"
            )
        self.weighting = make_weighting(weighting)
        self.register_buffer("class_factor", _class_factor(class_weights, class_frequencies), persistent=False)

    def forward(
        self,
        pred: Tensor,
        x0: Tensor,
        noise: "Tensor | tuple[int, Tensor]",
        t: Tensor,
        labels: Tensor | None = None,
        sample_weight: Tensor | None = None,
        *,
        flip: Tensor | None = None,
        boxes: Boxes | None = None,
    ) -> Tensor:
        """The loss, a scalar, differentiable in pred.

        Args:
            pred: [B, C, h, w], the network's output; float32, bfloat16 or float16. h, w are those of x0, or of `boxes`.
            x0: [B, C, H, W], the clean images: floating point, or uint8, which means x / 127.5 - 1.
            noise: the noise x_t was made with, [B, C, h, w], or (seed, position int64 [B]) to have it regenerated.
            t: [B], times of `process`.
            labels: int64 [B], true classes (before any label drop); needed with class_weights, otherwise not looked at.
            sample_weight: float [B], for example the weights of a `Batch`.
            flip: bool [B], the images that were mirrored by `ops.add_noise(..., flip=flip)`.
            boxes: the crops x_t was made of by `ops.add_noise(..., boxes=boxes)`.
        """
        return self._evaluate(pred, x0, noise, t, labels, sample_weight, flip=flip, boxes=boxes)[0]

    def with_errors(
        self,
        pred: Tensor,
        x0: Tensor,
        noise: "Tensor | tuple[int, Tensor]",
        t: Tensor,
        labels: Tensor | None = None,
        sample_weight: Tensor | None = None,
        *,
        flip: Tensor | None = None,
        boxes: Boxes | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(the loss as `forward` gives it, the unweighted errors float32 [B]) in one pass."""
        return self._evaluate(pred, x0, noise, t, labels, sample_weight, flip=flip, boxes=boxes)

    def per_sample(
        self,
        pred: Tensor,
        x0: Tensor,
        noise: "Tensor | tuple[int, Tensor]",
        t: Tensor,
        *,
        flip: Tensor | None = None,
        boxes: Boxes | None = None,
    ) -> Tensor:
        """The unweighted errors, float32 [B], mean over pixels each; differentiable in pred."""
        return self._evaluate(pred, x0, noise, t, None, None, weighted=False, flip=flip, boxes=boxes)[1]

    def sample_weights(self, t: Tensor, labels: Tensor | None = None, sample_weight: Tensor | None = None) -> Tensor:
        """weight_i of the loss, float32 [B]: noise level * class * image."""
        alpha, sigma = self.process.alpha_sigma(t, torch.float64)
        return self._weights(alpha, sigma, labels, sample_weight)

    def _weights(self, alpha: Tensor, sigma: Tensor, labels: Tensor | None, sample_weight: Tensor | None) -> Tensor:
        weight = self.weighting.weight(self.prediction, alpha, sigma, self.process.sigma_data).float()
        if self.class_factor is not None:
            weight = weight * self.class_factor.index_select(0, self._checked_labels(labels, len(alpha)))
        if sample_weight is not None:
            weight = weight * sample_weight
        return weight

    def _evaluate(
        self,
        pred: Tensor,
        x0: Tensor,
        noise: "Tensor | tuple[int, Tensor]",
        t: Tensor,
        labels: Tensor | None,
        sample_weight: Tensor | None,
        weighted: bool = True,
        flip: Tensor | None = None,
        boxes: Boxes | None = None,
    ) -> tuple[Tensor, Tensor]:
        self._check(pred, x0, noise, t, sample_weight, boxes)
        alpha, sigma = self.process.alpha_sigma(t, torch.float64)
        a, b = target_coefficients(self.prediction, alpha, sigma, self.process.sigma_data)
        weight = self._weights(alpha, sigma, labels, sample_weight) if weighted else None
        result = ops.denoising_loss(pred, x0, noise, a, b, weight, flip=flip, boxes=boxes)
        return result[0], result[1]

    def _check(
        self,
        pred: Tensor,
        x0: Tensor,
        noise: "Tensor | tuple[int, Tensor]",
        t: Tensor,
        sample_weight: Tensor | None,
        boxes: Boxes | None,
    ) -> None:
        if pred.ndim < 2:
            raise InputError(f"pred must be [B, ...], not of shape {tuple(pred.shape)}")
        shape = x0.shape if boxes is None else (*x0.shape[:2], *boxes[1:])
        if pred.shape != shape:
            hint = ""
            if pred.ndim > 1 and pred.shape[1] == 2 * x0.shape[1]:
                hint = ": a model with learn_sigma=True doubles the channels; pass pred[:, :C]"
            cut = "" if boxes is None else f", cut to {boxes[1]} x {boxes[2]},"
            raise InputError(f"pred {tuple(pred.shape)} and x0 {tuple(x0.shape)}{cut} must have one shape{hint}")
        if isinstance(noise, Tensor) and noise.shape != shape:
            raise InputError(f"noise {tuple(noise.shape)} and x0 {tuple(shape)} must have one shape")
        self.process.check_time(t)
        if len(t) != len(x0):
            raise InputError(f"t has {len(t)} times for {len(x0)} images")
        if sample_weight is not None and sample_weight.shape != t.shape:
            raise InputError(
                f"sample_weight must be [{len(x0)}], one weight an image, not {tuple(sample_weight.shape)}"
            )

    def _checked_labels(self, labels: Tensor | None, count: int) -> Tensor:
        assert self.class_factor is not None
        classes = len(self.class_factor)
        if labels is None:
            raise InputError("labels are needed: the loss was made with class_weights")
        if labels.shape != (count,) or labels.dtype != torch.int64:
            raise InputError(f"labels must be int64 [{count}], not {labels.dtype} {tuple(labels.shape)}")
        # on a GPU index_select raises the device's own assertion instead of synchronising here
        if labels.device.type == "cpu" and count and not torch.compiler.is_compiling():
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= classes:
                raise InputError(
                    f"labels must lie in 0 ... {classes - 1}, the classes of class_weights; found {low} ... {high}"
                )
        return labels

    def extra_repr(self) -> str:
        classes = "" if self.class_factor is None else f", {len(self.class_factor)} class weights"
        return f"{self.process.name}, prediction={self.prediction}, weighting={self.weighting.name}{classes}"


def _class_factor(class_weights: Any, class_frequencies: Any) -> Tensor | None:
    """class_weights / class_frequencies, float32 [C]."""
    if class_weights is None:
        if class_frequencies is not None:
            raise InputError("class_frequencies only means something with class_weights")
        return None
    weights = distribution("class_weights", class_weights)
    if class_frequencies is None:
        return torch.from_numpy(weights * len(weights)).float()
    frequencies = distribution("class_frequencies", class_frequencies)
    if len(frequencies) != len(weights):
        raise InputError(f"class_frequencies has {len(frequencies)} classes, class_weights {len(weights)}")
    # a class that is never drawn has no image to weigh
    factor = np.divide(weights, frequencies, out=np.zeros_like(weights), where=frequencies > 0)
    return torch.from_numpy(factor).float()


def distribution(argument: str, value: Any) -> np.ndarray:
    """float64 [C] of non-negative numbers that sum to 1, from an array, a mapping or an object with `.average`."""
    value = getattr(value, "average", value)
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, Mapping):
        keys = set(value)
        if keys != set(range(len(value))):
            raise InputError(
                f"{argument} must have the class indices 0 ... {len(value) - 1} as keys; it has {sorted(keys, key=str)}"
            )
        value = [value[index] for index in range(len(value))]
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputTypeError(f"{argument} must be numbers, one a class, not {type(value).__name__}") from None
    if array.ndim != 1 or not len(array):
        raise InputError(f"{argument} must be [C], one number a class; its shape is {array.shape}")
    if not np.isfinite(array).all() or (array < 0).any():
        raise InputError(f"{argument} must be finite and not negative")
    if abs(array.sum() - 1) > SIMPLEX_TOLERANCE:
        raise InputError(f"{argument} must sum to 1; they sum to {array.sum():.6g}")
    return array / array.sum()
