import json
from pathlib import Path

import numpy as np
import pytest

from prunefast.cli import main


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """96 images of 8 x 8 in three classes of very different mean colour, as an .npz."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 32)
    pixels = 40 + 70 * labels[:, None, None, None] + rng.integers(-30, 30, (96, 8, 8, 3))
    path = tmp_path / "images.npz"
    np.savez(path, images=pixels.astype(np.uint8), labels=labels)
    return path


class Call:
    """What one call of the command line returned and printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: object):
        try:
            self.status = main([str(argument) for argument in arguments])
        except SystemExit as end:  # argparse leaves this way
            self.status = int(end.code or 0)
        captured = capsys.readouterr()
        self.out, self.err = captured.out, captured.err

    @property
    def facts(self) -> dict:
        return json.loads(self.out.splitlines()[-1])

    @property
    def error(self) -> str:
        """The one line of an error: any other line, or a traceback, fails the test."""
        lines = [line for line in self.err.splitlines() if not line.startswith("note: ")]
        assert len(lines) == 1, self.err
        return lines[0]


@pytest.fixture
def prunefast(capsys: pytest.CaptureFixture[str]):
    """prunefast("select", run, "--keep", 0.5) -> Call"""
    return lambda *arguments: Call(capsys, *arguments)
