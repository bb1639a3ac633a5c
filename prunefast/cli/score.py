import argparse

from prunefast.cli import common
from prunefast.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_run(parser)
    parser.add_argument(
        "--method", default="gaussian", help="gaussian, moderate, clusters or random (default: gaussian)"
    )
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

    run = RunFolder(options.run)
    with pipeline.writing(run):
        data = pipeline.open_run(run)
        chosen = common.method_options(options)
        if options.method in SURROGATES:
            common.device(options)
            outcome = pipeline.surrogate_run(
                run,
                data,
                options.method,
                options.checkpoint,
                seed=options.seed,
                device=options.device,
                progress=common.show_progress(options),
                **chosen,
            )
        else:
            if options.checkpoint:
                raise InputError(f"--checkpoint: means nothing to {options.method}; leave it out")
            outcome = pipeline.score_run(
                run, data, options.method, per_class=options.per_class, seed=options.seed, **chosen
            )
        common.say(options, f"{outcome}\nhigher = keep: {outcome.facts['direction']}")
        return common.finish(options, outcome.facts)
