"""`debm score`."""

from __future__ import annotations

import io
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denoising_ebm.cli.common import (
    check_apart,
    check_at_least,
    check_output,
    check_output_folder,
    check_positive,
    load_detector,
    note,
)
from denoising_ebm.cli.options import HARDWARE, TEST_IMAGES, HardwareOptions, ImageOptions

if TYPE_CHECKING:
    from torch import Tensor

    from denoising_ebm.datasets.images import ImageSet
    from denoising_ebm.model import DenoisingEBM
    from denoising_ebm.ood.detector import Detector
    from denoising_ebm.ood.table import Score


def score(
    model: str,
    images: str,
    *,
    out: Path | None = None,
    maps: Path | None = None,
    tiles: bool = False,
    report: Path | None = None,
    fpr: float | None = None,
    fdr: float | None = None,
    detector: Path | None = None,
    sigma: float = 0.05,
    noise_samples: int = 4,
    seed: int = 0,
    batch_size: int = 256,
    options: ImageOptions = TEST_IMAGES,
    hardware: HardwareOptions = HARDWARE,
) -> None:
    """Score how normal images are, flag anomalous ones, and show where they are anomalous.

    With a detector (`debm fit-detector` puts one beside the model) each image gets a score (higher is more anomalous),
    a p-value (the share of normal images that are at least as anomalous) and, with --fpr or --fdr, a flag. It always
    gets its energy (lower is more normal) and the percentile of that among the model's validation images. A detector
    computes in the precision that it was fitted in.

    Images are brought to the model's size as those were that the detector was fitted to, unless --resize or
    --center-crop is given.

    Columns of the table: name, status (ok or unreadable), score, p_value, flagged, nearest_corruption (where the
    p-value is at most 0.1: the corruption that the image resembles most, a hint at the reason), energy, percentile,
    sigma, resize, and reason (why it is unreadable: damaged, or of another size or channel count). There is a row for
    each file, in the order of the source, or for each file of --split in a folder with splits.

    The false-alarm rate --fpr holds on average over calibration sets, if their images are like those to come and new
    to the model. The rate of one detector varies around it: at --fpr 0.05, with 2,000 calibration images, from about
    .04 to .06.

    Examples:
        debm score runs/mine new-images/ --fpr 0.05 --out scores.csv
        debm score runs/mine new-images/ --fdr 0.1 --report page.html
        debm score runs/mine photos/ --resize lanczos --maps maps/
        debm score runs/mine photos/ --resize lanczos --maps maps/ --tiles
        debm score fashion-mnist digits --limit 100 > scores.csv

    Args:
        model: Run folder, model folder, name of a bundled model, or Hub id owner/name.
        images: Folder of images or of Parquet files, one such file, bundled dataset (fashion-mnist, digits), or hf://owner/name
            on the Hugging Face Hub.
        out: Table to write: .csv, .parquet or .jsonl. Without it CSV goes to standard output.
        maps: Folder for a PNG of each image: the image above its anomaly map.
        tiles: Make the maps at the images' own size, from overlapping tiles. This is for a detector that was fitted to
            images of that scale.
        report: Also write a page (.html): how many images are anomalous, which, and where.
        fpr: False-alarm rate: flag at most this share of normal images, on average.
        fdr: False discovery rate instead: at most this share of the flagged images is normal (Benjamini-Hochberg).
        detector: Folder of the detector. By default the model's, if it has one.
        sigma: Noise level of the energy, for images in [-1, 1].
        noise_samples: Noise samples to average over, in maps without a detector and in energies that have inner noise.
        seed: Seed of these samples.
        batch_size: Images that are scored at once.
        options: How to read IMAGES.
        hardware: Where to compute.
    """
    _check_options(sigma, fpr, fdr, tiles and maps is None, noise_samples=noise_samples, batch_size=batch_size)
    check_at_least(0, seed=seed)
    check_output(report, ".html")
    from denoising_ebm.ood.table import check_table_path

    if out is not None:
        check_table_path(out)
    check_apart("--maps", maps, images)
    check_output(out)
    check_output_folder(maps)
    net = hardware.load_model(model)
    fitted = load_detector(model, detector, net)
    _check_detector(model, fitted, fpr, fdr, tiles)
    options = options.as_fitted(fitted)
    loaded = options.load(images, net.image_shape, skip_unfit=True)
    _check_images(loaded, fitted, fdr, names=maps is not None)
    how: dict[str, Any] = {"num_noise_samples": noise_samples, "seed": seed, "batch_size": batch_size}
    rows = _score(net, fitted, loaded, options, sigma, fpr, fdr, how)
    readable = [row for row in rows if row.status == "ok"]
    if fitted is None and readable:
        _note_what_is_missing(net, sigma, readable[0])
    _write_rows(rows, out)
    if out is not None:
        flags = [row.flagged for row in readable if row.flagged is not None]
        flagged = f", {sum(flags)} flagged" if flags else ""
        resized = f", resized with {options.resize}" if options.resize else ""
        note(f"{out}: {len(loaded)} images scored{flagged}, {len(loaded.unreadable)} unreadable{resized}")
    if not readable:
        first = loaded.unreadable[0]
        raise ValueError(f"{images}: none of {len(rows)} images can be read; {first.name}: {first.reason}")
    if maps is not None:
        if fitted is not None and tiles:
            _write_tiled_maps(maps, fitted, images, len(loaded), options, batch_size)
        else:
            _write_maps(maps, net, fitted, loaded, sigma, how)
    if report is not None:
        settings = {"command": shlex.join(["debm", *sys.argv[1:]])}
        if options.resize:
            settings["resized with"] = options.resize
        _write_report(report, net, fitted, loaded, rows, (model, images), settings, sigma, fpr, fdr, how)


def _check_options(sigma: float, fpr: float | None, fdr: float | None, tiles_without_maps: bool, **counts: int) -> None:
    """Refuse options that are out of range or exclude each other."""
    check_positive(sigma=sigma)
    for name, share in (("fpr", fpr), ("fdr", fdr)):
        if share is not None and not 0 < share < 1:
            raise ValueError(f"--{name} must be in (0, 1), got {share:g}")
    if fpr is not None and fdr is not None:
        raise ValueError("--fpr and --fdr exclude each other")
    if tiles_without_maps:
        raise ValueError("--tiles needs --maps")
    check_at_least(1, **counts)


def _check_detector(model: str, detector: Detector | None, fpr: float | None, fdr: float | None, tiles: bool) -> None:
    """Refuse what needs a detector without one, and a rate that its calibration cannot promise."""
    from denoising_ebm.ood.conformal import check_rate

    if detector is None and (fpr is not None or fdr is not None):
        raise ValueError(f"{model}: --fpr and --fdr need a detector; `debm fit-detector` makes it")
    if detector is None and tiles:
        raise ValueError(f"{model}: --tiles needs a detector; `debm fit-detector` makes it")
    if detector is not None and fpr is not None:
        check_rate(fpr, len(detector.calibration))


def _check_images(images: ImageSet, detector: Detector | None, fdr: float | None, *, names: bool) -> None:
    """Refuse names whose maps would share a file; say how few images `--fdr` can flag."""
    from denoising_ebm.datasets.images import check_png_names
    from denoising_ebm.ood.conformal import min_bh_rejections

    if names:
        check_png_names(images.names)
    if detector is None or fdr is None:
        return
    least = min_bh_rejections(fdr, len(detector.calibration), max(len(images), 1))
    if least > 1:
        note(
            f"--fdr {fdr:g} of {len(images):,} images with {len(detector.calibration):,} calibration images: "
            f"either none or at least {least:,} are flagged"
        )


def _score(
    model: DenoisingEBM,
    detector: Detector | None,
    images: ImageSet,
    options: ImageOptions,
    sigma: float,
    fpr: float | None,
    fdr: float | None,
    how: dict[str, Any],
) -> list[Score]:
    """Return a row for each image, by the detector or, without one, by energies alone."""
    from denoising_ebm.ood.table import energy_rows
    from denoising_ebm.utils.progress import progress_bar

    with progress_bar("scoring", len(images) * (1 if detector is None else 2)) as progress:
        if detector is None:
            return energy_rows(model, images, sigma, resize=options.resize, progress=progress, **how)
        detector.preprocessing = options.preprocessing(model)
        return detector.predict(images, fpr=fpr, fdr=fdr, sigma=sigma, progress=progress, **how)


def _anomaly_maps(
    model: DenoisingEBM, detector: Detector | None, pixels: Tensor, sigma: float, how: dict[str, Any]
) -> tuple[Tensor, float]:
    """Return the maps of images of the model's size, and the value of the strongest colour."""
    from denoising_ebm.datasets.images import to_float
    from denoising_ebm.ood.anomaly_maps import Z_LIMIT, anomaly_map, brightest
    from denoising_ebm.utils.progress import progress_bar

    with progress_bar("maps", len(pixels)) as progress:
        if detector is not None:
            return detector.maps(pixels, batch_size=how["batch_size"], progress=progress), Z_LIMIT
        values = anomaly_map(model, to_float(pixels), sigma, progress=progress, **how)
        return values, brightest(values)


def _write_maps(
    folder: Path,
    model: DenoisingEBM,
    detector: Detector | None,
    images: ImageSet,
    sigma: float,
    how: dict[str, Any],
) -> None:
    from denoising_ebm.ood.anomaly_maps import write_maps

    values, limit = _anomaly_maps(model, detector, images.pixels, sigma, how)
    write_maps(images.pixels, values, images.names, folder, limit=limit, signed=detector is not None)
    _note_maps(folder, len(images), limit, "an energy" if detector is None else "a z-score")


def _note_maps(folder: Path, count: int, limit: float, unit: str) -> None:
    note(f"{folder}: {count} maps, strongest colours at {unit} of {limit:.3g} per pixel")


def _write_report(
    path: Path,
    model: DenoisingEBM,
    detector: Detector | None,
    images: ImageSet,
    rows: list[Score],
    names: tuple[str, str],
    settings: dict[str, str],
    sigma: float,
    fpr: float | None,
    fdr: float | None,
    how: dict[str, Any],
) -> None:
    from denoising_ebm.ood.report import most_anomalous, score_metadata, score_sections
    from denoising_ebm.utils.device import describe
    from denoising_ebm.viz.report import write_report

    values, limit = _anomaly_maps(model, detector, images.take(most_anomalous(rows)).pixels, sigma, how)
    settings = settings | {"hardware": describe(model.device)}
    if detector is not None:
        settings["detector"] = ", ".join(f"{name} {num:,} images" for name, num in detector.metadata.items())
    write_report(
        path,
        title="Which images are anomalous",
        sections=score_sections(images, rows, values, limit, detector, fpr=fpr, fdr=fdr),
        metadata=score_metadata(*names, images, rows, settings),
    )
    note(f"page: {path}")


def _note_what_is_missing(model: DenoisingEBM, sigma: float, row: Score) -> None:
    from denoising_ebm.model import REFERENCE_SIGMAS

    note("no p-values: the model has no detector; `debm fit-detector` makes one")
    if row.percentile is None:
        levels = zip(REFERENCE_SIGMAS, model.reference, strict=True)
        kept = ", ".join(f"{level:g}" for level, energies in levels if energies.isfinite().all()) or "no level"
        note(f"no percentiles: the model keeps them for {kept}, not for sigma {sigma:g}")


def _write_rows(rows: list[Score], out: Path | None) -> None:
    from denoising_ebm.ood.table import csv_text, write_table

    if out is not None:
        write_table(rows, out)
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names of files need not be valid Unicode.
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    sys.stdout.write(csv_text(rows))


def _write_tiled_maps(
    folder: Path, detector: Detector, source: str, num: int, options: ImageOptions, batch_size: int
) -> None:
    """Write maps of images of any size."""
    from denoising_ebm.datasets.images import each_image
    from denoising_ebm.ood.anomaly_maps import Z_LIMIT, write_maps
    from denoising_ebm.utils.progress import progress_bar

    count, channels = 0, detector.model.config.network.channels
    with progress_bar("maps", num) as progress:
        for name, pixels in each_image(
            source,
            split=options.split,
            default_split=options.default_split,
            channels=channels,
            limit=options.limit,
            convert=options.convert,
        ):
            try:
                maps = detector.maps(pixels[None], batch_size=batch_size)
            except ValueError as error:
                note(f"{source}/{name}: no map: {error}")
                continue
            write_maps(pixels[None], maps, [name], folder, limit=Z_LIMIT, signed=True)
            count += 1
            progress(1)
    _note_maps(folder, count, Z_LIMIT, "a z-score")
