"""What the README shows is what is there: its two commands, its Python, its picture."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_two_commands_stand_alone_on_a_line() -> None:
    # .ci/run copies them from there
    assert len(re.findall(r"^pip install -c constraints\.txt .* && prunefast demo$", README, re.M)) == 1
    assert len(re.findall(r"^pip install -c constraints\.txt .* && pytest -n 2 --dist loadfile$", README, re.M)) == 1


def test_constraints_pin_every_dependency_that_the_commands_install() -> None:
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *project["optional-dependencies"]["demo"],
        *project["optional-dependencies"]["test"],
    ]
    names = {re.match(r"[A-Za-z0-9_-]+", requirement)[0].lower() for requirement in wanted} - {"prunefast"}
    assert names <= pinned, f"not pinned: {sorted(names - pinned)}"


def test_nothing_was_left_to_fill_in() -> None:
    assert not re.findall(r"[A-Z]+_OUTPUT|TODO|TBD", README)
