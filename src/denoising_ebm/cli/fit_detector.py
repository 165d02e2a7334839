"""`debm fit-detector`: what is normal, from a folder of normal images."""

from __future__ import annotations

from dataclasses import replace

from jsonargparse import ArgumentParser, Namespace

from denoising_ebm.cli.common import (
    DATA_HELP,
    MODEL_HELP,
    add_device_options,
    add_source_options,
    check_at_least,
    folder_to_write,
    note,
    progress_bar,
    read_images,
    read_model,
)

HELP = "learn from normal images which ones are odd"
USAGE = "debm fit-detector MODEL DATA [--calibration DATA] [--out DIR] [options]"
DESCRIPTION = """\
Fit a detector to normal images: how what the model computes for them spreads, and what slight alterations of some of them
(noise, blur, a turn, ...) do to it; statistics of the energy per pixel; and scores of calibration images, which `debm score`
needs for p-values and a false-alarm rate that is kept. More images see more: thousands are best, and a few hundred work.

Writes detector.json and detector.safetensors into the model's folder (or --out); `debm score MODEL IMAGES` then uses them.

Calibration images stand for the normal images to come. They should be new to the model: images it was trained on look more
normal to it than others, and the promised rate would be exceeded. Without --calibration a fifth
of the images drawn from DATA is kept for it."""
EPILOG = """\
Examples:
  debm fit-detector runs/mine normal-images/
  debm fit-detector runs/mine train-images/ --calibration new-normal-images/
  debm fit-detector runs/cifar CIFAR10 --split train --calibration CIFAR10 --calibration-split test
  debm fit-detector fashion-mnist fashion-mnist --out my-detector"""


def add(parser: ArgumentParser, argv: list[str]) -> None:
    """Add the options."""
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("data", metavar="DATA", help=f"normal images: {DATA_HELP}")
    parser.add_argument("--out", metavar="DIR", help="where to write the detector; by default the model's folder")
    group = parser.add_argument_group("fitting")
    group.add_argument("--calibration", metavar="DATA", help="normal images that the model was not trained on")
    group.add_argument("--calibration-split", default="test", metavar="NAME", help="part of --calibration to use")
    group.add_argument(
        "--images", type=int, default=5000, metavar="N", help="fit on so many of the images, drawn at random"
    )
    group.add_argument(
        "--altered-images",
        type=int,
        default=100,
        metavar="N",
        help="alter so many of them in every way, to learn in which directions images become odd",
    )
    group.add_argument(
        "--calibration-images",
        type=int,
        default=2000,
        metavar="N",
        help="use so many of --calibration, drawn at random; a false-alarm rate down to 1 / (N + 1) can then be promised",
    )
    group.add_argument("--seed", type=int, default=0, metavar="S", help="seed of these draws")
    group.add_argument("--batch-size", type=int, default=256, metavar="N", help="images in a forward pass")
    add_source_options(parser, "train")
    add_device_options(parser)


def run(args: Namespace) -> int:
    """Fit and write."""
    check_at_least(args, 20, "images")
    check_at_least(args, 1, "calibration_images", "altered_images", "batch_size")
    check_at_least(args, 0, "seed")
    import torch

    from denoising_ebm.datasets.images import image_hashes
    from denoising_ebm.ood.detector import MAP_IMAGES, Detector, DetectorConfig

    folder = folder_to_write(args, "the detector")
    model = read_model(args)
    network = model.config.network
    sizes = network.image_size, network.channels
    draws = torch.Generator().manual_seed(args.seed)
    pixels = read_images(args.data, args, *sizes, sample=args.images, generator=draws).pixels
    held = None
    if args.calibration is not None:
        options = args.clone()
        options.split, options.limit = args.calibration_split, None
        # As many more as may be among those that are fitted to.
        most = args.calibration_images + len(pixels)
        held = read_images(args.calibration, options, *sizes, sample=most, generator=draws).pixels
        known = torch.isin(image_hashes(held), image_hashes(pixels))
        if bool(known.all()):
            raise ValueError(f"{args.calibration}: its images are all among those of {args.data} that are fitted to")
        if bool(known.any()):
            note(f"{args.calibration}: {int(known.sum()):,} images that are fitted to as well are left out")
        held = held[~known][: args.calibration_images]
    else:
        note(
            f"a fifth of the images drawn from {args.data} stands for the normal images to come; if the model was trained "
            "on them, more than the promised share of new ones is flagged: give new ones with --calibration"
        )
    detector = Detector(model, replace(DetectorConfig(), altered=args.altered_images))
    num = len(pixels) if held is not None else len(pixels) - len(pixels) // 5
    altered = detector.config.num_altered(num, network.channels)
    total = len(pixels) + altered + min(MAP_IMAGES, num) + (0 if held is None else len(held))
    with progress_bar("fitting", total) as advance:
        detector.fit(pixels, calibration=held, seed=args.seed, batch_size=args.batch_size, progress=advance)
    detector.preprocessing = {name: args[name] for name in ("resize", "center_crop", "convert")}
    detector.save(folder)
    counts = ", ".join(f"{name} {count:,} images" for name, count in detector.metadata.items())
    lowest = 1 / (len(detector.calibration) + 1)
    note(f"{folder}: detector {counts}; false-alarm rates down to {lowest:.2g} can be promised")
    return 0
