"""Patches read as windows of the images: the pixels, and so the run, of decoding whole images and cutting them."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from prunefast import ops
from prunefast.data import ImageDataset, open_dataset
from prunefast.diffusion import PatchSchedule
from prunefast.diffusion.patches import crop_coordinates
from prunefast.select import Coreset
from prunefast.stream import CoresetLoader
from prunefast.train import TrainConfig, train
from prunefast.train.setup import build_parts, make_plan, open_inputs
from prunefast.train.state import WEIGHT_FILES, find_checkpoint

SIDE = 32


@pytest.fixture
def photos(tmp_path):
    """JPEGs of the size that is trained at, with smooth and sharp parts; one is larger, one a PNG."""
    folder = tmp_path / "photos"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(10):
        side = 48 if number == 3 else SIDE
        smooth = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        image = Image.fromarray(smooth).resize((side, side), Image.Resampling.BICUBIC)
        image.paste((250, 10, 10), (number, number, number + 7, number + 5))
        kind = "png" if number == 5 else "jpg"
        image.save(folder / f"{number}.{kind}", **({} if kind == "png" else {"quality": 90}))
    return open_dataset(folder, image_size=SIDE)


@pytest.fixture
def make_config(tmp_path):
    def make(**values):
        network = {"width": 8, "channel_multipliers": [1, 2], "blocks": 1, "attention_levels": []}
        defaults = {"out": str(tmp_path / "run"), "images": 64, "batch_size": 4, "patch_p": 0.4, "placement": "disk"}
        defaults |= {"model": "unet-tiny", "model_options": network, "device": "cpu", "precision": "fp32"}
        return TrainConfig(**{**defaults, "warmup_images": 4, "status_every_images": 16, "threads": 2, **values})

    return make


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("rank", [0, 1])
def test_the_loader_hands_out_the_crops(photos, flip, rank):
    """Against the whole images, mirrored and then cut at the schedule's corners, bit for bit."""
    schedule = PatchSchedule(SIDE, p=0.3, seed=5)

    def windows(begin, positions):
        return schedule.windows(begin, positions, flip)

    options = {"batch_size": 3, "seed": 5, "multiplier": schedule.multiplier, "rank": rank, "world_size": 2}
    coreset = Coreset.full(photos)
    loader = CoresetLoader(photos, coreset, placement="disk", windows=windows, threads=2, **options)
    sizes, begin = set(), 0
    for _, batch in zip(range(12), loader, strict=False):
        patch = schedule.at(begin)
        assert batch.images.shape[-2:] == (patch.size, patch.size)
        whole = torch.from_numpy(photos.images(batch.index.numpy())).permute(0, 3, 1, 2)
        mirrored = ops.uniform_philox((len(batch),), 5, batch.position, ops.philox.Stream.FLIP) < 0.5
        got = batch.images
        if flip and patch.size < SIDE:
            whole = torch.where(mirrored[:, None, None, None], whole.flip(-1), whole)
            got = torch.where(mirrored[:, None, None, None], got.flip(-1), got)
        for image, row, (top, left) in zip(whole, got, schedule.corners(patch, batch.position).tolist(), strict=True):
            assert torch.equal(row, image[:, top : top + patch.size, left : left + patch.size])
        sizes.add(patch.size)
        begin += 3 * 2 * patch.multiplier
    assert sizes == {32, 16, 8}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("side", [2, 7, 32, 512])
def test_coordinates_have_the_bits_of_the_operator(dtype, side):
    size = max(side // 2, 1)
    corner = torch.randint(0, side - size + 1, (5, 2), generator=torch.Generator().manual_seed(0))
    ones, x0 = torch.ones(5), torch.zeros(5, 3, side, side)
    noise = torch.zeros(5, 3, size, size)
    made = ops.add_noise(x0, ones, ones, noise, boxes=(corner, size, size), coordinates=True, dtype=dtype)
    assert torch.equal(made[:, 3:], crop_coordinates(corner, size, side, dtype))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("flip", [False, True])
def test_a_run_on_windows_is_the_run_on_whole_images(photos, make_config, precision, flip, monkeypatch, tmp_path):
    runs = []
    for placement in ("disk", "memory"):
        config = make_config(out=str(tmp_path / placement), placement=placement, precision=precision, flip=flip)
        train(config, photos)
        runs.append(find_checkpoint(config.out)[0])
    for name in WEIGHT_FILES:
        assert (runs[0] / name).read_bytes() == (runs[1] / name).read_bytes(), name


def test_what_is_read(photos, make_config, monkeypatch, tmp_path):
    """Windows where images are decoded for the batch; whole images where they lie ready, or without patches."""
    asked = []
    original = ImageDataset._fill

    def fill(self, items, out, corners=None, *rest):
        asked.append(corners is not None)
        return original(self, items, out, corners, *rest)

    monkeypatch.setattr(ImageDataset, "_fill", fill)
    for options, some in (({}, True), ({"placement": "memory"}, False), ({"patch_p": 1.0}, False)):
        asked.clear()
        config = make_config(out=str(tmp_path / "any"), **options)
        parts = build_parts(make_plan(config, *open_inputs(config, photos, None)))
        for _, _batch in zip(range(8), parts.loader, strict=False):
            pass
        assert any(asked) == some


def test_a_broken_image_is_named_or_replaced(tmp_path, make_config):
    folder = tmp_path / "some"
    folder.mkdir()
    for number in range(40):
        file = io.BytesIO()
        Image.fromarray(np.full((SIDE, SIDE, 3), number, np.uint8)).save(file, format="JPEG")
        content = file.getvalue()
        (folder / f"{number}.jpg").write_bytes(content[:-200] if number == 7 else content)
    data = open_dataset(folder, image_size=SIDE)
    schedule = PatchSchedule(SIDE, p=0.0)
    options = {"batch_size": 8, "placement": "disk", "multiplier": schedule.multiplier, "windows": schedule.windows}
    from prunefast.errors import InputError

    with pytest.raises(InputError, match=r"7\.jpg"):
        for _ in zip(range(10), CoresetLoader(data, Coreset.full(data), **options), strict=False):
            pass
    loader = CoresetLoader(data, Coreset.full(data), on_error="replace", **options)
    with pytest.warns(UserWarning, match=r"7\.jpg"):
        batches = [batch for _, batch in zip(range(10), loader, strict=False)]
    assert all(batch.images.shape[-1] < SIDE for batch in batches)
