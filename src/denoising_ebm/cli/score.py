"""`debm score`: how normal images are, which are odd, and where."""

from __future__ import annotations

import io
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from denoising_ebm.cli.common import (
    DATA_HELP,
    MODEL_HELP,
    add_device_options,
    add_source_options,
    check_apart,
    check_at_least,
    check_suffix,
    check_writable,
    note,
    preprocess_as_fitted,
    progress_bar,
    read_detector,
    read_images,
    read_model,
)

if TYPE_CHECKING:
    from torch import Tensor

    from denoising_ebm.datasets.images import ImageSet
    from denoising_ebm.model import DenoisingEBM
    from denoising_ebm.ood.detector import Detector
    from denoising_ebm.ood.table import Score

HELP = "score how normal images are, flag the odd ones, and show where they are odd"
USAGE = "debm score MODEL IMAGES [--fpr 0.05] [--out scores.csv] [--maps DIR] [--report page.html] [options]"
DESCRIPTION = """\
Score images. With a detector (`debm fit-detector` puts one beside the model): a score (0 = usual, larger = more odd), a
p-value (share of normal images at least as odd) and, with --fpr or --fdr, a flag. Always: the energy (low = normal) and its
percentile among the model's own held-out images. A detector's scores are computed in the precision it was fitted in.

Images are brought to the model's size as those were that the detector was fitted to, unless --resize or --center-crop is
given: then these alone decide.

Columns: name, status (ok or unreadable), score, p_value, flagged, looks (if p_value <= .1: which alteration of a normal
image it resembles most, a hint at why it is odd), energy, percentile, sigma, resize, reason (why it is unreadable: damaged,
or of another size or channel count); a row for each file, in the order of the source; of a folder with splits, for each file
of --split.

The rate --fpr holds in expectation over calibration images that are like those to come and new to the model. That of one
detector varies around it: at --fpr 0.05, with the default 2,000 calibration images, from about .04 to .06."""
EPILOG = """\
Examples:
  debm score runs/mine new-images/ --fpr 0.05 --out scores.csv      at most 5 % of normal images are flagged (expected)
  debm score runs/mine new-images/ --fdr 0.1 --report page.html     at most 10 % of the flagged images are normal
  debm score runs/mine photos/ --resize lanczos --maps maps/        a picture for each image: where it is odd
  debm score runs/mine photos/ --resize lanczos --maps maps/ --tiles   the same at the images' own size
  debm score fashion-mnist digits --limit 100 > scores.csv"""


def add(parser: ArgumentParser, argv: list[str]) -> None:
    """Add the options."""
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("images", metavar="IMAGES", help=DATA_HELP)
    group = parser.add_argument_group("results")
    group.add_argument(
        "--out", metavar="FILE", help="table to write: .csv, .parquet or .jsonl; without it CSV goes to stdout"
    )
    group.add_argument("--maps", metavar="DIR", help="also write a PNG an image: the image above where it is odd")
    group.add_argument(
        "--tiles",
        action="store_true",
        help="make the maps at the images' own size, from overlapping tiles: for a detector fitted to images of that scale",
    )
    group.add_argument("--report", metavar="FILE", help="also write a page (.html): how many are odd, which, and where")
    group = parser.add_argument_group("flagging")
    group.add_argument(
        "--fpr",
        type=float | None,
        metavar="A",
        help="false-alarm rate: flag at most this share of normal images, in expectation",
    )
    group.add_argument(
        "--fdr",
        type=float | None,
        metavar="Q",
        help="false discovery rate instead: at most this share of the flagged images is normal (Benjamini-Hochberg)",
    )
    group.add_argument(
        "--detector", metavar="DIR", help="folder of the detector; by default the model's, if it has one"
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
        help="noise draws to average over, in maps without a detector and in energies that have any",
    )
    group.add_argument("--seed", type=int, default=0, metavar="S", help="seed of these draws")
    group.add_argument("--batch-size", type=int, default=256, metavar="N", help="images scored at once")
    add_source_options(parser, "test")
    add_device_options(parser)


def run(args: Namespace) -> int:
    """Score and write."""
    _check(args)
    from denoising_ebm.datasets.images import check_png_names
    from denoising_ebm.model import REFERENCE_SIGMAS
    from denoising_ebm.ood.conformal import check_rate, min_bh_rejections
    from denoising_ebm.ood.table import check_table_path, csv_text, score_images, write_table

    if args.out is not None:
        check_table_path(Path(args.out))
    check_apart("--maps", args.maps, args.images)
    check_writable(args.out)
    check_writable(args.report)
    check_writable(args.maps, folder=True)
    model = read_model(args)
    detector = read_detector(args, model)
    if detector is None and (args.fpr is not None or args.fdr is not None):
        raise ValueError(f"{args.model}: --fpr and --fdr need a detector; `debm fit-detector` makes it")
    if detector is None and args.tiles:
        raise ValueError(f"{args.model}: --tiles needs a detector; `debm fit-detector` makes it")
    if detector is not None and args.fpr is not None:
        check_rate(args.fpr, len(detector.calibration))
    preprocess_as_fitted(args, detector)
    network = model.config.network
    images = read_images(args.images, args, network.image_size, network.channels, skip_unfit=True)
    if args.maps is not None:
        check_png_names(images.names)
    if detector is not None and args.fdr is not None:
        least = min_bh_rejections(args.fdr, len(detector.calibration), max(len(images), 1))
        if least > 1:
            note(
                f"--fdr {args.fdr:g} of {len(images):,} images with {len(detector.calibration):,} calibration images: "
                f"either none or at least {least:,} are flagged"
            )
    with progress_bar("scoring", len(images) * (1 if detector is None else 2)) as advance:
        rows = score_images(
            model,
            images,
            args.sigma,
            detector=detector,
            fpr=args.fpr,
            fdr=args.fdr,
            draws=args.draws,
            seed=args.seed,
            batch_size=args.batch_size,
            resize=args.resize,
            advance=advance,
        )
    readable = [row for row in rows if row.status == "ok"]
    if detector is None and readable:
        note("no p-values: the model has no detector; `debm fit-detector` makes one")
        if readable[0].percentile is None:
            levels = zip(REFERENCE_SIGMAS, model.reference, strict=True)
            kept = ", ".join(f"{level:g}" for level, row in levels if row.isfinite().all()) or "no level"
            note(f"no percentiles: the model keeps them for {kept}, not for sigma {args.sigma:g}")
    if args.out is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            # Names of files need not be valid Unicode.
            sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
        sys.stdout.write(csv_text(rows))
    else:
        write_table(rows, Path(args.out))
        asked = readable and readable[0].flagged is not None
        flagged = f", {sum(bool(row.flagged) for row in readable)} flagged" if asked else ""
        filtered = f", resized with {args.resize}" if args.resize else ""
        note(f"{args.out}: {len(images)} images scored{flagged}, {len(images.unreadable)} unreadable{filtered}")
    if not readable:
        first = images.unreadable[0]
        raise ValueError(f"{args.images}: none of {len(rows)} images can be read; {first.name}: {first.reason}")
    if args.maps is not None:
        _write_maps(args, model, detector, images)
    if args.report is not None:
        _write_report(args, model, detector, images, rows)
    return 0


def _check(args: Namespace) -> None:
    if args.sigma <= 0:
        raise ValueError(f"--sigma must be > 0, got {args.sigma:g}")
    for name in ("fpr", "fdr"):
        if args[name] is not None and not 0 < args[name] < 1:
            raise ValueError(f"--{name} must be in (0, 1), got {args[name]:g}")
    if args.fpr is not None and args.fdr is not None:
        raise ValueError("--fpr and --fdr exclude each other")
    if args.tiles and args.maps is None:
        raise ValueError("--tiles needs --maps")
    check_at_least(args, 1, "batch_size", "draws")
    check_at_least(args, 0, "seed")
    check_suffix(args.report, ".html")


def _maps(args: Namespace, model: DenoisingEBM, detector: Detector | None, pixels: Tensor) -> tuple[Tensor, float]:
    """Return the maps of images of the model's size, and the value of the strongest colour."""
    import torch

    from denoising_ebm.datasets.images import to_float
    from denoising_ebm.ood.pictures import Z_LIMIT, anomaly_map, brightest

    with progress_bar("maps", len(pixels)) as advance:
        if detector is not None:
            return detector.maps(pixels, batch_size=args.batch_size, progress=advance), Z_LIMIT
        parts = []
        for part in torch.split(pixels, args.batch_size):
            x = to_float(part).to(model.device)
            parts.append(anomaly_map(model, x, args.sigma, draws=args.draws, seed=args.seed).cpu())
            advance(len(part))
    maps = torch.cat(parts)
    return maps, brightest(maps)


def _write_maps(args: Namespace, model: DenoisingEBM, detector: Detector | None, images: ImageSet) -> None:
    from denoising_ebm.datasets.images import each_image
    from denoising_ebm.ood.pictures import Z_LIMIT, write_maps

    folder, unit = Path(args.maps), "a z-score" if detector is not None else "an energy"
    if args.tiles:
        assert detector is not None
        channels, limit, count = model.config.network.channels, Z_LIMIT, 0
        options = {"split": args.split, "channels": channels, "limit": args.limit, "convert": args.convert}
        with progress_bar("maps", len(images)) as advance:
            for name, pixels in each_image(args.images, **options):
                try:
                    maps = detector.maps(pixels[None], batch_size=args.batch_size)
                except ValueError as error:
                    note(f"{args.images}/{name}: no map: {error}")
                    continue
                write_maps(pixels[None], maps, [name], folder, limit, signed=True)
                count += 1
                advance(1)
    else:
        maps, limit = _maps(args, model, detector, images.pixels)
        write_maps(images.pixels, maps, images.names, folder, limit, signed=detector is not None)
        count = len(images)
    note(f"{args.maps}: {count} maps, strongest colours at {unit} of {limit:.3g} per pixel")


def _write_report(
    args: Namespace, model: DenoisingEBM, detector: Detector | None, images: ImageSet, rows: list[Score]
) -> None:
    import torch

    from denoising_ebm.ood.report import oddest, score_metadata, score_sections
    from denoising_ebm.utils.device import describe
    from denoising_ebm.viz.report import write_report

    maps, limit = _maps(args, model, detector, images.pixels[torch.tensor(oddest(rows))])
    rate = ""
    if args.fpr is not None:
        rate = f"at most {args.fpr:.3g} of normal images"
    elif args.fdr is not None:
        rate = f"at most {args.fdr:.3g} of the flagged are normal, in expectation"
    settings = {"command": shlex.join(["debm", *sys.argv[1:]]), "hardware": describe(model.device)}
    if args.resize:
        settings["resized with"] = args.resize
    if detector is not None:
        settings["detector"] = ", ".join(f"{name} {count:,} images" for name, count in detector.metadata.items())
    write_report(
        args.report,
        title="Which images are odd",
        sections=score_sections(images, rows, maps, limit, detector, rate=rate),
        metadata=score_metadata(args.model, args.images, images, rows, settings),
    )
    note(f"page: {args.report}")
