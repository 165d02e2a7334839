"""Images from any source into a table of energies and percentiles, and into pictures of where the energy lies."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from denoising_ebm.evaluation.grids import heat_overlay
from denoising_ebm.images import ImageSet, to_float
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.model_folder import write_atomically

TABLE_FORMATS = (".csv", ".parquet", ".jsonl")

#: Told the number of images or steps done since it was called last.
Advance = Callable[[int], object]


@dataclass(frozen=True)
class Score:
    """A row of the table.

    Attributes:
        name: Path of the image in its source, or `file.parquet#row`.
        energy: Texture energy at `sigma`, low = likely; None for an unreadable image.
        percentile: Share of the model's reference images with a lower energy, 0..100; None where it keeps none.
        status: `ok` or `unreadable`.
        sigma: Noise level of the energy.
    """

    name: str
    energy: float | None
    percentile: float | None
    status: Literal["ok", "unreadable"]
    sigma: float


@torch.no_grad()
def score_images(
    model: DenoisingEBM,
    images: ImageSet,
    sigma: float,
    *,
    draws: int = 4,
    seed: int = 0,
    batch_size: int = 256,
    maps: bool = False,
    advance: Advance | None = None,
) -> tuple[list[Score], Tensor | None]:
    """Score every image; the unreadable ones follow at the end.

    Args:
        model: The model. If its energy has inner noise, every image gets the same draws of it.
        images: The images, of the model's size and channels.
        sigma: Noise level, > 0.
        draws: Draws of the inner noise to average over, >= 1, for an energy that has it and for the maps.
        seed: Seed of these draws.
        batch_size: Images per forward pass, >= 1.
        maps: Also keep the energy of every pixel.
        advance: Called with the number of images after each batch.

    Returns:
        The rows, and with `maps` the energies per pixel (`odd_pixels`), float32 `(n, height, width)`, else None.

    Raises:
        ValueError: If a number is out of range.
    """
    _check(sigma, draws, batch_size)
    noise = model.scoring_noise(draws, seed) if model.config.energy.inner_noise else None
    chunks: list[Tensor] = []
    map_chunks: list[Tensor] = []
    for start in range(0, len(images), batch_size):
        pixels = images.pixels[start : start + batch_size]
        x = to_float(pixels).to(model.device)
        chunks.append(model.energy(x, sigma, noise))
        if maps:
            map_chunks.append(odd_pixels(model, x, sigma, draws=draws, seed=seed).cpu())
        if advance is not None:
            advance(len(pixels))
    energies = torch.cat(chunks)
    percentiles = model.percentile(energies, sigma)
    rows = [
        Score(name, _shortest(energy), None if math.isnan(share) else round(share, 2), "ok", sigma)
        for name, energy, share in zip(images.names, energies.cpu().numpy(), percentiles.tolist(), strict=True)
    ]
    rows += [Score(name, None, None, "unreadable", sigma) for name, _ in images.unreadable]
    return rows, torch.cat(map_chunks) if maps else None


@torch.no_grad()
def odd_pixels(model: DenoisingEBM, x: Tensor, sigma: float, *, draws: int = 4, seed: int = 0) -> Tensor:
    """Return the energy of every pixel for showing where an image is odd, shape (batch, height, width).

    It is eq. 7 with its inner noise, averaged over draws that are the same for every image, whether or not the model's
    energy for chains has that noise: without it r(x) copies what it sees, odd or not. A model trained by `score` has r
    for noisy images only and gets none.

    Args:
        model: The model.
        x: Images in [-1, 1], shape (batch, channels, height, width).
        sigma: Noise level, > 0.
        draws: Draws to average over.
        seed: Seed of the draws.
    """
    by_output = model.config.energy.denoiser == "output"
    return model.energy_map(x, sigma, model.scoring_noise(draws, seed) if by_output else None)


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

        kinds = {"name": pa.string(), "energy": pa.float32(), "percentile": pa.float32(), "status": pa.string()}
        schema = pa.schema([*kinds.items(), ("sigma", pa.float64())])
        table = pa.Table.from_pylist([asdict(row) for row in rows], schema=schema)
        write_atomically(path, lambda temporary: pyarrow.parquet.write_table(table, str(temporary)))
        return
    text = csv_text(rows) if path.suffix.lower() == ".csv" else "".join(json.dumps(asdict(r)) + "\n" for r in rows)
    # Names of files need not be valid Unicode.
    encoded = text.encode("utf-8", errors="surrogateescape")
    write_atomically(path, lambda temporary: temporary.write_bytes(encoded))


def csv_text(rows: Sequence[Score]) -> str:
    """Return the rows as CSV with a header; what is None is left empty."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [field.name for field in fields(Score)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return buffer.getvalue()


def write_maps(images: ImageSet, maps: Tensor, folder: Path) -> float:
    """Write for each image a PNG with the image above its energies per pixel, all on one scale.

    Args:
        images: The images.
        maps: Their energies per pixel, `(n, height, width)`.
        folder: Where to; the files keep the names and folders of the images, `#` in them becomes `-`.

    Returns:
        The energy of the brightest colour: the 99.5 % quantile of all pixels.
    """
    limit = max(float(np.quantile(maps.numpy(), 0.995)), 1e-12)
    for pixels, pixel_map, name in zip(images.pixels, maps, images.names, strict=True):
        picture = heat_overlay(to_float(pixels), pixel_map, limit=limit)
        plain = name.replace("#", "-").lstrip("/")
        path = folder / (plain if plain.lower().endswith(".png") else f"{plain}.png")
        write_atomically(path, partial(picture.save, format="PNG"))
    return limit


def _shortest(value: np.float32) -> float:
    """The number with the fewest digits that stands for this float32."""
    return float(str(value))


def _check(sigma: float, draws: int, batch_size: int) -> None:
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma must be > 0, got {sigma:g}")
    for name, value in (("draws", draws), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
