"""`debm evaluate`: how well odd sets are told from a normal one."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from denoising_ebm.cli.common import (
    DATA_HELP,
    MODEL_HELP,
    add_device_options,
    add_source_options,
    check_at_least,
    check_writable,
    note,
    preprocess_as_fitted,
    progress_bar,
    read_detector,
    read_images,
    read_model,
    read_ood_sets,
)

if TYPE_CHECKING:
    from torch import Tensor

    from denoising_ebm.ood.detector import Detector
    from denoising_ebm.ood.evaluation import SetResult
    from denoising_ebm.viz.report import Cell, Table

HELP = "measure how well odd images are told from normal ones"
USAGE = "debm evaluate MODEL --in DATA --ood NAME[=DATA[@SPLIT]] ... [--out DIR] [options]"
DESCRIPTION = """\
Score normal images and sets of odd ones; print AUROC, AUPR and FPR at 95 % TPR with bootstrap intervals, for the model's
detector (`debm fit-detector`) and for its energy at one noise level, the paper's score (but for the inner noise of eq. 7,
where the model's config has none).

Odd sets are images (NAME=DATA, NAME=DATA@SPLIT) or made of the normal ones: interpolation (means of two, as in the paper),
constant, uniform-noise, gaussian-noise, impulse-noise, blur, contrast, brightness, pixelate, jpeg, zoom, upside-down,
shuffled, spliced, inverted, swapped-channels; `all` stands for all of these. But for the first three they are relatives of
the alterations that a detector learns from.

With --out: index.html (tables, ROC curves, histograms), results.csv, and the scores of every image in scores.parquet."""
EPILOG = """\
Examples:
  debm evaluate runs/cifar --in CIFAR10 --ood svhn=SVHN --ood interpolation --out runs/ood
  debm evaluate runs/cifar --in CIFAR10 --limit 2000 --ood celeba=CELEBA@train --resize bilinear
  debm evaluate fashion-mnist --in fashion-mnist --ood digits=digits --ood all"""


def add(parser: ArgumentParser, argv: list[str]) -> None:
    """Add the options."""
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--in", required=True, metavar="DATA", help=f"normal images: {DATA_HELP}")
    parser.add_argument(
        "--ood", action="append", required=True, metavar="SET", help="an odd set, see above; may be given repeatedly"
    )
    parser.add_argument("--out", metavar="DIR", help="folder for the page and the tables")
    group = parser.add_argument_group("scoring")
    group.add_argument("--detector", metavar="DIR", help="folder of the detector; by default the model's, if any")
    group.add_argument("--sigma", type=float, default=0.05, metavar="S", help="noise level of the energy")
    group.add_argument("--resamples", type=int, default=200, metavar="N", help="bootstrap samples for the intervals")
    group.add_argument("--seed", type=int, default=0, metavar="S", help="seed of made sets and resamples")
    group.add_argument("--batch-size", type=int, default=256, metavar="N", help="images scored at once")
    add_source_options(parser, "test")
    add_device_options(parser)


def run(args: Namespace) -> int:
    """Score, compare, write."""
    import torch

    from denoising_ebm.ood.evaluation import evaluate
    from denoising_ebm.ood.evaluation_report import results_table
    from denoising_ebm.ood.features import log_energies
    from denoising_ebm.viz.report import markdown

    if args.sigma <= 0:
        raise ValueError(f"--sigma must be > 0, got {args.sigma:g}")
    check_at_least(args, 1, "batch_size")
    check_at_least(args, 2, "resamples")
    check_at_least(args, 0, "seed")
    check_writable(args.out, folder=True)
    model = read_model(args)
    detector = read_detector(args, model)
    preprocess_as_fitted(args, detector)
    # A set that is not there stops before any work is done.
    network = model.config.network
    normal_images = read_images(args["in"], args, network.image_size, network.channels).pixels
    sets = {"normal": normal_images, **read_ood_sets(args.ood, normal_images, args)}
    if detector is not None and (known := int(detector.was_fitted_on(normal_images).sum())):
        note(
            f"{args['in']}: the detector was fitted to or calibrated on {known:,} of these {len(normal_images):,} images, "
            "so its figures are better than those of new images"
        )
    if detector is None:
        note(f"{args.model}: has no detector (`debm fit-detector` makes one), so only the energy is measured")
    noise = model.scoring_noise(seed=args.seed) if model.config.energy.inner_noise else None
    scores: dict[str, dict[str, Tensor]] = {} if detector is None else {"detector": {}}
    energy = f"energy at sigma {args.sigma:g}"
    scores[energy] = {}
    with progress_bar("scoring", len(scores) * sum(len(pixels) for pixels in sets.values())) as advance:
        for name, pixels in sets.items():
            options = {"batch_size": args.batch_size, "progress": advance}
            if detector is not None:
                scores["detector"][name] = detector.score(pixels, **options)
            with torch.no_grad():
                scores[energy][name] = log_energies(model, pixels, [args.sigma], noise=noise, **options)[:, 0]
    normal = next(iter(sets))
    results = {
        name: evaluate(
            values[normal],
            {key: odd for key, odd in values.items() if key != normal},
            resamples=args.resamples,
            seed=args.seed,
        )
        for name, values in scores.items()
    }
    table = results_table(results, len(sets[normal]))
    alarms = None if detector is None else _alarms(detector, scores["detector"][normal])
    print(markdown(table), end="")
    if alarms is not None:
        print("\n" + markdown(alarms), end="")
    if args.out is not None:
        _write(args, scores, results, alarms)
    return 0


def _alarms(detector: Detector, scores: Tensor) -> Table:
    """Compare promised and observed false alarms."""
    from denoising_ebm.ood.conformal import fpr_interval
    from denoising_ebm.viz.report import Table

    count = len(detector.calibration)
    rows: list[list[Cell]] = []
    for rate in (0.01, 0.05, 0.1):
        if (count + 1) * rate < 1:
            continue
        low, high = fpr_interval(rate, count, len(scores))
        observed = float(detector.flag(scores, rate).double().mean())
        rows.append([f"{rate:g}", f"{observed:.4f}", f"{low:.4f}-{high:.4f}"])
    caption = f"False alarms among {len(scores):,} normal images, with {count:,} calibration images."
    return Table(["promised at most", "observed", "95 % range"], rows, caption)


def _write(
    args: Namespace,
    scores: Mapping[str, Mapping[str, Tensor]],
    results: Mapping[str, Sequence[SetResult]],
    alarms: Table | None,
) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    from denoising_ebm import __version__
    from denoising_ebm.ood.evaluation_report import evaluation_sections, write_results
    from denoising_ebm.utils.io import write_atomically
    from denoising_ebm.viz.report import write_report

    folder = Path(args.out)
    write_results(results, folder / "results.csv")
    columns: dict[str, list[Any]] = {"score": [], "set": [], "image": [], "value": []}
    for score, sets in scores.items():
        for name, values in sets.items():
            columns["score"] += [score] * len(values)
            columns["set"] += [name] * len(values)
            columns["image"] += range(len(values))
            columns["value"] += values.tolist()
    table = pa.table(columns)
    write_atomically(folder / "scores.parquet", lambda path: pyarrow.parquet.write_table(table, str(path)))
    metadata = {
        "command": shlex.join(["debm", *sys.argv[1:]]),
        "model": args.model,
        "normal images": args["in"],
        "seed": str(args.seed),
        "version": f"denoising-ebm {__version__}",
    }
    if args.resize:
        metadata["resized with"] = args.resize
    write_report(
        folder / "index.html",
        title="How well odd images are told from normal ones",
        sections=evaluation_sections(results, scores, alarms),
        metadata=metadata,
    )
    note(f"page: {folder / 'index.html'}")
