import argparse

from prunefast.cli import common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="a diffusers folder with unet/ and scheduler/")
    common.add_out(parser, "run folder for the checkpoint")


def main(options: argparse.Namespace) -> int:
    from prunefast.train import import_model

    path = import_model(options.folder, options.out)
    common.say(options, f"{path}: sample it with prunefast sample {options.out}")
    return common.finish(options, {"checkpoint": str(path)})
