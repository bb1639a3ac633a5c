"""The UNet against diffusers' with the same weights, and what training asks of it."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from prunefast.errors import InputError, InputTypeError
from prunefast.models import build_model
from prunefast.models.norm import GroupNormSiLU, group_count


def diffusers_unet(diffusers, width=128, asymmetric=True):
    return diffusers.UNet2DModel(
        sample_size=32,
        block_out_channels=(width, 2 * width, 2 * width, 2 * width),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        attention_head_dim=None,
        norm_eps=1e-6,
        downsample_padding=0 if asymmetric else 1,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_num_groups=32,
    ).eval()


def copy_weights(theirs, ours):
    """diffusers' weights into our module, layer by layer; every parameter of ours is written exactly once."""
    written = []

    def copy(target, source):
        target.load_state_dict({"weight": source.weight.data, "bias": source.bias.data})
        written.extend([target.weight, target.bias])

    def residual(target, source):
        for mine, other in (("norm1", "norm1"), ("conv1", "conv1"), ("norm2", "norm2"), ("conv2", "conv2")):
            copy(getattr(target, mine), getattr(source, other))
        copy(target.embedding, source.time_emb_proj)
        if target.shortcut is not None:
            copy(target.shortcut, source.conv_shortcut)

    def attention(target, source):
        copy(target.norm, source.group_norm)
        parts = (source.to_q, source.to_k, source.to_v)
        target.query_key_value.weight.data = torch.cat([part.weight.data for part in parts])
        target.query_key_value.bias.data = torch.cat([part.bias.data for part in parts])
        written.extend([target.query_key_value.weight, target.query_key_value.bias])
        copy(target.project, source.to_out[0])

    copy(ours.time1, theirs.time_embedding.linear_1)
    copy(ours.time2, theirs.time_embedding.linear_2)
    copy(ours.head, theirs.conv_in)
    for side, samplers in (("down", "downsamples"), ("up", "upsamples")):
        blocks, attentions = getattr(ours, f"{side}_blocks"), getattr(ours, f"{side}_attentions")
        index = 0
        for level, their_level in enumerate(getattr(theirs, f"{side}_blocks")):
            for position, their_block in enumerate(their_level.resnets):
                residual(blocks[index], their_block)
                if getattr(their_level, "attentions", None):
                    attention(attentions[index], their_level.attentions[position])
                index += 1
            if level < 3:
                copy(getattr(ours, samplers)[level].conv, getattr(their_level, f"{side}samplers")[0].conv)
    residual(ours.middle1, theirs.mid_block.resnets[0])
    attention(ours.middle_attention, theirs.mid_block.attentions[0])
    residual(ours.middle2, theirs.mid_block.resnets[1])
    copy(ours.tail_norm, theirs.conv_norm_out)
    copy(ours.tail, theirs.conv_out)
    assert {id(p) for p in written} == {id(p) for p in ours.parameters()}
    assert len(written) == len(list(ours.parameters()))


@pytest.mark.parametrize("asymmetric", [True, False])
def test_same_weights_same_output_as_diffusers(diffusers, asymmetric):
    torch.manual_seed(0)
    theirs = diffusers_unet(diffusers, asymmetric=asymmetric)
    ours = build_model("unet-cifar10", image_size=32, asymmetric_downsample=asymmetric).eval()
    assert sum(p.numel() for p in theirs.parameters()) == 35_746_307
    copy_weights(theirs, ours)
    x, time = torch.randn(2, 3, 32, 32), torch.tensor([3.0, 871.0])
    with torch.no_grad():
        expected = theirs(x, time).sample
        got = ours(x, time)
        got_channels_last = ours.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), time)
        symmetric = build_model("unet-cifar10", image_size=32, asymmetric_downsample=not asymmetric).eval()
        symmetric.load_state_dict(ours.state_dict())
        other_padding = symmetric(x, time)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(got_channels_last, expected, rtol=1e-4, atol=2e-5)
    assert (other_padding - expected).abs().max() > 1e-3  # the padding matters: the comparison can fail


class CopyCounter(TorchDispatchMode):
    """Counts operations that copy a whole image tensor into another layout."""

    def __init__(self):
        super().__init__()
        self.copies = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name in ("clone", "contiguous", "_to_copy", "copy_") and result.ndim >= 3:
            self.copies.append((name, tuple(result.shape)))
        return result


@pytest.mark.parametrize("name", ["unet-tiny", "unet-small"])
def test_channels_last_from_end_to_end_without_a_copy(name):
    model = build_model(name, image_size=16, num_classes=4).to(memory_format=torch.channels_last)
    seen = []
    for layer in model.modules():
        if isinstance(layer, (torch.nn.Conv2d, GroupNormSiLU)):
            layer.register_forward_hook(lambda layer, inputs, output: seen.extend([inputs[0], output]))
    x = torch.randn(3, 3, 16, 16).to(memory_format=torch.channels_last)
    with CopyCounter() as counter:
        output = model(x, torch.rand(3), torch.tensor([0, 4, 2]))
    assert counter.copies == []
    assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in seen)
    assert output.is_contiguous(memory_format=torch.channels_last)
    output.square().mean().backward()
    convolutions = [layer for layer in model.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert all(c.weight.grad.is_contiguous(memory_format=torch.channels_last) for c in convolutions)


def test_starts_near_zero_and_every_parameter_learns():
    torch.manual_seed(0)
    model = build_model("unet-tiny", image_size=8, num_classes=3)
    x, time, labels = torch.randn(8, 3, 8, 8), torch.rand(8) * 999, torch.arange(8) % 4
    output = model(x, time, labels)
    assert output.abs().max() < 1e-3  # the last layer's gain is 1e-5
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    target = x.roll(1, 3)
    losses = []
    for step in range(40):
        loss = (model(x, time, labels) - target).square().mean()
        loss.backward()
        losses.append(loss.item())
        if step == 1:  # in step 0 the residual branches are nearly closed
            assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("size", [4, 8, 12, 16, 28, 32])
def test_sizes_and_channels(size):
    model = build_model("unet-tiny", image_size=size, channels=1).eval()
    assert model(torch.randn(2, 1, size, size), torch.zeros(2)).shape == (2, 1, size, size)


def test_other_sizes_than_the_one_it_was_built_for():
    model = build_model("unet-tiny", image_size=16).eval()
    assert model(torch.randn(1, 3, 8, 24), torch.zeros(1)).shape == (1, 3, 8, 24)
    with pytest.raises(InputError, match="image_size must be a multiple of 4"):
        model(torch.randn(1, 3, 10, 16), torch.zeros(1))


def test_no_label_means_the_null_class_and_labels_matter():
    torch.manual_seed(0)
    model = build_model("unet-tiny", image_size=8, num_classes=5).eval()
    torch.nn.init.normal_(model.label_embedding.weight)
    for layer in model.modules():  # open the residual branches
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.xavier_uniform_(layer.weight)
    x, time = torch.randn(2, 3, 8, 8), torch.tensor([1.0, 500.0])
    with torch.no_grad():
        null = model(x, time, torch.full((2,), 5))
        torch.testing.assert_close(model(x, time), null, rtol=0, atol=0)
        assert (model(x, time, torch.zeros(2, dtype=torch.int64)) - null).abs().max() > 1e-3
        assert (model(x, time.flip(0)) - null).abs().max() > 1e-3


@pytest.mark.parametrize("num_classes", [None, 5])
def test_bad_calls_are_named(num_classes):
    model = build_model("unet-tiny", image_size=8, num_classes=num_classes)
    x, time = torch.randn(2, 3, 8, 8), torch.zeros(2)
    with pytest.raises(InputError, match="x must be"):
        model(x[:, :1], time)
    with pytest.raises(InputError, match="time must be"):
        model(x, time[:1])
    if num_classes is None:
        with pytest.raises(InputError, match="labels were given to a model without classes"):
            model(x, time, torch.zeros(2, dtype=torch.int64))
        return
    with pytest.raises(InputError, match="labels must lie in 0"):
        model(x, time, torch.tensor([0, 6]))
    with pytest.raises(InputError, match="labels must lie in 0"):
        model(x, time, torch.tensor([-1, 0]))
    with pytest.raises(InputTypeError, match="labels must be int64"):
        model(x, time, torch.zeros(2, dtype=torch.int32))
    with pytest.raises(InputError, match="labels must be \\[2\\]"):
        model(x, time, torch.zeros(3, dtype=torch.int64))


def test_compiles_as_one_graph():
    model = build_model("unet-tiny", image_size=8, num_classes=3).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x, time, labels = torch.randn(2, 3, 8, 8), torch.rand(2), torch.tensor([0, 3])
    torch.testing.assert_close(compiled(x, time, labels), model(x, time, labels))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    torch.manual_seed(0)
    model = build_model("unet-tiny", image_size=8, num_classes=3).eval()
    x, time = torch.randn(2, 3, 8, 8), torch.rand(2)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert model(x, time).isfinite().all()
    model = model.to(dtype)
    with torch.no_grad():
        assert model(x.to(dtype), time).dtype == dtype


@pytest.mark.parametrize("channels", [1, 3, 4, 16, 48, 100, 128, 144, 144 * 2, 512])
def test_group_norm_silu_is_the_formula(channels):
    torch.manual_seed(0)
    norm = GroupNormSiLU(channels, eps=1e-6)
    groups = group_count(channels)
    assert channels % groups == 0
    assert groups <= 32
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, channels, 5, 3)
    grouped = x.double().reshape(2, groups, -1)
    centred = grouped - grouped.mean(2, keepdim=True)
    normed = (centred / (centred.square().mean(2, keepdim=True) + 1e-6).sqrt()).reshape(x.shape)
    y = normed * norm.weight.double()[:, None, None] + norm.bias.double()[:, None, None]
    torch.testing.assert_close(norm(x).double(), y / (1 + (-y).exp()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [True, False])
def test_the_fused_norm_is_torchs(activation, dtype, autocast):
    """channels_last on a CPU takes the native kernel: the values, dtypes, layout and gradients of torch's own."""
    torch.manual_seed(0)
    norm = GroupNormSiLU(48, activation=activation)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    upstream, results = torch.randn(3, 48, 7, 5).to(dtype), []
    x = torch.randn(3, 48, 7, 5).to(dtype)
    for form in (torch.channels_last, torch.contiguous_format):
        values = x.detach().clone(memory_format=form).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = norm(values)
        assert y.dtype == dtype
        assert y.is_contiguous(memory_format=form)
        results.append((y, *torch.autograd.grad(y, (values, norm.weight, norm.bias), upstream)))
    fused, plain = results
    tolerance = 1e-4 if dtype == torch.float32 else 4e-2
    for mine, theirs in zip(fused, plain, strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance * float(theirs.detach().abs().max()))


def test_groups_of_the_published_network():
    assert [group_count(c) for c in (128, 256, 384, 512)] == [32, 32, 32, 32]
