"""Masked training in the loop: masks by position, the unmasked phase, exact resume, unmasked sampling."""

from pathlib import Path

import pytest

from prunefast.errors import InputError
from prunefast.models import MaskedDiT
from prunefast.train import TIMING_KEYS, read_metrics, sample, train
from prunefast.train.state import WEIGHT_FILES, find_checkpoint

NETWORK = {"depth": 1, "width": 16, "heads": 2, "decoder_depth": 1, "decoder_width": 8, "decoder_heads": 2}


@pytest.fixture
def make_masked(make_config):
    def make(**values):
        options = {"model": "maskdit-tiny/2", "model_options": NETWORK, "dropout": None, "mask_ratio": 0.5}
        return make_config(**{**options, "mask_reconstruction": 0.1, **values})

    return make


def test_masked_then_unmasked(data, make_masked, monkeypatch, tmp_path):
    seen = []
    original = MaskedDiT.forward

    def forward(self, x, time, labels=None, visible=None):
        seen.append(None if visible is None else tuple(visible.shape))
        return original(self, x, time, labels, visible)

    monkeypatch.setattr(MaskedDiT, "forward", forward)
    straight = make_masked(mask_images=40, out=str(tmp_path / "straight"))
    train(straight, data)
    assert seen == [(8, 8)] * 5 + [None] * 7  # 16 tokens, half of them; 40 of 96 images

    stopped = make_masked(mask_images=40, out=str(tmp_path / "stopped"))
    train(stopped.replace(images=24), data)
    train(stopped.replace(images=64), data)
    train(stopped, data)
    lines = [
        [
            {k: v for k, v in r.items() if k not in TIMING_KEYS}
            for r in read_metrics(Path(c.out) / "train/metrics.jsonl")
        ]
        for c in (straight, stopped)
    ]
    assert lines[0] == lines[1]
    for name in WEIGHT_FILES:
        a, b = ((find_checkpoint(c.out)[0] / name).read_bytes() for c in (straight, stopped))
        assert a == b, name
    seen.clear()
    assert sample(straight.out, 2, steps=2).shape == (2, 8, 8, 3)
    assert set(seen) == {None}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "dit-tiny/2", "model_options": {}}, "mask_ratio: dit-tiny/2 takes no mask"),
        ({"learn_sigma": True}, "mask_ratio: does not go with learn_sigma"),
        ({"patch_p": 0.5}, "patch_p: maskdit-tiny/2 takes no coordinates"),
        ({"mask_ratio": 1.0}, "mask_ratio is 1; it must be at least 0 and below 1"),
    ],
)
def test_options_that_cannot_be(options, message, data, make_masked):
    with pytest.raises(InputError, match=message):
        train(make_masked(**options), data)
