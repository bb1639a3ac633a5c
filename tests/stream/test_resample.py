"""Squares of many sizes to one: Pillow's pixels, bit for bit."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefast.data.decode import fit_square
from prunefast.stream.resample import resample


@settings(deadline=None, max_examples=40)
@given(
    sides=st.lists(st.integers(1, 130), min_size=1, max_size=4),
    target=st.integers(1, 70),
    seed=st.integers(0, 99),
    hard=st.booleans(),
)
def test_squares_of_many_sizes_are_pillows(sides, target, seed, hard):
    """Black and white alone, where bicubic overshoots most, as well."""
    largest = max(sides)
    pixels = np.random.default_rng(seed).integers(0, 256, (len(sides), largest, largest, 3), dtype=np.uint8)
    if hard:
        pixels = (pixels > 127).astype(np.uint8) * 255
    images = resample(torch.from_numpy(pixels), np.array(sides), target).numpy()
    for image, square, side in zip(images, pixels, sides, strict=True):
        np.testing.assert_array_equal(image, fit_square(square[:side, :side], target))


def test_what_is_that_size_already_stays():
    pixels = torch.randint(0, 256, (2, 9, 9, 3), dtype=torch.uint8)
    assert torch.equal(resample(pixels, np.array([9, 9]), 9), pixels)
