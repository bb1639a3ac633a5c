"""Bad arguments and bad input: one line naming the thing and the fix, the right exit status, nothing left behind."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from prunefast import pipeline
from prunefast.cli import COMMANDS, build_parser


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(prunefast, command: str) -> None:
    call = prunefast(command, "--help")
    assert call.status == 0
    assert call.out.startswith(f"usage: prunefast {command}")


def test_every_parser_builds() -> None:
    # argparse finds a flag declared twice only when the parser is built
    for command in COMMANDS:
        build_parser(command)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND"),
        (["selct", "run"], "invalid choice"),
        (["select", "RUN", "--kep", "0.3"], "--kep"),
        (["select", "RUN", "--keep", "much"], "--keep"),
        (["embed", "DATA"], "-o"),
        (["train"], "RUN"),
        (["train", "RUN", "--data", "DATA"], "RUN"),
        (["score", "nowhere"], "items.parquet"),
        (["sample", "nowhere", "-o", "x"], "nowhere"),
        (["report", "nowhere"], "nowhere"),
        (["embed", "nothing-here", "-o", "out"], "nothing-here"),
        (["run", "nothing-here", "-o", "out"], "nothing-here"),
        (["run", "DATA", "-o", "out", "--keep", "0"], "keep"),
        (["run", "DATA", "-o", "out", "--keep", "1.5"], "keep"),
        (["run", "DATA", "-o", "out", "--keep", "nan"], "keep"),
        (["run", "DATA", "-o", "out", "--keep", "0.3", "--keep-n", "5"], "--keep"),
        (["run", "DATA", "-o", "out", "--keep-n", "97"], "keep_n"),
        (["run", "DATA", "-o", "out", "--method", "magic"], "magic"),
        (["run", "DATA", "-o", "out", "--option", "ridge"], "KEY=VALUE"),
        (["run", "DATA", "-o", "out", "--option", "rigde=1"], "rigde"),
        (["run", "DATA", "-o", "out", "--encoder", "magic"], "magic"),
        (["run", "DATA", "-o", "out", "--model", "magic"], "magic"),
        (["run", "DATA", "-o", "out", "--set", "lrr=1"], "lrr"),
        (["run", "DATA", "-o", "out", "--config", "missing.toml"], "missing.toml"),
        (["run", "DATA", "-o", "out", "--preset", "magic"], "magic"),
        (["run", "DATA", "-o", "out", "--split", "magic"], "magic"),
        (["run", "DATA", "-o", "out", "--sampler", "magic"], "magic"),
        (["run", "DATA", "-o", "out", "--samples", "0"], "samples"),
        (["run", "DATA", "-o", "out", "--device", "warp"], "warp"),
    ],
)
def test_bad_arguments(
    prunefast, arguments: list[str], words: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call = prunefast(*[str(images) if word == "DATA" else word for word in arguments])
    assert call.status == 2
    assert call.error.startswith("prunefast")
    assert words in call.error
    assert not list(tmp_path.glob("out/train/checkpoint-*"))  # said before any training


def test_a_run_is_bound_to_its_data(prunefast, images: Path, tmp_path: Path) -> None:
    prunefast("embed", images, "-o", tmp_path / "run")
    other = tmp_path / "other.npy"
    np.save(other, np.zeros((5, 8, 8, 3), np.uint8))
    call = prunefast("embed", other, "-o", tmp_path / "run")
    assert call.status == 2
    assert "other.npy" in call.error
    assert "another -o folder" in call.error


def test_the_output_folder_is_a_file(prunefast, images: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    call = prunefast("embed", images, "-o", tmp_path / "taken")
    assert call.status == 2
    assert "taken" in call.error
    assert (tmp_path / "taken").read_text() == "a file"


@pytest.mark.parametrize(
    ("number", "status", "words"), [(errno.ENOSPC, 1, "no space"), (errno.EROFS, 2, "cannot be written")]
)
def test_a_disk_that_fails(
    prunefast, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, status: int, words: str
) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", fail)
    call = prunefast("embed", images, "-o", tmp_path / "run", "--quiet")
    assert call.status == status
    assert words in call.error
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file() and "tmp" in path.name]


def test_a_defect_is_one_line_without_debug(prunefast, images: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pipeline, "embed_run", lambda *_, **__: 1 / 0)
    call = prunefast("embed", images, "-o", tmp_path / "run", "--quiet")
    assert call.status == 1
    assert "internal error" in call.error
    assert "ZeroDivisionError" in call.error
    debug = prunefast("embed", images, "-o", tmp_path / "run", "--quiet", "--debug")
    assert "Traceback" in debug.err


def test_ctrl_c(prunefast, images: Path, tmp_path: Path, monkeypatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "embed_run", interrupt)
    call = prunefast("embed", images, "-o", tmp_path / "run", "--quiet")
    assert call.status == 130
    assert "goes on" in call.error
