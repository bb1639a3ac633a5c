"""CoresetSampler in a torch DataLoader."""

import itertools
import json

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from prunefast.errors import InputError
from prunefast.stream import CoresetSampler, epoch_order


def test_each_pass_is_an_epoch_in_its_own_order(coreset):
    sampler = CoresetSampler(coreset, seed=4)
    for epoch in range(3):
        assert list(sampler) == coreset.indices[epoch_order(37, 4, epoch)].tolist()
    assert len(sampler) == 37
    assert list(CoresetSampler(coreset, shuffle=False)) == coreset.indices.tolist()


def test_several_epochs_and_no_end(coreset):
    expected = np.concatenate([coreset.indices[epoch_order(37, 0, epoch)] for epoch in range(4)]).tolist()
    assert list(CoresetSampler(coreset, epochs=4)) == expected
    assert list(itertools.islice(CoresetSampler(coreset, epochs=None), 148)) == expected
    with pytest.raises(TypeError):
        len(CoresetSampler(coreset, epochs=None))


def test_many_items_cross_the_block_of_positions(make_coreset):
    big = make_coreset(np.arange(5000) * 3)
    assert (
        list(CoresetSampler(big, epochs=2))
        == np.concatenate([big.indices[epoch_order(5000, 0, e)] for e in range(2)]).tolist()
    )


@pytest.mark.parametrize("world_size", [1, 2, 4, 5])
def test_ranks(coreset, world_size):
    parts = [list(CoresetSampler(coreset, rank=r, world_size=world_size)) for r in range(world_size)]
    assert [len(CoresetSampler(coreset, rank=r, world_size=world_size)) for r in range(world_size)] == [
        len(part) for part in parts
    ]
    dealt = [index for row in itertools.zip_longest(*parts) for index in row if index is not None]
    assert dealt == list(CoresetSampler(coreset))


@pytest.mark.parametrize("stop", [0, 1, 20, 36, 37, 38, 70])
@pytest.mark.parametrize("world_size", [1, 3])
def test_resume(coreset, stop, world_size):
    def make():
        return CoresetSampler(coreset, epochs=None, rank=world_size - 1, world_size=world_size)

    whole = list(itertools.islice(make(), 120))
    first = make()
    head = list(itertools.islice(first, stop))
    state = json.loads(json.dumps(first.state_dict()))
    assert len(json.dumps(state)) < 100
    second = make()
    second.load_state_dict(state)
    assert head + list(itertools.islice(second, 120 - stop)) == whole


def test_resume_inside_a_pass_gives_its_rest(coreset):
    sampler = CoresetSampler(coreset)
    head = list(itertools.islice(sampler, 10))
    assert head + list(sampler) == list(CoresetSampler(coreset))
    assert list(sampler) == coreset.indices[epoch_order(37, 0, 1)].tolist()  # then the next epoch
    sampler.set_epoch(5)
    assert list(sampler) == coreset.indices[epoch_order(37, 0, 5)].tolist()
    assert list(CoresetSampler(coreset, start=37 + 30)) == coreset.indices[epoch_order(37, 0, 1)][30:].tolist()


def test_states_of_others_are_refused(coreset, make_coreset):
    sampler = CoresetSampler(coreset, seed=1)
    state = sampler.state_dict()
    with pytest.raises(InputError, match="seed"):
        CoresetSampler(coreset, seed=2).load_state_dict(state)
    with pytest.raises(InputError, match="another coreset"):
        CoresetSampler(make_coreset([1, 2], fingerprint="ffff"), seed=1).load_state_dict(state)
    for wrong in ({}, None, state | {"position": -1}, state | {"position": "3"}):
        with pytest.raises(InputError, match="state"):
            sampler.load_state_dict(wrong)


@pytest.mark.parametrize("workers", [0, 2])
def test_in_a_dataloader(coreset, workers):
    torch.manual_seed(0)  # the sampler must not depend on it
    loader = DataLoader(
        TensorDataset(torch.arange(100)), batch_size=10, sampler=CoresetSampler(coreset, seed=3), num_workers=workers
    )
    got = torch.cat([batch for (batch,) in loader]).tolist()
    assert got == coreset.indices[epoch_order(37, 3, 0)].tolist()
    assert len(loader) == 4


def test_bad_arguments(coreset, make_coreset):
    with pytest.raises(InputError, match="empty"):
        CoresetSampler(make_coreset([]))
    for arguments in ({"seed": -1}, {"seed": 1 << 64}, {"seed": 0.5}, {"epochs": 0}, {"rank": 1}, {"start": -5}):
        with pytest.raises(InputError, match=next(iter(arguments))):
            CoresetSampler(coreset, **arguments)
