"""`debm reproduce`: the paper's tables and figures."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ArgumentParser, Namespace

from denoising_ebm.cli.common import DATA_HELP, MODEL_HELP, Resize, load_and_note, note, read_ood_sets

if TYPE_CHECKING:
    from torch import Tensor

    from denoising_ebm.datasets.images import ImageSet

HELP = "run the paper's tables and figures, row by row, beside the paper's figures"
USAGE = "debm reproduce TARGET ... [--scale tiny|small|full] [--data DATA] [--out DIR] [options]"
DESCRIPTION = """\
Train, sample and measure what the paper's tables and figures show, and write DIR/index.html and DIR/results.md.

Targets: table1 (samples by objective and sampler), table2 (the same on --second), table3 (noise levels), table4 (odd
images), classes (samples by class, where images have labels), figure4 (samples, and whether they are copies), figure5
(chains with and without the semantic start), speed (beside NCSN's protocol), all.

Every row is kept, and the page is written after each study: after Ctrl-C the same command goes on at the row it was on.
Commands with other targets and the same DIR add to the page.
`tiny` shows in minutes that all of it runs, `small` is for two cores (hours), `full` is the paper's scale, for a GPU.

FID and IS need Inception's weights (--inception); without them the Fréchet distance of EfficientNet-lite0 features is
given, which works offline and is no FID (both are extras: denoising-ebm[eval,fid])."""
EPILOG = """\
Examples:
  debm reproduce all --scale tiny --second fashion-mnist --out runs/tiny
  debm reproduce table1 --scale small --data cifar10/ --out runs/cifar10
  debm reproduce figure5 speed --scale small --data cifar10/ --model cifar10-small --out runs/chains
  debm reproduce table4 --scale small --data cifar10/ --model cifar10-small --ood svhn=svhn/@train --out runs/odd
  debm reproduce all --scale full --data cifar10/ --second celeba/ --second-size 64 --inception auto --out runs/full"""

Target = Literal["table1", "table2", "table3", "table4", "classes", "figure4", "figure5", "speed", "all"]
Scale = Literal["tiny", "small", "full"]


def add(parser: ArgumentParser, argv: list[str]) -> None:
    """Add the options."""
    parser.add_argument("target", type=Target, nargs="+", metavar="TARGET", help="one or more of the targets above")
    parser.add_argument("--scale", type=Scale, default="tiny", help="how large")
    parser.add_argument("--out", default="runs/reproduce", metavar="DIR", help="folder for rows, models and the page")
    group = parser.add_argument_group("images")
    group.add_argument(
        "--data",
        default="fashion-mnist",
        metavar="DATA",
        help=f"{DATA_HELP}; without splits a fifth is kept for testing",
    )
    group.add_argument("--size", type=int | None, metavar="N", help="bring its images to this size (lanczos)")
    group.add_argument("--center-crop", type=int | None, metavar="N", help="first cut out their central square")
    group.add_argument(
        "--convert",
        action="store_true",
        help="bring gray test and odd images to RGB, or RGB ones to gray, where the training images are the other",
    )
    group.add_argument("--second", metavar="DATA", help="the set of table 2")
    group.add_argument("--second-size", type=int | None, metavar="N", help="bring its images to this size (lanczos)")
    group.add_argument(
        "--second-center-crop", type=int | None, metavar="N", help="first cut out their central square (CelebA: 140)"
    )
    group.add_argument(
        "--ood",
        action="append",
        metavar="SET",
        help="odd set of table 4, as for `debm evaluate`; may be repeated; interpolation alone by default",
    )
    group.add_argument(
        "--resize",
        type=Resize | None,
        metavar="FILTER",
        help="bring odd sets to the images' size: bilinear, bicubic, lanczos or box",
    )
    group = parser.add_argument_group("models and figures")
    group.add_argument("--model", metavar="MODEL", help=f"instead of training by denoising: {MODEL_HELP}")
    group.add_argument(
        "--minutes", type=float, default=0.0, metavar="M", help="of each training; 0 for the scale's own"
    )
    group.add_argument(
        "--inception",
        metavar="FILE",
        help="also FID and IS: the file with Inception's weights, or auto for torch's cache",
    )
    group.add_argument("--seed", type=int, default=0, metavar="S", help="of weights, batches and samples")
    group.add_argument(
        "--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N; auto takes a GPU if any"
    )


def run(args: Namespace) -> int:
    """Run and say where the page is."""
    if args.minutes < 0:
        raise ValueError(f"--minutes must be >= 0, got {args.minutes:g}")
    from denoising_ebm.experiments.run import STUDIES, Images, reproduce
    from denoising_ebm.experiments.settings import SIZES
    from denoising_ebm.model import DenoisingEBM
    from denoising_ebm.quality.extractors import EfficientNetLite0Features
    from denoising_ebm.quality.inception import InceptionFeatures, find_weights

    targets = [name for name in STUDIES if name in args.target or "all" in args.target]
    inception: bool | str = False
    # Before hours of work that would end without them.
    if targets != ["table4"]:
        EfficientNetLite0Features.packages()
    if args.inception:
        InceptionFeatures.package()
        inception = str(find_weights(None if args.inception == "auto" else args.inception))
    limit = SIZES[args.scale].train_images
    train, test = _read(args.data, limit, args.size, args.center_crop, convert=args.convert, known_to=args.model)
    labels = train.labels, test.labels
    odd: dict[str, Tensor] = {}
    if "table4" in targets:
        options = args.clone()
        # What `debm evaluate` has options for.
        defaults = {"split": "test", "limit": None, "center_crop": None, "strict": False}
        for name, value in defaults.items():
            options[name] = value
        read = read_ood_sets(args.ood or ["interpolation"], test.pixels, options)
        odd = {name: pixels[_order(len(pixels))] for name, pixels in read.items()}
    images = Images(args.data, train.pixels, test.pixels, odd, labels)
    second = None
    if args.second and "table2" in targets:
        second_train, second_test = _read(
            args.second, limit, args.second_size, args.second_center_crop, convert=args.convert
        )
        second = Images(args.second, second_train.pixels, second_test.pixels)
    trained = None
    if args.model:
        trained = DenoisingEBM.from_pretrained(args.model, device=args.device).set_precision("auto")
    try:
        page, failed = reproduce(
            targets,
            args.scale,
            Path(args.out),
            images,
            second=second,
            minutes=args.minutes,
            seed=args.seed,
            device=args.device,
            trained=trained,
            trained_name=args.model or "",
            inception=inception,
            command=shlex.join(["debm", *sys.argv[1:]]),
            log=note,
        )
    except KeyboardInterrupt:
        note(f"stopped; the same command goes on in {args.out}")
        return 130
    print(f"page: {page}\ntext: {page.with_name('results.md')}")
    if failed:
        note(f"{', '.join(failed)}: could not be made, see the page")
    return 1 if failed else 0


def _read(
    source: str,
    limit: int | None,
    size: int | None = None,
    crop: int | None = None,
    *,
    convert: bool = False,
    known_to: str | None = None,
) -> tuple[ImageSet, ImageSet]:
    """Return both splits, of one size and one number of channels, each shuffled.

    Raises:
        ValueError: If there are no splits, and the model `known_to` may have been trained on what would be test images.
    """
    options: dict[str, Any] = {"resize": "lanczos" if size else None, "center_crop": crop}
    train = load_and_note(source, split="train", image_size=size, **options)
    channels, size = train.pixels.shape[1:3]
    test = load_and_note(source, split="test", image_size=size, channels=channels, convert=convert, **options)
    if train.names == test.names:
        # Without splits both are all images.
        if known_to:
            raise ValueError(
                f"{source}: has no splits, so {known_to} may have been trained on the images that would stand for test "
                "images; with --model give a source with the splits train and test"
            )
        order, num = _order(len(train)), len(train) // 5
        note(
            f"{source}: has no splits, so {num:,} of its {len(train):,} images, drawn at random, stand for test images"
        )
        return train.take(order[num:][:limit]), train.take(order[:num][:limit])
    return train.take(_order(len(train))[:limit]), test.take(_order(len(test))[:limit])


def _order(num: int) -> Tensor:
    """Return the same shuffled indices every time: folders come class by class."""
    import torch

    return torch.randperm(num, generator=torch.Generator().manual_seed(0))
