"""Networks compiled block by block: what shares a graph, what is left alone, the same numbers."""

import torch
from torch import nn

from prunefast.models import ModuleNetwork, build_model
from prunefast.train import train
from prunefast.train.blocks import blocks_of, compile_network


def answer(network, size=16):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, size, size, generator=generator)
    return network(x, torch.tensor([10.0, 500.0]), torch.tensor([0, 3]))


def dit():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_model("dit-tiny/2", image_size=16, num_classes=4, depth=5, width=16, heads=2)
        for parameter in network.parameters():  # gates begin at zero, where every block is the identity
            nn.init.normal_(parameter, std=0.1)
    return network.train()


def test_blocks_that_are_alike_share_a_graph(graphs):
    expected = answer(dit())
    network = dit()
    called = compile_network(network)
    assert called is network
    assert len(blocks_of(network)) == 5
    torch.testing.assert_close(answer(called), expected, rtol=1e-5, atol=1e-6)
    assert len(graphs) == 1
    assert list(called.state_dict()) == list(dit().state_dict())


def test_more_different_blocks_than_torch_keeps_graphs_for(graphs):
    network = build_model("unet-tiny", image_size=16, num_classes=4).train()
    expected = answer(network)
    called = compile_network(network)
    torch.testing.assert_close(answer(called), expected, rtol=1e-5, atol=1e-6)
    assert torch._dynamo.config.recompile_limit < len(graphs) <= len(blocks_of(network))


class Whole(nn.Module):
    """Its block is never called as a module."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 3, 1)])

    def forward(self, x, t, labels=None):
        return nn.functional.conv2d(x, self.layers[0].weight) * t.view(-1, 1, 1, 1)


def test_a_module_of_the_users_is_one_graph(graphs):
    module = Whole()
    network = ModuleNetwork(module, image_size=16)
    assert blocks_of(network) == []
    expected = answer(network)
    torch.testing.assert_close(answer(compile_network(network)), expected)
    assert len(graphs) == 1


def test_a_torch_that_cannot_be_told_how_many_graphs_to_keep(graphs, monkeypatch):
    options = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, dynamic=None: options(model, dynamic=dynamic))
    network = dit()
    called = compile_network(network)
    assert called is not network
    torch.testing.assert_close(answer(called), answer(network), rtol=1e-5, atol=1e-6)
    assert len(graphs) == 1


def test_held_out_images_are_not_compiled_for(graphs, data, make_config):
    config = make_config(
        compile=True, images=24, model="dit-tiny/2", model_options={"depth": 2, "width": 16, "heads": 2}
    )
    train(config, data)
    alone = len(graphs)
    assert alone > 0
    torch._dynamo.reset()
    graphs.clear()
    result = train(config.replace(out=f"{config.out}-held", holdout=0.25, holdout_every_images=8), data)
    assert result.images == 24
    assert len(graphs) == alone
