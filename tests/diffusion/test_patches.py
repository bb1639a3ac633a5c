"""Sizes, places and coordinates of crops against the paper's numbers and against crops cut by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefast import ops
from prunefast.diffusion import DenoisingLoss, PatchSchedule
from prunefast.diffusion.patches import full_coordinates
from prunefast.errors import InputError

# papers' table: p -> (pixels per step, images per step)
EXPECTED = {0.0: (0.40, 2.80), 0.1: (0.46, 2.62), 0.25: (0.55, 2.35), 0.5: (0.70, 1.90), 0.75: (0.85, 1.45)}


def positions_of_steps(schedule: PatchSchedule, batch_size: int, steps: int) -> list[int]:
    begins, position = [], 0
    for _ in range(steps):
        begins.append(position)
        position += batch_size * schedule.multiplier(position)
    return begins


@pytest.mark.parametrize("p", EXPECTED)
def test_expected_cost_of_a_step(p):
    schedule = PatchSchedule(64, p=p)
    assert (schedule.pixels_per_step, schedule.images_per_step) == pytest.approx(EXPECTED[p])


def test_frequencies_and_counts_of_sizes():
    """4,000 steps: three standard deviations of a share of 0.3 are 0.022."""
    schedule = PatchSchedule(32, p=0.5, seed=3)
    steps = [schedule.at(position) for position in positions_of_steps(schedule, 16, 4000)]
    for size, share in ((32, 0.5), (16, 0.3), (8, 0.2)):
        found = np.mean([patch.size == size for patch in steps])
        assert abs(found - share) < 3 * np.sqrt(share * (1 - share) / len(steps))
    assert np.mean([patch.multiplier for patch in steps]) == pytest.approx(1.9, abs=0.06)
    pixels = np.mean([patch.multiplier * patch.size**2 for patch in steps]) / 32**2
    assert pixels == pytest.approx(0.7, abs=0.02)
    other = PatchSchedule(32, p=0.5, seed=4)
    assert [other.at(k).size for k in range(50)] != [schedule.at(k).size for k in range(50)]


def test_sizes_for_latents_and_options():
    latents = PatchSchedule(32, p=0.25, levels=2)
    assert [(p.size, p.multiplier, p.loss_weight) for p in latents.patches] == [(32, 1, 1.0), (16, 2, 0.25)]
    assert latents.shares == pytest.approx((0.25, 0.75))
    plain = PatchSchedule(32, p=0.25, multiply=False, loss="mean")
    assert [(p.size, p.multiplier, p.loss_weight) for p in plain.patches] == [(32, 1, 1.0), (16, 1, 1.0), (8, 1, 1.0)]
    assert plain.images_per_step == 1
    for p, levels in ((1.0, 3), (0.0, 1)):
        always = PatchSchedule(32, p=p, levels=levels)
        assert {always.at(position).size for position in range(200)} == {32}
    never = PatchSchedule(32, p=0.0)
    assert {never.at(position).size for position in range(200)} == {16, 8}


def test_progressive_sizes_have_their_share_of_the_images():
    schedule = PatchSchedule(64, p=0.5, schedule="progressive", images=1000)
    sizes = [schedule.at(position).size for position in range(1000)]
    assert sizes == [16] * 200 + [32] * 300 + [64] * 500
    assert schedule.at(5000).size == 64  # a run that is extended
    begins = [b for b in positions_of_steps(schedule, 1, 1000) if b < 1000]  # 50 + 150 + 500 steps
    assert len(begins) == pytest.approx(700, abs=2)
    patches = [schedule.at(b) for b in begins]
    assert schedule.images_per_step == pytest.approx(np.mean([p.multiplier for p in patches]), rel=0.01)
    pixels = np.mean([p.multiplier * (p.size / 64) ** 2 for p in patches])
    assert schedule.pixels_per_step == pytest.approx(pixels, rel=0.01)


def test_places_are_uniform_and_each_images_own():
    schedule = PatchSchedule(8, p=0.5, seed=1)
    patch = schedule.patches[1]
    position = torch.arange(20_000)
    corner = schedule.corners(patch, position)
    assert corner.shape == (20_000, 2)
    for axis in range(2):
        counts = torch.bincount(corner[:, axis], minlength=5)
        assert len(counts) == 5  # 0 ... 8 - 4
        assert ((counts - 4000).abs() < 5 * np.sqrt(20_000 * 0.2 * 0.8)).all()
    joint = torch.bincount(corner[:, 0] * 5 + corner[:, 1], minlength=25)
    assert ((joint - 800).abs() < 5 * np.sqrt(20_000 * 0.04 * 0.96)).all()
    assert torch.equal(schedule.corners(patch, position[500:510]), corner[500:510])
    assert schedule.boxes(schedule.patches[0], position) is None


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from([4, 8, 12, 32]), st.integers(0, 2), st.booleans())
def test_coordinates_and_pixels_are_those_of_the_full_image(position, side, level, flips):
    """The crop of a noised full image with coordinates is the noised crop: channel by channel, but for the noise."""
    schedule = PatchSchedule(side, seed=2)
    patch = schedule.patches[level]
    positions = torch.arange(position, position + 3)
    images = torch.from_numpy(np.random.default_rng(position).integers(0, 256, (3, 3, side, side), dtype=np.uint8))
    flip = torch.tensor([flips, False, True])
    boxes = schedule.boxes(patch, positions)
    size = patch.size
    noise = torch.zeros(3, 3, size, size)
    x = ops.add_noise(images, torch.ones(3), torch.ones(3), noise, boxes=boxes, flip=flip, coordinates=True)
    assert x.shape == (3, 5, size, size)
    mirrored = np.where(flip.numpy()[:, None, None, None], images.numpy()[..., ::-1], images.numpy())
    grid = np.linspace(-1, 1, side)
    corner = torch.zeros(3, 2, dtype=torch.int64) if boxes is None else boxes.corner
    for k, (top, left) in enumerate(corner.tolist()):
        cut = mirrored[k, :, top : top + size, left : left + size] / 127.5 - 1
        np.testing.assert_allclose(x[k, :3], cut, atol=1e-5)
        np.testing.assert_allclose(x[k, 3], np.tile(grid[left : left + size], (size, 1)), atol=1e-6)
        np.testing.assert_allclose(x[k, 4], np.tile(grid[top : top + size, None], (1, size)), atol=1e-6)


def test_full_coordinates_are_those_of_noising():
    for size in (1, 2, 7, 32):
        x = ops.add_noise(torch.zeros(1, 1, size, size), 1.0, 1.0, torch.zeros(1, 1, size, size), coordinates=True)
        for dtype in (torch.float32, torch.bfloat16):
            mine = full_coordinates(size, torch.device("cpu"), dtype)
            torch.testing.assert_close(mine.float(), x[:, 1:].to(dtype).float(), atol=1e-6, rtol=0)


def test_loss_of_crops_is_the_loss_of_the_cut_images():
    schedule = PatchSchedule(8, seed=5)
    positions = torch.arange(40, 44)
    boxes = schedule.boxes(schedule.patches[1], positions)
    images = torch.rand(4, 3, 8, 8) * 2 - 1
    flip = torch.tensor([True, False, True, False])
    cut = torch.stack(
        [
            (image.flip(-1) if mirrored else image)[:, top : top + 4, left : left + 4]
            for image, mirrored, (top, left) in zip(images, flip, boxes.corner.tolist(), strict=True)
        ]
    )
    loss = DenoisingLoss("flow")
    pred, noise, t = torch.randn(4, 3, 4, 4), torch.randn(4, 3, 4, 4), torch.rand(4)
    fused = loss(pred, images, noise, t, flip=flip, boxes=boxes)
    assert fused.item() == pytest.approx(loss(pred, cut, noise, t).item(), rel=1e-6)
    torch.testing.assert_close(
        loss.per_sample(pred, images, noise, t, flip=flip, boxes=boxes), loss.per_sample(pred, cut, noise, t)
    )
    with pytest.raises(InputError, match="cut to 4 x 4, must have one shape"):
        loss(torch.randn(4, 3, 8, 8), images, noise, t, boxes=boxes)
    with pytest.raises(InputError, match="noise"):
        loss(pred, images, torch.randn(4, 3, 8, 8), t, boxes=boxes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 1.5}, r"p must lie in \[0, 1\], not 1.5"),
        ({"p": float("nan")}, "p must lie"),
        ({"levels": 4}, "levels must be 1, 2 or 3"),
        ({"levels": 0}, "levels must be 1, 2 or 3"),
        ({"schedule": "steps"}, "'steps' is not one of stochastic, progressive"),
        ({"schedule": "progressive"}, "images: a progressive schedule needs"),
        ({"loss": "max"}, "'max' is not one of sum, mean"),
        ({"image_size": 30}, "image_size must be a multiple of 4 for 3 patch sizes, not 30"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        PatchSchedule(**{"image_size": 32, **options})
