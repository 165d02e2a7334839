"""What `debm inspect` writes: tables of photos and regions, masks, maps, repairs, and a page that shows them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import IO, Any, Literal, Self
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import torch
from jinja2 import Environment, StrictUndefined
from PIL import Image, ImageDraw
from scipy import ndimage
from torch import Tensor

from denoising_ebm.datasets.images import to_uint8
from denoising_ebm.inspection.metrics import FIGURES, Row
from denoising_ebm.inspection.results import InspectedPhoto
from denoising_ebm.utils.io import write_atomically, write_text_atomically
from denoising_ebm.utils.text import csv_line, printable
from denoising_ebm.viz.picture_names import PictureNames
from denoising_ebm.viz.report import Table

MapFormat = Literal["npy", "tiff", "none"]
#: Longer side of thumbnails and, at most, of overlays, in pixels.
THUMBNAIL, LARGEST = 160, 2048
#: Regions of a photo that are drawn and named on the page; the table has all.
SHOWN_REGIONS = 8
_STRIP = 256
PHOTO_COLUMNS = "name kind score p_value flagged regions area_share width height map_max status notes".split()
REGION_COLUMNS = "name region p_value peak y x area top left bottom right".split()


@dataclass(frozen=True)
class About:
    """What the page says of a run.

    Attributes:
        model: Folder of the model.
        source: Folder of the photos.
        rate: Share of normal photos in which anything may be marked.
        num_calibration: Normal photos, or groups of them, that the promise is made from.
        threshold: Value of maps from which pixels are marked.
        command: That made the page.
        unit: What `num_calibration` counts, `photos` or groups of them.
    """

    model: str
    source: str
    rate: float
    num_calibration: int
    threshold: float
    command: str = ""
    unit: str = "photos"


@dataclass
class _Line:
    """A photo on the page."""

    name: str
    kind: str
    score: float
    p_value: float
    num_regions: int
    regions: list[dict[str, Any]]  # the first ones
    pictures: dict[str, str]  # addresses relative to the page
    flagged: bool
    has_truth: bool
    notes: str = ""


class InspectionFolder:
    """A folder that fills with results, photo by photo; what is there is valid at every moment.

    Args:
        folder: Created if missing.
        about: What the page says.
        maps: Format of the anomaly maps.
    """

    def __init__(self, folder: str | Path, about: About, *, maps: MapFormat = "npy") -> None:
        self.folder, self.about, self.maps = Path(folder), about, maps
        self.count = self.num_flagged = self.num_unreadable = 0
        self._names = PictureNames()
        self._lines: list[_Line] = []
        self._metrics: Sequence[Row] = ()
        self._stack = ExitStack()
        self._tables: dict[str, IO[str]] = {}

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._tables = {
            name: self._stack.enter_context(open(self.folder / name, "w", encoding="utf-8", newline=""))
            for name in ("photos.csv", "regions.csv")
        }
        self._write("photos.csv", PHOTO_COLUMNS)
        self._write("regions.csv", REGION_COLUMNS)
        return self

    def __exit__(self, *_: object) -> None:
        # What is done stays, whatever ended it.
        self._stack.close()
        self.write_page()

    def _write(self, table: str, values: Iterable[object]) -> None:
        self._tables[table].write(csv_line(values))
        self._tables[table].flush()

    def add(self, photo: InspectedPhoto) -> None:
        """Write a photo's files and rows."""
        # In small letters, since the map of `a.PNG` would be that of `a.png`.
        stem, suffix = os.path.splitext(photo.name)
        picture = self._names(stem + ".png" if suffix.lower() == ".png" else photo.name)
        height, width = photo.map.shape
        notes = list(photo.notes)
        image, note = as_picture(photo.x)
        notes += [note] if note else []
        found = {"thumbnail": self._save("thumbnails", picture, _thumbnail(image))}
        mask = photo.mask.cpu().numpy()
        self._save("masks", picture, Image.fromarray(mask.astype(np.uint8) * 255))
        if self.maps != "none":
            self._save_map(picture, photo.map)
        found["overlay"] = self._save("overlays", picture, marked(image, photo, self.about.threshold))
        if photo.flagged:
            found["photo"] = self._save("photos", picture, image)
        if photo.repaired is not None:
            found["repaired"] = self._save("repaired", picture, as_picture(photo.repaired)[0])
            found["difference"] = self._save("difference", picture, difference(photo.x, photo.repaired))
        self._write(
            "photos.csv",
            (
                photo.name,
                photo.kind,
                round(photo.score, 4),
                float(f"{photo.p_value:.4g}"),
                photo.flagged,
                len(photo.regions),
                round(float(mask.mean()), 6),
                width,
                height,
                round(float(photo.map.max()), 4),
                "ok",
                "; ".join(notes),
            ),
        )
        for region in photo.regions:
            place = (*region.position, region.area, *region.box)
            values = (float(f"{region.p_value:.4g}"), round(region.peak, 4), *place)
            self._write("regions.csv", (photo.name, region.number, *values))
        shown = [
            {"number": r.number, "p": r.p_value, "area": r.area, "box": r.box} for r in photo.regions[:SHOWN_REGIONS]
        ]
        line = _Line(
            name=photo.name,
            kind=photo.kind or "",
            score=photo.score,
            p_value=photo.p_value,
            num_regions=len(photo.regions),
            regions=shown,
            pictures=found,
            flagged=photo.flagged,
            has_truth=photo.truth is not None,
            notes="; ".join(notes),
        )
        self._lines.append(line)
        self.count += 1
        self.num_flagged += photo.flagged

    def add_unreadable(self, name: str, reason: str) -> None:
        """Write a row of a photo that could not be read or judged."""
        empty = [None] * (len(PHOTO_COLUMNS) - 3)
        self._write("photos.csv", (name, *empty, "unreadable", reason))
        self.num_unreadable += 1

    def add_metrics(self, rows: Sequence[Row]) -> None:
        """Write `metrics.csv`, and show its figures on the page."""
        self._metrics = rows
        names = [name for name in FIGURES if any(name in row.figures for row in rows)]
        lines = [
            csv_line(["kind", "normal", "defective", *(f"{n}{end}" for n in names for end in ("", " low", " high"))])
        ]
        for row in rows:
            cells: list[object] = [row.kind, row.num_normal, row.num_defective]
            for name in names:
                figure = row.figures.get(name)
                cells += (
                    [None] * 3 if figure is None else [round(v, 4) for v in (figure.value, figure.low, figure.high)]
                )
            lines.append(csv_line(cells))
        write_text_atomically(self.folder / "metrics.csv", "".join(lines))

    def write_page(self) -> None:
        """Write `index.html` of the photos so far."""
        template = resources.files("denoising_ebm").joinpath("viz/templates/inspection.html.j2").read_text("utf-8")
        environment = Environment(
            autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown
        )
        html = environment.from_string(template).render(
            about=self.about,
            lines=sorted(self._lines, key=lambda line: (line.p_value, -line.score)),
            count=self.count,
            flagged=self.num_flagged,
            unreadable=self.num_unreadable,
            maps=self.maps,
            metrics=metrics_table(self._metrics) if self._metrics else None,
        )
        write_text_atomically(self.folder / "index.html", html, errors="backslashreplace")

    def _save(self, folder: str, name: str, picture: Image.Image) -> str:
        write_atomically(self.folder / folder / name, partial(_save_png, picture))
        # By its bytes, since names need not be UTF-8.
        return f"{folder}/{quote(os.fsencode(name))}"

    def _save_map(self, name: str, values: Tensor) -> None:
        path = (self.folder / "maps" / name).with_suffix(".npy" if self.maps == "npy" else ".tiff")
        array = values.cpu().numpy().astype(np.float32)
        if self.maps == "npy":
            write_atomically(path, partial(_save_array, array))
        else:
            write_atomically(path, partial(_save_tiff, Image.fromarray(array)))


def _shown(value: Any) -> Any:
    """Return a value of the page; text does nothing but show itself."""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _save_png(picture: Image.Image, path: Path) -> None:
    picture.save(path, format="PNG")


def _save_tiff(picture: Image.Image, path: Path) -> None:
    picture.save(path, format="TIFF")


def _save_array(array: npt.NDArray[np.float32], path: Path) -> None:
    with open(path, "wb") as file:
        np.save(file, array)


# -- pictures ---------------------------------------------------------------------------------------------------------


def as_picture(x: Tensor) -> tuple[Image.Image, str]:
    """Return a photo as an RGB picture, and what is to be said of it: of many bands the first three are shown."""
    note, bands = "", len(x)
    if bands not in (1, 3):
        note = f"the page shows {'bands 1 to 3' if bands > 3 else 'band 1'} of {bands}"
        x = x[:3] if bands > 3 else x[:1]
    array = np.empty((*x.shape[1:], 3), np.uint8)
    # Strip by strip: all at once would take several times the memory of the photo.
    for top in range(0, len(array), _STRIP):
        array[top : top + _STRIP] = to_uint8(x[:, top : top + _STRIP].cpu()).permute(1, 2, 0).numpy()
    return Image.fromarray(array), note


def shrunk(image: Image.Image, values: Tensor) -> tuple[Image.Image, Tensor, float]:
    """Return a picture and its map, made smaller where they have more than `LARGEST` pixels a side, and the factor.

    Of the map the largest value in each place is kept: a speck stays a speck.
    """
    factor = math.ceil(max(image.size) / LARGEST)
    if factor == 1:
        return image, values, 1.0
    pooled = torch.nn.functional.max_pool2d(values[None, None], factor, ceil_mode=True)[0, 0]
    return image.resize((pooled.shape[1], pooled.shape[0]), Image.Resampling.BOX), pooled, 1 / factor


def overlay(image: Image.Image, values: Tensor, threshold: float) -> Image.Image:
    """Return a photo under its map: colour from half of the way to the threshold on, full at as far beyond it.

    Maps are compared with the median of their own, which is what most of a photo is like.
    """
    array = values.cpu().numpy()
    middle = float(np.median(array))
    span = max(threshold - middle, 1e-6)
    share = ((array - middle) / span - 0.5).clip(0, 1)[..., None]
    pixels = np.asarray(image, np.float32)
    gray = pixels.mean(2, keepdims=True).repeat(3, 2)
    # Yellow at the threshold's half way, red beyond it.
    colour = np.concatenate([np.full_like(share, 255), 200 * (1 - share), np.zeros_like(share)], axis=2)
    mixed = gray * (1 - 0.65 * np.minimum(1, 2 * share)) + colour * 0.65 * np.minimum(1, 2 * share)
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def marked(image: Image.Image, photo: InspectedPhoto, threshold: float) -> Image.Image:
    """Return the overlay with the outline of the mask in white, that of the truth in blue, and boxes of regions."""
    small, values, scale = shrunk(image, photo.map)
    pixels = np.array(overlay(small, values, threshold))
    truth = None if photo.truth is None else photo.truth.float()
    for region, colour in ((truth, (0, 200, 255)), (photo.mask.float(), (255, 255, 255))):
        if region is not None:
            inside = shrunk(image, region)[1].numpy() > 0
            pixels[ndimage.binary_dilation(inside) & ~inside] = colour
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    for found in photo.regions[:SHOWN_REGIONS]:
        top, left, bottom, right = (round(scale * side) for side in found.box)
        # Within the picture: at its border a box keeps all four sides.
        corner = min(right + 2, picture.width - 1), min(bottom + 2, picture.height - 1)
        draw.rectangle((max(left - 3, 0), max(top - 3, 0), *corner), outline=(255, 255, 255))
    return picture


def difference(x: Tensor, repaired: Tensor) -> Image.Image:
    """Return how far a photo is from its repair, on gray: lighter where the photo is lighter, by twice as much."""
    pixels = np.empty(x.shape[1:], np.uint8)
    for top in range(0, len(pixels), _STRIP):
        change = (x[:, top : top + _STRIP] - repaired[:, top : top + _STRIP]).mean(0)
        pixels[top : top + _STRIP] = (change * 127.5 + 127.5).clamp(0, 255).to(torch.uint8).cpu().numpy()
    return Image.fromarray(pixels)


def _thumbnail(image: Image.Image) -> Image.Image:
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return small


def metrics_table(rows: Sequence[Row]) -> Table:
    """Return the figures of an evaluation as a table, each with its 95 % interval."""
    names = [name for name in FIGURES if any(name in row.figures for row in rows)]

    def shown(row: Row, name: str) -> str | None:
        figure = row.figures.get(name)
        return None if figure is None else f"{figure.value:.3f} ({figure.low:.3f}-{figure.high:.3f})"

    columns = ["", *(row.kind for row in rows)]
    cells: list[list[Any]] = [["normal / defective photos", *(f"{r.num_normal} / {r.num_defective}" for r in rows)]]
    cells += [[name.replace("_", " "), *(shown(row, name) for row in rows)] for name in names]
    return Table(columns, cells, "Figures with 95 % intervals")
