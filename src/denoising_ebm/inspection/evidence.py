r"""What the energy knows at every place of a photo: the input of the head.

At noise level sigma the model's denoiser D says what a photo should be, and the residual

$$R(x, \sigma) = (x - D(x, \sigma)) / \sigma,$$

whose half square is the texture energy per pixel without inner noise (eq. 7), what it is beside that. It whitens the
photo: what the model expects is gone, and what it does not stands out at the scale of the level, specks at small sigma and
wrong shapes at large. The photo and its residuals at some levels are the evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from denoising_ebm.model import DenoisingEBM

#: Side in pixels of the tiles that large photos are read in, and of the margin around each that is thrown away.
TILE, MARGIN = 384, 96


def evidence(model: DenoisingEBM, x: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Return photos beside their residuals, shape `(batch, channels * (1 + len(sigmas)), height, width)`.

    Args:
        model: A model of images of any size.
        x: Photos in [-1, 1], shape `(batch, channels, height, width)`.
        sigmas: Noise levels.
    """
    with torch.no_grad():
        return torch.cat([x, *((x - model.denoise(x, sigma)) / sigma for sigma in sigmas)], dim=1)


def tiled(function: Callable[[Tensor], Tensor], x: Tensor, *, tile: int = TILE, margin: int = MARGIN) -> Tensor:
    """Apply a function of photos that gives a map to a large photo, tile by tile, in bounded memory.

    Args:
        function: `(1, channels, h, w) -> (1, h, w)`, where what is further away than `margin` matters little.
        x: A photo, shape `(channels, height, width)`.
        tile: Side of the part of a map that one call gives.
        margin: Pixels around it that the call sees as well.

    Returns:
        The map, shape `(height, width)`.
    """
    height, width = x.shape[1:]
    # One that is not much larger is read at once.
    if max(height, width) <= tile + 2 * margin:
        return function(x[None])[0]
    result = torch.empty(height, width)
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            rows = slice(max(0, top - margin), min(height, top + tile + margin))
            columns = slice(max(0, left - margin), min(width, left + tile + margin))
            part = function(x[None, :, rows, columns])[0]
            inner = part[top - rows.start :, left - columns.start :][:tile, :tile]
            result[top : top + tile, left : left + tile] = inner
    return result
