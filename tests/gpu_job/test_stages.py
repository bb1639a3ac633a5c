"""What the stages do, in parts that need no GPU."""

import json

import numpy as np
import pytest
import torch
from gpu import checks, operators
from gpu.job import Job, Skip
from gpu.stages import check, micro, quality, throughput

from prunefast import ops

CPU = torch.device("cpu")


def test_micro_knows_how_many_cases_there_are():
    names = [case.name for case in operators.cases(rehearse=False)]
    assert len(names) == len(set(names)) == micro.CASES
    assert len(operators.cases(rehearse=True)) == micro.REHEARSAL_CASES


@pytest.mark.parametrize("number", range(micro.REHEARSAL_CASES))
def test_every_case_is_right_and_counts_its_bytes(number):
    case = operators.cases(rehearse=True)[number]
    inputs = case.make(CPU, operators.generator_of(CPU, 0))
    truth = case.truth(*inputs)
    for who, call in ({"prunefast": case.run} | case.ours).items():
        assert operators.accuracy(case, call, inputs, truth) <= case.tolerance, who
    assert operators.repeats(case, inputs)
    read = sum(t.numel() * t.element_size() for t in inputs if isinstance(t, torch.Tensor) and t.ndim == 4)
    assert case.bytes == 0 or case.bytes >= read  # what is read must be in the least traffic


def test_a_wrong_operator_is_found(job, monkeypatch):
    """Each of these slips must turn its check bad: a check that cannot fail proves nothing."""
    right = ops.denoising_loss

    def slip(pred, *arguments, **options):
        return right(pred * 1.001, *arguments, **options)

    monkeypatch.setattr(ops, "denoising_loss", slip)
    (row,) = check.against_float64(job, "denoising_loss")
    assert row["status"] == "bad"
    assert row["failures"]
    monkeypatch.undo()
    nearest = ops.nearest
    monkeypatch.setattr(ops, "nearest", lambda x, y, **k: (nearest(x, y, **k)[0].roll(1), nearest(x, y, **k)[1]))
    (row,) = check.against_float64(job, "nearest")
    assert row["status"] == "bad"


def test_an_error_that_is_no_number_is_bad(job, monkeypatch):
    monkeypatch.setitem(checks.CHECKS, "philox", lambda device, small: iter([("x", float("nan"), 1.0)]))
    (row,) = check.against_float64(job, "philox")
    assert row["status"] == "bad"


def test_reports_of_the_sanitizer_are_read():
    report = """========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 4 bytes
=========     at prunefast::loss_kernel(prunefast::LossPlan)+0x150
=========     Host Frame: launch_kernel
=========     at void at::native::other(int)+0x10
========= ERROR SUMMARY: 2 errors"""
    assert check.errors_in(report) == 2
    assert check.errors_in("========= ERROR SUMMARY: 0 errors") == 0
    assert check.errors_in("========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)") == 1
    assert check.ours_in(report) == ["at prunefast::loss_kernel(prunefast::LossPlan)+0x150"]


def test_verdicts_name_what_was_missed():
    case = operators.Case("x", None, None, None, 1.0, bytes=10**9, predicted={"of copy": 0.85, "over compile": 1.7})
    times = {"prunefast": 1.0, "compile": 1.5, "eager": 9.0}
    rows = list(micro.verdicts(case, times, {"copy": 1000.0, "product bf16": 1.0}))
    assert [(row["prediction"], row["met"]) for row in rows] == [("of copy", True), ("over compile", False)]
    assert rows[1]["measured"] == 1.5


def test_flop_of_the_cifar_network_are_those_counted_by_hand(job):
    """6.22 G multiply-adds forward, counted from the architecture of Ho et al. by hand."""
    found = throughput.forward_flop(Job(job.out, job.work, rehearse=False), "unet-cifar10", CPU)
    assert found == pytest.approx(2 * 6.22e9, rel=0.002)


# ---- quality


def test_arms_are_rows(job):
    arms = quality.read_arms(Job(job.out, job.work, arms=("A", "coreset-gaussian")))
    assert list(arms) == ["full-plain", "full-prunefast", "coreset-gaussian"]
    assert arms["full-plain"]["seconds"] == arms["full-prunefast"]["seconds"] == 180
    assert arms["coreset-gaussian"]["coreset"] == "gaussian"
    same = ("model", "model_options", "batch_size", "lr", "seed", "sampler_steps", "ema_half_life_images")
    for key in same:
        assert len({str(arm[key]) for arm in arms.values()}) == 1
    with pytest.raises(ValueError, match="there are: A, B"):
        quality.read_arms(Job(job.out, job.work, arms=("C3PO",)))


@pytest.mark.parametrize("group", ["A", "B"])
def test_a_group_fits_into_a_stage(job, group):
    units = quality.units(Job(job.out, job.work, arms=(group,)))
    assert sum(unit.seconds for unit in units) <= quality.LIMIT


def test_the_grid_has_a_row_a_class():
    labels = [k % 10 for k in range(95)]
    samples = torch.tensor(labels, dtype=torch.uint8)[:, None, None, None].expand(95, 3, 4, 4)
    picture = quality.grid(samples, labels)
    assert picture.shape == (40, 40, 3)
    assert (picture[:4, :36] == 0).all()
    assert (picture[36:, :36] == 9).all()
    assert (picture[36:, 36:] == 128).all()  # only nine of the last class


def test_weights_come_back_in_parts(job):
    """Ten million parameters in float16: two files, that give the weights back."""
    from safetensors.torch import load_file

    model = torch.nn.Sequential(*(torch.nn.Linear(1000, 1000, bias=False) for _ in range(10)))
    model.config = {"name": "test"}
    samples = torch.zeros(100, 3, 8, 8, dtype=torch.uint8)
    row = quality.artefacts(job, "arm", model, samples, [0] * 100)
    assert row["left_out"] == []
    assert len(row["files"]) == 3
    loaded = {}
    for name in row["files"][1:]:
        loaded |= load_file(f"{job.out}/{name}")
    assert loaded.keys() == model.state_dict().keys()
    assert all(torch.equal(loaded[k], v.half()) for k, v in model.state_dict().items())


def test_prepared_data_of_other_images_is_refused(job, tmp_path):
    archive, prepared = quality.rehearsal_data(job)
    other = tmp_path / "other.npz"
    np.savez(other, images=np.zeros((20, 32, 32, 3), np.uint8), labels=np.arange(20) % 10)
    with pytest.raises(Skip, match="made from other images"):
        quality.opened(Job(job.out, job.work, data=str(other), prepared=prepared))
    here = quality.opened(Job(job.out, job.work, data=archive, prepared=prepared, rehearse=True))
    images = torch.from_numpy(np.load(archive)["images"]).permute(0, 3, 1, 2)
    assert torch.equal(here["images"], images)
    counts = {name: len(t) for name, t in here["prepared"].items() if name.startswith("coreset.")}
    assert counts == {"coreset.random": 120, "coreset.gaussian": 120, "coreset.clusters": 120}
    assert json.loads(here["metadata"]["coresets"])["gaussian"]["options"] is not None


def test_plain_loop_continues_where_it_was(job):
    from gpu.plain import PlainLoop

    from prunefast.models import build_model

    def loop():
        torch.manual_seed(0)
        model = build_model("unet-tiny", image_size=16, num_classes=2)
        images = torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8)
        return PlainLoop(
            model,
            images,
            torch.arange(16) % 2,
            2,
            batch=8,
            lr=1e-3,
            warmup_images=8,
            half_life_images=8.0,
            compile=False,
        )

    first = loop()
    losses = [float(first.step()) for _ in range(3)]
    assert np.isfinite(losses).all()
    second = loop()
    second.load(first.state())
    assert second.trained == 24
    assert all(torch.equal(a, b) for a, b in zip(first.average, second.average, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first.average, first.model.parameters(), strict=True))
