import argparse
from typing import TYPE_CHECKING

from prunefast.cli import common
from prunefast.errors import InputError

if TYPE_CHECKING:
    from prunefast.data import ImageDataset
    from prunefast.select import Coreset
    from prunefast.train import TrainConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", nargs="?", help="folder of a run with a coreset.parquet")
    parser.add_argument("--data", help="instead of RUN: any data set")
    parser.add_argument(
        "--coreset", metavar="FILE", help="coreset.parquet of the data (default with --data: all images)"
    )
    parser.add_argument("-o", "--out", metavar="FOLDER", help="train into FOLDER/train (default: RUN/train)")
    common.add_data_options(parser)
    common.add_training(parser)
    common.add_dry_run(parser)


def main(options: argparse.Namespace) -> int:
    from prunefast import distributed, pipeline

    data, coreset, config = distributed.everywhere(lambda: _inputs(options))
    common.say(
        options, f"{common.describe(data)}\ncoreset: {len(coreset):,} images\n{common.describe_training(config)}"
    )
    if options.dry_run:
        return common.finish(options, {"dry_run": True, "config": config.to_dict()})
    outcome = pipeline.train_run(config, data, coreset, progress=common.show_progress(options))
    common.say(options, f"trained: {outcome}")
    return common.finish(options, outcome.facts)


def _inputs(options: argparse.Namespace) -> "tuple[ImageDataset, Coreset, TrainConfig]":
    from prunefast import pipeline
    from prunefast.data import open_dataset
    from prunefast.files import RunFolder
    from prunefast.select import Coreset

    if (options.run is None) == (options.data is None):
        raise InputError("give a RUN folder, or --data DATA (and --coreset FILE)")
    if options.run is not None:
        run = RunFolder(options.run)
        common.refuse_data_options(options, run.path, but=("image_size",))
        data = pipeline.open_run(run)
        out = options.out or str(run.path)
        if options.coreset is None and not run.coreset.exists():
            raise InputError(f"{run.coreset}: no such file; run: prunefast select {run.path} --keep 0.3")
        coreset = Coreset.load(options.coreset or run.coreset, data)
    else:
        if options.out is None:
            raise InputError("-o FOLDER is needed with --data: say where the model goes")
        data = open_dataset(options.data, progress=common.show_progress(options), **common.data_options(options))
        out = options.out
        coreset = Coreset.load(options.coreset, data) if options.coreset else Coreset.full(data)
    return data, coreset, common.training(options, out=out, data=data)
