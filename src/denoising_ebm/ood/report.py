"""The page of `debm score`: how many images are odd, which, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from denoising_ebm.datasets.images import ImageSet, to_float
from denoising_ebm.ood.detector import Detector
from denoising_ebm.ood.table import Score
from denoising_ebm.viz.grids import heat_map_sheet
from denoising_ebm.viz.plots import energy_histograms, png_bytes
from denoising_ebm.viz.report import Cell, Picture, Section, Table

#: Images shown, and rows in the table of the oddest.
SHOWN, LISTED = 24, 100


def oddest(rows: Sequence[Score], count: int = SHOWN) -> list[int]:
    """Return the places, among the readable images, of the oddest ones, the oddest first."""
    values = [_oddness(row) for row in rows if row.status == "ok"]
    return sorted(range(len(values)), key=lambda i: -values[i])[:count]


def score_sections(
    images: ImageSet,
    rows: Sequence[Score],
    maps: Tensor,
    limit: float,
    detector: Detector | None,
    *,
    rate: str = "",
) -> list[Section]:
    """Return the page.

    Args:
        images: The scored images.
        rows: Their table.
        maps: Maps of the `oddest` images, in that order, shape (up to `SHOWN`, height, width).
        limit: Value of the strongest colour of maps.
        detector: What scored them; None if only energies were computed.
        rate: What was asked for when flagging, in words; empty if nothing was.
    """
    readable = [row for row in rows if row.status == "ok"]
    chosen = oddest(rows)
    sections = [_overview(readable, detector, rate)]
    pixels = to_float(images.pixels[torch.tensor(chosen)])
    labels = [_label(readable[i]) for i in chosen]
    if detector:
        what = (
            "z-scores of the energy per pixel. White is usual; red is harder to restore than in normal images, as foreign "
            "things are; blue is easier, as in images that are odd by being smooth."
        )
    else:
        what = "energies per pixel."
    picture = Picture(
        png_bytes(heat_map_sheet(pixels, maps, labels, limit=limit, signed=detector is not None)),
        f"The {len(chosen)} oddest images, the oddest first, above their maps: {what}",
        "images above maps of where they are odd",
    )
    hints = any(row.nearest_corruption is not None for row in readable)
    columns = ["name", "energy", "percentile"]
    if detector:
        columns = ["name", "score", "p-value", "flagged", *(["nearest_corruption"] if hints else []), "energy"]
    cells: list[list[Cell]] = [
        [row.name, row.score, row.p_value, _yes(row.flagged), *([row.nearest_corruption] if hints else []), row.energy]
        if detector
        else [row.name, row.energy, row.percentile]
        for row in (readable[i] for i in oddest(rows, LISTED))
    ]
    caption = f"The oddest {len(cells)} of {len(readable):,} images."
    if hints:
        caption += (
            " Looks: the slight alteration of a normal image that an odd one resembles most, a hint at why it is odd."
        )
    sections.append(Section("The oddest images", table=Table(columns, cells, caption), pictures=[picture]))
    if images.unreadable:
        table = Table(
            ["name", "reason"], [[image.name, image.reason] for image in images.unreadable], "Files left out."
        )
        sections.append(Section("Unreadable", table=table))
    return sections


def score_metadata(
    model: str, source: str, images: ImageSet, rows: Sequence[Score], settings: Mapping[str, str]
) -> dict[str, str]:
    """Return the facts on top of the page."""
    from denoising_ebm import __version__

    readable = [row for row in rows if row.status == "ok"]
    flagged = sum(bool(row.flagged) for row in readable)
    counts = f"{len(readable):,} scored, {len(images.unreadable):,} unreadable"
    if any(row.flagged is not None for row in readable):
        counts += f", {flagged:,} flagged"
    return {"model": model, "images": source, "counts": counts, **settings, "version": f"denoising-ebm {__version__}"}


def _overview(readable: Sequence[Score], detector: Detector | None, rate: str) -> Section:
    if detector is None:
        values = {"images": np.array([row.energy for row in readable])}
        text = (
            "These are energies alone: low = likely. They tell which images are odd beside each other; for scores with "
            "p-values, fit a detector (`debm fit-detector`)."
        )
        figure = energy_histograms(values, title="Energies", xlabel=f"energy at sigma {readable[0].sigma:g}")
        return Section("Energies", text, pictures=[Picture(png_bytes(figure), "Energies.", "histogram of energies")])
    scores = np.array([row.score for row in readable])
    values = {"normal (calibration)": detector.calibration.numpy(), "these images": scores}
    count = len(detector.calibration)
    text = (
        "A score is how odd the detector finds an image: around 0 is usual, larger is more odd. A p-value is the share of "
        f"normal images at least as odd, counted among {count:,} that the detector had not seen: of images as normal as "
        "those, at most 5 % have a p-value of .05 or less, whatever the model's quality."
    )
    if rate:
        flagged = sum(bool(row.flagged) for row in readable)
        text += f"\n\nFlagged: {flagged:,} of {len(readable):,} images ({rate})."
    table_rows: list[list[Cell]] = []
    for alpha in (0.001, 0.01, 0.05, 0.1):
        if (count + 1) * alpha >= 1 - 1e-9:
            found = sum(row.p_value is not None and row.p_value <= alpha + 1e-9 for row in readable)
            table_rows.append([f"{alpha:g}", found, f"{alpha * len(readable):.1f}"])
    table = Table(["p-value at most", "images", "expected if all are normal"], table_rows, "How many images are odd.")
    figure = energy_histograms(values, title="Scores", xlabel="score (larger = more odd)")
    picture = Picture(png_bytes(figure), "Scores beside those of the calibration images.", "two histograms of scores")
    return Section("How many are odd", text, table, [picture])


def _oddness(row: Score) -> float:
    value = row.energy if row.score is None else row.score
    assert value is not None
    return value


def _label(row: Score) -> str:
    return f"U = {row.energy:.3g}" if row.p_value is None else f"p = {row.p_value:.2g}"


def _yes(flag: bool | None) -> str | None:
    return None if flag is None else "yes" if flag else "no"
