"""The loss against float64 loops: values, gradients in every way autograd asks for them, layouts, crops, classes."""

import numpy as np
import pytest
import torch

from prunefast import ops
from prunefast.errors import InputError, InputTypeError
from prunefast.ops import native, reference
from prunefast.ops.denoising_loss import _denoising_loss_portable

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def case(shape=(5, 3, 6, 7), dtype=torch.float32, seed=0, x0_dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    pred = torch.randn(shape, generator=generator).to(dtype)
    if x0_dtype == torch.uint8:
        x0 = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    else:
        x0 = torch.randn(shape, generator=generator).to(x0_dtype)
    noise = torch.randn(shape, generator=generator)
    a, b = torch.randn(shape[0], generator=generator), torch.randn(shape[0], generator=generator)
    weight = torch.rand(shape[0], generator=generator) + 0.5
    return pred, x0, noise, a, b, weight


def check(pred, x0, noise, a, b, weight, outputs, gradient=None, tolerance=2e-6):
    as_numpy = [v.detach().double().numpy() if v.dtype != torch.uint8 else v.numpy() for v in (pred, x0, noise)]
    expected = reference.denoising_loss(*as_numpy, a.double().numpy(), b.double().numpy(), weight.double().numpy())
    np.testing.assert_allclose(outputs[0].item(), expected[0], rtol=2e-6)
    np.testing.assert_allclose(outputs[1].detach().double(), expected[1], rtol=2e-6)
    if gradient is not None:
        scale = np.abs(expected[2]).max()
        np.testing.assert_allclose(gradient.double().numpy(), expected[2], rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("x0_dtype", [torch.float32, torch.uint8, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_values_and_gradients(dtype, x0_dtype, channels_last):
    pred, x0, noise, a, b, weight = case(dtype=dtype, x0_dtype=x0_dtype)
    if channels_last:
        pred, x0 = (t.contiguous(memory_format=torch.channels_last) for t in (pred, x0))
    pred.requires_grad_()
    outputs = ops.denoising_loss(pred, x0, noise, a, b, weight)
    assert outputs[0].dtype == outputs[1].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    outputs[0].backward()
    assert pred.grad.dtype == dtype
    assert pred.grad.stride() == pred.stride()
    check(pred, x0, noise, a, b, weight, outputs, pred.grad, TOLERANCE[dtype])


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (3, 1), (2, 17), (4, 63), (2, 3, 65), (2, 3, 5, 7, 2), (2, 4, 32, 32), (3, 3, 1, 1031)]
)
@pytest.mark.parametrize("philox", [False, True])
def test_shapes(shape, philox):
    pred, x0, noise, a, b, weight = case(shape, seed=1)
    argument = noise
    if philox:
        position = torch.arange(shape[0]) * 7 + 2
        argument, noise = (3, position), ops.randn_philox(shape, 3, position)
    pred.requires_grad_()
    outputs = ops.denoising_loss(pred, x0, argument, a, b, weight)
    outputs[0].backward()
    check(pred, x0, noise, a, b, weight, outputs, pred.grad)


@pytest.mark.parametrize("name", ["strided", "transposed", "expanded", "misaligned", "permuted"])
def test_layouts(name):
    pred, x0, noise, a, b, weight = case((4, 3, 8, 8), seed=2)

    def lay(t):
        if name == "strided":
            return t.repeat_interleave(2, 3)[..., ::2]
        if name == "transposed":
            return t.transpose(2, 3).contiguous().transpose(2, 3)
        if name == "expanded":
            return t[:1].expand(4, 3, 8, 8)
        if name == "permuted":
            return t.permute(1, 3, 0, 2).contiguous().permute(2, 0, 3, 1)
        room = torch.empty(t.numel() + 1)[1:].view(t.shape)
        return room.copy_(t)

    for laid in (
        (lay(pred), x0, noise),
        (pred, lay(x0), noise),
        (pred, x0, lay(noise)),
        tuple(map(lay, (pred, x0, noise))),
    ):
        leaf = laid[0].detach().requires_grad_()
        outputs = ops.denoising_loss(leaf, *laid[1:], a, b, weight)
        (gradient,) = torch.autograd.grad(outputs[0], leaf)
        check(leaf, *laid[1:], a, b, weight, outputs, gradient)


@pytest.mark.parametrize("shape", [(4, 6), (3, 5, 4)])
def test_a_transposed_prediction_that_is_no_image(shape):
    pred, x0, noise, a, b, weight = case(shape, seed=3)
    turned = pred.transpose(0, -1).contiguous().transpose(0, -1).requires_grad_()
    outputs = ops.denoising_loss(turned, x0, noise, a, b, weight)
    outputs[0].backward()
    check(turned, x0, noise, a, b, weight, outputs, turned.grad)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("x0_dtype", [torch.float32, torch.uint8])
@pytest.mark.parametrize("philox", [False, True])
def test_crop_and_flip_equal_the_materialised_crop(channels_last, x0_dtype, philox):
    generator = torch.Generator().manual_seed(4)
    x0 = case((6, 3, 13, 11), seed=4, x0_dtype=x0_dtype)[1]
    pred, _, noise, a, b, weight = case((6, 3, 8, 5), seed=5)
    corner = torch.stack(
        [torch.randint(0, 6, (6,), generator=generator), torch.randint(0, 7, (6,), generator=generator)], 1
    )
    flip = torch.tensor([True, False, True, True, False, False])
    materialised = torch.from_numpy(reference.mirror_and_cut(x0.numpy(), corner.numpy(), (8, 5), flip.numpy()).copy())
    if channels_last:
        x0, pred = (t.contiguous(memory_format=torch.channels_last) for t in (x0, pred))
    argument = (9, torch.arange(6)) if philox else noise
    boxes = ops.Boxes(corner, 8, 5)
    fused = pred.clone().requires_grad_()
    plain = pred.clone().requires_grad_()
    mine = ops.denoising_loss(fused, x0, argument, a, b, weight, boxes=boxes, flip=flip)
    theirs = ops.denoising_loss(plain, materialised, argument, a, b, weight)
    torch.testing.assert_close(mine[1], theirs[1], rtol=1e-6, atol=0)
    mine[0].backward()
    theirs[0].backward()
    torch.testing.assert_close(fused.grad, plain.grad, rtol=1e-6, atol=1e-9)
    noisy = ops.add_noise(x0, a, b, argument, boxes=boxes, flip=flip, dtype=torch.float32)
    expected = ops.add_noise(materialised, a, b, argument, dtype=torch.float32)
    assert torch.equal(noisy, expected)


def test_classes():
    pred, x0, noise, a, b, weight = case((40, 2, 3, 3), seed=6)
    labels = torch.randint(0, 5, (40,), generator=torch.Generator().manual_seed(7))
    base = torch.rand(40) * 3
    loss, per_sample, excess, count = ops.denoising_loss(
        pred, x0, noise, a, b, weight, labels=labels, num_classes=7, reference_per_sample=base
    )
    expected = reference.class_excess(per_sample.double().numpy(), labels.tolist(), 7, base.double().numpy())
    np.testing.assert_allclose(excess, expected[0], rtol=1e-6)
    np.testing.assert_array_equal(count, expected[1])
    bare = ops.denoising_loss(pred, x0, noise, a, b, weight, labels=labels.int(), num_classes=7)
    np.testing.assert_allclose(bare[2], reference.class_excess(per_sample, labels.tolist(), 7)[0], rtol=1e-6)
    assert torch.equal(bare[0], loss)


# Every way in which a gradient is asked for. `plain` is the formula in torch.
def plain(pred, x0, noise, a, b, weight):
    spread = (slice(None),) + (None,) * (pred.ndim - 1)
    per_sample = (pred - a[spread] * x0 - b[spread] * noise).square().flatten(1).mean(1)
    return (weight * per_sample).mean(), per_sample


USES = {
    "loss": lambda loss, per_sample: loss,
    "scaled loss": lambda loss, per_sample: 3.5 * loss,
    "negative loss": lambda loss, per_sample: -loss,
    "sum of per-sample": lambda loss, per_sample: per_sample.sum(),
    "weighted per-sample": lambda loss, per_sample: (per_sample * torch.arange(5.0)).mean(),
    "both": lambda loss, per_sample: loss + per_sample.square().sum(),
    "cat": lambda loss, per_sample: torch.cat([per_sample[::2], loss[None]]).prod(),
    "exp": lambda loss, per_sample: (per_sample.log_softmax(0) * per_sample).sum() + loss.exp(),
}


@pytest.mark.parametrize("use", list(USES))
@pytest.mark.parametrize("leaf", [False, True])
@pytest.mark.parametrize("zero_weight", [False, True])
def test_ways_to_differentiate(use, leaf, zero_weight):
    pred, x0, noise, a, b, weight = case(seed=8)
    if zero_weight:
        weight[2] = 0
    gradients = []
    for function in (ops.denoising_loss, plain):
        source = pred.clone().requires_grad_()
        outputs = function(source if leaf else source * 1.0, x0, noise, a, b, weight)
        USES[use](*outputs).backward()
        gradients.append(source.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("leaf", [False, True])
def test_a_retained_graph_gives_the_same_gradient_again_and_again(leaf):
    pred, x0, noise, a, b, weight = case(seed=9)
    source = pred.clone().requires_grad_()
    loss, per_sample = ops.denoising_loss(source if leaf else source * 1.0, x0, noise, a, b, weight)
    loss.backward(retain_graph=True)
    once = source.grad.clone()
    for times in (2, 3, 4):
        loss.backward(retain_graph=True)
        torch.testing.assert_close(source.grad, times * once, rtol=1e-6, atol=0)
    source.grad = None
    (per_sample * weight).mean().backward()
    torch.testing.assert_close(source.grad, once, rtol=1e-5, atol=1e-9)


def test_pred_used_twice():
    pred, x0, noise, a, b, weight = case(seed=10)
    gradients = []
    for function in (ops.denoising_loss, plain):
        source = pred.clone().requires_grad_()
        middle = source * 1.0
        (
            function(middle, x0, noise, a, b, weight)[0] + function(middle, x0, noise, b, a, weight)[0] + middle.mean()
        ).backward()
        gradients.append(source.grad)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-8)


def test_gradcheck():
    pred, x0, noise, a, b, weight = (t.double() for t in case((3, 2, 3, 2), seed=11))
    pred.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: ops.denoising_loss(p, x0, noise, a, b, weight)[:2], (pred,))


def test_float16_with_a_gradient_scaler_does_not_underflow():
    """2 w (pred - target) / elements is below float16's smallest number here until the scaler's factor lifts it."""
    shape = (2, 3, 512, 512)
    pred, x0, noise, a, b, _ = case(shape, torch.float16, seed=12)
    weight = torch.full((2,), 1e-3)
    source = pred.requires_grad_()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    scaler.scale(ops.denoising_loss(source, x0, noise, a, b, weight)[0]).backward()
    expected = reference.denoising_loss(pred.detach().double(), x0, noise, a, b, weight)[2] * 2.0**16
    np.testing.assert_allclose(source.grad.double(), expected, rtol=2e-3, atol=1e-7)


def test_no_gradient_is_computed_where_none_is_wanted():
    pred, x0, noise, a, b, weight = case(seed=13)
    assert not ops.denoising_loss(pred, x0, noise, a, b, weight)[0].requires_grad
    with torch.no_grad():
        assert not ops.denoising_loss(pred.clone().requires_grad_(), x0, noise, a, b, weight)[0].requires_grad


def test_a_lost_gradient_is_an_error():
    pred, x0, noise, a, b, weight = case(seed=14)
    for name in ("x0", "noise", "a", "b", "weight"):
        arguments = {"pred": pred, "x0": x0, "noise": noise, "a": a, "b": b, "weight": weight}
        arguments[name] = arguments[name].clone().requires_grad_()
        with pytest.raises(InputError, match=f"{name}: gradients flow to pred only"):
            ops.denoising_loss(**arguments)


def test_class_outputs_do_not_hide_the_gradient_of_the_loss():
    pred, x0, noise, a, b, weight = case(seed=15)
    source = pred.clone().requires_grad_()
    loss, _, excess, count = ops.denoising_loss(
        source, x0, noise, a, b, weight, labels=torch.zeros(5, dtype=torch.int64), num_classes=1
    )
    assert not excess.requires_grad
    assert not count.requires_grad
    loss.backward()
    check(source, x0, noise, a, b, weight, (loss, _), source.grad)


def test_nan_passes_through():
    pred, x0, noise, a, b, weight = case(seed=16)
    pred[2, 0, 0, 0] = torch.nan
    loss, per_sample, excess, _ = ops.denoising_loss(
        pred, x0, noise, a, b, weight, labels=torch.tensor([0, 0, 1, 0, 0]), num_classes=2
    )
    assert loss.isnan()
    assert per_sample.isnan().tolist() == [False, False, True, False, False]
    assert excess.isnan().tolist() == [False, True]


def test_scalars_numpy_and_inputs_left_alone():
    pred, x0, noise, *_ = case(seed=17)
    copies = [t.clone() for t in (pred, x0, noise)]
    one = ops.denoising_loss(pred, x0, noise, 0.0, 1.0)
    full = ops.denoising_loss(pred, x0, noise, torch.zeros(5), torch.ones(5), torch.ones(5))
    assert torch.equal(one[1], full[1])
    assert one[0] == pytest.approx(full[0].item(), rel=1e-6)
    in_numpy = ops.denoising_loss(pred.numpy(), x0.numpy(), noise.numpy(), 0.0, 1.0)
    assert isinstance(in_numpy[1], np.ndarray)
    assert (in_numpy[1] == one[1].numpy()).all()
    for t, copy in zip((pred, x0, noise), copies, strict=True):
        assert torch.equal(t, copy)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_threads_do_not_matter(threads):
    pred, x0, _, a, b, weight = case((3, 3, 150, 150), seed=18)
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            source = pred.clone().requires_grad_()
            loss, per_sample = ops.denoising_loss(source, x0, (1, torch.arange(3)), a, b, weight)
            loss.backward()
            results.append((loss, per_sample, source.grad))
    finally:
        torch.set_num_threads(before)
    for one, many in zip(*results, strict=True):
        assert torch.equal(one, many)


@pytest.mark.parametrize("philox", [False, True])
def test_portable_code_agrees(philox):
    pred, x0, noise, a, b, weight = case((5, 3, 6, 4), seed=19, x0_dtype=torch.uint8)
    x0 = torch.cat([x0, x0], 2)
    noise_arguments = (None, 4, torch.arange(5)) if philox else (noise, 0, None)
    classes = (torch.tensor([0, 1, 1, 0, 2]), 4, torch.rand(5))
    crop = (torch.tensor([[0, 0], [1, 0], [6, 0], [2, 0], [3, 0]]), torch.tensor([True, False, True, False, True]))
    arguments = (pred, x0, *noise_arguments, a, b, weight, *classes, *crop, torch.rand(5))
    mine = torch.ops.prunefast.denoising_loss(*arguments)
    for one, other in zip(mine, _denoising_loss_portable(*arguments), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"pred": torch.zeros(5, 3, 6, 7, dtype=torch.int64)}, InputTypeError, "pred"),
        ({"pred": torch.zeros(5)}, InputError, "pred"),
        ({"pred": torch.zeros(5, 3, 6, 6)}, InputError, "pred: shape"),
        ({"x0": torch.zeros(5, 3, 6, 7, dtype=torch.int32)}, InputTypeError, "x0"),
        ({"x0": torch.zeros(5, 3, 6, 7, device="meta")}, InputError, "x0: it is on meta"),
        ({"noise": torch.zeros(5, 3, 6, 6)}, InputError, "noise: shape"),
        ({"noise": torch.zeros(5, 3, 6, 7, dtype=torch.uint8)}, InputTypeError, "noise"),
        ({"noise": (0, torch.arange(4))}, InputError, "noise: 4 positions"),
        ({"noise": (-1, torch.arange(5))}, InputError, "noise"),
        ({"noise": (0, torch.zeros(5))}, InputTypeError, "noise"),
        ({"a": torch.zeros(4)}, InputError, "a: shape"),
        ({"weight": torch.zeros(5, 1)}, InputError, "weight: shape"),
        ({"labels": torch.zeros(5, dtype=torch.int64)}, InputError, "num_classes"),
        ({"num_classes": 3}, InputError, "labels"),
        ({"labels": torch.zeros(5), "num_classes": 3}, InputTypeError, "labels"),
        ({"labels": torch.full((5,), 3), "num_classes": 3}, InputError, "labels: label 3"),
        ({"labels": torch.full((5,), -1), "num_classes": 3}, InputError, "labels: label -1"),
        ({"flip": torch.zeros(5, dtype=torch.uint8)}, InputTypeError, "flip"),
        ({"flip": torch.zeros(4, dtype=torch.bool)}, InputError, "flip"),
        ({"boxes": (torch.zeros(5, 2, dtype=torch.int64), 6, 8)}, InputError, "boxes: 6 x 8 does not fit"),
        ({"boxes": (torch.zeros(5, 3, dtype=torch.int64), 6, 7)}, InputError, "boxes: corners"),
        ({"boxes": (torch.ones(5, 2, dtype=torch.int64), 6, 7)}, InputError, "boxes: .*leaves"),
        ({"boxes": torch.zeros(5, 4)}, InputTypeError, "boxes"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bad_arguments(change, error, message, dtype):
    pred, x0, noise, a, b, weight = case()
    arguments = {"pred": pred.to(dtype), "x0": x0, "noise": noise, "a": a, "b": b, "weight": weight, **change}
    with pytest.raises(error, match=message):
        ops.denoising_loss(**arguments)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (0, 5)])
def test_empty(shape):
    pred, x0, noise, a, b, weight = case(shape)
    source = pred.requires_grad_()
    loss, per_sample = ops.denoising_loss(source, x0, noise, a, b, weight)
    assert loss.isnan()  # as torch's mean of nothing
    assert per_sample.shape == (shape[0],)
    loss.backward()
    assert source.grad.shape == shape


def test_operator_is_registered_well():
    pred, x0, noise, a, b, weight = case((2, 3, 4, 4))
    arguments = (pred, x0, noise, 0, None, a, b, weight, None, 0, None, None, None, a)
    torch.library.opcheck(torch.ops.prunefast.denoising_loss.default, arguments)
    labels = (torch.tensor([0, 1]), 2, None)
    last = pred.contiguous(memory_format=torch.channels_last)
    arguments = (last, x0, None, 1, torch.arange(2), a, b, None, *labels, None, None, None)
    torch.library.opcheck(torch.ops.prunefast.denoising_loss.default, arguments)


@pytest.mark.slow
def test_compiles_to_one_graph():
    def step(source, x0, a, b, weight, labels, position, corner, flip):
        boxes = ops.Boxes(corner, 6, 6)
        noisy = ops.add_noise(x0, a, b, (5, position), boxes=boxes, flip=flip, coordinates=True)
        loss, per_sample, excess, count = ops.denoising_loss(
            source * 1.5, x0, (5, position), a, b, weight, labels=labels, num_classes=3, boxes=boxes, flip=flip
        )
        extra = ops.randn_philox((x0.shape[0], 4), 5, position, 9)
        return loss + per_sample.max(), excess, count, noisy, extra

    results = []
    for function in (step, torch.compile(step, fullgraph=True)):
        for samples in (4, 6):  # the second size is traced as a symbol
            generator = torch.Generator().manual_seed(samples)
            x0 = torch.randint(0, 256, (samples, 3, 8, 9), dtype=torch.uint8, generator=generator)
            source = torch.randn(samples, 3, 6, 6, generator=generator, requires_grad=True)
            vectors = torch.rand(3, samples, generator=generator)
            labels, position = torch.arange(samples) % 3, torch.arange(samples)
            corner, flip = torch.stack([position % 3, position % 4], 1), position % 2 == 0
            outputs = function(source, x0, *vectors, labels, position, corner, flip)
            outputs[0].backward()
            results.append([*outputs, source.grad])
    for plain_run, compiled in zip(results[:2], results[2:], strict=True):
        for one, other in zip(plain_run, compiled, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("dtype", "samples"), [(torch.bfloat16, 45), (torch.float32, 45)])
def test_a_gradient_too_large_for_the_caches_is_the_same(dtype, samples):
    """From 16 MB on it is written past them, from 32 MB on into huge pages; sample by sample it is neither."""
    generator = torch.Generator().manual_seed(19)
    pred = torch.randn((samples, 3, 250, 256), generator=generator).to(dtype)  # the last tile of a sample is a part
    x0, noise = torch.randn((2, 1, *pred.shape[1:]), generator=generator).expand(2, *pred.shape)
    a, b, scale = torch.randn((3, samples), generator=generator)

    def written(part):
        numbers = (0, None, a[part], b[part], None, None, 0, None, None, None, scale[part])
        return native.denoising_loss(pred[part], x0[part], noise[part], *numbers)[1:3]

    for whole, parts in zip(
        written(slice(None)), zip(*(written(slice(i, i + 1)) for i in range(samples)), strict=True), strict=True
    ):
        assert torch.equal(whole, torch.cat(parts))


def test_bfloat16_gradients_round_as_torch_does():
    pred, x0, noise, a, b, _ = case((4, 3, 40, 41), seed=20, dtype=torch.bfloat16)
    pred[1, 0, 0, :20], pred[2, 1, 3, 4] = torch.nan, torch.inf
    arguments = (x0, noise, 0, None, a, b, None, None, 0, None, None, None, torch.rand(4))
    narrow, wide = (native.denoising_loss(values, *arguments) for values in (pred, pred.float()))
    assert torch.equal(narrow[1].nan_to_num(-1), wide[1].nan_to_num(-1))
    torch.testing.assert_close(narrow[2], wide[2].bfloat16(), rtol=0, atol=0, equal_nan=True)
