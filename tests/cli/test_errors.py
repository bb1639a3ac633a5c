"""Bad arguments and bad input: one line naming the thing and the fix, the right exit status, nothing left behind."""

import argparse
import errno
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from prunefast import pipeline
from prunefast.cli import COMMANDS, build_parser, common
from prunefast.files import TEMPORARY_PREFIX, lock_folder


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
        (["run", "DATA", "-o", "out", "--keep-n", "97"], "--keep-n"),
        (["train", "--data", "DATA", "-o", "out", "--lr", "-1"], "error: --lr is -1"),
        (["train", "--data", "DATA", "-o", "out", "--set", "lr=-1"], "error: lr is -1"),
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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--keep", "0"], "keep"),
        (["--keep", "nan"], "keep"),
        (["--keep", "1e-9"], "keep_n=1"),
        (["--keep-n", "97"], "--keep-n"),
        (["--method", "magic"], "magic"),
        (["--method", "top"], "top"),
        (["--option", "data=3"], "data"),
        (["--option", "seed=3"], "seed"),
        (["--option", "keep=0.3"], "keep"),
        (["--method", "clusters", "--threshold", "1"], "threshold"),
        (["--image-size", "7", "--model", "unet-tiny"], "--image-size"),
        (["--set", "out='elsewhere'"], "--set out"),
        (["--set", "class_weights=[1,2,3,4]"], "class_weights"),
        (["--steps", "0"], "--steps"),
        (["--steps", "1001", "--process", "ddpm-linear"], "steps"),
        (["--guidance", "nan"], "guidance"),
        (["--sample-seed", "-1"], "--sample-seed"),
        (["--sample-batch", "0"], "--sample-batch"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_run_says_what_is_wrong_before_any_work(
    prunefast, images: Path, tmp_path: Path, arguments: list[str], words: str, dry: list[str]
) -> None:
    call = prunefast("run", images, "-o", tmp_path / "out", "--quiet", *arguments, *dry)
    assert call.status == 2
    assert words in call.error
    assert not (tmp_path / "out" / "features.npy").exists()


@pytest.mark.parametrize("name", ["data", "seed", "method", "features", "must_keep"])
@pytest.mark.parametrize("command", ["score", "select"])
def test_an_option_is_one_of_the_method(prunefast, images: Path, tmp_path: Path, command: str, name: str) -> None:
    prunefast("embed", images, "-o", tmp_path / "run", "--quiet")
    call = prunefast(command, tmp_path / "run", "--option", f"{name}=3")
    assert call.status == 2
    assert f"{name}: method 'gaussian' has no such option" in call.error


def test_data_that_was_repaired(prunefast, images: Path, tmp_path: Path) -> None:
    from PIL import Image

    for name, image in zip("abcd", np.load(images)["images"], strict=False):
        (tmp_path / "data" / "x").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "data" / "x" / f"{name}.png")
    broken = tmp_path / "data" / "x" / "c.png"
    broken.write_bytes(broken.read_bytes()[:60])
    command = ("embed", tmp_path / "data", "-o", tmp_path / "run", "--quiet")
    first = prunefast(*command)
    assert first.status == 2
    assert "c.png" in first.error
    assert "--on-error skip" in first.error
    broken.unlink()
    assert prunefast(*command).status == 0
    (tmp_path / "data" / "x" / "d.png").unlink()
    again = prunefast(*command)  # there are features now: they bind the run to their data
    assert again.status == 2
    assert "new run folder" in again.error


def test_a_broken_image_may_be_set_aside_afterwards(prunefast, images: Path, tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "data").mkdir()
    for name, image in zip("abc", np.load(images)["images"], strict=False):
        Image.fromarray(image).save(tmp_path / "data" / f"{name}.png")
    broken = tmp_path / "data" / "c.png"
    broken.write_bytes(broken.read_bytes()[:60])
    command = ("embed", tmp_path / "data", "-o", tmp_path / "run", "--json")
    assert prunefast(*command).status == 2
    assert prunefast(*command, "--on-error", "skip").facts["images"] == 2


def test_nothing_comes_of_nothing(prunefast, tmp_path: Path) -> None:
    for command in (("run", tmp_path / "none", "-o", tmp_path / "out"), ("score", tmp_path / "out")):
        assert prunefast(*command).status == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["run", "embed", "score", "select"])
def test_one_process_at_a_time(prunefast, images: Path, tmp_path: Path, command: str) -> None:
    run = tmp_path / "run"
    prunefast("embed", images, "-o", run, "--quiet")
    half = run / f"{TEMPORARY_PREFIX}of-the-other"
    half.write_text("")
    with lock_folder(run, "working"):
        call = prunefast(command, *([images, "-o", run] if command in ("run", "embed") else [run]), "--quiet")
    assert call.status == 2
    assert "another process is working there" in call.error
    assert half.exists()
    assert prunefast("score", run, "--quiet").status == 0
    assert not half.exists()  # nobody's now


def test_sigterm_is_an_interrupt(prunefast, images: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pipeline, "embed_run", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    call = prunefast("embed", images, "-o", tmp_path / "run", "--quiet")
    assert call.status == 130
    assert "SIGTERM" in call.error
    assert "goes on" in call.error
    assert signal.getsignal(signal.SIGTERM) == before


def test_ctrl_c_during_an_import(prunefast, images: Path, tmp_path: Path, monkeypatch) -> None:
    def wrapped(*_: object, **__: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise RuntimeError("Error calling __set_name__") from error

    monkeypatch.setattr(pipeline, "embed_run", wrapped)
    call = prunefast("embed", images, "-o", tmp_path / "run", "--quiet")
    assert call.status == 130
    assert "internal" not in call.error


def test_an_argument_of_several_lines(prunefast) -> None:
    assert "one two" in prunefast("doctor", "one\ntwo").error


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    assert common.finish(argparse.Namespace(json=True), {"loss": float("nan"), "path": Path("x")}) == 0
    assert capsys.readouterr().out == '{"loss": null, "path": "x"}\n'


def test_a_label_that_looks_like_a_number(prunefast, images: Path, tmp_path: Path) -> None:
    training = ("--model", "unet-tiny", "--images", 16, "--batch-size", 8, "--quiet")
    assert prunefast("train", "--data", images, "-o", tmp_path / "run", *training).status == 0
    call = prunefast("sample", tmp_path / "run", "-o", tmp_path / "s", "--label", "\u00b2")
    assert call.status == 2
    assert "no class" in call.error


def test_a_report_needs_no_images(prunefast, images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    prunefast("embed", images, "-o", run, "--quiet")
    prunefast("select", run, "--quiet")
    images.unlink()
    call = prunefast("report", run)
    assert call.status == 0, call.err
    assert "images.npz: no such file" in (run / "report.html").read_text()


@pytest.mark.parametrize("command", [("score",), ("select", "--method", "clusters")])
def test_features_that_are_not_finite(prunefast, images: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    run = tmp_path / "run"
    prunefast("embed", images, "-o", run, "--quiet")
    features = np.load(run / "features.npy")
    features[3, 0] = np.nan
    np.save(run / "features.npy", features)
    call = prunefast(command[0], run, *command[1:])
    assert call.status == 2
    assert "features.npy: NaN or infinity in row 3; delete the file and embed again" in call.error
    (run / "features.npy").unlink()
    assert prunefast("embed", images, "-o", run, "--quiet").status == 0
    assert prunefast(command[0], run, *command[1:]).status == 0
