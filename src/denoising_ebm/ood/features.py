"""What detectors look at: the energies of an image over noise levels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from denoising_ebm.images import to_float
from denoising_ebm.model import DenoisingEBM


@torch.no_grad()
def log_energies(
    model: DenoisingEBM,
    images: Tensor,
    sigmas: Sequence[float],
    *,
    batch_size: int = 256,
    noise: Tensor | None = None,
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    r"""Return $\log U^c(x, \sigma)$ of each image at each noise level.

    Energies of real images spread over factors rather than sums, and more so at small noise levels; their logarithms
    are nearly normal, which is what a covariance describes.

    Args:
        model: The model.
        images: uint8, shape `(n, channels, height, width)`.
        sigmas: Noise levels, each > 0.
        batch_size: Images per forward pass, >= 1.
        noise: Draws of the inner noise, as from `DenoisingEBM.scoring_noise`; None for energies without it.
        progress: Called with the number of images after each forward pass.

    Returns:
        float64 on the CPU, shape `(n, len(sigmas))`.

    Raises:
        ValueError: If there are no levels, one is not > 0, or `images` are not uint8.
    """
    if not len(sigmas) or min(sigmas) <= 0:
        raise ValueError(f"sigmas must be one or more noise levels > 0, got {list(sigmas)}")
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8, got {images.dtype}")
    rows: list[Tensor] = []
    for start in range(0, len(images), batch_size):
        x = to_float(images[start : start + batch_size]).to(model.device)
        columns = []
        for sigma in sigmas:
            columns.append(model.energy(x, sigma, noise))
            if progress is not None:
                progress(len(x))
        rows.append(torch.stack(columns, dim=1).double().cpu())
    # An energy of exactly zero would be infinitely likely.
    return torch.cat(rows).clamp_min(torch.finfo(torch.float32).tiny).log()
