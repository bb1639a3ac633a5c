import argparse
from pathlib import Path
from typing import Any

from prunefast.cli import common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("samples", metavar="DIR", help="folder of samples (or anything DATA can be)")
    parser.add_argument("--reference", metavar="DATA", required=True, help="the real images, all of them, or a RUN")
    parser.add_argument("--coreset", metavar="FILE", help="coreset.parquet of the reference, to measure memorisation")
    parser.add_argument("--checkpoint", metavar="CKPT", help="the model, to compare its loss on seen and unseen images")
    parser.add_argument("--held-out", metavar="DATA", help="images not trained on (default: what the coreset left out)")
    parser.add_argument("--metric", choices=("features", "inception"), default="features", help="default: features")
    parser.add_argument("-o", "--out", metavar="FILE", help="write metrics.json there")
    common.add_data_options(parser)
    common.add_encoder_options(parser)
    common.add_device(parser)


def main(options: argparse.Namespace) -> int:
    from prunefast.data import open_dataset
    from prunefast.evaluate import evaluate
    from prunefast.files import RunFolder
    from prunefast.select import Coreset

    show = common.show_progress(options)
    run = RunFolder(options.reference)
    if run.items.exists():
        from prunefast.pipeline import open_run

        common.refuse_data_options(options, run.path, but=("image_size",))
        reference = open_run(run)
        if options.image_size is not None:
            reference = reference.with_image_size(options.image_size)
    else:
        reference = open_dataset(options.reference, progress=show, **common.data_options(options))
    coreset = Coreset.load(options.coreset, reference) if options.coreset else None
    chosen: dict[str, Any] = {} if options.metric == "features" else {"metrics": ("inception",)}
    result = evaluate(
        Path(options.samples),
        reference,
        coreset=coreset,
        checkpoint=options.checkpoint,
        held_out=options.held_out,
        out=options.out,
        device=common.device(options),
        progress=show,
        **chosen,
        **common.encoder_options(options),
    )
    common.say(options, result)
    return common.finish(options, {"metrics": result.metrics, "protocol": result.protocol})
