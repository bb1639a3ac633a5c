import argparse
import contextlib
from typing import TYPE_CHECKING, Any

from prunefast.cli import common
from prunefast.errors import InputError

if TYPE_CHECKING:
    from prunefast.data import ImageDataset
    from prunefast.train import TrainConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_run(parser)
    parser.add_argument(
        "--reference", metavar="CKPT", required=True, help="trained run or checkpoint the proxy is compared with"
    )
    parser.add_argument("--coreset", metavar="FILE", help="default: RUN/coreset.parquet, else all images")
    group = parser.add_argument_group("class weights")
    group.add_argument("--step-size", type=float, metavar="ETA", help="log-odds per step and unit of excess")
    group.add_argument("--smoothing", type=float, metavar="F", help="share of the uniform weights at every step")
    group.add_argument("--start", choices=("uniform", "shares"), help="first weights (default: uniform)")
    group.add_argument("--draw", choices=("uniform", "shares"), help="of the proxy's images (default: uniform)")
    group.add_argument("--micro-batch", type=int, metavar="B", help="images at a time, for little memory")
    group.add_argument(
        "--groups", choices=("classes", "clusters"), help="what is weighed (default: classes where there are some)"
    )
    common.add_training(parser)
    common.add_dry_run(parser)


# arguments that are keys of ReweightOptions by the same name
_OPTIONS = ("step_size", "smoothing", "start", "draw", "micro_batch")


def main(options: argparse.Namespace) -> int:
    from prunefast import distributed, pipeline
    from prunefast.files import RunFolder
    from prunefast.reweight import ClassWeights
    from prunefast.select import Coreset

    run = RunFolder(options.run)
    main_rank = distributed.is_main()
    with pipeline.writing(run) if main_rank else contextlib.nullcontext():
        data = pipeline.open_run(run)
        path = options.coreset or (run.coreset if run.coreset.exists() else None)
        coreset = Coreset.load(path, data) if path is not None else Coreset.full(data)
        config = proxy_config(options, str(run.path), data)
        common.say(options, f"{common.describe(data)}\ncoreset: {len(coreset):,} images")
        common.say(options, f"proxy {common.describe_training(config)}")
        if options.dry_run:
            return common.finish(options, {"dry_run": True, "config": config.to_dict()})
        chosen = {name: getattr(options, name) for name in _OPTIONS if getattr(options, name) is not None}
        groups = options.groups or ("classes" if data.labels is not None else "clusters")
        outcome = pipeline.reweight_run(
            config, data, coreset, options.reference, groups=groups, progress=common.show_progress(options), **chosen
        )
        common.say(options, f"{ClassWeights.load(run.class_weights).summary()}\n{outcome}")
        return common.finish(options, outcome.facts)


def proxy_config(options: argparse.Namespace, out: str, data: "ImageDataset") -> "TrainConfig":
    """The proxy is trained as the reference was, without dropout, unless the arguments say otherwise."""
    from prunefast.train import TrainConfig
    from prunefast.train.network import load_network

    if options.config and options.preset:
        raise InputError("--config and --preset: give one of them")
    values = common.training_values(options)
    values |= {"out": out, "data": data.path or None, "split": data.split}
    if options.config:
        return TrainConfig.load(options.config, **values)
    if options.preset:
        return TrainConfig.from_preset(options.preset, **values)
    base: dict[str, Any] = dict(load_network(options.reference).config)
    for key in ("coreset", "class_weights", "class_weights_in", "class_weights_of", "device", "max_seconds"):
        base.pop(key, None)
    if "model" in values and values["model"] != base.get("model"):
        base.pop("model_options", None)  # they were of the other network
    if "max_seconds" in values and "images" not in values:
        base.pop("images", None)
    return TrainConfig.from_dict({**base, "dropout": 0.0, **values}, f"reference {options.reference}")
