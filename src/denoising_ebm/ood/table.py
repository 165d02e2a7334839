"""Tables of scores: a row an image, in the order of the source, as CSV, Parquet or JSON lines; rows kept on disk."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from denoising_ebm.datasets.images import ImageSet, to_float
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.utils.io import errors_named, write_atomically
from denoising_ebm.utils.text import csv_line, printable, valid_unicode

TABLE_FORMATS = (".csv", ".parquet", ".jsonl")
#: Rows of a group of a Parquet file, which is held until it is written.
_GROUP = 4096


@dataclass(frozen=True)
class Score:
    """A row of the table; what does not apply is None.

    Attributes:
        name: Path of the image in its source, or `file.parquet#row`.
        status: `ok`, or `unreadable`: damaged, or of a size or channel count that the model does not take.
        score: The detector's; 0 is normal, larger is more anomalous.
        p_value: Share of normal images with at least that score (conformal), in (0, 1].
        flagged: Whether it is anomalous at the rate asked for.
        nearest_corruption: The corruption of normal images that it resembles most, if its p-value is at most .1.
        energy: Texture energy at `sigma`, low = likely.
        percentile: Share of the model's reference images with a lower energy, 0..100.
        sigma: Noise level of the energy.
        resize: Filter that brought images of other sizes to the model's.
        reason: Why it is unreadable.
        seen: Share of the image's area that was judged, in (0, 1]: less than 1 if it was cropped.
        notes: Decisions that changed its meaning as it was read.
        map_max: Largest z-score in its anomaly map, where maps are made with a detector.
        bits_per_dim: -log2 of the density at the smallest noise level, per value and with a grey level for the unit, where
            the model has a density network that is normalised.
    """

    name: str
    status: Literal["ok", "unreadable"] = "ok"
    score: float | None = None
    p_value: float | None = None
    flagged: bool | None = None
    nearest_corruption: str | None = None
    energy: float | None = None
    percentile: float | None = None
    sigma: float | None = None
    resize: str | None = None
    reason: str | None = None
    seen: float | None = None
    notes: str | None = None
    map_max: float | None = None
    bits_per_dim: float | None = None


COLUMNS = tuple(column.name for column in fields(Score))


@torch.no_grad()
def energy_rows(
    model: DenoisingEBM,
    images: ImageSet,
    sigma: float,
    *,
    num_noise_samples: int = 4,
    seed: int = 0,
    batch_size: int = 256,
    resize: str | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[Score]:
    """Return a row for every image, readable or not, with its energy and percentile.

    Args:
        model: The model. If its energy has inner noise, every image gets the same samples of it.
        images: The images, of the model's size and channels.
        sigma: Noise level of the energy, > 0.
        num_noise_samples: Samples of the inner noise to average over, >= 1, for an energy that has it.
        seed: Seed of these samples.
        batch_size: Images per forward pass, >= 1.
        resize: Name of the filter used, for the table.
        progress: Called with the number of images after each batch.

    Raises:
        ValueError: If a number is out of range, or the model's energies are not finite.
    """
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma must be > 0, got {sigma:g}")
    for name, value in (("num_noise_samples", num_noise_samples), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    noise = model.scoring_noise(num_noise_samples, seed) if model.config.energy.inner_noise else None
    parts: list[Tensor] = [torch.empty(0, device=model.device)]
    for pixels in torch.split(images.pixels, batch_size) if len(images) else ():
        parts.append(model.energy(to_float(pixels).to(model.device), sigma, noise))
        if progress is not None:
            progress(len(pixels))
    energies = torch.cat(parts)
    if not bool(energies.isfinite().all()):
        raise ValueError("the model gives energies that are not finite: its weights are too large to compute with")
    percentiles = model.percentile(energies, sigma).tolist()
    rows = [
        Score(
            name,
            energy=float(str(energy)),  # the number with the fewest digits that stands for this float32
            percentile=None if math.isnan(percentile) else round(percentile, 2),
            sigma=sigma,
            resize=resize,
            seen=None if stored is None else round(stored.seen, 4),
            notes=None if stored is None else "; ".join(stored.notes) or None,
        )
        for name, energy, percentile, stored in zip(
            images.names, energies.cpu().numpy(), percentiles, images.stored, strict=True
        )
    ]
    for image in reversed(images.unreadable):
        rows.insert(image.place, Score(image.name, "unreadable", resize=resize, reason=printable(image.reason)))
    return rows


def with_columns(rows: Sequence[Score], columns: Mapping[str, Iterable[Any]]) -> list[Score]:
    """Return rows whose readable ones have the values of `columns`, in their order."""
    values = zip(*columns.values(), strict=True)
    return [
        replace(row, **dict(zip(columns, next(values), strict=True))) if row.status == "ok" else row for row in rows
    ]


def check_table_path(path: Path) -> None:
    """Refuse a file name whose suffix names no format of `write_table`.

    Raises:
        ValueError: If so.
    """
    if path.suffix.lower() not in TABLE_FORMATS:
        raise ValueError(f"{path}: unknown suffix {path.suffix!r}; use one of {', '.join(TABLE_FORMATS)}")


def write_table(rows: Iterable[Score], path: Path) -> None:
    r"""Write the rows as CSV, Parquet or JSON lines, by the suffix of `path`; complete or not at all.

    In all three a byte of a name that is not UTF-8 is `\xff`. Only in CSV text that a spreadsheet would take for a formula
    gets an apostrophe in front (see `csv_line`).

    Args:
        rows: The rows; they may be made as they are written.
        path: The file; missing folders are made.

    Raises:
        ValueError: If the suffix is unknown.
    """
    check_table_path(path)
    if path.suffix.lower() == ".parquet":
        write_atomically(path, lambda temporary: _write_parquet(rows, temporary))
        return
    lines = csv_lines(rows) if path.suffix.lower() == ".csv" else (json.dumps(_values(row)) + "\n" for row in rows)

    def write(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            file.writelines(lines)

    write_atomically(path, write)


def csv_lines(rows: Iterable[Score]) -> Iterator[str]:
    """Yield the rows as lines of CSV after a header; what is None is left empty, booleans are `true` and `false`."""
    yield csv_line(COLUMNS)
    yield from (csv_line(vars(row).values()) for row in rows)


class RowsOnDisk:
    """Rows in a file without a name, which goes with the process: many of them need no memory, a death leaves nothing.

    Args:
        folder: Where the file is, which must have room for the table; made if missing. That of the system if None.
    """

    def __init__(self, folder: Path | None = None) -> None:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        with self._named():
            self._file = tempfile.TemporaryFile("w+", encoding="utf-8", dir=folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # After a full disk what is left unwritten would be tried again.
        with suppress(OSError):
            self._file.close()

    def extend(self, rows: Iterable[Score]) -> None:
        """Add rows.

        Raises:
            OSError: If there is no room for them.
        """
        with self._named():
            self._file.writelines(json.dumps(vars(row)) + "\n" for row in rows)

    def __iter__(self) -> Iterator[Score]:
        """Yield all rows so far."""
        with self._named():
            self._file.seek(0)
        for line in self._file:
            yield Score(**json.loads(line))

    def _named(self) -> AbstractContextManager[None]:
        return errors_named(self._folder or tempfile.gettempdir())


def _values(row: Score) -> dict[str, Any]:
    """Return the row by its columns, its text valid Unicode, which names of files need not be."""
    return {name: valid_unicode(value) if isinstance(value, str) else value for name, value in vars(row).items()}


def _write_parquet(rows: Iterable[Score], path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    text, number = pa.string(), pa.float64()
    kinds = dict.fromkeys(("name", "status", "nearest_corruption", "resize", "reason", "notes"), text)
    kinds |= {"flagged": pa.bool_(), "energy": pa.float32()}
    schema = pa.schema([(name, kinds.get(name, number)) for name in COLUMNS])
    remaining = iter(rows)
    with parquet.ParquetWriter(str(path), schema) as writer:
        while group := list(islice(remaining, _GROUP)):
            writer.write_table(pa.Table.from_pylist([_values(row) for row in group], schema=schema))
