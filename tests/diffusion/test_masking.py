"""Masks keyed by position, and the masked loss against sums by hand."""

import numpy as np
import pytest
import torch

from prunefast.diffusion import DenoisingLoss, TokenMasking
from prunefast.errors import InputError
from prunefast.ops import randn_philox


def test_masks_are_uniform_and_keyed_by_position():
    masking = TokenMasking(image_size=8, patch_size=2, ratio=0.75, seed=1)
    visible = masking.visible(torch.arange(8000))
    assert visible.shape == (8000, 4) == (8000, masking.kept)
    assert (visible.diff(dim=1) > 0).all()  # ascending, none twice
    counts = torch.bincount(visible.flatten(), minlength=16)
    assert len(counts) == 16
    assert ((counts - 2000).abs() < 5 * np.sqrt(8000 * 0.25 * 0.75)).all()
    assert torch.equal(masking.visible(torch.arange(90, 95)), visible[90:95])
    assert not torch.equal(TokenMasking(8, 2, 0.75, seed=2).visible(torch.arange(8000)), visible)


@pytest.mark.parametrize(("ratio", "kept"), [(0.0, 16), (0.5, 8), (0.3, 11), (0.99, 1)])
def test_number_of_visible_tokens(ratio, kept):
    masking = TokenMasking(8, 2, ratio)
    assert masking.kept == kept
    assert masking.pixels(masking.visible(torch.arange(3))).sum((1, 2, 3)).tolist() == [4 * kept] * 3


@pytest.mark.parametrize("reconstruction", [0.0, 0.1])
def test_loss_counts_over_visible_pixels(reconstruction):
    masking = TokenMasking(6, 2, 0.5, reconstruction, seed=3)
    loss = DenoisingLoss("flow", weighting="min_snr", class_weights=[0.2, 0.8])
    torch.manual_seed(0)
    position = torch.arange(20, 24)
    images, pred, given = (
        torch.randint(0, 256, (4, 3, 6, 6), dtype=torch.uint8),
        torch.randn(4, 3, 6, 6),
        torch.randn(4, 3, 6, 6),
    )
    t, labels, weight = (
        torch.tensor([0.1, 0.4, 0.6, 0.9]),
        torch.tensor([0, 1, 1, 0]),
        torch.tensor([1.0, 2.0, 0.5, 1.0]),
    )
    flip = torch.tensor([True, False, False, True])
    visible = masking.visible(position)
    found = masking.loss(loss, pred, visible, given, images, (9, position), t, labels, weight, flip=flip)

    noise = randn_philox((4, 3, 6, 6), 9, position).double().numpy()
    x0 = images.numpy() / 127.5 - 1
    total = 0.0
    for k in range(4):
        clean = x0[k, :, :, ::-1] if flip[k] else x0[k]
        alpha, sigma = 1 - float(t[k]), float(t[k])
        level = min((alpha / sigma) ** 2, 5.0) * sigma**2
        shown = [(i // 3 * 2, i % 3 * 2) for i in visible[k].tolist()]
        errors, misses = [], []
        for row in range(6):
            for column in range(6):
                value = pred[k, :, row, column].double().numpy()
                if (row // 2 * 2, column // 2 * 2) in shown:
                    errors.append((value - noise[k, :, row, column] + clean[:, row, column]) ** 2)
                else:
                    misses.append((value - given[k, :, row, column].double().numpy()) ** 2)
        factor = {0: 0.4, 1: 1.6}[int(labels[k])] * float(weight[k])
        total += level * factor * np.mean(errors) + reconstruction * float(weight[k]) * np.mean(misses)
    assert found.item() == pytest.approx(total / 4, rel=1e-5)


def test_without_a_mask_it_is_the_plain_loss():
    masking = TokenMasking(4, 2, 0.0, 0.5)
    loss = DenoisingLoss("edm", weighting="edm")
    torch.manual_seed(0)
    pred, x0, noise, t = (
        torch.randn(3, 3, 4, 4),
        torch.rand(3, 3, 4, 4),
        torch.randn(3, 3, 4, 4),
        torch.tensor([0.1, 1.0, 9.0]),
    )
    found = masking.loss(loss, pred, masking.visible(torch.arange(3)), pred * 0, x0, noise, t)
    assert found.item() == pytest.approx(loss(pred, x0, noise, t).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.0}, r"ratio must lie in \[0, 1\), not 1.0"),
        ({"reconstruction": -0.1}, "reconstruction must not be negative"),
        ({"patch_size": 3}, "image_size must be a multiple of patch_size 3, not 8"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        TokenMasking(**{"image_size": 8, "patch_size": 2, **options})
