"""Takes the results of a call into benchmarks/results/GPU-NAME/ and writes the tables of the documentation from there.

    python benchmarks/gpu/collect.py gpu-out          # keep what a call brought back, then write the tables
    python benchmarks/gpu/collect.py                  # write the tables

A file a call, named by the time its first stage began; grids and weights in a folder of the same name. Of several calls
the newest finished row of a kind is shown; bad and failed rows are shown too. Rehearsals are refused.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpu import results
from gpu.job import ROOT

RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "docs" / "performance.md", ROOT / "docs" / "gpu.md")
NOTHING = "not measured yet"
Rows = list[dict[str, Any]]


def keep(out: Path, to: Path = RESULTS) -> Path:
    """Copies a folder of results to where they are committed; SystemExit for one that is not fit to be."""
    if problems := results.problems(out):
        raise SystemExit(f"{out}: {problems[0]}")
    content = json.loads((out / results.NAME).read_text())
    if content["rehearsal"]:
        raise SystemExit(f"{out}: is a rehearsal; its numbers say nothing")
    gpu = content["machine"].get("gpu")
    if not gpu or not content["stages"]:
        raise SystemExit(f"{out}: names no GPU, or holds no stage")
    first = min(entry["started"] for entry in content["stages"].values())
    name = "".join(c for c in first[:19] if c.isalnum())
    folder = to / gpu.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}.json"
    shutil.copyfile(out / results.NAME, target)
    others = [path for path in results.files_of(out) if path.name not in (results.NAME,)]
    for path in others:
        (folder / name).mkdir(exist_ok=True)
        shutil.copyfile(path, folder / name / path.name)
    return target


def load(folder: Path = RESULTS) -> dict[str, list[dict[str, Any]]]:
    """GPU name -> contents of its files, oldest first."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*/*.json")):
        content = json.loads(path.read_text())
        if problems := results.schema_problems(content):
            raise SystemExit(f"{path}: {problems[0]}")
        found.setdefault(content["machine"]["gpu"], []).append(content)
    return found


def newest(calls: list[dict[str, Any]], stage: str, keys: tuple[str, ...]) -> Rows:
    """Rows of a stage over all calls; of those that agree in `keys` and in the unit, the one of the newest call."""
    rows: dict[tuple, dict[str, Any]] = {}
    for call in calls:
        for row in call["stages"].get(stage, {}).get("rows", []):
            rows[(row["unit"], *(row.get(key) for key in keys))] = row
    return list(rows.values())


def markdown(header: list[str], lines: list[list[str]]) -> str:
    rule = ["---"] * len(header)
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *lines])


def figure(value: Any, form: str = ".3g") -> str:
    return format(value, form) if isinstance(value, int | float) and not isinstance(value, bool) else str(value or "")


def problem(row: dict[str, Any]) -> str:
    return f"{row['status']}: {row.get('reason', '')}".strip(": ")


def ceilings(rows: Rows) -> str:
    lines = [
        [
            row["what"],
            f"{row['mb']} MB" if "mb" in row else f"{row['side']}^3",
            f"{row['GB/s']:,.0f} GB/s" if "GB/s" in row else f"{row['TFLOP/s']:,.0f} TFLOP/s",
        ]
        for row in rows
        if "what" in row
    ]
    return markdown(["ceiling", "size", "measured"], lines) if lines else ""


def check(rows: Rows) -> str:
    lines = []
    for row in rows:
        if row["status"] in ("no-op",):
            continue
        worst = row.get("worst", row.get("error", row.get("wrong_values", row.get("errors"))))
        text = (row.get("failures") or row.get("first") or [row.get("reason", "")])[:1]
        lines.append(
            [row["unit"], row.get("check", ""), row["status"], figure(row.get("cases"), "d"), figure(worst), *text]
        )
    return markdown(["unit", "check", "status", "comparisons", "worst", "what"], lines) if lines else ""


def micro(rows: Rows) -> str:
    lines, verdicts = [], []
    for row in rows:
        if "prediction" in row:
            met = "met" if row["met"] else "**missed**"
            verdicts.append(
                [row["case"], row["who"], f"{row['prediction']} >= {row['predicted']:g}", figure(row["measured"]), met]
            )
        elif "ms" in row:
            share = f"{100 * row['of copy']:.0f} %" if "of copy" in row else ""
            product = f"{row['TFLOP/s']:.3g} ({100 * row['of product']:.0f} %)" if "TFLOP/s" in row else ""
            error = "" if row.get("error") is None else figure(row["error"], ".1e")
            lines.append(
                [
                    row["case"],
                    row["who"],
                    figure(row["ms"], ".4g"),
                    figure(row["call_ms"], ".4g"),
                    share,
                    product,
                    error,
                ]
            )
        else:
            lines.append([row.get("case", row["unit"]), row.get("who", ""), problem(row), "", "", "", ""])
    text = ""
    if verdicts:
        text += markdown(["case", "who", "predicted", "measured", "verdict"], verdicts) + "\n\n"
    header = ["case", "who", "ms", "ms of an eager call", "of copy", "TFLOP/s (of product)", "error"]
    return text + markdown(header, lines) if lines else text


def throughput(rows: Rows) -> str:
    lines = []
    for row in rows:
        if "images_per_second" not in row:
            lines.append([row["unit"], problem(row), "", "", "", "", "", ""])
            continue
        lines.append(
            [
                f"{row['network']}, batch {row['batch']}",
                row["loop"],
                f"{row['images_per_second']:,.0f}",
                f"{100 * row['mfu']:.1f} %" if "mfu" in row else "",
                figure(row.get("memory_gb")),
                f"{row['first_step_seconds']:.1f}",
                figure(row.get("host_waits")),
                f"{100 * row['device_busy']:.0f} %",
            ]
        )
    header = ["network", "loop", "img/s", "MFU", "GB", "first step, s", "waits a step", "device busy"]
    return markdown(header, lines) if lines else ""


def quality(rows: Rows) -> str:
    metrics = {row["arm"]: row for row in rows if row.get("what") == "metrics"}
    names = [f"{kind} {space}" for space in ("resnet20", "trained") for kind in ("frechet", "precision", "recall")]
    lines = []
    for row in rows:
        if row.get("what") == "trained":
            found = metrics.get(row["arm"], {})
            facts = [row["arm"], f"{row['images_trained']:,}", f"{row['seconds_all_calls']:.0f}", f"{row['samples']:,}"]
            lines.append([*facts, *(figure(found.get(name), ".4g") for name in names)])
        elif row["status"] != "ok":
            lines.append([row["unit"], problem(row), "", "", *[""] * len(names)])
    return markdown(["arm", "images trained", "s", "samples", *names], lines) if lines else ""


def decode(rows: Rows) -> str:
    lines = [
        [
            row.get("images", ""),
            row.get("who", row["unit"]),
            figure(row.get("images_per_second"), ",.0f"),
            f"{row['mean']:.3f}, {row['max']}" if "mean" in row else "",
            "" if row["status"] == "ok" else problem(row),
        ]
        for row in rows
    ]
    return markdown(["images", "who", "img/s", "grey levels from native: mean, most", "status"], lines) if lines else ""


TABLES = {
    "ceilings": (ceilings, ("what", "mb", "side")),
    "check": (check, ("check", "backend")),
    "micro": (micro, ("case", "who", "prediction")),
    "throughput": (throughput, ("network", "batch", "loop")),
    "decode": (decode, ("images", "who", "what")),
    "quality": (quality, ("arm", "what")),
}


def table(stage: str, calls: dict[str, list[dict[str, Any]]]) -> str:
    """The text of one table: a block a GPU, or that nothing was measured."""
    render, keys = TABLES[stage]
    blocks = []
    for gpu, some in calls.items():
        if text := render(newest(some, stage, keys)):
            last = next(call for call in reversed(some) if stage in call["stages"])
            machine = last["machine"]
            packages = ", ".join(f"{name} {version}" for name, version in machine.get("packages", {}).items())
            source = f"commit {machine['commit'][:12]}" if machine.get("commit") else f"tree {machine['tree']}"
            when = last["stages"][stage]["started"][:10]
            blocks.append(f"{gpu}, driver {machine['driver']}, {packages}; {source}, {when}.\n\n{text}")
    return "\n\n".join(blocks) or NOTHING


def rewritten(text: str, calls: dict[str, list[dict[str, Any]]]) -> str:
    """A page with every `<!-- gpu: STAGE -->` ... `<!-- end -->` filled anew."""
    for stage in TABLES:
        begin, end = f"<!-- gpu: {stage} -->\n", "\n<!-- end -->"
        if begin in text:
            before, _, rest = text.partition(begin)
            text = f"{before}{begin}{table(stage, calls)}{end}{rest.partition(end)[2]}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path, help="the --out folder of a call")
    given = parser.parse_args()
    if given.out is not None:
        print(keep(given.out).relative_to(ROOT))
    calls = load()
    for page in PAGES:
        text = page.read_text()
        new = rewritten(text, calls)
        if new != text:
            page.write_text(new)
            print(f"{page.relative_to(ROOT)}: written")


if __name__ == "__main__":
    main()
