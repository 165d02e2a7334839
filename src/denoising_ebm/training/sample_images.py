"""The pictures a run leaves at intervals: samples of both stages, and reconstructions of held-out images."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from denoising_ebm.datasets.images import to_float
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.viz.grids import save_grid

SIGMAS = (0.1, 0.3, 1.0)


@torch.no_grad()
def save_sample_images(
    model: DenoisingEBM, val_images: Tensor, folder: Path, images_seen: int, *, num: int = 32
) -> None:
    """Write two grids named by the images seen.

    `samples-*.png`: semantic images h(z^K) in the upper half, the two-stage samples they became in the lower half.
    `reconstructions-*.png`: per held-out image a row: clean; noisy and denoised at each of three levels; h(f(x)).
    """
    sample = model.sample(num, seed=0)
    name = f"{images_seen:09d}.png"
    save_grid(
        torch.cat([part for part in (sample.semantic, sample.images) if part is not None]),
        folder / f"samples-{name}",
        columns=16,
    )
    clean = to_float(val_images[:16]).to(model.device)
    if not len(clean):
        return
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(clean.shape, generator=generator).to(clean)
    rows = [clean]
    for sigma in SIGMAS:
        noisy = clean + sigma * noise
        rows += [noisy, model.denoise(noisy, sigma)]
    rows.append(model.decode(model.encode(clean + SIGMAS[0] * noise, SIGMAS[0])))
    images = torch.stack(rows, dim=1).flatten(0, 1)
    save_grid(images, folder / f"reconstructions-{name}", columns=len(rows))
