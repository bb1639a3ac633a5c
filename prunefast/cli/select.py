import argparse
from pathlib import Path

from prunefast.cli import common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_run(parser)
    common.add_selection(parser)
    parser.add_argument(
        "--dedup", action="store_true", help="start from what `prunefast dedup` kept (RUN/groups.parquet)"
    )
    parser.add_argument("-o", "--out", metavar="FILE", help="write the coreset there (default: RUN/coreset.parquet)")


def main(options: argparse.Namespace) -> int:
    from prunefast import pipeline
    from prunefast.dedup import Deduplication
    from prunefast.files import RunFolder
    from prunefast.select import Coreset

    run = RunFolder(options.run)
    budget = common.budget(options)
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
            duplicates=Deduplication.load(run, data) if options.dedup else None,
            **common.method_options(options),
        )
        common.say(options, Coreset.load(path, data).summary())
        common.say(options, f"coreset: {path}" + (" (was there already)" if outcome.repeated else ""))
        return common.finish(options, outcome.facts | {"coreset": str(path)})
