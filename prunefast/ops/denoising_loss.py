"""The weighted denoising loss of every parameterisation, and its gradient in the same pass over the prediction.

The target of each parameterisation is a_i x0_i + b_i noise_i: eps (0, 1), x0 (1, 0), v (-sigma, alpha), flow (-1, 1).
"""

from typing import Any

import torch

from prunefast.errors import InputError, InputTypeError
from prunefast.ops import cuda, library, native
from prunefast.ops.arrays import (
    as_tensor,
    check_integer,
    check_label_type,
    check_labels,
    check_per_sample,
    check_same_device,
    like,
)
from prunefast.ops.backends import triton_is_live
from prunefast.ops.crop import check_boxes, check_corners, check_flip, crop_flip, to_unit
from prunefast.ops.noise import check_noise, noise_tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def denoising_loss(
    pred: Any,
    x0: Any,
    noise: Any,
    a: Any,
    b: Any,
    weight: Any = None,
    *,
    labels: Any = None,
    num_classes: int | None = None,
    reference_per_sample: Any = None,
    boxes: Any = None,
    flip: Any = None,
) -> tuple[Any, ...]:
    """per_sample_i = mean over elements of (pred_i - a_i x0_i - b_i noise_i)^2; loss = mean_i weight_i per_sample_i.

    Args:
        pred: `[B, ...]` float32, bfloat16, float16 or float64; the only argument that receives a gradient.
        x0: data of the shape of `pred`, any float, or uint8 (mapped to x / 127.5 - 1); larger images with `boxes`.
        noise: a tensor of the shape of `pred`, or (seed, position int64 `[B]`): the numbers of `randn_philox` on stream
            NOISE, regenerated here and never stored.
        a, b, weight: `[B]` (or one number).
        labels: int `[B]` in 0 .. num_classes - 1; adds the two class outputs.
        reference_per_sample: `[B]` per-sample losses of the reference model (0 when left out).
        boxes, flip: the crop and mirror of `add_noise`, applied to x0 only (`prunefast.ops.Boxes`).

    Returns:
        (loss, per_sample `[B]`), float32 (float64 for a float64 pred), both differentiable; with labels also
        class_excess_c = sum over class c of max(per_sample - reference_per_sample, 0) and class_count int64 `[C]`.

    NaN in pred passes through to the loss. Arithmetic is float32 or wider, sums have a fixed order.

    Raises:
        InputError, InputTypeError: an argument of the wrong shape, dtype, device or range.
    """
    prediction = as_tensor("pred", pred)
    data = as_tensor("x0", x0)
    if prediction.dtype not in FLOATS:
        raise InputTypeError(f"pred: a floating tensor is needed, not {prediction.dtype}")
    if prediction.ndim < 2:
        raise InputError(f"pred: shape [samples, ...] is needed, not {list(prediction.shape)}")
    samples, device = prediction.shape[0], prediction.device
    check_data(data, device)
    corner, height, width = check_boxes(boxes, data)
    mirror = check_flip(flip, data)
    expected = data.shape if corner is None else (*data.shape[:2], height, width)
    if prediction.shape != torch.Size(expected):
        raise InputError(f"pred: shape {list(expected)} is needed, not {list(prediction.shape)}")
    noise_values, seed, position = check_noise(noise, prediction.shape, device)
    wide = torch.float64 if prediction.dtype == torch.float64 else torch.float32
    first = check_per_sample("a", a, samples, wide, device)
    second = check_per_sample("b", b, samples, wide, device)
    weights = None if weight is None else check_per_sample("weight", weight, samples, wide, device)
    label, classes, reference = _check_classes(labels, num_classes, reference_per_sample, samples, wide, device)
    constants = {"x0": data, "noise": noise_values, "a": first, "b": second, "weight": weights}
    refuse_gradient(constants, "gradients flow to pred only")

    rest = (data, noise_values, seed, position, first, second, weights, label, classes, reference, corner, mirror)
    if torch.is_grad_enabled() and prediction.requires_grad:
        outputs = _DenoisingLoss.apply(prediction, *rest)
    else:
        loss, per_sample, _, excess, count = _denoising_loss(prediction, *rest, None)
        outputs = (loss, per_sample, excess, count)
    return tuple(like(pred, output) for output in outputs[: 2 if label is None else 4])


def check_data(data: torch.Tensor, device: torch.device) -> None:
    if data.dtype not in FLOATS and data.dtype != torch.uint8:
        raise InputTypeError(f"x0: a floating tensor or uint8 is needed, not {data.dtype}")
    check_same_device("x0", data, device)


def refuse_gradient(constants: dict[str, torch.Tensor | None], reason: str) -> None:
    """A gradient that would be lost without a word is an error."""
    if torch.is_grad_enabled():
        for name, tensor in constants.items():
            if tensor is not None and tensor.requires_grad:
                raise InputError(f"{name}: {reason}; detach it, or write the formula in torch")


def _check_classes(labels, num_classes, reference, samples, wide, device):
    if labels is None:
        if num_classes is not None or reference is not None:
            raise InputError("labels: they are needed for num_classes and reference_per_sample")
        return None, 0, None
    if num_classes is None:
        raise InputError("num_classes: it is needed with labels")
    classes = check_integer("num_classes", num_classes, 1, 1 << 31)
    label = as_tensor("labels", labels)
    check_label_type("labels", label, samples)
    check_same_device("labels", label, device)
    if reference is not None:
        reference = check_per_sample("reference_per_sample", reference, samples, wide, device, scalar=False).detach()
    return label.to(torch.int64).contiguous(), classes, reference


class _DenoisingLoss(torch.autograd.Function):
    """Forward stores (pred - target) times what the usual backward, loss.backward(), would multiply it with.

    The factor of any other backward is applied per sample in a second pass. Float16 stores the plain difference: the
    factor 2 weight / elements would fall below its smallest number before a gradient scaler could lift it.
    """

    @staticmethod
    def forward(ctx, pred, x0, noise, seed, position, a, b, weight, labels, classes, reference, corner, flip):
        samples = pred.shape[0]
        weights = torch.ones_like(a) if weight is None else weight
        ctx.plain = pred.dtype == torch.float16
        # Small batches cost what their calls into torch do: none that the usual backward can do without.
        ctx.whole = weight is None or (_reads_values(pred) and bool(weight.all()))
        divisor = (
            weights if ctx.whole else torch.where(weights == 0, 1.0, weights)
        )  # of a weight 0 the difference is kept
        ctx.mean = 2.0 / max(pred.numel(), 1)
        scale = torch.ones_like(a) if ctx.plain else divisor * ctx.mean
        loss, per_sample, gradient, excess, count = _denoising_loss(
            pred, x0, noise, seed, position, a, b, weight, labels, classes, reference, corner, flip, scale
        )
        ctx.save_for_backward(gradient, weights, divisor)
        ctx.samples = samples
        ctx.leaf = pred.is_leaf
        ctx.mark_non_differentiable(excess, count)
        ctx.set_materialize_grads(False)
        return loss, per_sample, excess, count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss, grad_per_sample, *_):
        if grad_loss is None and grad_per_sample is None:
            return (None,) * 13
        gradient, weights, divisor = ctx.saved_tensors
        usual = ctx.whole and not ctx.plain and not ctx.leaf and grad_per_sample is None and _reads_values(grad_loss)
        if usual and float(grad_loss) == 1:
            return gradient, *(None,) * 12
        factor = torch.zeros_like(weights)
        if grad_loss is not None:
            factor = factor + grad_loss * weights
        if grad_per_sample is not None:
            factor = factor + grad_per_sample * ctx.samples
        factor = factor * ctx.mean if ctx.plain else factor / divisor
        return _scaled(gradient, factor, ctx.leaf), *(None,) * 12


def _reads_values(tensor: torch.Tensor) -> bool:
    """Whether looking at a value waits for no device and breaks no graph."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _scaled(gradient: torch.Tensor, factor: torch.Tensor, leaf: bool) -> torch.Tensor:
    """gradient_i * factor_i; the tensor itself where nothing changes and nobody accumulates into it.

    The test reads `factor`, so it is left out where that would wait for a device or break a graph. A leaf's .grad may
    be the very tensor returned here and be added to in place, which would spoil a second backward of a retained graph.
    """
    if _reads_values(gradient) and not leaf and bool((factor == 1).all()):
        return gradient
    spread = factor.reshape(-1, *(1,) * (gradient.ndim - 1))
    if gradient.device.type == "cuda" and not torch.compiler.is_compiling():
        # one pass: rounded as it is written, where the product of bfloat16 and float32 would be stored in between
        return torch.mul(gradient, spread, out=torch.empty_like(gradient))
    return (gradient * spread).to(gradient.dtype)


def _denoising_loss_portable(
    pred, x0, noise, seed, position, a, b, weight, labels, classes, reference, corner, flip, gradient_scale
):
    spread = (slice(None),) + (None,) * (pred.ndim - 1)
    data = crop_flip(x0, corner, pred.shape[-2], pred.shape[-1], flip) if pred.ndim == 4 else x0
    values = noise_tensor(noise, seed, position, pred.shape).to(a.dtype)
    residual = pred.to(a.dtype) - a[spread] * to_unit(data, a.dtype) - b[spread] * values
    per_sample = residual.flatten(1).square().mean(1, dtype=torch.float64).to(a.dtype)
    gradient = pred.new_empty(0)
    if gradient_scale is not None:
        gradient = native.gradient_like(pred)
        gradient.copy_(residual * gradient_scale[spread])
    return _reduce(per_sample, gradient, weight, labels, classes, reference)


def _denoising_loss_cuda(
    pred, x0, noise, seed, position, a, b, weight, labels, classes, reference, corner, flip, gradient_scale
):
    """CUDA C++ where it was built; else the Triton kernel, its few numbers a sample reduced by torch."""
    rest = (weight, labels, classes, reference)
    if a.dtype != torch.float64 and pred.numel() and cuda.live(pred) and cuda.takes(pred, x0, noise):
        return cuda.denoising_loss(pred, x0, noise, seed, position, a, b, *rest, corner, flip, gradient_scale)
    if a.dtype == torch.float64 or pred.numel() == 0 or not triton_is_live():
        return _denoising_loss_portable(pred, x0, noise, seed, position, a, b, *rest, corner, flip, gradient_scale)
    from prunefast.kernels.denoising_loss import per_sample_loss

    gradient = pred.new_empty(0) if gradient_scale is None else native.gradient_like(pred)
    written = None if gradient_scale is None else native.as_images(gradient)
    images = [native.as_images(tensor) for tensor in (pred, x0, noise)]
    vectors = [None if v is None else v.contiguous() for v in (a, b, corner, flip, gradient_scale)]
    with torch.cuda.device(pred.device):
        per_sample = per_sample_loss(*images, seed, position, *vectors[:4], written, vectors[4])
    return _reduce(per_sample, gradient, *rest)


def _denoising_loss_cpu(pred, x0, noise, *rest):
    """Native, but for float64: there the portable code after the checks that read data."""
    if not any(t is not None and t.dtype == torch.float64 for t in (pred, x0, noise)):
        return native.denoising_loss(pred, x0, noise, *rest)
    *_, labels, classes, _reference, corner, _flip, _scale = rest
    check_corners(corner, pred.shape[-2], pred.shape[-1], x0)
    if labels is not None:
        check_labels("labels", labels, pred.shape[0], classes)
    return _denoising_loss_portable(pred, x0, noise, *rest)


def _reduce(per_sample, gradient, weight, labels, classes, reference):
    """Loss and class sums of the per-sample losses. No atomics, which would add in any order."""
    weighted = per_sample if weight is None else weight * per_sample
    loss = weighted.mean(dtype=torch.float64).to(per_sample.dtype)
    if labels is None:
        count = torch.zeros(classes, dtype=torch.int64, device=per_sample.device)
        return loss, per_sample, gradient, per_sample.new_zeros(classes), count
    above = per_sample.double() if reference is None else per_sample.double() - reference.double()
    mine = labels[None, :] == torch.arange(classes, device=labels.device)[:, None]
    excess = torch.where(mine, above.clamp_min(0.0)[None, :], 0.0).sum(1).to(per_sample.dtype)
    return loss, per_sample, gradient, excess, mine.sum(1)


def _denoising_loss_fake(
    pred, x0, noise, seed, position, a, b, weight, labels, classes, reference, corner, flip, gradient_scale
):
    gradient = pred.new_empty(0) if gradient_scale is None else native.gradient_like(pred)
    return (
        a.new_empty(()),
        a.new_empty(a.shape),
        gradient,
        a.new_empty(classes),
        a.new_empty(classes, dtype=torch.int64),
    )


_denoising_loss = library.define(
    "denoising_loss(Tensor pred, Tensor x0, Tensor? noise, int seed, Tensor? position, Tensor a, Tensor b, "
    "Tensor? weight, Tensor? labels, int classes, Tensor? reference, Tensor? corner, Tensor? flip, "
    "Tensor? gradient_scale) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    cpu=_denoising_loss_cpu,
    cuda=_denoising_loss_cuda,
    portable=_denoising_loss_portable,
    fake=_denoising_loss_fake,
)
