import argparse

from prunefast.cli import common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_run(parser)
    parser.add_argument(
        "--method", default="gaussian", help="gaussian, moderate, clusters or random (default: gaussian)"
    )
    common.add_per_class(parser)
    parser.add_argument("--seed", type=int, default=0)
    common.add_method_options(parser)


def main(options: argparse.Namespace) -> int:
    from prunefast import pipeline
    from prunefast.files import RunFolder

    run = RunFolder(options.run)
    with pipeline.writing(run):
        data = pipeline.open_run(run)
        outcome = pipeline.score_run(
            run, data, options.method, per_class=options.per_class, seed=options.seed, **common.method_options(options)
        )
        common.say(options, f"{outcome}\nhigher = keep: {outcome.facts['direction']}")
        return common.finish(options, outcome.facts)
