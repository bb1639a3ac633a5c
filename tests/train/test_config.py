import dataclasses
import json
import math
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefast.errors import InputError, InputTypeError
from prunefast.models import PRESETS as MODELS
from prunefast.train import PRESETS, TrainConfig
from prunefast.train.config import _NOT_RECIPE, read_class_weights, recipe

FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid_and_survive_the_file(preset, tmp_path):
    config = TrainConfig.from_preset(preset, out=str(tmp_path), data="images")
    config.dump(tmp_path / "config.toml")
    assert TrainConfig.load(tmp_path / "config.toml") == config
    assert config.model in MODELS


@settings(max_examples=50, deadline=None)
@given(
    images=st.integers(1, 10**12),
    seed=st.integers(0, 2**64 - 1),
    lr=st.floats(0, 1e3),
    betas=st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)),
    max_seconds=st.none() | st.floats(1e-9, 1e9),
    class_weights=st.none() | st.lists(st.floats(0, 1), min_size=1).map(tuple) | st.just("weights.json"),
    conditional=st.sampled_from([True, False, "auto"]),
    text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    options=st.dictionaries(
        st.text(min_size=1, max_size=5), st.integers(-5, 5) | st.lists(st.integers(0, 3)), max_size=3
    ),
)
def test_any_configuration_survives_the_file(
    tmp_path_factory, images, seed, lr, betas, max_seconds, class_weights, conditional, text, options
):
    config = TrainConfig(
        out=text,
        images=images,
        seed=seed,
        lr=lr,
        betas=betas,
        max_seconds=max_seconds,
        class_weights=class_weights,
        class_conditional=conditional,
        model_options=options,
    )
    path = tmp_path_factory.mktemp("config") / "config.toml"
    config.dump(path)
    assert TrainConfig.load(path) == config
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_only_keys_whose_default_is_none_may_be_none():
    # TOML has no null: a key that is left out must come back as None
    optional = [name for name, field in FIELDS.items() if "None" in str(field.type)]
    assert optional
    assert all(FIELDS[name].default is None for name in optional)
    for name in set(FIELDS) - set(optional):
        with pytest.raises((InputError, InputTypeError), match=name):
            TrainConfig(**{"out": "run", "images": 1, name: None})


def test_frozen():
    config = TrainConfig(out="run", images=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.lr = 1.0
    assert config.replace(lr=0.5).lr == 0.5
    with pytest.raises(InputError, match="lr"):
        config.replace(lr=-1)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("images", 0),
        ("images", 1.5),
        ("images", True),
        ("max_seconds", 0.0),
        ("max_seconds", math.inf),
        ("batch_size", 0),
        ("batch_size", "many"),
        ("lr", -1e-4),
        ("lr", math.nan),
        ("lr", "fast"),
        ("label_drop", 1.0),
        ("dropout", 1.0),
        ("betas", (0.9,)),
        ("betas", (0.9, 1.0)),
        ("betas", "ab"),
        ("grad_clip", -1.0),
        ("precision", "fp16"),
        ("optimizer", "sgd"),
        ("placement", "moon"),
        ("flip", 1),
        ("class_conditional", "yes"),
        ("class_weights", (0.5, math.nan)),
        ("class_weights", 3),
        ("model_options", ["width"]),
        ("model_options", {"width": None}),
        ("seed", -1),
        ("seed", 2**64),
        ("out", ""),
        ("keep_checkpoints", 0),
        ("ema_half_life_images", -1),
        ("image_size", 0),
        ("threads", 0),
    ],
)
def test_bad_values_name_the_key(key, value):
    with pytest.raises((InputError, InputTypeError), match=rf"^{key}\b"):
        TrainConfig(**{"out": "run", "images": 1, key: value})


def test_unknown_keys_get_a_suggestion(tmp_path):
    with pytest.raises(InputError, match=r"unknown key 'batchsize'; did you mean 'batch_size'"):
        TrainConfig.from_dict({"out": "run", "images": 1, "batchsize": 3})
    path = tmp_path / "config.toml"
    path.write_text('out = "run"\nimages = 5\nwhatever = 1\n')
    with pytest.raises(InputError, match=r"config.toml: unknown key 'whatever'"):
        TrainConfig.load(path)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        TrainConfig.load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_bytes(b"\xff = [")
    with pytest.raises(InputError, match=r"bad\.toml"):
        TrainConfig.load(tmp_path / "bad.toml")
    with pytest.raises(InputError, match="out is missing"):
        TrainConfig.from_dict({"images": 5})
    with pytest.raises(InputError, match="preset 'cifar' does not exist"):
        TrainConfig.from_preset("cifar", out="run")


def test_some_length_is_needed():
    with pytest.raises(InputError, match="images: say how long"):
        TrainConfig(out="run")
    assert TrainConfig(out="run", max_seconds=5).max_seconds == 5.0


def test_recipe_holds_what_decides_the_numbers():
    assert set(FIELDS) >= _NOT_RECIPE
    base = TrainConfig(out="run", images=10)
    same = base.replace(
        out="b",
        images=99,
        max_seconds=3.0,
        device="cpu",
        threads=2,
        keep_checkpoints=7,
        status_every_images=7,
        data="elsewhere",
    )
    assert recipe(base, data="f") == recipe(same, data="f")
    for key, value in {
        "batch_size": 5,
        "seed": 1,
        "model_options": {"width": 4},
        "flip": False,
    }.items():
        assert recipe(base.replace(**{key: value})) != recipe(base), key
    assert recipe(base, data="f") != recipe(base, data="g")
    json.dumps(recipe(base, data="f"))


class TestClassWeights:
    def test_an_object_with_an_average(self):
        config = TrainConfig(out="run", images=1, class_weights=SimpleNamespace(average=[0.25, 0.75]))
        assert config.class_weights == (0.25, 0.75)
        assert read_class_weights(config.class_weights, ["a", "b"]) == [0.25, 0.75]

    @pytest.mark.parametrize(
        "content", [[0.25, 0.75], {"average": [0.25, 0.75], "history": []}, {"b": 0.75, "a": 0.25}]
    )
    def test_files(self, tmp_path, content):
        path = tmp_path / "class_weights.json"
        path.write_text(json.dumps(content))
        assert read_class_weights(str(path), ["a", "b"]) == [0.25, 0.75]

    @pytest.mark.parametrize(
        "content", [[1.0], {"a": 1.0}, {"a": 1, "b": 1, "c": 1}, ["x", "y"], [1, None], [-1, 2], [0, 0], 3]
    )
    def test_files_that_do_not_fit(self, tmp_path, content):
        path = tmp_path / "class_weights.json"
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match=r"class_weights\.json"):
            read_class_weights(str(path), ["a", "b"])

    def test_weights_of_other_classes(self, tmp_path):
        path = tmp_path / "class_weights.json"
        path.write_text(json.dumps({"average": [0.25, 0.75], "classes": ["b", "a"], "groups": "classes"}))
        assert read_class_weights(str(path), ["b", "a"]) == [0.25, 0.75]
        with pytest.raises(InputError, match="its classes are not those of the data"):
            read_class_weights(str(path), ["a", "b"])
        with pytest.raises(InputError, match="holds weights of classes; set class_weights_of"):
            read_class_weights(str(path), ["b", "a"], "clusters")

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(InputError, match="no such file"):
            read_class_weights(str(tmp_path / "none.json"), ["a"])
        assert read_class_weights(None, ["a"]) is None
