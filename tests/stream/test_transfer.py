"""The ring of pinned buffers: which memory is used again when, driven by a device that exists in this file only."""

import ctypes

import numpy as np
import pytest
import torch

from prunefast.data.buffers import Buffers
from prunefast.stream.loader import CoresetLoader
from prunefast.stream.transfer import sent_ahead


class SlowDevice:
    """Copies are made when `finish` is told so: whoever overwrites a buffer before spoils what arrives."""

    def __init__(self):
        self.log: list[tuple[str, int]] = []
        self._copies: list[tuple[int, torch.Tensor]] = []  # an address, as a device has it: it keeps no memory alive
        self.done = 0

    def begin(self, host):
        there = torch.full_like(host, 255)
        self._copies.append((host.data_ptr(), there))
        self.log.append(("begin", len(self._copies) - 1))
        return there, len(self._copies) - 1

    def join(self, there, event):
        self.log.append(("join", event))

    def passed(self, event):
        return event < self.done

    def wait(self, event):
        self.log.append(("wait", event))
        self.finish(event + 1)

    def finish(self, until):
        for address, there in self._copies[self.done : until]:
            ctypes.memmove(there.data_ptr(), address, there.nbytes)
        self.done = max(self.done, until)


def batches(count, buffers, taken):
    for number in range(count):
        rows = buffers.take((4, 3))
        taken.append(rows.ctypes.data)
        rows[:] = number
        yield number, rows
        del rows


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_no_buffer_is_used_again_before_its_copy_is_done(lag):
    device, buffers, taken, got = SlowDevice(), Buffers(), [], []
    for number, there in sent_ahead(batches(12, buffers, taken), device):
        device.finish(number + 1 - lag)
        got.append((number, there))
    assert [number for number, _ in got] == list(range(12))
    assert all((there == number).all() for number, there in got)  # 255, or another number, were it overwritten
    assert len(set(taken)) <= 3 + lag  # a ring: the memory does not grow with the batches


def test_each_batch_is_sent_before_the_one_ahead_of_it_is_given_out():
    device = SlowDevice()
    numbers = [number for number, _ in sent_ahead(batches(3, Buffers(), []), device)]
    assert numbers == [0, 1, 2]
    order = [entry for entry in device.log if entry[0] != "wait"]
    assert order == [("begin", 0), ("begin", 1), ("join", 0), ("begin", 2), ("join", 1), ("join", 2)]


def test_breaking_off_waits_for_the_copies_under_way():
    device = SlowDevice()
    stream = sent_ahead(batches(9, Buffers(), []), device)
    next(stream)
    stream.close()
    assert device.done == 2


def test_nothing_and_one():
    assert list(sent_ahead(iter(()), SlowDevice())) == []
    assert [number for number, _ in sent_ahead(batches(1, Buffers(), []), SlowDevice())] == [0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("placement", ["disk", "pack"])
def test_on_a_gpu_the_batches_are_those_of_the_cpu(write_images, make_coreset, placement):
    from prunefast.data import open_dataset

    data = open_dataset(write_images([(16, 16)] * 40), image_size=16)
    coreset = make_coreset(np.arange(40))
    options = {"batch_size": 3, "seed": 0, "placement": placement}
    here = iter(CoresetLoader(data, coreset, **options))
    there = iter(CoresetLoader(data, coreset, device="cuda", **options))
    for _ in range(200):
        a, b = next(here), next(there)
        torch.cuda._sleep(100_000)  # the copies run into work that is not done
        assert torch.equal(a.images, b.images.cpu())
        assert torch.equal(a.index, b.index.cpu())
