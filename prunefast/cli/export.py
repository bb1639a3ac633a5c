import argparse
from pathlib import Path

from prunefast.cli import common
from prunefast.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_run(parser)
    parser.add_argument("--to", required=True, metavar="FORMAT", help="hf, webdataset, folder, edm, txt, npy or dali")
    parser.add_argument(
        "-o", "--out", metavar="PATH", help="file or folder to write (default: RUN/export-FORMAT, .zip for edm, .txt)"
    )
    parser.add_argument(
        "--coreset", metavar="FILE", help="another coreset of the run's data (default: RUN/coreset.parquet)"
    )
    parser.add_argument("--dedup", action="store_true", help="what `prunefast dedup` kept (RUN/groups.parquet) instead")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="option of the format: link=hardlink (folder), shard_megabytes=100 (webdataset, hf), copy=false (hf)",
    )
    common.add_dry_run(parser)


def main(options: argparse.Namespace) -> int:
    from prunefast import pipeline
    from prunefast.dedup import Deduplication
    from prunefast.export import FORMATS
    from prunefast.files import RunFolder
    from prunefast.score.options import make_options
    from prunefast.select import Coreset

    run = RunFolder(options.run)
    if options.to not in FORMATS:
        raise InputError(f"--to {options.to}: does not exist; there are {', '.join(FORMATS)}")
    if options.dedup and options.coreset:
        raise InputError("--dedup and --coreset: give one of them")
    more = common.key_values("--option", options.option)
    make_options(FORMATS[options.to].options, options.to, more)
    suffix = {"edm": ".zip", "txt": ".txt"}.get(options.to, "")
    out = Path(options.out) if options.out is not None else run.path / f"export-{options.to}{suffix}"
    if options.out == "":
        raise InputError("-o: is empty; give the name of a file or folder")
    with pipeline.writing(run):
        data = pipeline.open_run(run)
        if options.dedup:
            coreset = Deduplication.load(run, data).coreset(data)
        else:
            coreset = Coreset.load(options.coreset or run.coreset, data)
        if options.dry_run:
            common.say(
                options, f"{common.describe(data)}\nwould write {len(coreset):,} images as {options.to} to {out}"
            )
            return common.finish(options, {"dry_run": True, "images": len(coreset), "out": str(out)})
        outcome = pipeline.export_run(data, coreset, out, options.to, progress=common.show_progress(options), **more)
        common.say(options, outcome)
        return common.finish(options, outcome.facts)
