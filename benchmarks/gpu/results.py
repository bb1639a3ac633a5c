"""The file a job writes, OUT/results.json, valid at any moment: its schema, its limits, how it is rewritten.

    {"schema": 1, "rehearsal": false, "machine": {...}, "stages": {NAME: {
        "started": "2026-11-20T14:03:11+00:00", "limit": 540, "finished": true, "seconds": 61.2,
        "rows": [{"unit": "copy", "status": "ok", ...}, ...]}}}

Status of a row: "ok"; "bad", it ran and the answer is wrong; "failed", it raised or died; "stopped" by the clock;
"skipped", with a reason; "no-op", in a rehearsal: has no form on a CPU.
"""

import datetime
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

SCHEMA = 1
STATUSES = ("ok", "bad", "failed", "stopped", "skipped", "no-op")
FILES, FILE_BYTES, TOTAL_BYTES, DEPTH = 8, 16 << 20, 64 << 20, 2
NAME = "results.json"
LOG = "log.txt"
LOG_BYTES = 4 << 20


class LimitError(Exception):
    """A file would go over what may come back from the machine."""


def clean(value: Any) -> Any:
    """As JSON holds it; what is not finite becomes a text."""
    if isinstance(value, dict):
        return {str(key): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def write_atomic(path: Path, content: bytes, scratch: Path | None = None) -> None:
    """Whole or not at all. The temporary file lies in `scratch` where that is the same disk: a kill leaves nothing in
    the folder of `path`."""
    near = scratch if scratch is not None and scratch.stat().st_dev == path.parent.stat().st_dev else path.parent
    descriptor, temporary = tempfile.mkstemp(prefix=".partial-", dir=near)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


class Results:
    """OUT/results.json; stages of an earlier call to the same folder are kept, those run again are replaced."""

    def __init__(self, out: Path, work: Path, machine: dict[str, Any], rehearsal: bool):
        self.path, self.work = out / NAME, work
        self.content: dict[str, Any] = {"schema": SCHEMA, "rehearsal": rehearsal, "machine": machine, "stages": {}}
        if self.path.exists():
            before = json.loads(self.path.read_text())
            if before.get("rehearsal") == rehearsal:
                self.content["stages"] = before["stages"]
        self.write()

    def begin(self, stage: str, limit: float) -> None:
        started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        entry = {"started": started, "limit": round(limit), "finished": False, "seconds": 0.0, "rows": []}
        self.content["stages"][stage] = entry
        self.write()

    def add(self, stage: str, row: dict[str, Any], seconds: float) -> None:
        entry = self.content["stages"][stage]
        entry["rows"].append(clean(row))
        entry["seconds"] = round(seconds, 2)
        self.write()

    def finish(self, stage: str, seconds: float) -> None:
        self.content["stages"][stage] |= {"finished": True, "seconds": round(seconds, 2)}
        self.write()

    def rows(self, stage: str) -> list[dict[str, Any]]:
        return self.content["stages"].get(stage, {}).get("rows", [])

    def write(self) -> None:
        write_atomic(self.path, json.dumps(self.content, indent=1, allow_nan=False).encode(), self.work)


def put(out: Path, name: str, content: bytes, work: Path) -> str:
    """Write an artefact into `out`, or raise LimitError; returns the name."""
    if "/" in name or len(content) > FILE_BYTES:
        raise LimitError(f"{name}: {len(content) / 1e6:.1f} MB; a file may have {FILE_BYTES / 1e6:.1f} MB")
    others = [path for path in files_of(out) if path != out / name]
    # results.json and the log may still have to come, and to grow
    names = {NAME, LOG, *(str(path.relative_to(out)) for path in others)}
    if len(names) >= FILES:
        raise LimitError(f"{name}: {FILES} files are there already")
    used = sum(path.stat().st_size for path in others)
    if used + len(content) + LOG_BYTES > TOTAL_BYTES:
        raise LimitError(f"{name}: over {TOTAL_BYTES / 1e6:.0f} MB together")
    write_atomic(out / name, content, work)
    return name


def files_of(out: Path) -> list[Path]:
    return [path for path in sorted(out.rglob("*")) if path.is_file()]


def problems(out: Path) -> list[str]:
    """What is wrong with a folder of results: its files against the limits, its JSON against the schema."""
    found = []
    files = files_of(out)
    if len(files) > FILES:
        found.append(f"{len(files)} files; {FILES} come back")
    if sum(path.stat().st_size for path in files) > TOTAL_BYTES:
        found.append("more than 64 MB together")
    for path in files:
        relative = path.relative_to(out)
        if path.stat().st_size > FILE_BYTES:
            found.append(f"{relative}: more than 16 MB")
        if len(relative.parts) > DEPTH + 1:
            found.append(f"{relative}: deeper than two folders")
        if not all(c.isascii() and (c.isalnum() or c in "._-") for part in relative.parts for c in part):
            found.append(f"{relative}: letters, digits, '.', '_' and '-' only")
    try:
        content = json.loads((out / NAME).read_text())
    except (OSError, ValueError) as error:
        return [*found, f"{NAME}: {error}"]
    return found + schema_problems(content)


def schema_problems(content: Any) -> list[str]:
    """What keeps `content` from being a results.json."""
    types = {"schema": int, "rehearsal": bool, "machine": dict, "stages": dict}
    if not isinstance(content, dict) or content.keys() != types.keys():
        return [f"{NAME}: keys are not {', '.join(types)}"]
    found = [f"{key}: is no {kind.__name__}" for key, kind in types.items() if not isinstance(content[key], kind)]
    if found or content["schema"] != SCHEMA:
        return found or [f"schema {content['schema']} is not {SCHEMA}"]
    fields = {"started": str, "limit": int, "finished": bool, "seconds": float, "rows": list}
    for stage, entry in content["stages"].items():
        wrong = [key for key, kind in fields.items() if not isinstance(entry.get(key), kind)]
        if wrong or entry.keys() != fields.keys():
            found.append(f"{stage}: {', '.join(wrong) or 'unknown keys'}")
            continue
        for number, row in enumerate(entry["rows"]):
            where = f"{stage} row {number}"
            if not isinstance(row.get("unit"), str) or row.get("status") not in STATUSES:
                found.append(f"{where}: unit or status")
            if row.get("status") in ("failed", "stopped", "skipped", "no-op") and not row.get("reason"):
                found.append(f"{where}: no reason")
            if any(not isinstance(value, str | int | float | bool | None | list | dict) for value in row.values()):
                found.append(f"{where}: a value that is no JSON")
    return found
