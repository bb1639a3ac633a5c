import argparse
from pathlib import Path

from prunefast.cli import common

RENAMED = {"prompts": "prompt", "labels": "label"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CKPT", help="a run folder, its train folder or one checkpoint-* folder")
    parser.add_argument("-n", type=int, default=64, help="number of images (default: 64)")
    common.add_out(parser, "folder for the PNG files and samples.json")
    common.add_sampling(parser)
    parser.add_argument("--label", help="class name or number of all images (default: every class in turn)")
    parser.add_argument("--raw-weights", action="store_true", help="the last weights, not their moving average")
    parser.add_argument("--vae", metavar="FOLDER", help="autoencoder of a model of latents, where it was moved")
    parser.add_argument(
        "--prompt", metavar="TEXT", action="append", help="of a model of captions; several times: every text in turn"
    )
    parser.add_argument("--text-encoder", metavar="FOLDER", help="pipeline with the text model, where it was moved")
    common.add_device(parser)


def main(options: argparse.Namespace) -> int:
    from prunefast import pipeline

    label = options.label
    outcome = pipeline.sample_run(
        Path(options.checkpoint),
        options.n,
        Path(options.out),
        progress=common.show_progress(options),
        labels=int(label) if label is not None and label.isascii() and label.isdigit() else label,
        ema=not options.raw_weights,
        device=options.device,
        **({} if options.vae is None else {"vae": options.vae}),
        **({} if options.prompt is None else {"prompts": options.prompt}),
        **({} if options.text_encoder is None else {"text_encoder": options.text_encoder}),
        **common.sampling(options),
    )
    common.say(options, outcome)
    return common.finish(options, outcome.facts)
