import json

import numpy as np
import pytest
import torch

from prunefast.errors import InputError
from prunefast.train import log
from prunefast.train.log import Meter, MetricsLog, Status, read_metrics, recent_loss, significant


def feed(meter, losses, norms, bads):
    for loss, norm, bad in zip(losses, norms, bads, strict=True):
        meter.update(torch.tensor(loss), torch.tensor(norm), torch.tensor(float(bad)))


def test_meter_means_the_good_steps():
    generator = np.random.Generator(np.random.Philox(key=1))
    losses, norms = generator.random(50).astype(np.float32), generator.random(50).astype(np.float32)
    bads = generator.random(50) < 0.3
    meter = Meter(torch.device("cpu"))
    broken = np.where(bads, np.nan, losses).astype(np.float32)
    feed(meter, broken, np.where(bads, np.inf, norms).astype(np.float32), bads)
    read = meter.read()
    assert read["loss"] == pytest.approx(losses[~bads].mean(dtype=np.float64), rel=1e-12)
    assert read["grad_norm"] == pytest.approx(norms[~bads].mean(dtype=np.float64), rel=1e-12)
    assert (read["steps"], read["skipped"]) == (50, bads.sum())
    longest = max(len(run) for run in "".join("x" if bad else " " for bad in bads).split(" "))
    assert read["bad_in_a_row"] == longest


def test_meter_state_is_exact_through_json():
    meter, other = Meter(torch.device("cpu")), Meter(torch.device("cpu"))
    feed(meter, [0.1, 0.7, np.nan], [1.3, 0.2, 1.0], [0, 0, 1])
    other.load(json.loads(json.dumps(meter.state())))
    assert other.read() == meter.read()
    for one in (meter, other):
        feed(one, [0.3, np.nan], [1.0, 1.0], [0, 1])
    assert other.state() == meter.state()


def test_meter_rows_go_on_over_lines():
    meter = Meter(torch.device("cpu"))
    feed(meter, [np.nan] * 2, [1.0] * 2, [1, 1])
    meter.start_line()
    assert meter.read() == {"loss": None, "grad_norm": None, "steps": 0, "skipped": 0, "bad_in_a_row": 2}
    feed(meter, [np.nan, 1.0], [1.0, 1.0], [1, 0])
    assert meter.read()["bad_in_a_row"] == 3
    assert meter.read()["loss"] == 1.0


def test_significant():
    assert significant(None) is None
    assert significant(0.123456789) == 0.1234568
    assert significant(123456789.0) == 123456800.0
    assert significant(0.0) == 0.0


def test_metrics_are_cut_to_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsLog(path, 0)
    metrics.write({"images": 8, "loss": 0.5})
    offset = metrics.offset
    metrics.write({"images": 16, "loss": 0.25})
    metrics.sync()
    metrics.close()
    with open(path, "a") as file:
        file.write('{"images": 24, "lo')  # killed in the middle of a line
    assert [record["images"] for record in read_metrics(path)] == [8, 16]
    metrics = MetricsLog(path, offset)
    metrics.write({"images": 16, "loss": 0.125})
    metrics.close()
    assert read_metrics(path) == [{"images": 8, "loss": 0.5}, {"images": 16, "loss": 0.125}]
    assert metrics.offset == path.stat().st_size


def test_metrics_that_were_lost(tmp_path):
    with pytest.warns(UserWarning, match="lines are missing"):
        metrics = MetricsLog(tmp_path / "metrics.jsonl", 100)
    metrics.write({"images": 8})
    metrics.close()
    assert metrics.offset == (tmp_path / "metrics.jsonl").stat().st_size


def test_metrics_that_cannot_be_written(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(InputError, match=r"metrics\.jsonl: is a folder"):
        MetricsLog(tmp_path / "metrics.jsonl", 0)


def test_reading_other_files(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_metrics(tmp_path / "none.jsonl")
    (tmp_path / "bad.jsonl").write_text('{"a": 1}\nno\n{"a": 2}\n')
    with pytest.raises(InputError, match="line 2 is not JSON"):
        read_metrics(tmp_path / "bad.jsonl")


def test_recent_loss_weighs_by_steps():
    lines = [
        {"images": 800, "steps": 80, "loss": 9.0, "skipped": 0},
        {"images": 950, "steps": 95, "loss": 2.0, "skipped": 5},  # 10 good steps
        {"images": 1000, "steps": 100, "loss": 1.0, "skipped": 0},  # 5
    ]
    assert recent_loss(lines) == pytest.approx((10 * 2.0 + 5 * 1.0) / 15)
    assert recent_loss([]) is None
    assert recent_loss([{"images": 8, "steps": 1, "loss": None, "skipped": 1}]) is None
    assert recent_loss([{"images": 8, "steps": 1, "loss": 0.5, "skipped": 0}]) == 0.5


@pytest.mark.parametrize("limited", [True, False])
def test_the_status_line(limited, capfd, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    with Status(1_000, 3_000, 60.0 if limited else None, show=True) as status:
        assert status.due()
        status.note(0.123456, 20.0)
        assert not status.due()
        clock[0] = log.STATUS_SECONDS
        assert status.due()
        clock[0] = 20.0
        status.advance(500)
    line = capfd.readouterr().err
    expected = ("500 img", "0:40 left") if limited else ("500/2,000 img", "ETA 1:00")
    for part in ("train (on from 1,000): ", "25.0 img/s", "loss 0.1235", *expected):
        assert part in line
    assert ("ETA" in line) != limited


def test_no_status_line_where_none_is_wanted(capfd):
    with Status(0, 10, None, show=False) as status:
        assert not status.due()
        status.advance(10)
    assert capfd.readouterr() == ("", "")
