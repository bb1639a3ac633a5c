import argparse
import dataclasses
from typing import TYPE_CHECKING

from prunefast.cli import common
from prunefast.errors import InputError

if TYPE_CHECKING:
    from prunefast.data import ImageDataset
    from prunefast.select import Coreset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from prunefast.tdc.options import IMPORTANCES, PROPOSERS, SPLITS, TDCOptions

    default = TDCOptions()
    common.add_run(parser)
    parser.add_argument("-o", "--out", metavar="FOLDER", help="folder of the networks (default: RUN/tdc)")
    parser.add_argument("--data", help="what the base was trained on, where RUN has no items.parquet")
    parser.add_argument(
        "--coreset", metavar="FILE", help="coreset.parquet of the base (default: RUN's, else all images)"
    )
    common.add_data_options(parser)
    group = parser.add_argument_group("groups")
    group.add_argument("--groups", type=int, default=default.groups, metavar="N", help=f"default: {default.groups}")
    group.add_argument("--k", type=float, default=default.k, help=f"least part of the FLOPs (default: {default.k})")
    group.add_argument(
        "--groups-by", choices=SPLITS, default=default.groups_by, help="what groups share (default: times)"
    )
    group.add_argument("--reverse", action="store_true", help="the noisiest group gets the whole network")
    group = parser.add_argument_group("pruning")
    group.add_argument(
        "--proposer", choices=PROPOSERS, default=default.proposer, help="who decides the widths (default: optuna)"
    )
    group.add_argument("--ask", metavar="COMMAND", help="of --proposer language: reads the task, prints the widths")
    group.add_argument("--rounds", type=int, default=default.rounds, help=f"proposals (default: {default.rounds})")
    group.add_argument(
        "--importance", choices=IMPORTANCES, default=default.importance, help="channels that stay (default: magnitude)"
    )
    group.add_argument("--proxy-images", type=int, default=default.proxy_images, metavar="N", help="scored on")
    group.add_argument("--proxy-steps", type=int, default=default.proxy_steps, metavar="N", help="before scoring")
    group = parser.add_argument_group("fine-tuning")
    group.add_argument("--images", type=int, metavar="N", help="a group (default: those of the base / groups)")
    group.add_argument("--lr", type=float, help="learning rate (default: that of the base)")
    group.add_argument("--seed", type=int, default=0, help="of the search (default: 0)")
    common.add_dry_run(parser)


def main(options: argparse.Namespace) -> int:
    from prunefast import distributed, pipeline
    from prunefast.files import RunFolder
    from prunefast.tdc import TDCOptions, sampling_flops, tdc
    from prunefast.tdc.propose import command_to_ask
    from prunefast.tdc.stages import base_state

    names = [field.name for field in dataclasses.fields(TDCOptions)]
    chosen = TDCOptions(**{name: getattr(options, name) for name in names})
    if (options.ask is not None) != (options.proposer == "language"):
        raise InputError("--ask COMMAND and --proposer language go together")
    ask = None if options.ask is None else command_to_ask(options.ask)
    run = RunFolder(options.run)
    out = run.path / "tdc" if options.out is None else RunFolder(options.out).path

    def inputs() -> "tuple[ImageDataset, Coreset]":
        state = base_state(run.path, out)
        return pipeline.open_trained(
            run, state, data=options.data, coreset=options.coreset, **common.data_options(options)
        )

    data, coreset = distributed.everywhere(inputs)
    common.say(options, f"{common.describe(data)}\ncoreset: {len(coreset):,} images")
    if options.dry_run:
        facts = dataclasses.asdict(chosen)
        common.say(options, f"would cut the times into {chosen.groups} groups by {chosen.groups_by}, into {out}")
        return common.finish(options, {"dry_run": True, "out": str(out), **facts})
    result = tdc(run.path, data, coreset, chosen, out=out, propose=ask, progress=common.show_progress(options))
    ours, base = sampling_flops(out)
    common.say(options, f"{result}\nan image by 50 steps of ddim: {ours:.4g} FLOPs, {ours / base:.1%} of the base's")
    facts = {
        "folder": str(out),
        "repeated": result.repeated,
        "groups": list(result.groups),
        "mean_share": result.mean_share,
        "training_flops": result.training_flops,
        "flops_per_image": ours,
        "base_flops_per_image": base,
    }
    return common.finish(options, facts)
