import argparse
from pathlib import Path

from prunefast.cli import common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CKPT", help="a run folder, its train folder or one checkpoint-* folder")
    parser.add_argument("--to", choices=("diffusers",), default="diffusers", help="default: diffusers")
    common.add_out(parser, "folder for DiffusionPipeline.from_pretrained")
    parser.add_argument("--raw-weights", action="store_true", help="the last weights, not their moving average")


def main(options: argparse.Namespace) -> int:
    from prunefast.files import read_json
    from prunefast.train import export_model

    alone = export_model(options.checkpoint, options.out, to=options.to, ema=not options.raw_weights)
    how = "" if alone else ", trust_remote_code=True"
    pipeline = read_json(Path(options.out) / "model_index.json")["_class_name"]
    common.say(options, f'{options.out}: load it with diffusers.{pipeline}.from_pretrained("{options.out}"{how})')
    return common.finish(options, {"folder": options.out, "needs_prunefast": not alone})
