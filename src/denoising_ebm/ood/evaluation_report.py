"""What `debm evaluate` writes: a page, tables of results and of scores."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from denoising_ebm.ood.evaluation import SetResult
from denoising_ebm.ood.metrics import roc_curve
from denoising_ebm.utils.io import write_text_atomically
from denoising_ebm.viz.plots import energy_histograms, png_bytes, roc_curves
from denoising_ebm.viz.report import Cell, Picture, Section, Table

#: Sets drawn into one figure of histograms, which more would make unreadable.
_PER_FIGURE = 5
_COLUMNS = ("score", "odd set", "images", "AUROC", "AUPR", "FPR at 95 % TPR")


def results_table(results: Mapping[str, Sequence[SetResult]], num_normal: int) -> Table:
    """Return the results of several scores as one table.

    Args:
        results: Name of each score to its results.
        num_normal: Number of normal images.
    """
    rows: list[list[Cell]] = [
        [score, row.name, row.num, str(row.auroc), str(row.aupr), str(row.fpr_at_95_tpr)]
        for score, rows in results.items()
        for row in rows
    ]
    caption = (
        f"Odd sets against {num_normal:,} normal images, with 95 % bootstrap intervals. AUROC: the chance that an odd "
        "image scores above a normal one. AUPR depends on the sets' sizes. FPR: share of normal images called odd at the "
        "threshold that catches 95 % of the odd set."
    )
    return Table(_COLUMNS, rows, caption)


def write_results(results: Mapping[str, Sequence[SetResult]], path: Path) -> None:
    """Write the results as CSV: a row for each score and set, intervals in columns of their own."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    metrics = ("auroc", "aupr", "fpr_at_95_tpr")
    writer.writerow(["score", "set", "images", *(f"{m}{end}" for m in metrics for end in ("", "_low", "_high"))])
    for score, rows in results.items():
        for row in rows:
            intervals = [getattr(row, metric) for metric in metrics]
            numbers = [f"{value:.5f}" for i in intervals for value in (i.value, i.low, i.high)]
            writer.writerow([score, row.name, row.num, *numbers])
    text = buffer.getvalue()
    write_text_atomically(path, text)


def evaluation_sections(
    results: Mapping[str, Sequence[SetResult]], scores: Mapping[str, Mapping[str, Tensor]], alarms: Table | None
) -> list[Section]:
    """Return the page.

    Args:
        results: Name of each score to its results.
        scores: Name of each score to the scores of every set, the normal one first.
        alarms: Observed false alarms, or None.
    """
    first = next(iter(scores.values()))
    normal = next(iter(first))
    sections = [Section("Results", table=results_table(results, len(first[normal])))]
    if alarms is not None:
        text = (
            "The false-alarm rate that the detector promises beside the share of the normal images above it. The images "
            "here are random, so the share differs from the promise as the range says, which holds 95 % of such counts."
        )
        sections.append(Section("False alarms", text, alarms))
    for name, sets in scores.items():
        odd = {key: values for key, values in sets.items() if key != normal}
        curves = {key: roc_curve(sets[normal], values) for key, values in odd.items()}
        figure = png_bytes(roc_curves(curves, title=f"ROC curves, {name}"))
        pictures = [Picture(figure, f"ROC curves of the score: {name}.", "a rising curve for each odd set")]
        keys = list(odd)
        for start in range(0, len(keys), _PER_FIGURE):
            shown = {key: sets[key].numpy() for key in [normal, *keys[start : start + _PER_FIGURE]]}
            figure = png_bytes(energy_histograms(shown, title=name, xlabel="score (larger = more odd)"))
            pictures.append(Picture(figure, f"Scores of {', '.join(shown)}.", "histograms of scores of several sets"))
        sections.append(Section(f"Score: {name}", pictures=pictures))
    return sections
