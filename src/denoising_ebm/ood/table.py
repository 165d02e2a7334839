"""Tables of scores: a row an image, in the order of the source, as CSV, Parquet or JSON lines."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from denoising_ebm.datasets.images import ImageSet, to_float
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.utils.io import write_atomically

TABLE_FORMATS = (".csv", ".parquet", ".jsonl")


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
        ValueError: If a number is out of range.
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
    percentiles = model.percentile(energies, sigma).tolist()
    rows = [
        Score(
            name,
            energy=float(str(energy)),  # the number with the fewest digits that stands for this float32
            percentile=None if math.isnan(percentile) else round(percentile, 2),
            sigma=sigma,
            resize=resize,
        )
        for name, energy, percentile in zip(images.names, energies.cpu().numpy(), percentiles, strict=True)
    ]
    for image in reversed(images.unreadable):
        rows.insert(image.place, Score(image.name, "unreadable", resize=resize, reason=image.reason))
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


def write_table(rows: Sequence[Score], path: Path) -> None:
    """Write the rows as CSV, Parquet or JSON lines, by the suffix of `path`; complete or not at all.

    Raises:
        ValueError: If the suffix is unknown.
    """
    check_table_path(path)
    if path.suffix.lower() == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet

        text, number = pa.string(), pa.float64()
        kinds = {name: text for name in ("name", "status", "nearest_corruption", "resize", "reason")}
        kinds |= {"flagged": pa.bool_(), "energy": pa.float32()}
        schema = pa.schema([(field.name, kinds.get(field.name, number)) for field in fields(Score)])
        # Names of files need not be valid Unicode, text in Parquet must be.
        values = [asdict(row) | {"name": row.name.encode("utf-8", "backslashreplace").decode()} for row in rows]
        table = pa.Table.from_pylist(values, schema=schema)
        write_atomically(path, lambda temporary: pyarrow.parquet.write_table(table, str(temporary)))
        return
    text = csv_text(rows) if path.suffix.lower() == ".csv" else "".join(json.dumps(asdict(r)) + "\n" for r in rows)
    # Names of files need not be valid Unicode.
    encoded = text.encode("utf-8", errors="surrogateescape")
    write_atomically(path, lambda temporary: temporary.write_bytes(encoded))


def csv_text(rows: Sequence[Score]) -> str:
    """Return the rows as CSV with a header; what is None is left empty, booleans are `true` and `false`."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [field.name for field in fields(Score)], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        values = asdict(row)
        if row.flagged is not None:
            values["flagged"] = str(row.flagged).lower()
        writer.writerow(values)
    return buffer.getvalue()
