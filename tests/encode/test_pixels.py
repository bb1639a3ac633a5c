"""The pixels encoder against Pillow, float64 formulas and itself."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.decomposition import PCA

from prunefast.encode import embed, make_encoder
from prunefast.encode import pixels as module
from prunefast.encode.pixels import PixelsEncoder, exact_moments, overlap, thumbnails
from prunefast.errors import InputError, InputTypeError

SETTINGS = settings(deadline=None, max_examples=60)


@SETTINGS
@given(side=st.integers(1, 40), size=st.integers(1, 20), seed=st.integers(0, 9))
def test_thumbnails_are_area_means(side, size, seed):
    images = np.random.default_rng(seed).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    # every pixel repeated `size` times, every cell then holds `side` of them: the mean without any fraction of a pixel
    fine = images.repeat(size, axis=1).repeat(size, axis=2).astype(np.float64)
    mean = fine.reshape(2, size, side, size, side, 3).mean(axis=(2, 4))
    found = thumbnails(images, size).reshape(2, size, size, 3)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.floor(mean + 0.5 + 1e-9))


@pytest.mark.parametrize("side", [16, 32, 48, 40])
def test_thumbnails_are_pillows_box_filter(pictures, side):
    images = pictures(5, side).array
    expected = np.stack([np.asarray(Image.fromarray(i).resize((8, 8), Image.Resampling.BOX)) for i in images])
    difference = np.abs(thumbnails(images, 8).reshape(5, 8, 8, 3).astype(int) - expected)
    assert difference.max() <= 1  # Pillow rounds after each axis


def test_overlap_by_hand():
    assert overlap(3, 2).tolist() == [[2, 1, 0], [0, 1, 2]]
    assert overlap(2, 3).tolist() == [[2, 0], [1, 1], [0, 2]]
    assert (overlap(32, 8).sum(axis=1) == 32).all()


def test_moments_are_exact():
    values = np.random.default_rng(0).integers(0, 256, (5000, 7), dtype=np.uint8)
    values[:, 3] = 255  # the largest products there are
    mean, covariance = exact_moments(values)
    whole = values.astype(object)
    first, second = whole.sum(axis=0), whole.T @ whole
    assert [round(m * 5000) for m in mean] == list(first)
    expected = np.array([[second[i, j] * 5000 - first[i] * first[j] for j in range(7)] for i in range(7)], dtype=float)
    np.testing.assert_allclose(covariance, expected / 5000**2, rtol=1e-9, atol=1e-9)
    assert covariance[3, 3] == 0


def test_features_are_scikit_learns_whitened_pca(pictures):
    data = pictures(300, 16)
    found = embed(data, "pixels", size=8, dim=10)
    peer = PCA(10, whiten=True, svd_solver="full").fit_transform(thumbnails(data.array, 8).astype(np.float64))
    # scikit-learn divides by N - 1, and the sign of a component is free
    peer *= np.sqrt(300 / 299) * np.sign((peer * found).sum(axis=0))
    np.testing.assert_allclose(found, peer, atol=2e-4)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(found.var(axis=0), 1, atol=1e-3)


def test_order_of_the_images_does_not_matter(pictures, make_pictures):
    data = pictures(80, 16)
    order = np.random.default_rng(1).permutation(80)
    np.testing.assert_array_equal(
        embed(make_pictures(data.array[order]), "pixels", batch_size=80), embed(data, "pixels", batch_size=80)[order]
    )


def test_fixed_subset_of_a_large_set(pictures, monkeypatch):
    """Beyond FIT_IMAGES the encoder learns from evenly spaced images, and then reads all. It says how many it learned
    from, where faiss subsamples in silence (defect 14)."""
    monkeypatch.setattr(module, "FIT_IMAGES", 20)
    data = pictures(50, 16)
    encoder = make_encoder("pixels", dim=5)
    features = embed(data, encoder)
    assert encoder.manifest()["fitted_on_images"] == 20
    assert data.read[:20] == [i * 50 // 20 for i in range(20)]
    assert data.read[20:] == list(range(50))
    assert features.shape == (50, 5)
    np.testing.assert_allclose(features[data.read[:20]].var(axis=0), 1, atol=1e-3)


def test_every_image_is_read_once_when_all_are_fitted_on(pictures):
    data = pictures(50, 16)
    embed(data, "pixels")
    assert data.read == list(range(50))


def test_held_images_give_the_same_features_as_read_ones(pictures):
    data = pictures(50, 16)
    encoder = make_encoder("pixels").fit(data)
    held = embed(data, encoder)
    encoder.release()
    np.testing.assert_array_equal(embed(data, encoder), held)


def test_other_data_with_a_fitted_encoder(pictures):
    encoder = make_encoder("pixels", dim=6).fit(pictures(50, 16))
    other = pictures(30, 32, seed=5)
    features = embed(other, encoder)
    assert features.shape == (30, 6)
    assert other.read == list(range(30))  # not taken for the data it was fitted on
    np.testing.assert_array_equal(features[:1], encoder(other.array[:1]))


def test_part_of_the_fitted_data_with_its_fingerprint(pictures, make_pictures):
    """Held images are those of one object only, whatever fingerprint another one shows."""
    data = pictures(50, 16)
    encoder = make_encoder("pixels").fit(data)
    part = make_pictures(data.array[10:20], fingerprint=data.fingerprint)
    np.testing.assert_array_equal(embed(part, encoder), encoder(data.array[10:20]))


def test_save_and_load(pictures, tmp_path):
    data = pictures(50, 16)
    encoder = make_encoder("pixels", size=6, dim=7).fit(data)
    encoder.save(tmp_path / "pixels.safetensors")
    loaded = make_encoder(f"pixels:{tmp_path / 'pixels.safetensors'}")
    assert loaded.manifest() == encoder.manifest()
    assert loaded.manifest()["weights"]
    np.testing.assert_array_equal(loaded(data.array), encoder(data.array))


@pytest.mark.parametrize("content", [b"", b"\x00" * 50, b'{"a": 1}'])
def test_load_of_something_else(tmp_path, content):
    (tmp_path / "p.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"p\.safetensors: is not a saved pixels encoder"):
        PixelsEncoder.load(tmp_path / "p.safetensors")
    with pytest.raises(InputError, match="no such file"):
        PixelsEncoder.load(tmp_path / "none")


def test_small_and_grey_images(make_pictures):
    grey = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 1), dtype=np.uint8).repeat(3, axis=3)
    features = embed(make_pictures(grey), "pixels")
    assert len(features) == 40
    assert 12 <= features.shape[1] <= 16  # 4 x 4 grey levels are all there is, and 99 % of their variance is kept
    assert np.isfinite(features).all()


def test_a_direction_in_which_hardly_any_image_differs_is_not_whitened(make_pictures):
    # 1 of 500 images has ink in a corner: with unit variance it would lie 22 deviations out and rule every distance
    images = np.random.default_rng(0).integers(0, 256, (500, 4, 4, 1), dtype=np.uint8).repeat(3, axis=3)
    images[:, 3, 3] = 0
    images[0, 3, 3] = 40
    features = embed(make_pictures(images), "pixels")
    assert np.abs(features).max() < 6


def test_fewer_images_than_components(pictures):
    assert embed(pictures(5, 16), "pixels").shape == (5, 4)


@pytest.mark.parametrize(
    ("images", "words"),
    [(np.full((4, 8, 8, 3), 9), "do not differ from each other"), (np.zeros((1, 8, 8, 3)), "too few images")],
)
def test_nothing_to_learn(make_pictures, images, words):
    with pytest.raises(InputError, match=words):
        embed(make_pictures(images), "pixels")


def test_not_fitted():
    encoder = make_encoder("pixels")
    with pytest.raises(InputError, match="not fitted yet"):
        encoder(np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(InputError, match="nothing to save"):
        encoder.save("x.safetensors")


@pytest.mark.parametrize(
    ("images", "error"),
    [
        (np.zeros((1, 8, 8, 3)), InputTypeError),
        (np.zeros((8, 8, 3), np.uint8), InputError),
        (np.zeros((1, 8, 9, 3), np.uint8), InputError),
        (np.zeros((1, 8, 8, 1), np.uint8), InputError),
    ],
)
def test_images_of_another_form(pictures, images, error):
    encoder = make_encoder("pixels").fit(pictures(10))
    with pytest.raises(error, match="images: must be"):
        encoder(images)


@pytest.mark.parametrize("options", [{"size": 0}, {"dim": 0}, {"dim": 2.5}, {"size": True}])
def test_bad_options(options):
    with pytest.raises(InputError, match="must be a whole number"):
        make_encoder("pixels", **options)
