"""Overfitting on the page: what training measured on held-out images, and the warning of an evaluation."""

import json

import numpy as np

from prunefast.evaluate import Evaluation
from prunefast.report.gather import Arm, Training
from prunefast.report.sections.outcome import metric_section, training_facts

HELD_OUT = {"images": 3072, "held_out_loss": 0.25, "held_out_gap": 0.05, "held_out_error": 0.01}


def facts(**held_out):
    return dict(training_facts(Training(np.arange(2.0), np.ones(2), {"images": 4000, "held_out": held_out})))


def test_the_last_measurement_is_told():
    shown = facts(**HELD_OUT, overfitting=None)
    assert shown["held-out loss"] == "0.25 after 3,072 images, 0.05 ± 0.01 above that on training images"
    assert "overfitting" not in shown
    assert facts(**HELD_OUT, overfitting="the loss is <high>")["overfitting"] == "suspected: the loss is <high>"
    for broken in ({}, {"held_out_loss": 0.25}, {**HELD_OUT, "images": "many"}):
        assert "held-out loss" not in facts(**broken)
    assert "held-out loss" not in dict(training_facts(Training(np.arange(2.0), np.ones(2), {"held_out": "rubbish"})))


def test_an_evaluation_that_suspects_it_warns_first():
    gap = {"training": 0.2, "held_out": 0.25, "gap": 0.05, "standard_error": 0.01, "relative": 0.25}
    metrics = {"denoising_gap": gap, "overfitting": {"suspected": True, "signs": ["x"]}, "vendi": 3.0}
    protocol = {"warnings": ["overfitting: x", "few samples"], "denoising_gap": {"checkpoint": "a" * 64, "draws": 8}}
    arm = Arm("", None, evaluation=Evaluation(json.loads(json.dumps(metrics)), protocol))
    section = metric_section(arm)
    rows = {row[0]: row[1] for row in section["rows"]}
    assert rows["overfitting"] == "suspected"
    assert rows["denoising gap"] == "0.050 ± 0.010"
    assert rows["Vendi score"] == "3"
    assert section["warnings"][0] == "overfitting: x"
    assert dict(section["protocol"])["denoising gap"] == f"checkpoint {'a' * 12}, draws 8"
