"""The head of the page (what was kept, how) and its end (the manifest)."""

import json
from pathlib import PurePath
from typing import Any

from prunefast.report.gather import Arm, Run
from prunefast.report.text import number, share, short, visible
from prunefast.select import Coreset


def headline(run: Run, arm: Arm) -> dict[str, Any] | None:
    """Kept of total, and the sentences that say how."""
    coreset = arm.coreset
    if coreset is None:
        return None
    manifest = coreset.manifest
    method = str(manifest.get("method", "unknown"))
    return {
        "kept": f"{len(coreset):,}",
        "total": f"{coreset.total:,}",
        "share": share(len(coreset), coreset.total),
        "percent": 100 * len(coreset) / max(coreset.total, 1),
        "method": visible(method),
        "per_class": bool(manifest.get("per_class")),
        "budget": budget_text(manifest),
        "direction": visible(manifest.get("direction", "")),
        "encoder": encoder_text(run),
        "encoder_note": encoder_note(run),
        "forced": forced_text(manifest),
    }


def budget_text(manifest: dict[str, Any]) -> str:
    budget = manifest.get("budget")
    if not isinstance(budget, dict):
        return ""
    if budget.get("keep") is not None:
        return f"keep = {number(budget['keep'])}"
    if budget.get("keep_n") is not None:
        return f"keep_n = {number(budget['keep_n'])}"
    if budget.get("threshold") is not None:
        return f"threshold = {number(budget['threshold'])}"
    return ""


def forced_text(manifest: dict[str, Any]) -> str:
    parts = [
        f"{manifest[key]:,} images by {key}"
        for key in ("must_keep", "must_drop")
        if isinstance(manifest.get(key), int) and manifest[key] > 0
    ]
    return " and ".join(parts)


def encoder_text(run: Run) -> str:
    manifest = run.features_manifest
    encoder = manifest.get("encoder")
    name = encoder.get("encoder") if isinstance(encoder, dict) else None
    if not name:
        return ""
    return short(name, 40)


def encoder_note(run: Run) -> str:
    dim = run.features_manifest.get("dim")
    return f"{dim:,} features" if isinstance(dim, int) else ""


def flat_rows(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A JSON value as (path, text) rows; lists of plain values stay on one line."""
    if isinstance(value, dict):
        rows = []
        for key, inner in value.items():
            rows += flat_rows(inner, f"{prefix} › {visible(key)}" if prefix else visible(key))
        return rows
    if isinstance(value, list):
        if all(not isinstance(item, dict | list) for item in value):
            return [(prefix, visible(", ".join(str(item) for item in value)))]
        return [(prefix, visible(json.dumps(value, ensure_ascii=False)))]
    return [(prefix, "—" if value is None else visible(value))]


def manifest_rows(run: Run, coreset: Coreset | None) -> list[tuple[str, str]]:
    rows = []
    if coreset is not None:
        counts = {"classes", "counts_per_class"}  # they are in the table of classes
        rows += flat_rows({key: value for key, value in coreset.manifest.items() if key not in counts})
        rows.append(("coreset fingerprint", coreset.fingerprint))
    if run.features_manifest:
        rows += flat_rows(run.features_manifest, "features")
    return rows


def data_name(run: Run) -> str:
    """What to call the data set: the last part of its path, with the split."""
    if run.data is None:
        return visible(run.folder.path.name)
    name = PurePath(str(run.data.path)).name or str(run.data.path)
    return visible(f"{name} ({run.data.split})" if run.data.split not in ("", "all") else name)
