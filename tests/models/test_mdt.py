"""Without a mask an MDT is a DiT with biased attention; with one, what the encoder does not see does not reach it."""

import pytest
import torch
from torch.nn import functional as F

from prunefast.errors import InputError, InputTypeError
from prunefast.models import build_model, count_parameters
from prunefast.models.flops import count_flops, model_flops
from prunefast.models.widths import inner_widths


def small(**options):
    torch.manual_seed(0)
    arguments = {"image_size": 8, "depth": 3, "width": 16, "heads": 2, "decoder_depth": 1}
    model = build_model("mdt-tiny/2", **{**arguments, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 8, 8, generator=generator), torch.tensor([3.0, 700.0]), torch.tensor([0, 3])


def test_counts():
    """The DiT, one more block, mask token, two tables of positions, and a bias a head, block and difference."""
    for name, depth, width, heads in (("s", 12, 384, 6), ("xl", 28, 1152, 16)):
        with torch.device("meta"):
            model, plain = (
                build_model(f"{kind}-{name}/2", image_size=32, channels=4, num_classes=1000) for kind in ("mdt", "dit")
            )
        block = 18 * width**2 + 15 * width
        expected = count_parameters(plain) + block + width + 2 * 256 * width + (depth + 1) * heads * 31**2
        assert count_parameters(model) == expected
        assert model_flops(model) == model_flops(plain)  # sampling never runs the side interpolater


def test_masked_pass_costs_less(inputs):
    """FLOPs by hand: the encoder's on the visible tokens, one block more than the DiT's on all."""
    x, time, _ = inputs
    model, width = small(), 16
    visible = torch.arange(8).expand(2, -1)

    def block(tokens):
        return 2 * (2 * tokens * 12 * width**2 + 4 * tokens**2 * width + 2 * 6 * width**2)

    rest = count_flops(model, x, time) - 3 * block(16)
    assert count_flops(model, x, time, None, visible) - rest == 2 * block(8) + 2 * block(16)


def test_the_biased_attention_is_the_formula():
    """Scores of head h between tokens at (r, c) and (s, d) get the bias of (r - s, c - d), in float64 by loops."""
    model = small().double()
    block, x = model.blocks[0], torch.randn(1, 16, 16, dtype=torch.float64)
    bias = block.place_bias[:, model.offsets[None]].transpose(0, 1)
    query, key, value = block.query_key_value(x)[0].view(16, 3, 2, 8).unbind(1)
    mixed = torch.empty(16, 2, 8, dtype=torch.float64)
    for head in range(2):
        for i in range(16):
            scores = torch.stack(
                [
                    query[i, head] @ key[j, head] / 8**0.5
                    + block.place_bias[head, (i // 4 - j // 4 + 3) * 7 + (i % 4 - j % 4 + 3)]
                    for j in range(16)
                ]
            )
            mixed[i, head] = scores.softmax(0) @ value[:, head]
    expected = F.linear(mixed.reshape(1, 16, 16), block.project.weight, block.project.bias)
    torch.testing.assert_close(block._attention(x, bias), expected)


def test_masked_pixels_do_not_matter_and_visible_ones_do(inputs):
    x, time, labels = inputs
    model = small(num_classes=3)
    visible = torch.tensor([[0, 5, 10], [1, 2, 15]])
    out = model(x, time, labels, visible)
    assert out.shape == x.shape
    changed = x.clone()
    changed[0, :, 0:2, 2:4] += 5  # token 1 of image 0: masked there
    assert torch.equal(model(changed, time, labels, visible), out)
    changed[0, :, 2:4, 2:4] += 5  # token 5: visible
    difference = (model(changed, time, labels, visible) - out).abs().flatten(1).sum(1)
    assert difference[0] > 0
    assert difference[1] == 0


def test_all_visible_is_no_mask_and_the_side_interpolater_fills_only_gaps(inputs):
    x, time, _ = inputs
    model = small()
    full = model(x, time)
    shuffled = torch.stack([torch.randperm(16) for _ in range(2)])
    torch.testing.assert_close(model(x, time, visible=shuffled), full, atol=1e-5, rtol=1e-5)
    visible = torch.tensor([[0, 5], [3, 15]])
    masked = model(x, time, visible=visible)
    with torch.no_grad():
        model.side_interpolater.mlp2.bias.add_(1.0)
    assert torch.equal(model(x, time), full)
    assert not torch.equal(model(x, time, visible=visible), masked)


@pytest.mark.parametrize("masked", [True, False])
def test_what_learns(inputs, masked):
    x, time, labels = inputs
    model = small(num_classes=3)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x, time, labels, torch.tensor([[0, 5], [3, 15]]) if masked else None)
    out.float().square().sum().backward()
    idle = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    side = {name for name, _ in model.named_parameters() if name.startswith(("side_interpolater", "mask_token"))}
    assert idle == (set() if masked else side)


def test_what_can_be_pruned():
    """The MLPs of the blocks that sampling runs."""
    assert list(inner_widths(small())) == [f"blocks.{number}.mlp" for number in range(3)]


def test_errors(inputs):
    x, time, _ = inputs
    for depth in (0, 3):
        with pytest.raises(InputError, match=r"decoder_depth must be from 1 to 2 \(depth - 1\)"):
            build_model("mdt-tiny/2", image_size=8, depth=3, decoder_depth=depth)
    with pytest.raises(InputError, match="visible must lie in 0"):
        small()(x, time, None, torch.tensor([[16], [0]]))
    with pytest.raises(InputTypeError, match="visible must be int64"):
        small()(x, time, None, torch.tensor([[1.0], [0.0]]))
    with pytest.raises(InputError, match="has no argument 'coordinates'"):
        build_model("mdt-tiny/2", image_size=8, coordinates=True)
