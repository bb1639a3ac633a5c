"""DiT against diffusers' with the same weights, and what training asks of it."""

import numpy as np
import pytest
import torch

from prunefast.diffusion.patches import full_coordinates
from prunefast.errors import InputError
from prunefast.models import build_model
from prunefast.models.dit import axis_table, position_table


def small_dit(**overrides):
    arguments = {"image_size": 8, "channels": 4, "num_classes": 7, "depth": 2, "width": 32, "heads": 4}
    return build_model("dit-tiny/2", **{**arguments, **overrides})


def test_same_weights_same_output_as_diffusers(diffusers):
    torch.manual_seed(0)
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=7,
        norm_eps=1e-6,
    ).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ours = small_dit(learn_sigma=True).eval()
    embedding = theirs.transformer_blocks[0].norm1.emb
    for block in theirs.transformer_blocks:  # theirs has an embedder a block; the published network has one
        block.norm1.emb = embedding
    # theirs spaces the frequencies over n - 1, the published network over n
    embedding.time_proj.downscale_freq_shift = 0

    def copy(target, *sources):
        target.weight.data = torch.cat([source.weight.data for source in sources]).clone()
        target.bias.data = torch.cat([source.bias.data for source in sources]).clone()

    copy(ours.patch, theirs.pos_embed.proj)
    copy(ours.time1, embedding.timestep_embedder.linear_1)
    copy(ours.time2, embedding.timestep_embedder.linear_2)
    ours.label_embedding.weight.data = embedding.class_embedder.embedding_table.weight.data.clone()
    for mine, other in zip(ours.blocks, theirs.transformer_blocks, strict=True):
        copy(mine.modulation, other.norm1.linear)
        copy(mine.query_key_value, other.attn1.to_q, other.attn1.to_k, other.attn1.to_v)
        copy(mine.project, other.attn1.to_out[0])
        copy(mine.mlp1, other.ff.net[0].proj)
        copy(mine.mlp2, other.ff.net[2])
    copy(ours.final_modulation, theirs.proj_out_1)
    copy(ours.final, theirs.proj_out_2)

    x, time, labels = torch.randn(3, 4, 8, 8), torch.tensor([0.0, 17.0, 999.0]), torch.tensor([0, 3, 7])
    with torch.no_grad():
        expected = theirs(x, timestep=time, class_labels=labels).sample
        torch.testing.assert_close(ours(x, time, labels), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.1


def test_positions_are_sines_and_cosines_of_column_and_row():
    table = position_table(3, 8).numpy()
    assert table.shape == (9, 8)
    for row in range(3):
        for column in range(3):
            expected = []
            for coordinate in (column, row):
                angles = coordinate * np.array([1.0, 10_000.0**-0.5])
                expected += [*np.sin(angles), *np.cos(angles)]
            np.testing.assert_allclose(table[row * 3 + column], expected, atol=1e-7)


def test_a_token_is_its_patch():
    """A DiT whose final layer writes the token number paints square patches in row-major order."""
    model = small_dit(image_size=6, channels=1)
    tokens = torch.arange(9.0)[None, :, None] * 10 + torch.arange(4.0)
    image = model._unpatch(tokens, 6, 6)[0, 0]
    assert image[0, :2].tolist() == [0, 1]
    assert image[1, :2].tolist() == [2, 3]
    assert image[0, 2:4].tolist() == [10, 11]
    assert image[2, :2].tolist() == [30, 31]


def test_starts_at_zero_and_every_parameter_learns():
    torch.manual_seed(0)
    model = small_dit()
    x, time, labels = torch.randn(8, 4, 8, 8), torch.rand(8) * 999, torch.arange(8)
    assert torch.equal(model(x, time, labels), torch.zeros(8, 4, 8, 8))
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    losses = []
    for step in range(40):
        loss = (model(x, time, labels) - x.roll(1, 3)).square().mean()
        loss.backward()
        losses.append(loss.item())
        if step == 3:  # the gates open one after another
            assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.6 * losses[0]


def test_no_label_means_the_null_class():
    torch.manual_seed(0)
    model = small_dit().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, time = torch.randn(2, 4, 8, 8), torch.rand(2)
    with torch.no_grad():
        null = model(x, time, torch.tensor([7, 7]))
        torch.testing.assert_close(model(x, time), null, rtol=0, atol=0)
        assert (model(x, time, torch.tensor([1, 2])) - null).abs().max() > 1e-3


def test_learn_sigma_doubles_the_output_only():
    assert small_dit(learn_sigma=True)(torch.randn(1, 4, 8, 8), torch.zeros(1)).shape == (1, 8, 8, 8)


def test_unconditional_dropout_bf16_and_channels_last():
    torch.manual_seed(0)
    model = small_dit(num_classes=None, dropout=0.5)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x = torch.randn(2, 4, 8, 8).to(memory_format=torch.channels_last)
    time = torch.rand(2)
    assert not torch.equal(model(x, time), model(x, time))
    model.eval()
    torch.testing.assert_close(model(x, time), model(x.contiguous(), time), rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x, time).isfinite().all()
    assert model.to(torch.bfloat16)(x.bfloat16(), time).dtype == torch.bfloat16


def test_the_size_is_fixed():
    with pytest.raises(InputError, match="x must be 8 x 8"):
        small_dit()(torch.randn(1, 4, 16, 16), torch.zeros(1))


def test_compiles_as_one_graph():
    model = small_dit().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x, time, labels = torch.randn(2, 4, 8, 8), torch.rand(2), torch.tensor([0, 7])
    torch.testing.assert_close(compiled(x, time, labels), model(x, time, labels), rtol=1e-4, atol=1e-4)


def test_a_crop_has_the_positions_of_the_full_image():
    """Aligned crops: the rows of the full image's table; the first pixel counts where a crop is not aligned."""
    model = build_model("dit-tiny/2", image_size=12, depth=1, width=16, heads=2, coordinates=True)
    plain = build_model("dit-tiny/2", image_size=12, depth=1, width=16, heads=2)
    for dtype in (torch.float32, torch.bfloat16):
        grid = full_coordinates(12, torch.device("cpu"), dtype)
        x = torch.cat((torch.zeros(1, 3, 12, 12, dtype=dtype), grid), dim=1)
        torch.testing.assert_close(model._positions(x)[0], plain.positions)
        crop = model._positions(x[:, :, 4:10, 2:8])[0]
        torch.testing.assert_close(crop, plain.positions.view(6, 6, 16)[2:5, 1:4].reshape(9, 16))
        shifted = model._positions(x[:, :, 5:7, 3:5])[0, 0]
        half = torch.cat(
            (
                axis_table(torch.tensor([1.5], dtype=torch.float64), 16),
                axis_table(torch.tensor([2.5], dtype=torch.float64), 16),
            ),
            1,
        )
        torch.testing.assert_close(shifted, half[0])


@pytest.mark.parametrize("side", [0, 3, 14])
def test_crops_that_do_not_fit(side):
    model = build_model("dit-tiny/2", image_size=12, depth=1, width=16, heads=2, coordinates=True)
    with pytest.raises(InputError, match="x must be a crop of 12 x 12 pixels with sides that are multiples of 2"):
        model(torch.zeros(1, 5, side, side), torch.zeros(1))
    with pytest.raises(InputError, match=r"x must be \[B, 5, H, W\]"):
        model(torch.zeros(1, 3, 12, 12), torch.zeros(1))
