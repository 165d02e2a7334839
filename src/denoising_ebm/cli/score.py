"""`debm score`."""

from __future__ import annotations

import io
import shlex
import sys
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from denoising_ebm.cli.common import (
    check_apart,
    check_at_least,
    check_output,
    check_output_folder,
    check_positive,
    load_detector,
    note,
)
from denoising_ebm.cli.options import HARDWARE, TEST_IMAGES, HardwareOptions, ImageOptions, note_images
from denoising_ebm.cli.streams import has_stdout

if TYPE_CHECKING:
    from denoising_ebm.datasets.images import ImageStream
    from denoising_ebm.ood.detector import Detector
    from denoising_ebm.ood.scoring import MapWriter, Scored, Scorer
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

    Images are prepared as those were that the detector was fitted to or, without one, that the model was trained on,
    unless options say otherwise.

    Columns of the table: name, status (ok or unreadable), score, p_value, flagged, nearest_corruption (where the
    p-value is at most 0.1: the corruption that the image resembles most, a hint at the reason), energy, percentile,
    sigma, resize, reason (why it is unreadable: damaged, or of another size or channel count), seen (share of the
    image's area that was judged: less than 1 if it was cropped), notes (what was decided as it was read, such as which
    of its frames was taken), map_max (largest z-score of its map, with --maps and a detector), and bits_per_dim (for
    models with a normalised density network, as `debm info` says: the negative log-likelihood at the smallest noise
    level, in bits per value of the image; smooth images have few, whatever they show). There is a row for each file, in
    the order of the source, or for each file of --split in a folder with splits.

    In CSV, text that a spreadsheet would take for a formula (it begins with = + - @, tab or a line end) has an
    apostrophe in front; .parquet and .jsonl keep it as it is. In all three a byte of a file name that is not UTF-8 is
    written in hexadecimal. The table appears when all images are scored, complete or not at all; memory does not grow
    with their number.

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
        maps: Folder for a PNG of each image: the image above its anomaly map. All are on one scale, without a detector
            that of the first images, some thousand.
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
    from denoising_ebm.ood.scoring import MapWriter, Scored, Scorer, TiledMapWriter
    from denoising_ebm.ood.table import check_table_path
    from denoising_ebm.utils.lock import locked
    from denoising_ebm.utils.progress import progress_bar

    if out is not None:
        check_table_path(out)
    elif not has_stdout():
        raise ValueError("standard output is closed; give a file for the table with --out")
    check_apart("--maps", maps, images)
    check_output(out)
    check_output_folder(maps)
    net = hardware.load_model(model)
    fitted = load_detector(model, detector, net)
    _check_detector(model, fitted, fpr, fdr, tiles)
    options = options.as_fitted(fitted, net)
    if fitted is not None:
        fitted.preprocessing = options.preprocessing(net)
    scorer = Scorer(net, fitted, sigma, noise_samples, seed, batch_size, options.resize, fpr)
    stream = options.stream(images, net.image_shape, chunk=scorer.chunk, skip_unfit=True, progress=False)
    writer: MapWriter | None = None
    if maps is not None and tiles:
        no_map = lambda name, why: note(f"{images}/{name}: no map: {why}")  # noqa: E731
        writer = TiledMapWriter(scorer, maps, stream.originals(), no_map)
    elif maps is not None:
        writer = MapWriter(scorer, maps)
    with nullcontext() if maps is None else locked(maps, "debm score"), Scored(out and out.parent) as scored:
        with progress_bar("scoring", None if stream.count is None else scorer.passes * stream.count) as progress:
            for chunk in stream:
                rows, p_values = scorer.rows(chunk, progress)
                if writer is not None:
                    rows = writer.write(chunk, rows)
                scored.add(chunk, rows, p_values)
                progress(scorer.passes * len(chunk.unreadable))
        if fdr is not None:
            _note_least_flagged(scorer, scored, fdr)
            scored.flag(fdr)
        write_rows(scored.rows(), out)
        _note_what_came(images, scorer, scored, stream, out)
        if scored.first is None:
            first = scored.unreadable[0]
            raise ValueError(
                f"{images}: none of {scored.num_unreadable} images can be read; {first.name}: {first.reason}"
            )
        if writer is not None:
            _note_maps(maps, writer, scorer, scored, tiles)
        if report is not None:
            _write_report(report, scorer, scored, model, images, fdr)


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
    if detector is None and (fpr is not None or fdr is not None):
        raise ValueError(f"{model}: --fpr and --fdr need a detector; `debm fit-detector` makes it")
    if detector is None and tiles:
        raise ValueError(f"{model}: --tiles needs a detector; `debm fit-detector` makes it")
    if detector is not None and fpr is not None:
        detector.check_rate(fpr)


def _note_least_flagged(scorer: Scorer, scored: Scored, fdr: float) -> None:
    """Say how few images `--fdr` can flag."""
    from denoising_ebm.ood.conformal import min_bh_rejections

    if scorer.detector is None:
        return
    num_calibration, unit = scorer.detector.num_calibration, scorer.detector.calibration_unit
    least = min_bh_rejections(fdr, num_calibration, max(scored.count, 1))
    if least > 1:
        note(
            f"--fdr {fdr:g} of {scored.count:,} images with {num_calibration:,} calibration {unit}: "
            f"either none or at least {least:,} are flagged"
        )


def write_rows(rows: Iterable[Score], out: Path | None) -> None:
    """Write the table into a file, or as CSV to standard output, where a terminal gets names that only show themselves."""
    from denoising_ebm.ood.table import csv_lines, write_table
    from denoising_ebm.utils.text import printable

    if out is not None:
        write_table(rows, out)
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    if sys.stdout.isatty():
        rows = (replace(row, name=printable(row.name)) for row in rows)
    sys.stdout.writelines(csv_lines(rows))


def _note_what_came(source: str, scorer: Scorer, scored: Scored, stream: ImageStream, out: Path | None) -> None:
    """Say what was taken and decided, left out and flagged, and why p-values or percentiles are missing."""
    note_images(source, stream)
    if scorer.detector is None and scored.first is not None:
        _note_what_is_missing(scorer, scored.first)
    if scorer.detector is not None and (unlike := scorer.detector.unlike_fitting(scored.storage)):
        note(f"{source}: {unlike}")
    if out is not None:
        flagged = "" if scored.num_flagged is None else f", {scored.num_flagged} flagged"
        resized = f", resized with {scorer.resize}" if scorer.resize else ""
        note(f"{out}: {scored.count} images scored{flagged}, {scored.num_unreadable} unreadable{resized}")


def _note_what_is_missing(scorer: Scorer, row: Score) -> None:
    from denoising_ebm.model import REFERENCE_SIGMAS

    note("no p-values: the model has no detector; `debm fit-detector` makes one")
    if row.percentile is None:
        levels = zip(REFERENCE_SIGMAS, scorer.model.reference, strict=True)
        kept = ", ".join(f"{level:g}" for level, energies in levels if energies.isfinite().all()) or "no level"
        note(f"no percentiles: the model keeps them for {kept}, not for sigma {scorer.sigma:g}")


def _note_maps(folder: Path | None, writer: MapWriter, scorer: Scorer, scored: Scored, tiles: bool) -> None:
    """Say how many maps there are, on which scale, and where they do not show what the rows say.

    Raises:
        OSError: If maps could not be written.
    """
    if writer.failed is not None:
        raise writer.failed
    unit = "an energy" if scorer.detector is None else "a z-score"
    note(f"{folder}: {writer.count} maps, strongest colours at {unit} of {writer.limit or 0:.3g} per pixel")
    if scorer.detector is not None and (unlike := scorer.detector.unlike_normal_maps(writer.means, own_size=tiles)):
        note(f"{folder}: {unlike}")
    if tiles and scored.num_cropped:
        note(
            f"maps show all of an image, scores judge its central square alone (column seen): so for "
            f"{scored.num_cropped:,} of {scored.count:,} images; {scored.num_in_maps_alone:,} of all have a z-score "
            "above 3 in their map (column map_max) and a p-value above 0.1"
        )


def _write_report(path: Path, scorer: Scorer, scored: Scored, model: str, source: str, fdr: float | None) -> None:
    from denoising_ebm.ood.report import score_metadata, score_sections
    from denoising_ebm.utils.device import describe
    from denoising_ebm.viz.report import write_report

    settings = {"command": shlex.join(["debm", *sys.argv[1:]])}
    if scorer.resize:
        settings["resized with"] = scorer.resize
    settings["hardware"] = describe(scorer.model.device)
    if scorer.detector is not None:
        settings["detector"] = ", ".join(f"{name} {num:,} images" for name, num in scorer.detector.metadata.items())
        if unlike := scorer.detector.unlike_fitting(scored.storage):
            settings["storage"] = unlike
    maps = scorer.maps(scored.shown())
    write_report(
        path,
        title="Which images are anomalous",
        sections=score_sections(scored, maps, scorer.limit(maps), scorer.detector, fpr=scorer.fpr, fdr=fdr),
        metadata=score_metadata(model, source, scored, settings),
    )
    note(f"page: {path}")
