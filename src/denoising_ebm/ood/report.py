"""The pages of `debm score` and `debm evaluate`: sections for `viz.report`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from denoising_ebm.datasets.decode import Stored
from denoising_ebm.datasets.images import to_float
from denoising_ebm.literals import Likelihood
from denoising_ebm.ood.conformal import fpr_interval
from denoising_ebm.ood.detector import Detector
from denoising_ebm.ood.metrics import SetResult, roc_curve
from denoising_ebm.ood.scoring import Scored
from denoising_ebm.utils.io import write_text_atomically
from denoising_ebm.utils.text import csv_line
from denoising_ebm.viz.grids import heat_map_sheet
from denoising_ebm.viz.plots import energy_histograms, png_bytes, roc_curves
from denoising_ebm.viz.report import Cell, Picture, Section, Table

#: Sets drawn into one figure of histograms, which more would make unreadable.
_PER_FIGURE = 5

# -- debm score ---------------------------------------------------------------------------------------------------------


def score_sections(
    scored: Scored,
    maps: Tensor,
    limit: float,
    detector: Detector | None,
    *,
    fpr: float | None = None,
    fdr: float | None = None,
) -> list[Section]:
    """Return the page of `debm score`: how many images are anomalous, which, and where.

    Args:
        scored: What is kept of the images, one of them readable.
        maps: Maps of those of the most anomalous images that are shown, shape (up to `SHOWN`, height, width).
        limit: Value of the strongest colour of maps.
        detector: What scored them; None if only energies were computed.
        fpr: False-alarm rate at which images were flagged, if so.
        fdr: False discovery rate, if so.
    """
    rate = "" if fpr is None else f"at most {fpr:.3g} of normal images"
    if fdr is not None:
        rate = f"at most {fdr:.3g} of the flagged are normal, in expectation"
    overview = _energies(scored) if detector is None else _p_values(scored, detector, rate)
    sections = [overview, _most_anomalous(scored, maps, limit)]
    if scored.unreadable:
        files = [[image.name, image.reason] for image in scored.unreadable]
        listed, found = len(files), scored.num_unreadable
        caption = "Files left out." if listed == found else f"The first {listed:,} of {found:,} files left out."
        sections.append(Section("Unreadable", table=Table(["name", "reason"], files, caption)))
    return sections


def score_metadata(model: str, source: str, scored: Scored, settings: Mapping[str, str]) -> dict[str, str]:
    """Return what stands on top of the page."""
    from denoising_ebm import __version__

    counts = f"{scored.count:,} scored, {scored.num_unreadable:,} unreadable"
    if scored.num_flagged is not None:
        counts += f", {scored.num_flagged:,} flagged"
    return {"model": model, "images": source, "counts": counts, **settings, "version": f"denoising-ebm {__version__}"}


def _energies(scored: Scored) -> Section:
    text = (
        "These are energies alone: low = likely. They tell which images are anomalous beside each other; for scores with "
        "p-values, fit a detector (`debm fit-detector`)."
    )
    assert scored.first is not None
    figure = energy_histograms(
        {"images": scored.values}, title="Energies", xlabel=f"energy at sigma {scored.first.sigma:g}"
    )
    return Section("Energies", text, pictures=[Picture(png_bytes(figure), "Energies.", "histogram of energies")])


def _p_values(scored: Scored, detector: Detector, rate: str) -> Section:
    count = detector.num_calibration
    text = (
        "A score is 0 for an average normal image, and larger for anomalous ones. A p-value is the share of calibration "
        f"images with at least that score, counted among {count:,} normal {detector.calibration_unit} new to the detector: "
        "of images as normal as those, at most 5 % have a p-value of .05 or less, whatever the model's quality."
    )
    if rate:
        text += f"\n\nFlagged: {scored.num_flagged or 0:,} of {scored.count:,} images ({rate})."
    p = scored.p_values
    table_rows: list[list[Cell]] = [
        [f"{alpha:g}", int((p <= alpha + 1e-9).sum()), f"{alpha * len(p):.1f}"]
        for alpha in (0.001, 0.01, 0.05, 0.1)
        if (count + 1) * alpha >= 1 - 1e-9
    ]
    table = Table(["p-value at most", "images", "expected if all are normal"], table_rows, "How many are anomalous.")
    scores = {"calibration images": detector.calibration.numpy(), "these images": scored.values}
    figure = energy_histograms(scores, title="Scores", xlabel="score (larger = more anomalous)")
    picture = Picture(png_bytes(figure), "Scores beside those of the calibration images.", "two histograms of scores")
    return Section("How many are anomalous", text, table, [picture])


def _most_anomalous(scored: Scored, maps: Tensor, limit: float) -> Section:
    listed = [kept.row for kept in scored.most_anomalous]
    pixels, has_scores = scored.shown(), listed[0].score is not None
    what = (
        "z-scores of the energy per pixel. White is normal; red is harder to restore than in normal images, as foreign "
        "things are; blue is easier, as in images that are anomalous by being smooth."
        if has_scores
        else "energies per pixel."
    )
    labels = [f"p = {row.p_value:.2g}" if has_scores else f"U = {row.energy:.3g}" for row in listed[: len(pixels)]]
    sheet = heat_map_sheet(to_float(pixels), maps, labels, limit=limit, signed=has_scores)
    caption = f"The {len(pixels)} most anomalous images, in falling order, above their anomaly maps: {what}"
    columns = ["name", "energy", "percentile"]
    if has_scores:
        named = any(row.nearest_corruption for row in listed)
        columns = ["name", "score", "p_value", "flagged", *["nearest_corruption"] * named, "energy"]
    cells = [[_cell(getattr(row, column)) for column in columns] for row in listed]
    about = f"The {len(cells)} most anomalous of {scored.count:,} images."
    if "nearest_corruption" in columns:
        about += (
            " Nearest corruption: the change of a normal image that one resembles most, a hint at why it is anomalous."
        )
    table = Table([column.replace("_", " ") for column in columns], cells, about)
    picture = Picture(png_bytes(sheet), caption, "images above their anomaly maps")
    return Section("The most anomalous images", table=table, pictures=[picture])


def _cell(value: str | float | bool | None) -> Cell:
    return ("no", "yes")[value] if isinstance(value, bool) else value


# -- debm evaluate ------------------------------------------------------------------------------------------------------


def results_table(results: Mapping[str, Sequence[SetResult]], num_normal: int) -> Table:
    """Return the results of several scores, by name, against so many normal images as one table."""
    rows: list[list[Cell]] = [
        [score, row.name, row.num, str(row.auroc), str(row.aupr), str(row.fpr_at_95_tpr)]
        for score, found in results.items()
        for row in found
    ]
    caption = (
        f"OOD sets against {num_normal:,} normal images, with 95 % bootstrap intervals. AUROC: the chance that an OOD image "
        "scores above a normal one. AUPR depends on the sets' sizes. FPR: share of normal images flagged at the threshold "
        "that catches 95 % of the OOD set."
    )
    return Table(("score", "OOD set", "images", "AUROC", "AUPR", "FPR at 95 % TPR"), rows, caption)


def write_results(results: Mapping[str, Sequence[SetResult]], path: Path) -> None:
    """Write the results as CSV: a row for each score and set, intervals in columns of their own."""
    metrics = ("auroc", "aupr", "fpr_at_95_tpr")
    lines = [csv_line(["score", "set", "images", *(f"{m}{end}" for m in metrics for end in ("", "_low", "_high"))])]
    for score, found in results.items():
        for row in found:
            intervals = [getattr(row, metric) for metric in metrics]
            numbers = [round(value, 5) for i in intervals for value in (i.value, i.low, i.high)]
            lines.append(csv_line([score, row.name, row.num, *numbers]))
    write_text_atomically(path, "".join(lines))


def false_alarm_table(detector: Detector, scores: Tensor, stored: Sequence[Stored | None] | None = None) -> Table:
    """Return the promised false-alarm rates beside those among normal images with these scores, stored so."""
    count = detector.num_calibration
    rows: list[list[Cell]] = []
    for rate in (0.01, 0.05, 0.1):
        if (count + 1) * rate >= 1:
            low, high = fpr_interval(rate, count, len(scores))
            observed = float(detector.flag(scores, rate, stored).double().mean())
            rows.append([f"{rate:g}", f"{observed:.4f}", f"{low:.4f}-{high:.4f}"])
    caption = (
        f"False alarms among {len(scores):,} normal images, with {count:,} calibration {detector.calibration_unit}."
    )
    return Table(["promised at most", "observed", "95 % range"], rows, caption)


def bits_table(bits: Mapping[str, Tensor], method: Likelihood) -> Table:
    """Return the mean bits per dimension of each set, shape (n,) each, as found by a method of `bits_per_dim`."""
    rows: list[list[Cell]] = []
    for name, values in bits.items():
        error = f"{float(values.std()) / len(values) ** 0.5:.4f}" if len(values) > 1 else None
        rows.append([name, len(values), f"{float(values.mean()):.4f}", error])
    how = "the density network" if method == "energy" else "the denoiser, integrated over noise levels"
    caption = (
        f"Negative log-likelihood at the smallest noise level, by {how}, with the standard error of the mean over images. "
        "It is no bound for the images without noise."
    )
    return Table(("set", "images", "bits per dimension", "standard error"), rows, caption)


def evaluation_sections(
    results: Mapping[str, Sequence[SetResult]],
    scores: Mapping[str, Mapping[str, Tensor]],
    false_alarms: Table | None,
    likelihoods: Table | None = None,
    storage: str | None = None,
) -> list[Section]:
    """Return the page of `debm evaluate`.

    Args:
        results: Name of each score to its results.
        scores: Name of each score to the scores of every set, the normal one first.
        false_alarms: As from `false_alarm_table`, or None.
        likelihoods: As from `bits_table`, or None.
        storage: In what ways the sets were stored, if in several.
    """
    normal, *names = next(iter(scores.values()))
    num_normal = len(next(iter(scores.values()))[normal])
    sections = [Section("Results", storage or "", table=results_table(results, num_normal))]
    if false_alarms is not None:
        text = (
            "The false-alarm rate that the detector promises, and the share of these normal images that it flags. Images "
            "are random, so the share differs from the promise as the range says, which holds 95 % of such counts."
        )
        sections.append(Section("False alarms", text, false_alarms))
    if likelihoods is not None:
        text = (
            "Bits per dimension are high for images with much detail and low for smooth ones, whatever they show: as a "
            "score for OOD images they mislead (Nalisnick et al., 2019)."
        )
        sections.append(Section("Likelihood", text, likelihoods))
    for score, sets in scores.items():
        curves = {name: roc_curve(sets[normal], sets[name]) for name in names}
        figure = png_bytes(roc_curves(curves, title=f"ROC curves, {score}"))
        pictures = [Picture(figure, f"ROC curves of the score: {score}.", "a rising curve for each OOD set")]
        for start in range(0, len(names), _PER_FIGURE):
            shown = {name: sets[name].numpy() for name in [normal, *names[start : start + _PER_FIGURE]]}
            figure = png_bytes(energy_histograms(shown, title=score, xlabel="score (larger = more anomalous)"))
            pictures.append(Picture(figure, f"Scores of {', '.join(shown)}.", "histograms of scores of several sets"))
        sections.append(Section(f"Score: {score}", pictures=pictures))
    return sections
