"""Memory is used again when nobody can see it any more, and never before."""

import numpy as np
import torch

from prunefast.data.buffers import Buffers


def test_an_array_comes_back_when_it_is_let_go():
    buffers = Buffers()
    first = buffers.take((4, 3))
    address = first.ctypes.data
    assert buffers.take((4, 3)).ctypes.data != address
    del first
    assert address in {buffers.take((4, 3)).ctypes.data, buffers.take((4, 3)).ctypes.data}


def test_views_and_tensors_hold_it():
    buffers = Buffers()
    held = [
        lambda a: a[1:],
        lambda a: a.reshape(-1).view(np.int8),
        torch.from_numpy,
        lambda a: torch.from_numpy(a)[:, 1:].permute(1, 0),
        lambda a: memoryview(a),
    ]
    alive, addresses = [], set()
    for make in held:
        alive.append(make(buffers.take((4, 3))))
        addresses.add(buffers._held[-1].ctypes.data)
    assert len(addresses) == len(held)
    assert buffers.take((4, 3)).ctypes.data not in addresses
    alive.clear()
    assert buffers.take((4, 3)).ctypes.data in addresses | {buffers._held[-1].ctypes.data}
    assert len(buffers._held) == len(held) + 1


def test_other_shapes_are_let_go():
    buffers = Buffers()
    for size in range(1, 50):
        buffers.take((size, 3))
    assert len(buffers._held) == 1
