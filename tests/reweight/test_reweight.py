"""The proxy's run: against the formulas on its own networks, cut in every way, stopped and continued."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import prunefast as pf
from prunefast.data import from_arrays, open_dataset
from prunefast.errors import InputError, InputTypeError
from prunefast.ops import randn_philox, uniform_philox
from prunefast.ops.philox import Stream
from prunefast.reweight import ClassWeights, reweight
from prunefast.reweight.run import _ReweightRun
from prunefast.train import train
from prunefast.train.network import load_network


def same(one: ClassWeights, other: ClassWeights, rtol: float = 0.0) -> None:
    np.testing.assert_allclose(one.average, other.average, rtol=rtol, atol=0)
    np.testing.assert_array_equal(one.history["images"], other.history["images"])
    for name in ("weights", "average", "excess"):
        # an excess is a small difference of two losses: judged on the scale of the losses
        atol = 1e-6 if rtol and name == "excess" else 0
        np.testing.assert_allclose(one.history[name], other.history[name], rtol=rtol, atol=atol)


def test_a_proxy_equal_to_its_reference_leaves_the_weights_uniform(skewed, proxy, tmp_path):
    still = {"lr": 0.0, "seed": 0}  # the same first weights, and no step away from them
    pf.train(proxy("reference", **still), skewed)
    weights = reweight(proxy(**still), skewed, reference=tmp_path / "reference", step_size=1e3)
    np.testing.assert_allclose(weights.average, 1 / 3, rtol=1e-14)
    np.testing.assert_array_equal(weights.history["excess"][-1], 0)


def test_the_first_step_is_the_formula(skewed, proxy, reference):
    """Excess, weights and average after one step, from the two networks by hand."""
    config = proxy(lr=0.0, images=16, flip=False, label_drop=0.0)
    weights = reweight(config, skewed, reference=reference, step_size=30.0, smoothing=0.1, draw="shares")
    first, frozen = load_network(config.out + "/reweight", ema=False), load_network(reference)
    position = torch.arange(16)
    index = next(iter(pf.CoresetLoader(skewed, pf.Coreset.full(skewed), batch_size=16, seed=1))).index.numpy()
    x0 = torch.from_numpy(skewed.images(index)).permute(0, 3, 1, 2).double() / 127.5 - 1
    noise = randn_philox((16, 3, 8, 8), 1, position, Stream.NOISE).double()
    u = uniform_philox((16,), 1, position, Stream.TIME).double()
    time = (u * 1000).long()
    alpha_bar = torch.from_numpy(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))[time][:, None, None, None]
    x = (alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise).float()
    labels = torch.from_numpy(skewed.labels[index])
    with torch.no_grad():
        mine, theirs = (
            ((n.model(x, time.float(), labels).double() - noise) ** 2).mean((1, 2, 3)).numpy() for n in (first, frozen)
        )
    above = np.maximum(mine - theirs, 0)
    counts = np.bincount(labels, minlength=3)
    assert (counts > 0).sum() >= 2
    seen = counts > 0
    excess = np.bincount(labels, above, minlength=3) / np.maximum(counts, 1)
    rise = np.where(seen, excess, excess[seen].mean())
    risen = np.exp(30.0 * rise) / np.exp(30.0 * rise).sum()
    expected = 0.9 * risen + 0.1 / 3
    np.testing.assert_allclose(weights.history["excess"][-1][seen], excess[seen], rtol=1e-3)
    np.testing.assert_allclose(weights.history["weights"][-1], expected, rtol=1e-3)
    np.testing.assert_allclose(weights.average, (1 / 3 + expected) / 2, rtol=1e-3)


def test_gradient_accumulation_gives_the_same_weights(skewed, proxy, reference):
    whole = reweight(proxy("whole"), skewed, reference=reference, step_size=30.0)
    cut = reweight(proxy("cut"), skewed, reference=reference, step_size=30.0, micro_batch=4)
    assert np.ptp(whole.average) > 0.02  # they move
    same(whole, cut, rtol=1e-4)


RANKS = """
import json, sys
import torch
torch.set_num_threads(1)
import importlib.util
spec = importlib.util.spec_from_file_location("conftest", sys.argv[1])
made = importlib.util.module_from_spec(spec); spec.loader.exec_module(made)
from prunefast.reweight import reweight
from prunefast.train import TrainConfig
from prunefast.distributed import world
values = made.BASE | {"out": sys.argv[3], "seed": 1}
for images in (32, 64) if world().size == 2 else (64,):  # with 2, stopped and continued
    config = TrainConfig(**{**values, "images": images})
    w = reweight(config, made.build_skewed(), reference=sys.argv[2], step_size=30.0)
print(json.dumps([w.average.tolist(), w.history["weights"].tolist()]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_several_ranks_give_the_same_weights(skewed, proxy, reference, run_ranks, tmp_path, size):
    alone = reweight(proxy(), skewed, reference=reference, step_size=30.0)
    out = tmp_path / "ranks"
    found = run_ranks(RANKS, size, str(__file__).replace("test_reweight", "conftest"), reference, out, timeout=400)
    for average, history in found:
        np.testing.assert_allclose(average, alone.average, rtol=1e-4)
        np.testing.assert_allclose(history, alone.history["weights"], rtol=1e-4)
    np.testing.assert_allclose(ClassWeights.load(out / "class_weights.json").average, alone.average, rtol=1e-4)


def test_stopped_and_continued_it_ends_with_the_same_bits(skewed, proxy, reference, monkeypatch):
    whole = reweight(proxy("whole"), skewed, reference=reference, step_size=30.0)
    original, calls = _ReweightRun._one_step, [0]

    def one_step(self, batches):
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        original(self, batches)

    config = proxy("stopped", checkpoint_every_images=16)
    with monkeypatch.context() as patch:
        patch.setattr(_ReweightRun, "_one_step", one_step)
        with pytest.raises(KeyboardInterrupt):
            reweight(config, skewed, reference=reference, step_size=30.0)
    continued = reweight(config, skewed, reference=reference, step_size=30.0)
    same(whole, continued)
    monkeypatch.setattr(_ReweightRun, "_one_step", None)  # nothing is left to do
    same(whole, reweight(config, skewed, reference=reference, step_size=30.0))
    with pytest.raises(InputError, match=r"other options: reweight.step_size \(30.0, now 31.0\)"):
        reweight(config, skewed, reference=reference, step_size=31.0)


def test_the_network_is_trained_with_the_new_weights(skewed, proxy, reference):
    """A step size of zero is plain training on balanced draws; a large one leads elsewhere."""
    results = {}
    for step_size in (0.0, 300.0):
        config = proxy(f"step-{step_size:g}")
        weights = reweight(config, skewed, reference=reference, step_size=step_size)
        results[step_size] = load_network(config.out + "/reweight", ema=False).model.state_dict()
        assert (np.ptp(weights.average) < 1e-12) == (step_size == 0)
    plain = proxy("plain", class_weights=(1 / 3, 1 / 3, 1 / 3), class_weights_in="sampler")
    pf.train(plain, skewed)
    trained = load_network(plain.out, ema=False).model.state_dict()
    for name, tensor in trained.items():
        torch.testing.assert_close(results[0.0][name], tensor, rtol=1e-3, atol=1e-5)
    assert any((results[300.0][name] - tensor).abs().max() > 1e-4 for name, tensor in trained.items())


def test_start_and_draw(skewed, proxy, reference):
    weights = reweight(
        proxy(), skewed, reference=reference, start="shares", draw="shares", step_size=0.0, smoothing=0.0
    )
    np.testing.assert_allclose(weights.average, [40 / 60, 15 / 60, 5 / 60], rtol=1e-12)
    np.testing.assert_allclose(weights.history["weights"][0], [40 / 60, 15 / 60, 5 / 60], rtol=1e-12)


def test_clusters_and_own_groups_on_unlabelled_data(skewed, proxy, tmp_path):
    plain = from_arrays(skewed.images(np.arange(60)))
    pf.train(proxy("reference", images=160), plain)
    clusters = np.arange(60) % 2
    coreset = pf.Coreset.from_indices(plain, np.arange(40), clusters=clusters)
    one = reweight(proxy("one"), plain, coreset, reference=tmp_path / "reference", groups="clusters", step_size=9.0)
    two = reweight(proxy("two"), plain, coreset, reference=tmp_path / "reference", groups=clusters, step_size=9.0)
    assert (one.groups, one.classes, two.groups) == ("clusters", ["cluster 0", "cluster 1"], "own")
    same(one, two)
    # and the trainer takes them: both places, from the object and from the file
    for place, weights in (("loss", one), ("sampler", tmp_path / "one" / "class_weights.json")):
        config = proxy(f"train-{place}", class_weights=weights, class_weights_in=place, class_weights_of="clusters")
        assert pf.train(config, plain, coreset).images == 64
    with pytest.raises(InputError, match="holds weights of clusters; set class_weights_of"):
        pf.train(proxy("x", class_weights=str(tmp_path / "one" / "class_weights.json")), skewed)
    with pytest.raises(InputError, match="class_weights_of: the coreset has no clusters"):
        pf.train(proxy("x", class_weights=one), plain)
    with pytest.raises(InputError, match="class_weights_of is 'own'"):
        proxy("x", class_weights=two)


def test_the_file_gives_the_object_back(skewed, proxy, reference, tmp_path):
    weights = reweight(proxy(), skewed, reference=reference, step_size=3.0)
    path = tmp_path / "proxy" / "class_weights.json"
    read = ClassWeights.load(path)
    same(weights, read)
    assert (read.classes, read.groups) == (["flat", "mild", "wild"], "classes")
    assert read.manifest["step_size"] == 3.0
    assert len(read.summary().splitlines()) == 3
    strict = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))  # no NaN in the file
    assert strict["average"] == weights.average.tolist()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format_version": 1}', '{"format_version": 99}', None])
def test_a_broken_file_is_one_line(tmp_path, text):
    path = tmp_path / "class_weights.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=r"class_weights\.json") as caught:
        ClassWeights.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "options", "kind", "said"),
    [
        ({}, {"step_size": -1.0}, InputError, "step_size is -1"),
        ({}, {"step_size": float("nan")}, InputError, "step_size is nan"),
        ({}, {"step_size": "big"}, InputTypeError, "step_size is 'big'"),
        ({}, {"smoothing": 1.5}, InputError, "smoothing is 1.5; it must be at least 0 and at most 1"),
        ({}, {"start": "end"}, InputError, "start is 'end'"),
        ({}, {"draw": 3}, InputError, "draw is 3"),
        ({}, {"micro_batch": 0}, InputError, "micro_batch is 0"),
        ({}, {"micro_batch": 5}, InputError, "batch_size is 16: must be a multiple"),
        ({}, {"eta": 1}, InputError, "eta: reweight has no such option"),
        ({}, {"groups": "colours"}, InputError, "groups: 'colours' is neither"),
        ({}, {"groups": "clusters"}, InputError, "the coreset has no clusters"),
        ({}, {"groups": np.zeros(60, int)}, InputError, "there is one group only"),
        ({}, {"groups": np.zeros(59, int)}, InputError, "groups: 59 of them for 60"),
        ({}, {"groups": np.arange(60) * 2}, InputError, "no image of 'group 1'"),
        ({}, {"groups": np.zeros(60)}, InputTypeError, "groups: must be integers"),
        ({"process": "flow"}, {}, InputError, "process: the reference"),
        ({"prediction": "v"}, {}, InputError, "prediction: the reference"),
        ({"class_weights": (0.2, 0.3, 0.5)}, {}, InputError, "class_weights: the proxy finds them"),
        ({"class_conditional": False}, {}, InputError, "class_conditional: the reference is told"),
    ],
)
def test_bad_input_is_said_before_any_work(skewed, proxy, reference, tmp_path, values, options, kind, said):
    with pytest.raises(kind, match=said) as caught:
        reweight(proxy(**values), skewed, reference=reference, **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "proxy").exists()


def test_a_reference_of_other_images_or_classes(skewed, proxy, reference, tmp_path):
    with pytest.raises(InputError, match="there is no checkpoint"):
        reweight(proxy(), skewed, reference=tmp_path / "nothing")
    images = skewed.images(np.arange(60))
    renamed = from_arrays(images, skewed.labels, classes=["x", "y", "z"])
    with pytest.raises(InputError, match=r"reference: .* was trained on other classes"):
        reweight(proxy(), renamed, reference=reference)
    larger = from_arrays(np.repeat(np.repeat(images, 2, 1), 2, 2), skewed.labels, classes=skewed.classes)
    with pytest.raises(InputError, match="was trained on images of 8 x 8, the data gives 16"):
        reweight(proxy(), larger, reference=reference)


@pytest.mark.parametrize("values", [{"learn_sigma": True}, {"patch_p": 0.5, "patch_levels": 2}], ids=str)
def test_a_reference_that_is_no_plain_network(skewed, proxy, tmp_path, values):
    train(proxy("base", images=16, **values), skewed)
    with pytest.raises(InputError, match=f"reference: .* was trained with {next(iter(values))}"):
        reweight(proxy(), skewed, reference=tmp_path / "base")
    with pytest.raises(InputError, match=f"checkpoint: .* was trained with {next(iter(values))}"):
        pf.score(data=skewed, checkpoint=tmp_path / "base", method="grand")
    assert not (tmp_path / "proxy").exists()


def test_moso_of_a_network_with_weights_that_are_not_always_used(skewed, proxy, tmp_path):
    network = {"model": "maskdit-tiny/2", "model_options": {"depth": 2, "width": 32, "heads": 2}, "mask_ratio": 0.5}
    train(proxy("base", images=16, **network), skewed)
    assert np.isfinite(pf.score(data=skewed, checkpoint=tmp_path / "base", method="moso")).all()


EDM = {"model": "edm-ddpmpp", "process": "edm", "images": 32, "dropout": 0.0}
EDM_NETWORK = {"width": 8, "channel_multipliers": [1, 2], "blocks": 1, "attention_levels": []}


@pytest.mark.parametrize("told", [0, 2])
def test_networks_that_are_told_of_mirroring(skewed, proxy, tmp_path, told):
    """The proxy is, by 9 numbers; its reference by 2 or not at all."""
    base = proxy("base", **EDM, model_options={**EDM_NETWORK, "augment_labels": told})
    train(base, skewed)
    config = proxy("told", **EDM, model_options=EDM_NETWORK)
    weights = reweight(config, skewed, reference=base.out)
    assert np.isfinite(weights.history["excess"][-1]).all()
    summary = json.loads((tmp_path / "told" / "reweight" / "summary.json").read_text())
    assert summary["pixels"] == 32 * 8 * 8


def test_an_unreadable_image_is_replaced_here_too(proxy, tmp_path):
    for k in range(24):
        folder = tmp_path / "images" / f"class{k % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{k}.png")
    data = open_dataset(tmp_path / "images")
    train(proxy("base", images=16), data)
    (tmp_path / "images" / data.keys[3]).unlink()
    with pytest.raises(InputError, match=data.keys[3]):
        reweight(proxy(), data, reference=tmp_path / "base")
    with pytest.warns(UserWarning, match="is shown in its place"):
        reweight(proxy(on_unreadable="replace"), data, reference=tmp_path / "base")
