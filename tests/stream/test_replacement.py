"""A broken image is replaced by another of its class, the same everywhere, and never in silence."""

import warnings

import numpy as np
import pytest
from PIL import Image

from prunefast.data import open_dataset
from prunefast.errors import InputError
from prunefast.stream import CoresetLoader

COUNT, BROKEN = 60, (7, 8, 31)


@pytest.fixture
def data(tmp_path):
    """60 images in 3 classes; three are cut off in their scan after the data set was opened."""
    for k in range(COUNT):
        folder = tmp_path / f"class{k % 3}"
        folder.mkdir(exist_ok=True)
        pixels = np.random.default_rng(k).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k:03}.jpg")
    opened = open_dataset(tmp_path)
    for item in BROKEN:
        file = tmp_path / opened.keys[item]
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    return opened


def batches(data, coreset, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loader = CoresetLoader(data, coreset, on_error="replace", epochs=1, **options)
        found = {}
        for batch in loader:
            for position, index, image in zip(batch.position.tolist(), batch.index.tolist(), batch.images, strict=True):
                found[position] = (index, image.numpy().copy())
    return found, loader


def test_by_default_it_is_an_error(data, make_coreset):
    with pytest.raises(InputError, match="|".join(data.keys[k] for k in BROKEN)):
        list(CoresetLoader(data, make_coreset(np.arange(COUNT)), batch_size=8, epochs=1, placement="disk"))
    with pytest.raises(InputError, match="on_error"):
        CoresetLoader(data, make_coreset(np.arange(COUNT)), batch_size=8, on_error="skip")


@pytest.mark.parametrize("placement", ["disk", "memory", "pack"])
def test_the_same_replacement_for_every_placement_and_rank(data, make_coreset, placement):
    coreset = make_coreset(np.arange(COUNT))
    one, loader = batches(data, coreset, batch_size=8, placement=placement)
    assert sorted(index for index, _ in one.values()) == list(range(COUNT))
    assert [replaced.key for replaced in loader.replaced] == [data.keys[k] for k in BROKEN]
    ranks = {}
    for rank in range(2):
        found, _ = batches(data, coreset, batch_size=3, placement="disk", rank=rank, world_size=2, threads=3)
        ranks.update(found)
    assert ranks.keys() == one.keys()
    for position, (index, image) in one.items():
        np.testing.assert_array_equal(image, ranks[position][1])
        if index in BROKEN:
            same = [
                k for k in range(COUNT) if k not in BROKEN and (data.images([k])[0] == image.transpose(1, 2, 0)).all()
            ]
            assert len(same) == 1
            assert data.labels[same[0]] == data.labels[index]


def test_a_pack_that_was_there_says_so_too(data, make_coreset):
    coreset = make_coreset(np.arange(COUNT))
    _, first = batches(data, coreset, batch_size=8, placement="pack")
    again = CoresetLoader(data, coreset, batch_size=8, epochs=1, placement="pack", on_error="replace")
    with pytest.warns(UserWarning, match="is shown in its place") as said:
        list(again)
    assert len(said) == len(BROKEN)
    assert [(r.key, r.by) for r in again.replaced] == [(r.key, r.by) for r in first.replaced]


def test_it_says_so_once(data, make_coreset):
    coreset = make_coreset(np.arange(COUNT))
    loader = CoresetLoader(data, coreset, batch_size=8, epochs=3, placement="disk", on_error="replace")
    with pytest.warns(UserWarning, match="is shown in its place") as said:
        list(loader)
    assert len(said) == len(BROKEN)
    assert all("checksum" in replaced.reason and replaced.by in data.keys for replaced in loader.replaced)


def test_too_many_are_an_error(data, make_coreset, monkeypatch):
    from prunefast.stream import replacement

    monkeypatch.setattr(replacement, "LIMIT_LEAST", 2)
    with pytest.raises(InputError, match="after 2 others"):
        batches(data, make_coreset(np.arange(COUNT)), batch_size=8, placement="disk")


def test_nothing_left_of_its_class(data, make_coreset):
    with pytest.raises(InputError, match=data.keys[8]):
        batches(data, make_coreset(np.array([8, 30, 50])), batch_size=2, placement="disk")
