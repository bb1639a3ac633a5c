import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunefast.cli import common
from prunefast.errors import InputError

if TYPE_CHECKING:
    from prunefast.data import ImageDataset
    from prunefast.files import RunFolder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_run(parser)
    common.add_selection(parser)
    parser.add_argument(
        "--dedup", action="store_true", help="start from what `prunefast dedup` kept (RUN/groups.parquet)"
    )
    for flag, what in (("--must-keep", "kept whatever the method says"), ("--must-drop", "never kept")):
        parser.add_argument(
            flag, metavar="FILE", help=f"images that are {what}: their keys, one a line, or indices or a mask (.npy)"
        )
    parser.add_argument("-o", "--out", metavar="FILE", help="write the coreset there (default: RUN/coreset.parquet)")
    parser.add_argument(
        "--compare",
        metavar="A,B,...",
        help="select with each of these methods, and random, compare, and write no coreset",
    )
    parser.add_argument(
        "--images-per-second", type=float, metavar="R", help="training speed, to weigh --compare's cost of selecting"
    )


def main(options: argparse.Namespace) -> int:
    from prunefast import pipeline
    from prunefast.dedup import Deduplication
    from prunefast.files import RunFolder
    from prunefast.select import Coreset

    run = RunFolder(options.run)
    budget = common.budget(options)
    target = common.class_target(options)
    if options.compare is not None:
        return _compare(options, run, budget, target)
    if options.images_per_second is not None:
        raise InputError("--images-per-second: means nothing without --compare; leave it out")
    with pipeline.writing(run):
        data = pipeline.open_run(run)
        path = Path(options.out) if options.out else run.coreset
        outcome = pipeline.select_run(
            run,
            data,
            options.method,
            coreset_path=path,
            per_class=options.per_class,
            seed=options.select_seed,
            budget=budget,
            forced=_forced(options, data),
            duplicates=Deduplication.load(run, data) if options.dedup else None,
            score_name=options.score,
            class_target=target,
            **common.method_options(options),
        )
        common.say(options, Coreset.load(path, data).summary())
        common.say(options, f"coreset: {path}" + (" (was there already)" if outcome.repeated else ""))
        return common.finish(options, outcome.facts | {"coreset": str(path)})


def _forced(options: argparse.Namespace, data: "ImageDataset") -> dict[str, list[int]]:
    """must_keep and must_drop, those that are given, as indices."""
    files = {"must_keep": options.must_keep, "must_drop": options.must_drop}
    return {name: _indices(name, Path(file), data) for name, file in files.items() if file is not None}


def _indices(name: str, path: Path, data: "ImageDataset") -> list[int]:
    import numpy as np

    from prunefast.select.budget import index_mask

    try:
        if path.suffix == ".npy":
            return np.flatnonzero(index_mask(name, np.load(path, allow_pickle=False), len(data))).tolist()
        keys = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InputError(f"--{name.replace('_', '-')} {path}: no such file") from None
    except (OSError, ValueError, EOFError) as error:
        reason = error if isinstance(error, InputError) else "neither keys, one a line, nor an .npy of indices"
        raise InputError(f"{path}: {reason}") from None
    place = {key: number for number, key in enumerate(data.keys)}
    unknown = next((key for key in keys if key and key not in place), None)
    if unknown is not None:
        raise InputError(f"{path}: {unknown!r} is no key of the data set; keys are as in prunefast export --to txt")
    return [place[key] for key in keys if key]


def _compare(options: argparse.Namespace, run: "RunFolder", budget: dict[str, Any], target: Any) -> int:
    from prunefast import pipeline

    methods = [name.strip() for name in options.compare.split(",")]
    for flag, given in (("--out", options.out), ("--option", options.option), ("--dedup", options.dedup)):
        if given:
            raise InputError(f"{flag}: means nothing with --compare; leave it out")
    if options.method != "gaussian":
        raise InputError("--method and --compare: give one of them")
    with pipeline.writing(run):
        data = pipeline.open_run(run)
        outcome = pipeline.compare_run(
            run,
            data,
            methods,
            per_class=options.per_class,
            seed=options.select_seed,
            budget=budget,
            forced=_forced(options, data),
            score_name=options.score,
            class_target=target,
            images_per_second=options.images_per_second,
        )
        common.say(options, outcome)
        return common.finish(options, outcome.facts)
