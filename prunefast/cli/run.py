import argparse
from typing import TYPE_CHECKING, Any

from prunefast.cli import common
from prunefast.errors import InputError

if TYPE_CHECKING:
    from prunefast.data import ImageDataset
    from prunefast.files import RunFolder
    from prunefast.train import TrainConfig

UNWEIGHTED: dict[str, Any] = {"class_weights": None, "class_weights_in": "loss"}  # before --reweight has found them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", help="image folder, tar, zip, CIFAR archive or .npy/.npz")
    common.add_out(parser, "folder of the run; the same command again finishes what is missing")
    common.add_data_options(parser)
    common.add_encoder_options(parser)
    common.add_selection(parser)
    parser.add_argument(
        "--dedup",
        choices=("exact", "perceptual", "semantic"),
        metavar="LEVEL",
        help="drop duplicates first: exact, perceptual or semantic (default: none are looked for)",
    )
    common.add_training(parser)
    common.add_sampling(parser)
    group = parser.add_argument_group("class weights")
    group.add_argument(
        "--reweight", metavar="CKPT", help="find class weights against this reference, and train with them"
    )
    group.add_argument(
        "--reweight-images", type=int, metavar="N", help="images of the proxy (default: as for training)"
    )
    parser.add_argument("--samples", type=int, default=1000, metavar="N", help="images to sample (default: 1000)")
    common.add_dry_run(parser)


def main(options: argparse.Namespace) -> int:
    from prunefast import pipeline
    from prunefast.data import open_dataset
    from prunefast.files import RunFolder

    run = RunFolder(options.out)
    show = common.show_progress(options)
    device = common.device(options)
    budget = common.budget(options)
    method_options = common.method_options(options)
    sampling = common.sampling(options)
    if options.samples < 2:
        raise InputError(f"--samples {options.samples}: at least 2 are needed to compare them with the data")
    if options.dry_run:
        data = open_dataset(options.data, progress=show, **common.data_options(options))
        config = common.training(options, out=str(run.path), data=data)
        _check(options, data, config, budget, method_options, sampling)
        plan = (
            f"would embed with {options.encoder}, keep {budget} by {options.method}, sample {options.samples:,} images"
        )
        common.say(options, f"{common.describe(data)}\n{plan}\n{common.describe_training(config)}")
        return common.finish(options, {"dry_run": True, "images": len(data), "config": config.to_dict()})

    with pipeline.writing(run, new=True):
        return _run(options, run, show, device, budget, method_options, sampling)


def _run(
    options: argparse.Namespace,
    run: "RunFolder",
    show: bool,
    device: str | None,
    budget: dict[str, Any],
    method_options: dict[str, Any],
    sampling: dict[str, Any],
) -> int:
    from prunefast import pipeline
    from prunefast.dedup import Deduplication
    from prunefast.select import Coreset

    data = pipeline.open_run(run, options.data, progress=show, **common.data_options(options))
    common.say(options, common.describe(data))
    config = common.training(options, out=str(run.path), data=data)
    _check(options, data, config, budget, method_options, sampling)
    facts = {}

    def done(step: str, outcome: pipeline.Outcome) -> None:
        common.say(options, f"{step}: {outcome}")
        facts[step] = outcome.facts | {"repeated": outcome.repeated}

    encoder = common.encoder_options(options)
    done("embed", pipeline.embed_run(run, data, progress=show, device=device, **encoder))
    duplicates = None
    if options.dedup is not None:
        done("dedup", pipeline.dedup_run(run, data, options.dedup, progress=show))
        duplicates = Deduplication.load(run, data)
    selected = pipeline.select_run(
        run,
        data,
        options.method,
        per_class=options.per_class,
        seed=options.select_seed,
        budget=budget,
        duplicates=duplicates,
        score_name=options.score,
        class_target=common.class_target(options),
        **method_options,
    )
    done("select", selected)
    coreset = Coreset.load(run.coreset, data)
    if options.reweight is not None:
        proxy = _proxy(options, config)
        done("reweight", pipeline.reweight_run(proxy, data, coreset, options.reweight, progress=show))
        config = config.replace(class_weights=str(run.class_weights))
    common.say(options, common.describe_training(config))
    done("train", pipeline.train_run(config, data, coreset, progress=show))
    done("sample", pipeline.sample_run(run.path, options.samples, progress=show, device=options.device, **sampling))
    evaluated = pipeline.evaluate_run(
        run.samples,
        data,
        run.metrics,
        coreset=coreset,
        checkpoint=run.path,
        features=run.features,
        held_out=config.holdout if isinstance(config.holdout, str) else None,
        progress=show,
        device=device,
        **encoder,
    )
    done("evaluate", evaluated)
    done("report", pipeline.report_run(run))
    return common.finish(options, facts)


def _proxy(options: argparse.Namespace, config: "TrainConfig") -> "TrainConfig":
    """The network that is trained anyway, for `--reweight-images` and without dropout."""
    return config.replace(images=options.reweight_images or config.images, dropout=0.0, **UNWEIGHTED)


def _check(
    options: argparse.Namespace,
    data: "ImageDataset",
    config: "TrainConfig",
    budget: dict[str, Any],
    method_options: dict[str, Any],
    sampling: dict[str, Any],
) -> None:
    """What is wrong with any step is said now, not after an hour."""
    from prunefast import pipeline
    from prunefast.reweight.run import check_reweight

    pipeline.check_run(
        data,
        config if options.reweight is None else config.replace(**UNWEIGHTED),
        options.method,
        budget=budget,
        per_class=options.per_class,
        seed=options.select_seed,
        options=method_options,
        sampling=sampling,
        score_name=options.score,
        class_target=common.class_target(options),
    )
    if options.reweight is not None:
        check_reweight(_proxy(options, config), data, options.reweight)
    elif options.reweight_images is not None:
        raise InputError("--reweight-images: means nothing without --reweight; leave it out")
