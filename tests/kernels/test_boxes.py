"""A box that leaves its image reads nothing that is not the image's, on every backend of a GPU."""

import pytest
import torch

pytest.importorskip("triton")


def test_boxes_are_moved_inside():
    from prunefast.kernels.images import corner_inside

    x0 = torch.empty(4, 3, 20, 30)
    corner = torch.tensor([[0, 0], [100, 100], [-5, -7], [12, 14]])
    assert corner_inside(corner, x0, 8, 16).tolist() == [[0, 0], [12, 14], [0, 0], [12, 14]]
    assert corner_inside(None, x0, 8, 16) is None
