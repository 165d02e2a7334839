"""`debm score`: how normal images are."""

from __future__ import annotations

import sys
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from denoising_ebm.cli.common import (
    DATA_HELP,
    MODEL_HELP,
    add_device_options,
    add_source_options,
    note,
    progress_bar,
    read_images,
    read_model,
)

HELP = "score how normal images are, and show where they are odd"
USAGE = "debm score MODEL IMAGES [--out scores.csv] [options]"
DESCRIPTION = """\
Score images: energy (low = normal) and percentile (share of the model's own held-out images with a lower energy).

Columns: name, energy, percentile, status (ok or unreadable), sigma. Unreadable images come last, without an energy."""
EPILOG = """\
Examples:
  debm score runs/fashion my-images/ > scores.csv
  debm score runs/fashion my-images/ --out scores.parquet --sigma 0.1
  debm score runs/fashion photo.png --resize lanczos --maps maps/
  debm score runs/fashion digits --limit 100"""


def add(parser: ArgumentParser, argv: list[str]) -> None:
    """Add the options."""
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("images", metavar="IMAGES", help=DATA_HELP)
    parser.add_argument(
        "--out", metavar="FILE", help="table to write: .csv, .parquet or .jsonl; without it CSV goes to stdout"
    )
    parser.add_argument(
        "--maps",
        metavar="DIR",
        help="also write a PNG an image: the image above its energy per pixel, all on one scale",
    )
    group = parser.add_argument_group("scoring")
    group.add_argument(
        "--sigma", type=float, default=0.05, metavar="S", help="noise level of the energy, for images in [-1, 1]"
    )
    group.add_argument(
        "--draws",
        type=int,
        default=4,
        metavar="N",
        help="noise draws to average over, in maps and in energies that have any",
    )
    group.add_argument("--seed", type=int, default=0, metavar="S", help="seed of these draws")
    group.add_argument("--batch-size", type=int, default=256, metavar="N", help="images scored at once")
    add_source_options(parser, "test")
    add_device_options(parser)


def run(args: Namespace) -> int:
    """Score and write."""
    if args.sigma <= 0:
        raise ValueError(f"--sigma must be > 0, got {args.sigma:g}")
    from denoising_ebm.model import REFERENCE_SIGMAS
    from denoising_ebm.scoring import check_table_path, csv_text, score_images, write_maps, write_table

    if args.out is not None:
        check_table_path(Path(args.out))
    model = read_model(args)
    images = read_images(args.images, args, model.config.network.image_size, model.config.network.channels)
    with progress_bar("scoring", len(images)) as advance:
        rows, maps = score_images(
            model,
            images,
            args.sigma,
            draws=args.draws,
            seed=args.seed,
            batch_size=args.batch_size,
            maps=args.maps is not None,
            advance=advance,
        )
    if rows[0].percentile is None:
        kept = [
            f"{level:g}" for level, row in zip(REFERENCE_SIGMAS, model.reference, strict=True) if row.isfinite().all()
        ]
        note(f"no percentiles: the model keeps them for {', '.join(kept) or 'no level'}, not for sigma {args.sigma:g}")
    if maps is not None:
        limit = write_maps(images, maps, Path(args.maps))
        note(f"{args.maps}: {len(images)} maps, brightest at an energy of {limit:.3g} per pixel")
    if args.out is None:
        sys.stdout.write(csv_text(rows))
    else:
        write_table(rows, Path(args.out))
        note(f"{args.out}: {len(images)} images scored, {len(images.unreadable)} unreadable")
    return 0
