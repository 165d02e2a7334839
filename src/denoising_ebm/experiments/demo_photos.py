"""The photographs of the demo: a sheet of paper with an impurity found, masked and repaired."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from denoising_ebm.datasets.photos import open_photos
from denoising_ebm.experiments.cache import Log
from denoising_ebm.experiments.prose import prose
from denoising_ebm.hub import INSPECTOR_FILES
from denoising_ebm.inspection.inspector import Inspector
from denoising_ebm.inspection.metrics import Row
from denoising_ebm.inspection.page import About, InspectionFolder, as_picture, marked
from denoising_ebm.inspection.repair import repair
from denoising_ebm.inspection.run import inspect_into
from denoising_ebm.inspection.training import train_inspector
from denoising_ebm.utils.progress import Bar, no_bar
from denoising_ebm.viz.grids import image_grid
from denoising_ebm.viz.plots import png_bytes
from denoising_ebm.viz.report import Picture, Section

#: Of the bundled photos half are kept for the promise, 16: rates from .059 on.
RATE = 0.1
PAGE = "index.html"


@dataclass(frozen=True)
class PhotoEvidence:
    """What the demo found on photographs."""

    folder: Path  #: With the page of the inspection.
    num_normal: int  #: Photos that were learned from or kept.
    num_calibration: int  #: Of them those that were kept.
    flagged: int  #: Of the test photos.
    count: int  #: Test photos.
    rows: list[Row]  #: Figures.
    shown: Tensor  #: Photos, maps and repairs of some, shape `(3 n, 3, height, width)`.
    minutes: float  #: Of training.


def inspect_paper(
    folder: Path,
    *,
    minutes: float,
    seed: int = 0,
    device: str = "auto",
    log: Log = lambda message: None,
    bar: Bar = no_bar,
) -> PhotoEvidence:
    """Train on the bundled photos of paper, unless that was done, and inspect those with impurities.

    Args:
        folder: For the run (`run/`) and the results.
        minutes: To train for.
        seed: Of all draws.
        device: `auto`, `cpu` or `cuda`.
        log: Told what happens.
        bar: Shows how far it is.
    """
    normal = open_photos("paper", default_split="train", normal_only=True)
    model_folder = folder / "run" / "model"
    if not all((model_folder / name).is_file() for name in INSPECTOR_FILES):
        log(f"photographs: learning {len(normal)} photos of paper for {minutes:.2g} min")
        with bar("photographs", 1000) as advance:
            train_inspector(
                normal,
                folder / "run",
                groups="none",
                minutes=minutes,
                seed=seed,
                data_name="photos of paper, the bundled sample",
                device=device,
                quiet=True,
                progress=_advancing(advance),
            )
    inspector = Inspector.from_pretrained(model_folder)
    photos = open_photos("paper", default_split="test", channels=normal.channels)
    about = About(str(folder / "run"), "paper", RATE, inspector.num_calibration, inspector.threshold(RATE), "debm demo")
    with bar("inspecting", len(photos)) as advance, InspectionFolder(folder, about, maps="none") as written:
        rows = inspect_into(written, inspector, photos, RATE, repairs=True, seed=seed, progress=advance)
    places = [i for i, is_normal in enumerate(photos.is_normal) if not is_normal][:4]
    cells: list[list[Tensor]] = [[], [], []]
    for i in places:
        found = inspector.inspect(photos[i], RATE)
        heat = marked(as_picture(found.x)[0], found, about.threshold)
        pixels = torch.frombuffer(bytearray(heat.tobytes()), dtype=torch.uint8).reshape(*found.map.shape, 3)
        cells[0].append(found.x)
        cells[1].append(pixels.permute(2, 0, 1).float() / 127.5 - 1)
        cells[2].append(repair(inspector.model, found.x, found.mask, seed=seed))
    shown = torch.stack([cell for row in cells for cell in row])
    return PhotoEvidence(
        folder, len(normal), inspector.num_calibration, written.num_flagged, written.count, rows, shown, minutes
    )


def _advancing(advance: Callable[[int], object]) -> Callable[[str, float], object]:
    parts: dict[str, int] = {}

    def report(what: str, share: float) -> None:
        part, reached = what.partition(",")[0], round(1000 * share)
        if part.startswith("learning made") and reached > parts.get(part, 0):
            advance(reached - parts.get(part, 0))
            parts[part] = reached

    return report


def photo_section(evidence: PhotoEvidence) -> Section:
    """The photographs on the demo's page."""
    everything = evidence.rows[0].figures
    columns = len(evidence.shown) // 3
    text = prose(
        "demo_photos",
        normal=evidence.num_normal,
        minutes=evidence.minutes,
        kept=evidence.num_calibration,
        rate=RATE,
        flagged=evidence.flagged,
        count=evidence.count,
        image=everything["image_auroc"].value,
        pixel=everything["pixel_auroc"].value,
        page=f"{evidence.folder.name}/{PAGE}",
    )
    picture = Picture(
        png_bytes(image_grid(evidence.shown, columns=columns, scale=1)),
        prose("demo_photos_caption", count=columns),
        "photos of paper with specks, maps that show them, and the paper without",
    )
    return Section("Photographs: a defect found, masked, repaired", text, pictures=[picture])
