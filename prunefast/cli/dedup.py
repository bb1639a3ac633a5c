import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunefast.cli import common
from prunefast.errors import InputError

if TYPE_CHECKING:
    from prunefast.data import ImageDataset
    from prunefast.files import RunFolder

_SHOWN = 5  # groups and pairs that are printed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="RUN|DATA", help="folder of a run, or a data set (with -o)")
    parser.add_argument("-o", "--out", metavar="FOLDER", help="folder of the run that a data set starts")
    common.add_data_options(parser)
    group = parser.add_argument_group("duplicates")
    group.add_argument("--level", default="perceptual", help="exact, perceptual or semantic (default: perceptual)")
    group.add_argument(
        "--threshold", type=float, metavar="D", help="largest distance: bits (default 7 of 64), or 1 - cosine (0.05)"
    )
    group.add_argument(
        "--max-threshold", type=float, metavar="D", help="how far a later --threshold can go without comparing again"
    )
    group.add_argument("--against", metavar="DATA2", help="a data set or run: drop what has a duplicate there too")
    group.add_argument("--against-split", metavar="SPLIT", help="train, test or all of DATA2")
    group.add_argument("--only-against", action="store_true", help="look for duplicates in DATA2 only")
    group.add_argument(
        "--survivor",
        default="resolution",
        metavar="RULE",
        help="which of a group is kept: resolution, size, first, score:NAME or a FILE.npy of numbers, the highest wins "
        "(default: resolution)",
    )
    group.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="option of the level: pixels=true (exact), bits=256 or mirrored=true (perceptual); may be repeated",
    )
    common.add_dry_run(parser)


def main(options: argparse.Namespace) -> int:
    from prunefast import pipeline
    from prunefast.dedup import Deduplication
    from prunefast.dedup.deduplicate import ask

    run, data_source = _places(options)
    level_options = common.key_values("--option", options.option)
    asked = ask(options.level, options.threshold, options.max_threshold, level_options)
    if options.only_against and not options.against:
        raise InputError("--only-against: give --against DATA2")
    if options.against_split and not options.against:
        raise InputError("--against-split: give --against DATA2")
    show = common.show_progress(options)
    if options.dry_run and data_source is not None:
        from prunefast.data import open_dataset

        data = open_dataset(data_source, progress=show, **common.data_options(options))
        return _plan(options, data, asked.threshold, run)
    with pipeline.writing(run, new=data_source is not None):
        data = pipeline.open_run(run, data_source, progress=show, **common.data_options(options))
        if options.dry_run:
            return _plan(options, data, asked.threshold, run)
        common.say(options, common.describe(data))
        outcome = pipeline.dedup_run(
            run,
            data,
            options.level,
            threshold=options.threshold,
            max_threshold=options.max_threshold,
            against=options.against,
            against_split=options.against_split,
            within=not options.only_against,
            survivor=_survivor(options.survivor, run, data),
            progress=show,
            **level_options,
        )
        common.say(options, outcome)
        _show(options, Deduplication.load(run, data), data)
        common.say(options, f"groups: {run.groups}")
        return common.finish(options, outcome.facts | {"groups_file": str(run.groups)})


def _places(options: argparse.Namespace) -> "tuple[RunFolder, str | None]":
    """(the run, the data set that starts it or None)."""
    from prunefast.files import RunFolder

    if RunFolder(options.source).items.exists():
        if options.out is not None:
            raise InputError(f"-o {options.out}: {options.source} is a run already; leave it out")
        common.refuse_data_options(options, options.source)
        return RunFolder(options.source), None
    if options.out is None:
        raise InputError(
            f"{options.source}: holds no run (no items.parquet); for a data set give -o FOLDER of a new run"
        )
    return RunFolder(options.out), options.source


def _survivor(rule: str, run: "RunFolder", data: "ImageDataset") -> Any:
    import numpy as np

    from prunefast.score.table import load_scores

    if rule.startswith("score:"):
        return load_scores(run.scores, rule.removeprefix("score:"), data)
    if not rule.endswith(".npy"):
        return rule
    if not Path(rule).is_file():
        raise InputError(f"--survivor {rule}: no such file")
    try:
        return np.load(rule, allow_pickle=False)
    except (ValueError, OSError, EOFError):
        raise InputError(f"--survivor {rule}: is not a .npy file of numbers; write one with numpy.save") from None


def _plan(options: argparse.Namespace, data: "ImageDataset", threshold: float, run: "RunFolder") -> int:
    from prunefast.dedup.groups import describe_threshold

    what = f"would look for {options.level} duplicates, {describe_threshold(options.level, threshold)}"
    common.say(options, f"{common.describe(data)}\n{what}, and write {run.groups}")
    facts = {"dry_run": True, "images": len(data), "level": options.level, "threshold": threshold}
    return common.finish(options, facts)


def _show(options: argparse.Namespace, found: Any, data: "ImageDataset") -> None:
    """The largest groups, and the pairs where the threshold would err first."""
    largest = sorted(found, key=lambda group: -len(group.dropped))[:_SHOWN]
    for group in largest:
        names = ", ".join(data.keys[int(index)] for index in group.dropped[:3])
        more = f" and {len(group.dropped) - 3:,} more" if len(group.dropped) > 3 else ""
        common.say(options, f"  {data.keys[group.kept]} stands for {names}{more}")
    if found.level != "exact":
        furthest = [pair for pair in found.least_similar(_SHOWN) if pair[2] > 0]
        for dropped, kept, distance in furthest:
            common.say(options, f"  furthest: {data.keys[dropped]} from {data.keys[kept]}: {distance:.3g}")
