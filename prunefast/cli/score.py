import argparse
from pathlib import Path

from prunefast.cli import common
from prunefast.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_run(parser)
    parser.add_argument(
        "--method",
        help="gaussian, ppca, knn, density, prototypes, coverage, moderate, clusters or random; of --checkpoint: loss, "
        "difficulty, forgetting, el2n, grand or moso (default: gaussian)",
    )
    parser.add_argument("--from", dest="source", metavar="FILE", help="a score of yours: .csv, .tsv, .parquet or .npy")
    parser.add_argument("--column", help="of FILE (default: its only column of numbers)")
    parser.add_argument(
        "--key", help="column of FILE with the images' keys (default: key, path, file, ... if it has one)"
    )
    parser.add_argument("--keep-low", action="store_true", help="low numbers of FILE are the good ones")
    parser.add_argument("--combine", metavar="A=W,B=W", help="weighted ranks of scores that are there")
    parser.add_argument("--as", dest="name", metavar="NAME", help="name of the score of --from or --combine")
    parser.add_argument(
        "--checkpoint",
        metavar="CKPT",
        action="append",
        help="trained run or checkpoint, for loss, difficulty, forgetting, el2n, grand, moso; may be repeated",
    )
    common.add_device(parser)
    common.add_per_class(parser)
    parser.add_argument("--seed", type=int, default=0)
    common.add_method_options(parser)


def main(options: argparse.Namespace) -> int:
    from prunefast import pipeline
    from prunefast.files import RunFolder
    from prunefast.score.surrogate import SURROGATES

    _check_one(options)
    run = RunFolder(options.run)
    with pipeline.writing(run):
        data = pipeline.open_run(run)
        if options.source is not None:
            name = options.name or options.column or Path(options.source).stem
            outcome = pipeline.column_run(
                run, data, options.source, name, column=options.column, key=options.key, keep_low=options.keep_low
            )
        elif options.combine is not None:
            weights = common.key_values("--combine", options.combine.split(","), "NAME=WEIGHT")
            name = options.name or "combined"
            outcome = pipeline.combine_run(run, data, weights, name, per_class=options.per_class)
        elif options.method in SURROGATES:
            common.device(options)
            outcome = pipeline.surrogate_run(
                run,
                data,
                options.method,
                options.checkpoint,
                seed=options.seed,
                device=options.device,
                progress=common.show_progress(options),
                **common.method_options(options),
            )
        else:
            outcome = pipeline.score_run(
                run,
                data,
                options.method,
                per_class=options.per_class,
                seed=options.seed,
                **common.method_options(options),
            )
        common.say(options, f"{outcome}\nhigher = keep: {outcome.facts['direction']}")
        return common.finish(options, outcome.facts)


def _check_one(options: argparse.Namespace) -> None:
    """One way to score a call; the options of another one are never ignored."""
    from prunefast.score.surrogate import SURROGATES

    ways = {"--method": options.method, "--from": options.source, "--combine": options.combine}
    given = [flag for flag, value in ways.items() if value is not None]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)}: give one of them")
    way = given[0] if given else "--method"
    of_file = {"--column": options.column, "--key": options.key, "--keep-low": options.keep_low or None}
    others = of_file if way != "--from" else {}
    if way != "--method" or options.method not in SURROGATES:
        others |= {"--checkpoint": options.checkpoint}
    others |= {"--as": options.name} if way == "--method" else {"--option": options.option or None}
    for flag, value in others.items():
        if value is not None:
            what = (options.method or "gaussian") if way == "--method" else way
            raise InputError(f"{flag}: means nothing to {what}; leave it out")
    options.method = options.method or "gaussian"
