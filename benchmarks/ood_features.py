"""Families of features that were tried for the detector and found no better than its own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from denoising_ebm import DenoisingEBM, to_float


@torch.no_grad()
def tried_features(
    model: DenoisingEBM, images: Tensor, sigmas: tuple[float, ...], *, batch_size: int = 256, seed: int = 0
) -> dict[str, Tensor]:
    """Return the features of uint8 images, by family, float64 `(n, levels * numbers per level)`, level by level.

    | family | numbers per level | what it is |
    |---|---|---|
    | `spatial` | 9 | log quantiles of the energy per pixel, and of its means over 4 x 4 regions, each over the mean |
    | `semantic` | 3 | log |x - h(z)|^2, log |z|^2 and log U^s(z) |
    """
    noise = model.scoring_noise(seed=seed)[0]
    rows: dict[str, list[Tensor]] = {"spatial": [], "semantic": []}
    for pixels in torch.split(images, batch_size):
        x = to_float(pixels).to(model.device)
        found = {
            "spatial": [_spatial(model.energy_map(x, sigma, noise)) for sigma in sigmas],
            "semantic": [_semantic(model, x, sigma) for sigma in sigmas],
        }
        for family, levels in found.items():
            rows[family].append(torch.cat(levels, dim=1).double().cpu())
    return {family: torch.cat(parts) for family, parts in rows.items()}


def _spatial(energies: Tensor) -> Tensor:
    quantiles = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.95, 1.0], device=energies.device)
    pixels = torch.quantile(energies.flatten(1), quantiles, dim=1).mT
    regions = F.adaptive_avg_pool2d(energies[:, None], 4).flatten(1)
    extremes = torch.quantile(regions, torch.tensor([0.0, 0.5, 1.0], device=energies.device), dim=1).mT
    return _log(torch.cat([pixels, extremes], dim=1)) - _log(energies.flatten(1).mean(1, keepdim=True))


def _semantic(model: DenoisingEBM, x: Tensor, sigma: float) -> Tensor:
    z = model.encode(x, sigma)
    decoded = model.decode(z)
    values = [(x - decoded).square().flatten(1).sum(1), z.square().sum(1), model.energy(decoded, sigma)]
    return _log(torch.stack(values, dim=1).float())


def _log(values: Tensor) -> Tensor:
    return values.clamp_min(torch.finfo(torch.float32).tiny).log()
