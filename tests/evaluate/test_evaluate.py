"""`evaluate` from images to numbers: what is measured, what the protocol says, and the failure paths."""

import json
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from prunefast.data import from_arrays, open_dataset
from prunefast.encode import embed, make_encoder
from prunefast.errors import InputError, InputTypeError, MissingDependencyError
from prunefast.evaluate import Evaluation, evaluate, frechet_distance
from prunefast.select import Coreset


def pictures(seed, count, size=8, brightness=0):
    """Smooth random images: a few colours bent into gradients, so that pixels correlate as in photographs."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, size=(count, 2, 2, 3)).astype(np.float64)
    ramp = np.linspace(0, 1, size)
    top = coarse[:, 0, :1] * (1 - ramp)[None, :, None] + coarse[:, 0, 1:] * ramp[None, :, None]
    bottom = coarse[:, 1, :1] * (1 - ramp)[None, :, None] + coarse[:, 1, 1:] * ramp[None, :, None]
    image = top[:, None] * (1 - ramp)[None, :, None, None] + bottom[:, None] * ramp[None, :, None, None]
    image += rng.normal(scale=6, size=image.shape) + brightness
    return np.clip(image, 0, 255).astype(np.uint8)


def flat(images):
    """An encoder with nothing to learn: the mean colour of each quadrant. float32 [B, 3, R, R] -> [B, 12]."""
    return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


@pytest.fixture
def reference():
    labels = np.arange(120) % 3
    return from_arrays(pictures(0, 120), labels=labels, classes=["cat", "dog", "fox"])


def write_samples(folder, images, labels=None, protocol=None, finished=True):
    names = ["cat", "dog", "fox"]
    for k, image in enumerate(images):
        place = folder if labels is None else folder / names[labels[k]]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{k:06d}.png")
    if protocol is not None:
        (folder / "samples.json").write_text(json.dumps({"protocol": protocol, "finished": finished}))


def test_numbers_are_those_of_the_features(reference):
    fake = pictures(1, 60, brightness=20)
    result = evaluate(fake, reference, encoder=flat, mean=0.0, std=1.0)
    encoder = make_encoder(flat, mean=0.0, std=1.0)
    expected = frechet_distance(encoder(fake), encoder(reference.images(np.arange(120))))
    assert result.metrics["frechet_distance"] == pytest.approx(expected, rel=1e-6)
    assert result.metrics["kid"] > 0
    assert 0 <= result.metrics["precision"] <= 1
    assert "memorisation" not in result.metrics  # nothing was said about training
    assert "class_counts" not in result.metrics  # an array has no classes


def test_the_reference_against_itself_is_perfect(reference):
    result = evaluate(reference, reference)
    assert result.metrics["frechet_distance"] == pytest.approx(0, abs=1e-8)
    assert result.metrics["precision"] == result.metrics["recall"] == 1.0
    worse = evaluate(pictures(2, 120, brightness=60), reference)
    assert worse.metrics["frechet_distance"] > 0.5


def test_pixels_are_fitted_on_the_reference_alone(reference):
    encoder = make_encoder("pixels").fit(reference)
    fake, other = pictures(3, 50, brightness=40), pictures(4, 50, brightness=-40)
    digests = {evaluate(x, reference).protocol["encoder"]["digest"] for x in (fake, other)}
    assert digests == {evaluate(fake, reference, encoder=encoder).protocol["encoder"]["digest"]}
    by_hand = frechet_distance(encoder(fake), encoder(reference.images(np.arange(120))))
    assert evaluate(fake, reference).metrics["frechet_distance"] == pytest.approx(by_hand, rel=1e-6)


def test_memorisation_is_against_the_coreset(reference):
    coreset = Coreset.from_indices(reference, np.arange(0, 120, 2))
    copies = reference.images(np.arange(0, 120, 2))[:40]
    result = evaluate(copies, reference, coreset=coreset)
    memory = result.metrics["memorisation"]
    assert memory["copied_share"] == 1.0
    assert memory["ratio_median"] == 0.0
    first = memory["closest"][0]
    assert first["distance"] == 0
    assert first["training_index"] % 2 == 0
    assert first["training"] == reference.keys[first["training_index"]]
    dropped = evaluate(reference.images(np.arange(1, 120, 2))[:40], reference, coreset=coreset).metrics["memorisation"]
    assert dropped["ratio_median"] is None  # d(s, H) = 0: the samples are the held-out images
    assert dropped["copied_share"] < 0.2


def test_memorisation_with_a_reference_of_other_images(reference):
    test_images = from_arrays(pictures(9, 80))
    coreset = Coreset.from_indices(reference, np.arange(60))
    with pytest.raises(InputError, match="training="):
        evaluate(pictures(1, 30), test_images, coreset=coreset)
    result = evaluate(pictures(1, 30), test_images, coreset=coreset, training=reference)
    assert result.protocol["memorisation"] == {"training_images": 60, "held_out_images": 60, "percentile": 1.0}
    assert result.protocol["reference"]["count"] == 80


def test_folder_with_classes_and_its_protocol(tmp_path, reference):
    labels = np.array([0] * 12 + [1] * 8)
    protocol = {"n": 20, "sampler": "ddim", "steps": 50, "guidance": 1.5, "ema": True, "seed": 7, "checkpoint": "abc"}
    write_samples(tmp_path / "samples", pictures(5, 20), labels, protocol)
    out = tmp_path / "run" / "metrics.json"
    result = evaluate(tmp_path / "samples", reference, out=out)
    assert result.metrics["class_counts"] == {"cat": 12, "dog": 8, "fox": 0}
    assert result.protocol["sampling"] == protocol
    stored = json.loads(out.read_text())
    assert stored == {"protocol": result.protocol, "metrics": result.metrics}
    assert Evaluation.load(out) == result
    text = str(result)
    for piece in (
        "Frechet distance",
        "samples 20",
        "120 images",
        "pixels",
        "ddim, 50 steps, guidance 1.5, EMA weights",
    ):
        assert piece in text
    assert reference.fingerprint[:12] in text
    assert list(out.parent.iterdir()) == [out]  # nothing temporary is left


def test_reference_by_path_takes_its_train_split(tmp_path):
    for split, seed in (("train", 0), ("test", 1)):
        for name in ("a", "b"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for k, image in enumerate(pictures(seed, 12)):
                Image.fromarray(image).save(folder / f"{k}.png")
    result = evaluate(pictures(2, 12), tmp_path / "data")
    assert (result.protocol["reference"]["split"], result.protocol["reference"]["count"]) == ("train", 24)


def test_other_sizes_are_resized_and_the_protocol_says_so(reference):
    result = evaluate(pictures(6, 20, size=16), reference)
    assert result.protocol["resized"] == "samples from 16 x 16 to the reference's 8 x 8"
    assert result.protocol["resized"] in str(result)
    assert evaluate(pictures(6, 20), reference).protocol["resized"] is None
    assert evaluate(pictures(6, 20, size=16), reference, image_size=16).protocol["image_size"] == 16


def test_few_images_are_warned_of_and_many_are_not():
    few = evaluate(pictures(1, 10), from_arrays(pictures(0, 2100)), encoder=flat)
    assert len(few.warnings) == 1
    assert "10 samples (fewer than 2,048 and no more than the 12 features)" in few.warnings[0]
    assert "warning: 10 samples" in str(few)
    assert (
        evaluate(pictures(1, 2100), from_arrays(pictures(0, 2100)), encoder=flat, metrics="frechet_distance").warnings
        == []
    )


def test_two_and_three_samples_give_what_they_can(reference):
    result = evaluate(pictures(1, 3), reference)
    assert "frechet_distance" in result.metrics
    assert "kid" not in result.metrics
    assert "precision" not in result.metrics
    assert sum("left out" in warning for warning in result.warnings) == 2


def test_n_is_a_seeded_draw(reference):
    fake = from_arrays(pictures(7, 50), labels=np.repeat([0, 1, 2], [20, 20, 10]), classes=["cat", "dog", "fox"])
    first, again, other = (evaluate(fake, reference, n=25, seed=s) for s in (0, 0, 1))
    assert first == again
    assert first.metrics["frechet_distance"] != other.metrics["frechet_distance"]
    assert sum(first.metrics["class_counts"].values()) == 25
    assert all(count > 0 for count in first.metrics["class_counts"].values())  # not the first of a sorted folder
    assert (first.protocol["sample_count"], first.protocol["samples_available"]) == (25, 50)


def test_reference_features_are_used_and_checked(reference):
    encoder = make_encoder("pixels").fit(reference)
    features = encoder(reference.images(np.arange(120)))
    fake = pictures(8, 40)
    plain = evaluate(fake, reference)
    given = evaluate(fake, reference, reference_features=features)
    assert given.metrics == pytest.approx(plain.metrics, rel=1e-5)
    with pytest.raises(InputError, match="are not what pixels gives"):
        evaluate(fake, reference, reference_features=features[:, ::-1])
    with pytest.raises(InputError, match="119 rows"):
        evaluate(fake, reference, reference_features=features[:-1])


def test_a_file_of_reference_features_is_taken_where_it_fits(reference, tmp_path, monkeypatch):
    embedded_anew = []

    def spy(data, encoder, **settings):
        embedded_anew.append(len(data))
        return embed(data, encoder, **settings)

    features = tmp_path / "features.npy"
    embed(reference, "pixels", out=features)
    fake = pictures(8, 40)
    plain = evaluate(fake, reference)
    monkeypatch.setattr(sys.modules["prunefast.evaluate.evaluate"], "embed", spy)
    given = evaluate(fake, reference, reference_features=features)
    assert given.metrics == pytest.approx(plain.metrics, rel=1e-5)
    assert embedded_anew == [40]
    for other in (tmp_path / "missing.npy", features):  # the second: made in other batches than are asked for
        embedded_anew.clear()
        again = evaluate(fake, reference, reference_features=other, batch_size=64)
        assert again.metrics == pytest.approx(plain.metrics, rel=1e-5)
        assert embedded_anew == [len(reference), 40]


def test_only_the_metrics_asked_for(reference):
    assert set(evaluate(pictures(1, 30), reference, metrics="kid").metrics) == {"kid", "kid_std"}
    assert set(evaluate(pictures(1, 30), reference, metrics=["precision_recall"]).metrics) == {"precision", "recall"}


@pytest.mark.parametrize(
    ("samples", "options", "error", "word"),
    [
        (pictures(0, 1), {}, InputError, "samples: 1 image"),
        (pictures(0, 20).astype(np.float32), {}, InputTypeError, "uint8"),
        (None, {}, InputTypeError, "samples: NoneType"),
        (pictures(0, 20), {"metrics": "fid"}, InputError, "'fid' is unknown"),
        (pictures(0, 20), {"metrics": []}, InputError, "metrics"),
        (pictures(0, 20), {"metrics": "memorisation"}, InputError, "coreset"),
        (pictures(0, 20), {"n": 1}, InputError, "n: 1"),
        (pictures(0, 20), {"n": 21}, InputError, "n: 21"),
        (pictures(0, 20), {"n": 2.5}, InputTypeError, "n: 2.5"),
        (pictures(0, 20), {"k": 0}, InputError, "k: 0"),
        (pictures(0, 20), {"encoder": "no-such"}, InputError, "no-such"),
        (pictures(0, 20), {"colour": 1}, InputError, "colour"),
        ("does/not/exist", {}, InputError, "does/not/exist"),
    ],
)
def test_bad_input(reference, samples, options, error, word):
    with pytest.raises(error, match=word):
        evaluate(samples, reference, **options)


def test_reference_of_several_sizes_needs_one(tmp_path):
    for k, size in enumerate((8, 12)):
        Image.fromarray(pictures(k, 1, size)[0]).save(tmp_path / f"{k}.png")
    with pytest.raises(InputError, match="image_size"):
        evaluate(pictures(0, 20), tmp_path)
    assert evaluate(pictures(0, 20), tmp_path, image_size=8).protocol["reference"]["count"] == 2


def test_nan_features_name_the_image(reference):
    def broken(images):
        features = flat(images)
        features[features.mean(dim=1) > 0.8] = float("nan")
        return features

    fake = pictures(0, 20)
    fake[13] = 255
    with pytest.raises(InputError, match="13"):
        evaluate(fake, reference, encoder=broken, mean=0.0, std=1.0)


def test_unfinished_samples_are_refused(tmp_path, reference):
    write_samples(tmp_path, pictures(5, 20), protocol={"n": 50}, finished=False)
    with pytest.raises(InputError, match=r"not finished \(20 of 50"):
        evaluate(tmp_path, reference)


def test_coreset_of_other_data_is_refused(tmp_path, reference):
    other = Coreset.full(from_arrays(pictures(3, 120)))
    other.save(tmp_path / "coreset.parquet")
    for coreset in (other, tmp_path / "coreset.parquet"):
        with pytest.raises(InputError, match="another data set"):
            evaluate(pictures(0, 20), reference, coreset=coreset)


def test_no_file_is_left_when_writing_fails(tmp_path, reference):
    (tmp_path / "run").write_text("a file in the folder's place")
    with pytest.raises(InputError, match="run"):
        evaluate(pictures(0, 20), reference, out=tmp_path / "run" / "metrics.json")


def test_metrics_file_of_something_else(tmp_path):
    path = tmp_path / "metrics.json"
    for text in ("[1, 2]", '{"metrics": 3, "protocol": {}}', "{", ""):
        path.write_text(text)
        with pytest.raises(InputError, match=r"metrics\.json"):
            Evaluation.load(path)


def test_inception_without_torch_fidelity_names_the_extra(monkeypatch, reference):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(MissingDependencyError, match=r"prunefast\[fid\]"):
        evaluate(pictures(0, 20), reference, metrics="inception")


class TestInception:
    """Against a stand-in with torch-fidelity's interface: what is handed over, and what comes back."""

    @pytest.fixture
    def calls(self, monkeypatch):
        calls = []

        def calculate_metrics(**options):
            for name in ("input1", "input2"):
                data = options[name]
                image = data[len(data) - 1]
                assert image.dtype == torch.uint8
                assert image.shape[0] == 3
                assert sum(1 for _ in data) == len(data)
            calls.append(options)
            return {
                "frechet_inception_distance": np.float64(12.5),
                "kernel_inception_distance_mean": np.float64(0.25),
                "kernel_inception_distance_std": np.float64(0.5),
            }

        module = types.ModuleType("torch_fidelity")
        module.calculate_metrics, module.__version__ = calculate_metrics, "0.4.0"
        monkeypatch.setitem(sys.modules, "torch_fidelity", module)
        return calls

    def test_numbers_and_protocol(self, calls, reference):
        result = evaluate(pictures(0, 20), reference, metrics="inception", n=10, seed=3)
        assert result.metrics == {"inception_frechet_distance": 12.5, "inception_kid": 0.25, "inception_kid_std": 0.5}
        assert result.protocol["inception"]["package"] == "torch-fidelity 0.4.0"
        assert "encoder" not in result.protocol
        assert (len(calls[0]["input1"]), len(calls[0]["input2"])) == (10, 120)
        assert (calls[0]["kid_subset_size"], calls[0]["rng_seed"], calls[0]["fid"]) == (5, 3, True)
        assert "FID (Inception)" in str(result)
        json.dumps(result.metrics)

    def test_images_arrive_as_they_are(self, calls, reference):
        fake = pictures(0, 20)
        evaluate(fake, reference, metrics="inception")
        for k in (0, 7, 19):
            np.testing.assert_array_equal(calls[0]["input1"][k].numpy().transpose(1, 2, 0), fake[k])

    def test_weights(self, calls, reference, tmp_path):
        with pytest.raises(InputError, match="inception_weights"):
            evaluate(pictures(0, 20), reference, metrics="inception", inception_weights=str(tmp_path / "none.pth"))
        torch.save({"a": torch.ones(2)}, tmp_path / "good.pth")
        evaluate(pictures(0, 20), reference, metrics="inception", inception_weights=str(tmp_path / "good.pth"))
        assert calls[0]["feature_extractor_weights_path"] == str(tmp_path / "good.pth")
        sys.modules["torch_fidelity"].calculate_metrics = lambda **_: (_ for _ in ()).throw(OSError("no network"))
        with pytest.raises(MissingDependencyError, match="inception_weights=FILE"):
            evaluate(pictures(0, 20), reference, metrics="inception")


class Bomb:
    def __reduce__(self):
        return (open, (str(Bomb.target), "w"))


@pytest.mark.parametrize("kind", ["code", "text", "empty"])
def test_inception_weights_that_carry_code_are_refused(monkeypatch, tmp_path, reference, kind):
    module = types.ModuleType("torch_fidelity")
    monkeypatch.setitem(sys.modules, "torch_fidelity", module)  # without calculate_metrics: it must not get that far
    Bomb.target = tmp_path / "exploded"
    path = tmp_path / "weights.pth"
    if kind == "code":
        torch.save({"a": Bomb()}, path)
    else:
        path.write_text("weights" if kind == "text" else "")
    with pytest.raises(InputError, match="not a file of torch weights"):
        evaluate(pictures(0, 20), reference, metrics="inception", inception_weights=str(path))
    assert not Bomb.target.exists()


def test_torch_fidelity_that_does_not_load(monkeypatch, reference):
    def broken(name):
        raise RuntimeError("operator torchvision::nms does not exist\nmore")

    monkeypatch.setattr("importlib.import_module", broken)
    with pytest.raises(MissingDependencyError, match=r"nms does not exist\); install it"):
        evaluate(pictures(0, 20), reference, metrics="inception")


def test_same_call_same_numbers_whatever_the_threads(reference):
    fake = pictures(1, 60)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(evaluate(fake, reference, threads=threads).metrics)
    finally:
        torch.set_num_threads(before)
    assert results[0] == pytest.approx(results[1], rel=1e-9)


def test_cifar_test_images_pass_for_good_samples(cifar_archive):
    train = open_dataset(cifar_archive, split="train")
    test = open_dataset(cifar_archive, split="test")
    some = np.arange(0, 10_000, 20)
    real, noise = test.images(some), np.random.default_rng(0).integers(0, 256, (500, 32, 32, 3), dtype=np.uint8)
    part = from_arrays(train.images(np.arange(0, 50_000, 25)))
    good, bad = evaluate(real, part), evaluate(noise, part)
    assert good.metrics["frechet_distance"] < 0.3 * bad.metrics["frechet_distance"]
    # noise averages to grey thumbnails, which lie close together: none covers a real image
    assert good.metrics["precision"] > 0.3
    assert good.metrics["recall"] > 0.3 > 0.05 > bad.metrics["recall"]
    assert abs(good.metrics["kid"]) < 3 * good.metrics["kid_std"]


def test_counts_are_of_classes_not_of_their_folders(tmp_path):
    classes = ["a/b", "a:b", "samples.json", "new\nline"]
    reference = from_arrays(pictures(0, 40), labels=np.arange(40) % 4, classes=classes)
    for number, folder in enumerate(["a_b", "a_b-1", "samples.json-2", "new_line"]):
        for k, image in enumerate(pictures(number, number + 1)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(image).save(tmp_path / folder / f"{k}.png")
    result = evaluate(tmp_path, reference, encoder=flat, metrics="class_counts")
    assert result.metrics["class_counts"] == dict(zip(classes, (1, 2, 3, 4), strict=True))


def test_the_place_of_the_numbers_is_checked_first(tmp_path, reference):
    calls = []
    with pytest.raises(InputError, match="is a folder"):
        evaluate(pictures(1, 8), reference, encoder=lambda images: calls.append(1), out=tmp_path)
    assert not calls
