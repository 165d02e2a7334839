"""Scores and maps of images that come in chunks: how many there are does not matter for memory.

A `Scorer` judges a chunk, maps of it are written by `MapWriter`, or by `TiledMapWriter` at the images' own size, and
`Scored` keeps what the table and the page need: rows on disk, a few numbers an image, the most anomalous images.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from denoising_ebm.datasets.images import ImageSet, Unreadable, to_float
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.ood.anomaly_maps import Z_LIMIT, anomaly_map, brightest, write_maps
from denoising_ebm.ood.conformal import benjamini_hochberg, check_rate, flagged
from denoising_ebm.ood.detector import NAMED_BELOW, Detector
from denoising_ebm.ood.image_storage import StorageTally
from denoising_ebm.ood.table import RowsOnDisk, Score, energy_rows, with_columns
from denoising_ebm.viz.picture_names import PictureNames

#: Images shown, rows in the table of the most anomalous ones, and rows in that of unreadable ones of a page.
SHOWN, LISTED, UNREADABLE_LISTED = 24, 100, 1000

Progress = Callable[[int], object]


@dataclass(frozen=True)
class Scorer:
    """How images are judged.

    Attributes:
        model: The model.
        detector: Its detector; without one images get energies alone.
        sigma: Noise level of the energy, > 0.
        num_noise_samples: Samples of inner noise to average over, >= 1, in energies that have it and maps of energies.
        seed: Of these samples.
        batch_size: Images per forward pass.
        resize: Name of the filter by which images were brought to their size, for the table.
        fpr: False-alarm rate to flag at.
    """

    model: DenoisingEBM
    detector: Detector | None = None
    sigma: float = 0.05
    num_noise_samples: int = 4
    seed: int = 0
    batch_size: int = 256
    resize: str | None = None
    fpr: float | None = None

    def __post_init__(self) -> None:
        if self.fpr is not None:
            if self.detector is None:
                check_rate(self.fpr, 0)
            else:
                self.detector.check_rate(self.fpr)

    @property
    def chunk(self) -> int:
        """Images to score at a time: some whole batches."""
        return self.batch_size * max(1, 1024 // self.batch_size)

    @property
    def passes(self) -> int:
        """How often `rows` reports an image to its `progress`."""
        return (1 if self.detector is None else 2) + self.model.has_log_prob

    def rows(self, images: ImageSet, progress: Progress | None = None) -> tuple[list[Score], Tensor]:
        """Return a row for every image, readable or not, and the p-values of the readable ones; none without a detector."""
        how: dict[str, Any] = {"resize": self.resize, "progress": progress, **self._noise}
        if self.detector is None:
            rows, p = energy_rows(self.model, images, self.sigma, **how), torch.empty(0, dtype=torch.float64)
        else:
            rows, p = self.detector.judge(images, sigma=self.sigma, **how)
        if self.model.has_log_prob:
            given: dict[str, Any] = {"seed": self.seed, "batch_size": self.batch_size, "progress": progress}
            bits = self.model.bits_per_dim(images.pixels, **given).value
            rows = with_columns(rows, {"bits_per_dim": [round(value, 4) for value in bits.tolist()]})
        if self.detector is not None and self.fpr is not None:
            rows = with_columns(rows, {"flagged": flagged(p, self.fpr, self.detector.num_calibration).tolist()})
        return rows, p

    def maps(self, pixels: Tensor, progress: Progress | None = None) -> Tensor:
        """Return anomaly maps of pixels, z-scores or, without a detector, energies; shape `(n, height, width)`."""
        if self.detector is not None:
            return self.detector.maps(pixels, batch_size=self.batch_size, progress=progress)
        return anomaly_map(self.model, to_float(pixels), self.sigma, progress=progress, **self._noise)

    def limit(self, maps: Tensor) -> float:
        """Return the value of the strongest colour for such maps."""
        return brightest(maps) if self.detector is None else Z_LIMIT

    @property
    def _noise(self) -> dict[str, int]:
        return {"num_noise_samples": self.num_noise_samples, "seed": self.seed, "batch_size": self.batch_size}


class MapWriter:
    """Writes the maps of images, all on one scale, that of the first chunk where there is no detector to set it.

    Args:
        scorer: Makes the maps.
        folder: Where to.
    """

    def __init__(self, scorer: Scorer, folder: Path) -> None:
        self.limit: float | None = None  #: Value of the strongest colour; None until there is a map.
        self.count = 0  #: Maps written.
        self.means = array("d")  #: Mean of each map that was made.
        self.failed: OSError | None = None  #: Why no more are written. Scores are not lost for it.
        self._scorer, self._folder, self._name = scorer, folder, PictureNames()

    def write(self, images: ImageSet, rows: Sequence[Score]) -> list[Score]:
        """Write the maps of a chunk; return its rows with the largest value of each map, if that is a z-score."""
        if len(images) == 0:
            return list(rows)
        maps = self._scorer.maps(images.pixels)
        self.means.extend(maps.mean((1, 2)).tolist())
        self._write(images.pixels, maps, images.names)
        return self._with_largest(rows, dict(zip(images.names, maps, strict=True)))

    def _write(self, pixels: Tensor, maps: Tensor, names: Sequence[str]) -> None:
        if self.failed is not None:
            return
        self.limit = self.limit or self._scorer.limit(maps)
        files, signed = [self._name(name) for name in names], self._scorer.detector is not None
        try:
            write_maps(pixels, maps, files, self._folder, limit=self.limit, signed=signed)
        except OSError as error:
            self.failed = error
            return
        self.count += len(maps)

    def _with_largest(self, rows: Sequence[Score], maps: dict[str, Tensor]) -> list[Score]:
        if self._scorer.detector is None:
            return list(rows)
        return [replace(row, map_max=_largest(maps[row.name])) if row.name in maps else row for row in rows]


class TiledMapWriter(MapWriter):
    """Writes the maps of images at their own size, from overlapping tiles.

    Args:
        scorer: Makes the maps.
        folder: Where to.
        images: Name and pixels of each image that can be read, in the order of the rows to come.
        refused: Called with the name of an image that gets no map, and why.
    """

    def __init__(
        self,
        scorer: Scorer,
        folder: Path,
        images: Iterable[tuple[str, Tensor]],
        refused: Callable[[str, str], object],
    ) -> None:
        super().__init__(scorer, folder)
        self._images, self._refused = iter(images), refused
        self._next = next(self._images, None)

    def write(self, images: ImageSet, rows: Sequence[Score]) -> list[Score]:
        """Write the maps of the images that the rows name; return the rows with the largest value of each map."""
        wanted, largest = {row.name for row in rows}, {}
        while self._next is not None and self._next[0] in wanted:
            name, pixels = self._next
            wanted.discard(name)
            try:
                maps = self._scorer.maps(pixels[None])
            except ValueError as error:
                self._refused(name, str(error))
            else:
                self.means.append(float(maps.mean()))
                self._write(pixels[None], maps, [name])
                largest[name] = maps.max()
            self._next = next(self._images, None)
        return self._with_largest(rows, largest)


class Kept(NamedTuple):
    """One of the most anomalous images."""

    value: float  #: Its score, or energy.
    place: int  #: Among the readable images.
    row: Score
    pixels: Tensor | None  #: uint8 `(channels, height, width)`, of the very first.


class Scored:
    """What is kept of scored images: rows on disk, and in memory numbers, counts and the most anomalous images.

    Args:
        folder: Where the rows are, which must have room for the table; that of the system if None.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.count = 0  #: Readable images.
        self.num_unreadable = 0
        self.num_flagged: int | None = None  #: None if none was judged.
        self.num_cropped = 0  #: Images that were judged by a part of them.
        #: Images with a z-score above the limit in their map, and a p-value that is not small.
        self.num_in_maps_alone = 0
        self.first: Score | None = None  #: The first readable image.
        self.unreadable: list[Unreadable] = []  #: The first of them.
        self.most_anomalous: list[Kept] = []  #: In falling order.
        self.storage = StorageTally()  #: How the readable images were stored.
        self._rows = RowsOnDisk(folder)
        self._values, self._p_values = array("d"), array("d")
        self._flags: Iterable[int] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.__exit__()

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """Scores of the readable images, or energies without a detector."""
        return np.array(self._values)

    @property
    def p_values(self) -> Tensor:
        """Exact p-values of the readable images, float64, if a detector gave them."""
        return torch.from_numpy(np.array(self._p_values))

    def shown(self) -> Tensor:
        """Return the most anomalous images, uint8 `(up to SHOWN, channels, height, width)`."""
        return torch.stack([kept.pixels for kept in self.most_anomalous if kept.pixels is not None])

    def add(self, images: ImageSet, rows: Sequence[Score], p_values: Tensor) -> None:
        """Take in a chunk: its images, their rows, and the p-values of those that can be read.

        Raises:
            OSError: If there is no room on disk.
        """
        self._rows.extend(rows)
        self.storage.add(images.stored, images.pixels)
        self.unreadable += images.unreadable[: UNREADABLE_LISTED - len(self.unreadable)]
        self.num_unreadable += len(images.unreadable)
        readable = [row for row in rows if row.status == "ok"]
        if not readable:
            return
        self.first = self.first or readable[0]
        flags = [row.flagged for row in readable if row.flagged is not None]
        if flags:
            self.num_flagged = (self.num_flagged or 0) + sum(flags)
        self.num_cropped += sum(row.seen is not None and row.seen < 1 for row in readable)
        self.num_in_maps_alone += sum(_in_map_alone(row) for row in readable)
        values = [_value(row) for row in readable]
        self._keep_most_anomalous(images, readable, values)
        self._values.extend(values)
        self._p_values.extend(p_values.tolist())
        self.count += len(readable)

    def flag(self, fdr: float) -> None:
        """Flag images so that at most a share `fdr` of the flagged is normal, in expectation (Benjamini-Hochberg)."""
        flags = benjamini_hochberg(self.p_values, fdr)
        self.num_flagged = int(flags.sum())
        self._flags = array("B", flags.byte().tolist())
        self.most_anomalous = [
            kept._replace(row=replace(kept.row, flagged=bool(flags[kept.place]))) for kept in self.most_anomalous
        ]

    def rows(self) -> Iterator[Score]:
        """Yield the rows of all images, in their order."""
        if self._flags is None:
            yield from self._rows
            return
        flags = iter(self._flags)
        for row in self._rows:
            yield replace(row, flagged=bool(next(flags))) if row.status == "ok" else row

    def _keep_most_anomalous(self, images: ImageSet, rows: Sequence[Score], values: Sequence[float]) -> None:
        new = [
            Kept(value, self.count + i, row, images.pixels[i])
            for i, (row, value) in enumerate(zip(rows, values, strict=True))
        ]
        found = sorted([*self.most_anomalous, *new], key=lambda kept: -kept.value)[:LISTED]
        # A slice of a chunk would keep all of it in memory.
        self.most_anomalous = [
            kept._replace(pixels=kept.pixels.clone() if i < SHOWN and kept.pixels is not None else None)
            for i, kept in enumerate(found)
        ]


def _value(row: Score) -> float:
    value = row.energy if row.score is None else row.score
    return -math.inf if value is None or math.isnan(value) else value


def _in_map_alone(row: Score) -> bool:
    p, largest = row.p_value, row.map_max
    return p is not None and largest is not None and largest > Z_LIMIT and p > NAMED_BELOW


def _largest(values: Tensor) -> float:
    return round(float(values.max()), 3)
