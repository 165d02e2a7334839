"""Pictures of where images are odd: z-scores of a detector, or the bare energy per pixel."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from denoising_ebm.datasets.images import png_name, to_float
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.utils.io import write_atomically
from denoising_ebm.viz.grids import heat_overlay

#: z-score of the strongest colours in maps of a detector.
Z_LIMIT = 3.0


@torch.no_grad()
def anomaly_map(model: DenoisingEBM, x: Tensor, sigma: float, *, draws: int = 4, seed: int = 0) -> Tensor:
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


def brightest(maps: Tensor) -> float:
    """Return the value for the brightest colour of energies per pixel: the 99.5 % quantile of all pixels."""
    return max(float(np.quantile(maps.numpy(), 0.995)), 1e-12)


def write_maps(pixels: Tensor, maps: Tensor, names: Sequence[str], folder: Path, limit: float, signed: bool) -> None:
    """Write for each image a PNG with the image above its map, all on one scale.

    Args:
        pixels: The images, uint8 `(n, channels, height, width)`.
        maps: Their maps, `(n, height, width)`.
        names: The files keep these names and folders, `#` in them becomes `-`.
        folder: Where to.
        limit: Value of the strongest colour.
        signed: Whether values below zero get colours of their own.
    """
    for image, pixel_map, name in zip(pixels, maps, names, strict=True):
        picture = heat_overlay(to_float(image), pixel_map, limit=limit, signed=signed)
        write_atomically(folder / png_name(name), partial(picture.save, format="PNG"))
