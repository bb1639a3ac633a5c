"""Dropout by position: the same mask however a batch is cut, independent between images, layers and seeds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefast.models import build_model
from prunefast.models.dropout import Dropout, dropout_layers, keyed_dropout
from prunefast.ops import uniform_philox
from prunefast.ops.philox import Stream


def dropped(x: torch.Tensor, position: torch.Tensor, p: float = 0.3, seed: int = 5) -> torch.Tensor:
    layer = Dropout(p)
    with keyed_dropout([layer], seed, position):
        return layer(x)


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(1, 11), shape=st.sampled_from([(3,), (4, 6), (3, 4, 4)]), channels_last=st.booleans())
def test_a_cut_of_the_batch_changes_nothing(cut, shape, channels_last):
    x = torch.randn(12, *shape, generator=torch.Generator().manual_seed(0))
    if channels_last and len(shape) == 3:
        x = x.contiguous(memory_format=torch.channels_last)
    position = torch.randperm(12, generator=torch.Generator().manual_seed(1)) + 2**40
    whole = dropped(x, position)
    parts = [dropped(x[cut_of], position[cut_of]) for cut_of in (slice(None, cut), slice(cut, None))]
    assert torch.equal(whole, torch.cat(parts))
    assert whole.stride() == x.stride()


def test_it_is_the_formula():
    x = torch.randn(4, 3, 5, 6)
    position = torch.tensor([7, 0, 3, 100])
    u = uniform_philox((4, 5, 6, 3), 5, position, Stream.DROPOUT).permute(0, 3, 1, 2)
    torch.testing.assert_close(dropped(x, position), torch.where(u >= 0.3, x / 0.7, 0.0))


def test_the_memory_format_does_not_matter():
    """That of one image or of sharded weights is another than that of the rest of a run."""
    x, position = torch.randn(3, 4, 5, 6), torch.arange(3)
    assert torch.equal(dropped(x, position), dropped(x.contiguous(memory_format=torch.channels_last), position))


def test_share_and_mean():
    x = torch.ones(64, 4_096)
    out = dropped(x, torch.arange(64))
    assert (out == 0).float().mean().item() == pytest.approx(0.3, abs=0.005)
    assert out.mean().item() == pytest.approx(1.0, abs=0.01)
    kept = out[0] != 0
    for other in (dropped(x, torch.arange(64), seed=6)[0] != 0, out[1] != 0):
        assert (kept & other).float().mean().item() == pytest.approx(0.49, abs=0.03)


def test_layers_differ_and_the_gradient_is_masked_alike():
    layers = [Dropout(0.5), Dropout(0.5)]
    x = torch.ones(2, 1_000, requires_grad=True)
    with keyed_dropout(layers, 0, torch.arange(2)):
        first, second = (layer(x) for layer in layers)
    assert not torch.equal(first, second)
    first.sum().backward()
    assert torch.equal(x.grad, first.detach())


def test_without_a_key_it_is_torchs():
    layer, x = Dropout(0.5), torch.ones(1_000)
    torch.manual_seed(0)
    ours = layer(x)
    torch.manual_seed(0)
    assert torch.equal(ours, torch.nn.Dropout(0.5)(x))
    with keyed_dropout([layer], 0, torch.arange(1_000)):
        assert torch.equal(layer.eval()(x), x)
    assert layer.key is None


@pytest.mark.parametrize("name", ["unet-tiny", "dit-tiny/2", "maskdit-tiny/2", "edm-ddpmpp"])
def test_every_network_has_no_other(name):
    network = build_model(name, image_size=8, dropout=0.2, **({"width": 16} if name == "edm-ddpmpp" else {}))
    layers = dropout_layers(network)
    assert layers
    assert layers == [module for module in network.modules() if isinstance(module, torch.nn.Dropout)]
