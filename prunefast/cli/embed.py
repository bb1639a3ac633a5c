import argparse

from prunefast.cli import common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", nargs="?", help="image folder, tar, zip, CIFAR archive or .npy/.npz")
    common.add_out(parser, "folder of the run; a run that exists knows its DATA")
    common.add_data_options(parser)
    common.add_encoder_options(parser)
    parser.add_argument("--batch-size", type=int, default=256, help="images a batch (default: 256)")
    common.add_device(parser)
    common.add_dry_run(parser)


def main(options: argparse.Namespace) -> int:
    from prunefast import pipeline
    from prunefast.data import open_dataset
    from prunefast.files import RunFolder

    run = RunFolder(options.out)
    show = common.show_progress(options)
    if options.dry_run and options.data is not None:
        data = open_dataset(options.data, progress=show, **common.data_options(options))
        common.say(options, f"{common.describe(data)}\nwould write features of {options.encoder} to {run.features}")
        return common.finish(options, {"dry_run": True, "images": len(data), "encoder": options.encoder})
    if options.data is None:
        common.refuse_data_options(options, run.path)
    with pipeline.writing(run, new=True):
        data = pipeline.open_run(run, options.data, progress=show, **common.data_options(options))
        common.say(options, common.describe(data))
        outcome = pipeline.embed_run(
            run,
            data,
            progress=show,
            batch_size=options.batch_size,
            device=common.device(options),
            **common.encoder_options(options),
        )
        common.say(options, outcome)
        return common.finish(options, outcome.facts)
