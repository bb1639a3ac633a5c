import argparse

from prunefast.cli import common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", help="image folder, tar, zip, CIFAR archive or .npy/.npz")
    parser.add_argument(
        "--vae", metavar="FOLDER", required=True, help="local AutoencoderKL or VQModel of diffusers, or its pipeline"
    )
    common.add_out(parser, "folder for the latents; train on it with: prunefast train --data FOLDER")
    common.add_data_options(parser)
    parser.add_argument("--batch-size", type=int, default=16, help="images a batch (default: 16)")
    common.add_device(parser)
    common.add_dry_run(parser)


def main(options: argparse.Namespace) -> int:
    from prunefast.data import open_dataset
    from prunefast.encode.latents import encode_latents

    show = common.show_progress(options)
    data = open_dataset(options.data, progress=show, **common.data_options(options))
    common.say(options, common.describe(data))
    if options.dry_run:
        common.say(options, f"would write latents of {options.vae} to {options.out}")
        return common.finish(options, {"dry_run": True, "images": len(data), "vae": options.vae})
    latents = encode_latents(
        data,
        options.vae,
        options.out,
        batch_size=options.batch_size,
        device=common.device(options),
        progress=show,
    )
    scale = latents.latents
    common.say(options, f"{len(latents):,} latents, {scale.channels} x {scale.side} x {scale.side}, in {options.out}")
    facts = {"images": len(latents), "channels": scale.channels, "side": scale.side, "folder": str(latents.path)}
    return common.finish(options, facts)
