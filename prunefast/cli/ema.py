import argparse

from prunefast.cli import common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CKPT", help="a run folder, its train folder or one checkpoint-* folder")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--sigma-rel", type=float, metavar="S", help="relative width of a power-function average")
    which.add_argument("--half-life", type=float, metavar="N", help="half-life in images of an average that was kept")
    common.add_out(parser, "run folder for the checkpoint with that average")


def main(options: argparse.Namespace) -> int:
    from prunefast.train import choose_ema

    chosen = choose_ema(options.checkpoint, options.out, sigma_rel=options.sigma_rel, half_life=options.half_life)
    before = " (was there already)" if chosen.repeated else ""
    common.say(options, f"{chosen}{before}; sample it with prunefast sample {options.out}")
    facts = {"checkpoint": str(chosen.checkpoint), "average": chosen.name, "images": chosen.images}
    return common.finish(options, facts | {"snapshots": chosen.snapshots, "profile_error": chosen.profile_error})
