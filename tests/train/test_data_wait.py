"""A slow disk shows, and so do images that could not be read."""

import io
import json
import time

import numpy as np
import pytest
from PIL import Image

from prunefast import progress
from prunefast.data import open_dataset
from prunefast.train import log, read_metrics, train


@pytest.fixture(autouse=True)
def _every_line(monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(log, "STATUS_SECONDS", 0.0)


class SlowSource:
    """24 images of 8 x 8; once open, a reading takes its time, and that of `broken` fails."""

    def __init__(self, seconds: float, broken: int | None = None):
        self.keys = [f"{k:02}" for k in range(24)]
        self.seconds, self.broken, self.opened = seconds, broken, False

    def read(self, item: int) -> bytes:
        if self.opened:
            time.sleep(self.seconds)
            if item == self.broken:
                raise OSError("the cable is out")
        pixels = np.random.default_rng(item).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()


def trained(source, make_config, **options):
    data = open_dataset(source)
    source.opened = True
    options = {"placement": "disk", "threads": 1, **options}
    return train(make_config(**options), data, progress=True)


@pytest.mark.parametrize("seconds", [0.03, 0.0])
def test_the_time_spent_waiting_for_images_is_told(make_config, capfd, seconds):
    result = trained(SlowSource(seconds), make_config)
    lines = read_metrics(result.folder / "metrics.jsonl")
    assert len(lines) == 4
    share = lines[-1]["data_wait"]
    assert 0 <= share <= 1
    assert "data_wait" in log.TIMING_KEYS
    if seconds:  # 8 images take 240 ms, a step a few; more on a machine that others use
        assert share > 0.1
        assert "waiting for data" in capfd.readouterr().err


def test_waiting_is_a_share_of_the_time_since_the_last_look(capfd):
    with log.Status(0, 100, None, show=True) as status:
        status.note(1.0, 10.0, 9.0)  # of before the first look nothing is known
        status.note(1.0, 12.0, 9.5)
        status.advance(50)
    assert "waiting for data 25%" in capfd.readouterr().err
    with log.Status(0, 100, None, show=True) as status:
        status.note(1.0, 10.0, 9.0)
        status.note(1.0, 20.0, 9.1)
        status.advance(50)
    assert "waiting" not in capfd.readouterr().err


def test_images_shown_in_the_place_of_others_are_counted_and_listed(make_config, capfd):
    with pytest.warns(UserWarning, match="the cable is out.*shown in its place"):
        result = trained(SlowSource(0.0, broken=5), make_config, on_unreadable="replace")
    assert "1 replaced" in capfd.readouterr().err
    (one,) = json.loads((result.folder / "replaced.json").read_text())
    assert one["key"] == "05"
    assert one["by"] in SlowSource(0).keys
    assert "the cable is out" in one["reason"]
