"""`report`: one HTML file that shows a selection and what came of it, and asks nothing of the network."""

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

import prunefast
from prunefast.errors import InputError
from prunefast.files import write_text
from prunefast.report.gather import Arm, Run, gather
from prunefast.report.sections import (
    class_weights,
    classes,
    cluster_sheets,
    duplicates,
    feature_map,
    nearest_kept,
    outcome,
    scores,
    summary,
)
from prunefast.report.sections.options import COMPACT, FULL, Options
from prunefast.report.text import number, short, visible
from prunefast.report.thumbnails import Thumbnails
from prunefast.select import Coreset

PIXELATED = 24  # images smaller than this (in pixels a side) are enlarged without smoothing
TEMPLATES = Path(__file__).parent / "templates"


def report(
    run: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    arms: Mapping[str, str | os.PathLike[str]] | None = None,
    title: str | None = None,
) -> Path:
    """Write the report of a run folder and return its path (default RUN/report.html). The file is replaced atomically.

    run    folder with items.parquet and whatever of features.npy, scores.parquet, coreset.parquet, train/, samples/ and
           metrics.json there is; what is missing is left out of the page with a word.
    arms   name -> folder with coreset.parquet, train/, samples/, metrics.json, to be compared side by side; items,
           features and scores are the run's.

    The page holds everything inline (styles, charts, pictures as data URIs), no script, and a Content-Security-Policy
    that forbids the rest. The same run gives the same bytes.

    Raises InputError where the folder is missing or holds nothing to report, or a coreset is of other data.
    """
    shared, read = gather(run, arms)
    target = Path(out) if out is not None else shared.folder.report
    if target.is_dir():
        raise InputError(f"out: {target}: is a folder; give the name of the file to write")
    write_text(target, render(shared, read, title=title, compared=arms is not None))
    return target


def render(run: Run, arms: list[Arm], *, title: str | None = None, compared: bool = False) -> str:
    """The page as text."""
    sizes = COMPACT if compared else FULL
    pictures = _Pictures(run)
    map_ = feature_map.map_points(run, sizes.full_map)
    notes = dict(run.notes)
    sections = [_arm_section(run, arm, sizes, map_, pictures) for arm in arms]
    name = summary.data_name(run)
    kept = [section["headline"] for section in sections if section["headline"] is not None]
    if title is None:
        if compared:
            title = f"{len(arms)} selections of {name}, side by side"
        elif kept:
            title = f"{name}: {kept[0]['kept']} of {kept[0]['total']} images kept"
        else:
            title = f"Report of {name}"
    context = {
        "title": visible(title),
        "data_name": name,
        "data": _data_facts(run),
        "version": prunefast.__version__,
        "compared": compared,
        "pixelated": run.data is not None and (run.data.image_size or PIXELATED) < PIXELATED,
        "comparison": outcome.comparison(arms) if compared else None,
        "training": outcome.training_chart(arms),
        "class_weights": class_weights.class_weights_section(run.class_weights),
        "arms": sections,
        "duplicates": None if compared else _duplicates(run, pictures),
        "encoder": summary.encoder_text(run),
        "map_axes": map_.axes if map_ is not None else None,
        "map_drawn": f"{len(map_.indices):,}" if map_ is not None else None,
        "notes": _Notes(notes | pictures.notes),
        "manifest": summary.manifest_rows(run, None if compared else arms[0].coreset),
    }
    return _template().render(context)


def _duplicates(run: Run, pictures: "_Pictures") -> dict[str, Any] | None:
    if run.duplicates is None or run.data is None:
        return None
    chosen = duplicates.Chosen(run.duplicates)
    return duplicates.section(chosen, run.data, pictures.prepare(chosen.pictures))


def _nearest_kept(run: Run, coreset: Coreset, notes: dict[str, str]) -> nearest_kept.Found | None:
    if run.features is None or len(run.features) != coreset.total:
        notes["nearest"] = run.notes.get("map", "the features are not of these images")
        return None
    try:
        found = nearest_kept.find(run, coreset)
    except InputError as error:
        notes["nearest"] = visible(str(error).splitlines()[0])
        return None
    if found is None:
        notes["nearest"] = "nothing was dropped"
    return found


class _Notes(dict[str, str]):
    """Section -> why it is missing, safe to show; empty for a section that is not missing."""

    def __init__(self, notes: Mapping[str, str]):
        super().__init__({section: visible(text) for section, text in notes.items()})

    def __missing__(self, section: str) -> str:
        return ""


class _Pictures:
    """Thumbnails of the data set; a failure is a note, not the end of the page."""

    def __init__(self, run: Run):
        self.notes: dict[str, str] = {}
        self.data = Thumbnails(run.data) if run.data is not None else None

    def prepare(self, indices: list[int]) -> Thumbnails | None:
        """The data set's thumbnails with `indices` read, or None where images cannot be read."""
        if self.data is None:
            return None
        try:
            self.data.prepare(indices)
        except (InputError, OSError) as error:
            self.notes["images"] = str(error).splitlines()[0]
            self.data = None
        return self.data


def _arm_section(
    run: Run, arm: Arm, sizes: Options, map_: feature_map.MapData | None, pictures: _Pictures
) -> dict[str, Any]:
    """Everything the template shows of one arm. Pictures are chosen first and read in one pass."""
    coreset = arm.coreset
    section: dict[str, Any] = {
        "name": short(arm.name, 32),
        "headline": summary.headline(run, arm),
        "scores": None,
        "classes": None,
        "clusters": None,
        "groups": [],
        "groups_note": "",
        "axis_ends": None,
        "score_name": "",
        "ordered": False,
        "map": None,
        "small_map": None,
        "facts": outcome.training_facts(arm.training),
        "samples": None,
        "metrics": outcome.metric_section(arm),
        "pairs": [],
        "nearest": None,
        "sheets": None,
        "manifest": summary.manifest_rows(run, coreset) if coreset is not None else [],
        "notes": _Notes(arm.notes),
    }
    pairs = outcome.closest_pairs(arm, run.data)
    sample_pictures = _sample_pictures(arm, sizes, [sample for sample, _, _ in pairs], section)
    if coreset is None:
        return section

    scored = scores.scored(run, coreset)
    groups, note, ends = classes.galleries(coreset, scored, sizes)
    wanted = [index for group in groups for row in group.rows for index in row.indices]
    wanted += [training for _, training, _ in pairs]
    near = _nearest_kept(run, coreset, section["notes"]) if sizes.full_map else None
    sheets = cluster_sheets.Chosen(coreset) if sizes.full_map else None
    wanted += near.pictures if near is not None else []
    wanted += sheets.pictures if sheets is not None else []
    if map_ is not None and sizes.full_map:
        wanted += map_.indices[map_.tiles].tolist()
    thumbnails = pictures.prepare(wanted)

    section["scores"] = scores.score_section(coreset, scored)
    section["score_name"] = scored.name if scored is not None else ""
    section["ordered"] = scored is not None and scored.own
    section["classes"] = classes.class_table(coreset)
    section["clusters"] = classes.cluster_bars(coreset)
    section["groups"] = [classes.group_view(group, coreset, scored, thumbnails) for group in groups]
    if near is not None and thumbnails is not None:
        section["nearest"] = nearest_kept.section(near, coreset, thumbnails)
    if sheets is not None:
        section["sheets"] = cluster_sheets.section(sheets, coreset, thumbnails)
    section["groups_note"], section["axis_ends"] = note, ends
    if map_ is not None:
        if sizes.full_map:
            section["map"] = feature_map.map_section(map_, coreset, scored, thumbnails)
        else:
            section["small_map"] = feature_map.small_map(map_, coreset, arm.name)
    if thumbnails is not None and sample_pictures is not None:
        section["pairs"] = [
            {
                "sample": sample_pictures[sample],
                "training": thumbnails[training],
                "name": short(coreset.keys[training]),
                "distance": number(distance, 3),
            }
            for sample, training, distance in pairs
        ]
    return section


def _sample_pictures(arm: Arm, sizes: Options, also: list[int], section: dict[str, Any]) -> Thumbnails | None:
    if arm.samples is None:
        return None
    picks = outcome.sample_picks(arm.samples, sizes)
    pictures = Thumbnails(arm.samples)
    try:
        pictures.prepare([index for _, indices in picks for index in indices] + also)
    except (InputError, OSError) as error:
        section["notes"]["samples"] = visible(str(error).splitlines()[0])
        return None
    section["samples"] = outcome.sample_section(arm.samples, picks, pictures, arm.sampling)
    return pictures


def _data_facts(run: Run) -> list[tuple[str, str]]:
    if run.data is None:
        return []
    data = run.data
    rows = [("data set", visible(data.path)), ("split", visible(data.split or "—")), ("images", f"{len(data):,}")]
    if data.image_size is not None:
        rows.append(("image size", f"{data.image_size} × {data.image_size} pixels"))
    if data.skipped:
        rows.append(("set aside as broken", f"{len(data.skipped):,}"))
    rows.append(("fingerprint", visible(data.fingerprint)))
    return rows


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["style"] = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    return environment.get_template("report.html.j2")
