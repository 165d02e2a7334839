"""Images from any source into a table of scores: a row an image, in the order of the source."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from denoising_ebm.datasets.images import ImageSet, to_float
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.ood.conformal import benjamini_hochberg
from denoising_ebm.ood.detector import SCORED_AT_ONCE, Detector
from denoising_ebm.utils.io import write_atomically

#: Largest p-value of an image of which the table says what it looks like.
NEAREST_CORRUPTION_AT_MOST = 0.1
TABLE_FORMATS = (".csv", ".parquet", ".jsonl")

#: Told the number of images or steps done since it was called last.
Advance = Callable[[int], object]


@dataclass(frozen=True)
class Score:
    """A row of the table; what does not apply is None.

    Attributes:
        name: Path of the image in its source, or `file.parquet#row`.
        status: `ok`, or `unreadable`: damaged, or of a size or channel count that the model does not take.
        score: How odd the detector finds it; 0 is usual, larger is more odd.
        p_value: Share of normal images at least as odd (conformal), in (0, 1].
        flagged: Whether it is called odd at the rate asked for.
        looks: The slight alteration of a normal image that it resembles most, if its p-value is at most `NEAREST_CORRUPTION_AT_MOST`.
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
def score_images(
    model: DenoisingEBM,
    images: ImageSet,
    sigma: float,
    *,
    detector: Detector | None = None,
    fpr: float | None = None,
    fdr: float | None = None,
    draws: int = 4,
    seed: int = 0,
    batch_size: int = 256,
    resize: str | None = None,
    advance: Advance | None = None,
) -> list[Score]:
    """Score every image.

    Args:
        model: The model. If its energy has inner noise, every image gets the same draws of it.
        images: The images, of the model's size and channels.
        sigma: Noise level of the energy, > 0.
        detector: Gives scores and p-values; None for energies alone.
        fpr: Flag so that at most this share of normal images is.
        fdr: Flag so that at most this share of the flagged images is normal (Benjamini-Hochberg over all of them).
        draws: Draws of the inner noise to average over, >= 1, for an energy that has it.
        seed: Seed of these draws.
        batch_size: Images per forward pass, >= 1.
        resize: Name of the filter used, for the table.
        advance: Called with the number of images after each batch: once for energies, once for scores.

    Returns:
        A row for every image, readable or not, in the order of the source.

    Raises:
        ValueError: If a number is out of range, or a rate is asked for without a detector.
    """
    _check(sigma, draws, batch_size)
    if detector is None and (fpr is not None or fdr is not None):
        raise ValueError("a false-alarm rate needs a detector: `debm fit-detector` makes it")
    noise = model.scoring_noise(draws, seed) if model.config.energy.inner_noise else None
    chunks: list[Tensor] = []
    for pixels in torch.split(images.pixels, batch_size) if len(images) else ():
        chunks.append(model.energy(to_float(pixels).to(model.device), sigma, noise))
        if advance is not None:
            advance(len(pixels))
    energies = torch.cat(chunks) if len(images) else torch.empty(0, device=model.device)
    columns: dict[str, list[Any]] = {
        "energy": [_shortest(energy) for energy in energies.cpu().numpy()],
        "percentile": [
            None if math.isnan(share) else round(share, 2) for share in model.percentile(energies, sigma).tolist()
        ],
    }
    if detector is not None and len(images):
        parts: list[Tensor] = []
        columns["nearest_corruption"] = []
        # Their features are thousands of numbers an image: not all at once.
        for pixels in torch.split(images.pixels, SCORED_AT_ONCE):
            features = detector.columns(pixels, batch_size=batch_size, progress=advance)
            parts.append(detector.combine(features))
            nearest_corruption, odd = (
                detector.nearest_corruption(features),
                detector.p_values(parts[-1]) <= NEAREST_CORRUPTION_AT_MOST,
            )
            columns["nearest_corruption"] += [
                nearest_corruption[i] if nearest_corruption and odd[i] else None for i in range(len(pixels))
            ]
        scores = torch.cat(parts)
        p = detector.p_values(scores)
        columns["score"] = [round(score, 4) for score in scores.tolist()]
        columns["p_value"] = [float(f"{value:.4g}") for value in p.tolist()]
        if fpr is not None:
            columns["flagged"] = detector.flag(scores, fpr).tolist()
        elif fdr is not None:
            columns["flagged"] = benjamini_hochberg(p, fdr).tolist()
    rows = [
        Score(name, sigma=sigma, resize=resize, **{column: values[i] for column, values in columns.items()})
        for i, name in enumerate(images.names)
    ]
    for image in reversed(images.unreadable):
        rows.insert(image.place, Score(image.name, "unreadable", resize=resize, reason=image.reason))
    return rows


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


def _shortest(value: np.float32) -> float:
    """The number with the fewest digits that stands for this float32."""
    return float(str(value))


def _check(sigma: float, draws: int, batch_size: int) -> None:
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma must be > 0, got {sigma:g}")
    for name, value in (("draws", draws), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
