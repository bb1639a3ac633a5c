"""Event files as TensorBoard reads them; runs of Weights & Biases by a stand-in for the package."""

import json
import struct
import sys
import types
import zlib
from pathlib import Path

import numpy as np
import pytest

from prunefast.errors import MissingDependencyError
from prunefast.train import read_metrics, train
from prunefast.train.events import EVENTS_FILE, EventFile, _checksum

LINES = [
    {"images": 300 * k, "steps": k, "loss": 1.0 / k, "lr": 1e-4, "grad_norm": None, "seconds": 2.0 * k}
    for k in range(1, 5)
]


def fields(content: bytes):
    """(number, value) of a protocol-buffer message, after its encoding's description."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = content[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(content):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            yield number, varint()
            continue
        size = {1: 8, 5: 4}[kind] if kind != 2 else varint()
        yield number, content[at : at + size]
        at += size


def read(path: Path) -> list[tuple[int, dict[str, float]]]:
    """(step, scalars) of an event file, its framing checked."""
    content, at, found = path.read_bytes(), 0, []
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        assert content[at + 8 : at + 12] == _checksum(content[at : at + 8])
        event = content[at + 12 : at + 12 + length]
        assert content[at + 12 + length : at + 16 + length] == _checksum(event)
        at += 16 + length
        event_fields = dict(fields(event))
        if 5 in event_fields:
            values = [dict(fields(value)) for _, value in fields(event_fields[5])]
            found.append((event_fields[2], {v[1].decode(): struct.unpack("<f", v[2])[0] for v in values}))
    return found


def test_the_checksum_is_crc32c_masked():
    def unmask(content):
        value = (struct.unpack("<I", _checksum(content))[0] - 0xA282EAD8) & 0xFFFFFFFF
        return (value >> 17 | value << 15) & 0xFFFFFFFF

    assert unmask(b"123456789") == 0xE3069283  # the check value of CRC-32C; that of zlib's CRC-32 is another
    assert unmask(b"\0" * 32) == 0x8A9136AA  # RFC 3720, B.4
    assert zlib.crc32(b"123456789") != 0xE3069283


def test_what_is_written_is_read(tmp_path):
    file = EventFile(tmp_path / EVENTS_FILE, LINES[:2])
    for line in LINES[2:]:
        file.write(line)
    file.close()
    found = read(tmp_path / EVENTS_FILE)
    assert [step for step, _ in found] == [300, 600, 900, 1200]
    assert found[3][1] == {
        "train/steps": 4.0,
        "train/loss": 0.25,
        "train/lr": pytest.approx(1e-4),
        "train/seconds": 8.0,
    }


def test_tensorboard_reads_it(tmp_path):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    file = EventFile(tmp_path / EVENTS_FILE, LINES[:1])
    for line in LINES[1:]:
        file.write(line)
    file.close()
    read_by = loader.EventAccumulator(str(tmp_path))
    read_by.Reload()
    losses = read_by.Scalars("train/loss")
    assert [event.step for event in losses] == [300, 600, 900, 1200]
    np.testing.assert_allclose([event.value for event in losses], [1, 1 / 2, 1 / 3, 1 / 4], rtol=1e-6)
    assert losses[3].wall_time - losses[0].wall_time == pytest.approx(6.0, abs=1e-3)


def test_a_run_that_goes_on_has_every_step_once(make_config, data):
    """The second call cuts off the last, short interval of the first and completes it."""
    config = make_config(images=40)
    folder = train(config, data).folder
    before = [step for step, _ in read(folder / EVENTS_FILE)]
    train(config.replace(images=96), data)
    lines = read_metrics(folder / "metrics.jsonl")
    found = read(folder / EVENTS_FILE)
    assert [step for step, _ in found] == [line["images"] for line in lines] == [24, 48, 72, 96]
    assert before == [24, 40]
    np.testing.assert_allclose([v["train/loss"] for _, v in found], [line["loss"] for line in lines], rtol=1e-6)


class FakeWandb(types.ModuleType):
    def __init__(self):
        super().__init__("wandb")
        self.runs: dict[str, dict] = {}
        self.calls: list[dict] = []

    def init(self, **options):
        self.calls.append(options)
        lines = self.runs.setdefault(options["id"], {})
        run = types.SimpleNamespace(step=max(lines, default=0), finish=lambda: None)
        run.log = lambda values, step: lines.__setitem__(step, values)
        return run


def test_weights_and_biases_goes_on_with_its_run(make_config, data, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = make_config(images=48, wandb="coresets")
    folder = train(config, data).folder
    train(config.replace(images=96), data)
    assert len(fake.runs) == 1
    assert [call["project"] for call in fake.calls] == ["coresets"] * 2
    assert {call["resume"] for call in fake.calls} == {"allow"}
    (lines,) = fake.runs.values()
    assert list(lines) == [24, 48, 72, 96]
    assert json.loads((folder / "wandb.json").read_text())["id"] in fake.runs


def test_without_the_package_nothing_is_begun(make_config, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = make_config(wandb="coresets")
    with pytest.raises(MissingDependencyError, match="pip install wandb"):
        train(config, data)
    assert not Path(config.out).exists()
