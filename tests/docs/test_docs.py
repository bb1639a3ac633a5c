"""The pages are true: their Python runs, their links lead somewhere, their command lines parse, no name is left out."""

import argparse
import re
import shlex
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import prunefast
from prunefast.cli import COMMANDS, build_parser, main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHARED_FLAGS = {"--help", "--version"}

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="the documentation is not beside the tests")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def fences(page: Path) -> Iterator[tuple[str, int, str]]:
    """(info string, number of the first line inside, text) of every fenced block."""
    info, start, inside = "", 0, []
    open_fence = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            if open_fence:
                yield info, start, "\n".join(inside) + "\n"
            open_fence = not open_fence
            info, start, inside = line[3:].strip(), number + 1, []
        elif open_fence:
            inside.append(line)
    assert not open_fence, f"{name_of(page)}: a fence is not closed"


def outside_fences(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


# --- Python blocks ---


def python_blocks(page: Path) -> list[tuple[int, str]]:
    """Blocks to run. ```python no-run REASON is not run, and has to say why."""
    blocks = []
    for info, start, text in fences(page):
        words = info.split()
        if words[:2] == ["python", "no-run"]:
            assert len(words) > 2, f"{name_of(page)}:{start}: say why this block is not run"
        elif words[:1] == ["python"]:
            assert len(words) == 1, f"{name_of(page)}:{start}: unknown word in the fence: {info}"
            blocks.append((start, text))
    return blocks


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages speak of: photos.npz, the folder photos/ and a small finished run/."""
    folder = tmp_path_factory.mktemp("pages")
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 80)
    ramp = np.linspace(0, 60, 16)
    pixels = 30 + 60 * labels[:, None, None, None] + ramp[None, :, None, None] * rng.random((240, 1, 1, 3))
    pixels = (pixels + rng.integers(-25, 25, (240, 16, 16, 3))).clip(0, 255).astype(np.uint8)
    np.savez(folder / "photos.npz", images=pixels, labels=labels)
    for number, (image, label) in enumerate(zip(pixels[::4], labels[::4], strict=True)):
        place = folder / "photos" / "abc"[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number:03d}.png")
    small = "--images 64 --samples 8 --steps 2 --device cpu --set threads=1 --quiet"
    with warnings.catch_warnings():  # the command line prints warnings its own way
        status = main(["run", str(folder / "photos.npz"), "-o", str(folder / "run"), *small.split()])
    assert status == 0
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=name_of)
def test_python_blocks_run(
    page: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """All blocks of a page in one namespace, top to bottom."""
    work = tmp_path / "work"
    shutil.copytree(prepared, work)
    monkeypatch.chdir(work)
    namespace: dict[str, object] = {"__name__": "page"}
    skipped = []
    with torch.random.fork_rng(devices=[]):
        for start, text in python_blocks(page):
            if "from diffusers import" in text:
                try:
                    request.getfixturevalue("diffusers")
                except pytest.skip.Exception as reason:
                    skipped.append(str(reason))
                    continue
            # blank lines before it, so that a traceback names the line of the page
            exec(compile("\n" * (start - 1) + text, str(page), "exec"), namespace)
    if skipped:
        pytest.skip("; ".join(skipped))


# --- links ---


def slug(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    found: dict[str, int] = {}
    result = set()
    for heading in re.findall(r"^#{1,6} +(.+)$", outside_fences(page), flags=re.MULTILINE):
        name = slug(heading)
        result.add(name if name not in found else f"{name}-{found[name]}")
        found[name] = found.get(name, 0) + 1
    return result


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"`[^`\n]*`", "", outside_fences(page))
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken, f"{name_of(page)}: {broken}"


def test_slug_is_the_one_of_the_host() -> None:
    assert slug("I want to ... -> use") == "i-want-to----use"
    assert slug("`items.parquet`") == "itemsparquet"
    assert slug("What [they](x.md) share") == "what-they-share"


# --- command lines ---


def options_of(command: str) -> dict[str, argparse.Action]:
    """Flag -> action of one command, from the real parser."""
    parser = build_parser(command)
    (choices,) = (action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    assert choices is not None
    return {flag: action for action in choices[command]._actions for flag in action.option_strings}


def shown_commands(page: Path) -> list[str]:
    """Whole command lines: those of sh blocks, with continued lines joined."""
    lines = []
    for info, _, text in fences(page):
        if info == "sh":
            for line in text.replace("\\\n", " ").splitlines():
                lines += [part.strip() for part in line.split("&&") if part.strip().startswith("prunefast")]
    return lines


def mentioned_commands(page: Path) -> list[str]:
    """Pieces of command lines, in code spans, indented synopses and output; placeholders are allowed."""
    text = page.read_text(encoding="utf-8")
    spans = re.findall(r"`((?:[A-Z_]+=\S+ )?prunefast +[^`\n]+)`", text)
    return spans + re.findall(r"^(?: {4,}|\$ )(prunefast [a-z]+ .+)$", text, flags=re.MULTILINE)


@pytest.mark.parametrize("line", sorted({line for page in PAGES for line in shown_commands(page)}))
def test_shown_command_lines_parse(line: str) -> None:
    words = shlex.split(line, comments=True)
    command = next((word for word in words[1:] if not word.startswith("-")), None)
    # a line that does not parse leaves with SystemExit, which fails the test
    assert build_parser(command).parse_args(words[1:]).command == command


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_mentioned_flags_exist(page: Path) -> None:
    """In pieces of command lines; and on the page of a command, in the first column of its tables."""
    wrong = []
    for line in mentioned_commands(page):
        words = line[line.index("prunefast") :].split()[1:]
        if not words or words[0].startswith("-"):
            wrong += [f"{line}: {word}" for word in words[:1] if word not in SHARED_FLAGS]
            continue
        if words[0] == "COMMAND":
            continue
        if words[0] not in COMMANDS:
            wrong.append(line)
            continue
        known = {*options_of(words[0]), *SHARED_FLAGS}
        flags = re.findall(r"(?<![\w-])(--?[a-z][a-z-]*)", " ".join(words))
        wrong += [f"{line}: {flag}" for flag in flags if flag not in known]
    if page.parent.name == "commands" and page.stem in COMMANDS:
        known = {*options_of(page.stem), *SHARED_FLAGS}
        for cell in re.findall(r"^\| *((?:`-|`--)[^|]*)\|", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
            if ":" not in cell:  # the tables of errors quote messages
                wrong += [f"{cell.strip()}: {flag}" for flag in re.findall(r"--[a-z-]+", cell) if flag not in known]
    assert not wrong, f"{name_of(page)}: {wrong}"


# --- nothing is left out ---


def test_every_command_has_its_page_and_is_in_the_index() -> None:
    index = (ROOT / "docs" / "commands" / "README.md").read_text(encoding="utf-8")
    for command in COMMANDS:
        page = ROOT / "docs" / "commands" / f"{command}.md"
        assert page.read_text(encoding="utf-8").startswith(f"# prunefast {command}\n")
        assert f"]({command}.md)" in index
    assert {page.stem for page in (ROOT / "docs" / "commands").glob("*.md")} == {*COMMANDS, "README"}


def test_every_public_name_is_mentioned() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    missing = [name for name in prunefast.__all__ if not re.search(rf"`{name}`|\bpf\.{name}\b", text)]
    assert not missing


def test_every_page_is_linked() -> None:
    linked = set()
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s#]+\.md)", page.read_text(encoding="utf-8")):
            linked.add((page.parent / target).resolve())
    assert [name_of(page) for page in PAGES[1:] if page.resolve() not in linked and page.name != "README.md"] == []


def test_the_lists_of_the_pages_are_those_of_the_code() -> None:
    """Formats, processes, predictions, weightings, samplers, methods, models and presets: none is missing."""
    from prunefast.data.listing import IMAGE_SUFFIXES, SPLIT_NAMES
    from prunefast.diffusion import PREDICTIONS, PROCESSES, SAMPLERS, WEIGHTINGS
    from prunefast.evaluate.evaluate import METRICS
    from prunefast.models.presets import PRESETS as MODELS
    from prunefast.score import METHODS
    from prunefast.train import PRESETS

    read = {name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("data", "training")}
    read |= {name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("selection", "evaluation")}
    for name in (*PROCESSES, *PREDICTIONS, *WEIGHTINGS, *SAMPLERS, *PRESETS):
        assert f"`{name}`" in read["training"], name
    for name in MODELS:
        assert f"`{name}`" in read["training"] or name.endswith(("/4", "/8")), name
    for name in METHODS:
        assert f"### {name}\n" in read["selection"], name
    for name in SPLIT_NAMES:
        assert f"`{name}`" in read["data"], name
    for suffix in IMAGE_SUFFIXES & {".webp", ".avif", ".gif", ".tiff", ".bmp"}:
        assert suffix[1:].upper() in read["data"].upper(), suffix
    for name in {*METRICS} - {"precision_recall", "inception"}:
        assert f"`{name}`" in read["evaluation"], name


def test_parameter_counts_of_the_pages() -> None:
    """The table of models in training.md, counted again (on the meta device: no memory)."""
    from prunefast.models import build_model, count_parameters

    rows = re.findall(
        r"^\| `([a-z0-9/-]+)` \| ([\d,]{5,}) \| ([\d,]{5,}) \|",
        (ROOT / "docs" / "training.md").read_text(encoding="utf-8"),
        flags=re.MULTILINE,
    )
    assert len(rows) >= 8
    for name, unconditional, ten_classes in rows:
        for classes, said in ((None, unconditional), (10, ten_classes)):
            with torch.device("meta"):
                model = build_model(name, image_size=32, num_classes=classes)
            assert f"{count_parameters(model):,}" == said, (name, classes)
