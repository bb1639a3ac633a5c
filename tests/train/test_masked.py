"""Masked training in the loop: masks by position, the unmasked phase, exact resume, unmasked sampling."""

from pathlib import Path

import pytest
import torch

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


def test_mdt_trains_on_both_passes(data, make_config, monkeypatch):
    """The mean of the plain losses with the mask and without it, by hand; and a run in the loop, sampled from."""
    from prunefast.models import MDT
    from prunefast.train.setup import build_parts, make_plan, open_inputs

    options = {"model": "mdt-tiny/2", "model_options": {"depth": 3, "width": 16, "heads": 2, "decoder_depth": 1}}
    config = make_config(**options, mask_ratio=0.3, dropout=None)
    parts = build_parts(make_plan(config, *open_inputs(config, data, None)))
    with torch.no_grad():  # its output starts at zero
        for parameter in parts.model.parameters():
            parameter.add_(0.1)
    batch = next(iter(parts.loader))
    outputs = []
    parts.model.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    targets = []
    original = parts.step.loss.forward

    def forward(pred, *target, **options):
        targets.append((target, options))
        return original(pred, *target, **options)

    monkeypatch.setattr(parts.step.loss, "forward", forward)
    loss = parts.step(batch)
    assert len(outputs) == 2
    assert not torch.equal(outputs[0], outputs[1])
    expected = [original(output, *target, **extra) for output, (target, extra) in zip(outputs, targets, strict=True)]
    assert loss.item() == pytest.approx(sum(v.item() for v in expected) / 2)
    outputs.clear()
    parts.step(batch, masked=False)
    assert len(outputs) == 1

    seen = []
    plain = MDT.forward
    monkeypatch.setattr(
        MDT, "forward", lambda self, x, time, labels=None, visible=None: seen.append(visible is None)
        or plain(self, x, time, labels, visible),
    )  # fmt: skip
    train(config, data)
    assert seen.count(True) == seen.count(False) == 12
    assert sample(config.out, 2, steps=2).shape == (2, 8, 8, 3)
    with pytest.raises(InputError, match="mask_reconstruction: is MaskDiT's"):
        train(make_config(**options, mask_ratio=0.3, mask_reconstruction=0.1, dropout=None), data)
    with pytest.raises(InputError, match="patch_p: mdt-tiny/2 takes no coordinates"):
        train(make_config(**options, patch_p=0.5, dropout=None), data)
