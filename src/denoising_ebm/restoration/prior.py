r"""How uncertain each spatial frequency of an image is: the power law of natural images, in cosines.

Neighbouring pixels of images are alike: the variance of a frequency falls about as $1 / f^2$ (Field, 1987). Given an image
with noise sigma, frequency f is known to $r_f^2 = \sigma^2 s_f^2 / (\sigma^2 + s_f^2)$, s_f^2 its variance.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Frequency, in cycles an image, below which the power law levels off: half a wave across the image.
LOWEST_FREQUENCY = 0.5


def cosine_basis(size: int) -> Tensor:
    """Return the orthogonal basis of the discrete cosine transform (DCT-II), a frequency a column; float64."""
    frequencies = torch.arange(size, dtype=torch.float64) * torch.pi / size
    places = torch.arange(size, dtype=torch.float64) + 0.5
    basis: Tensor = torch.cos(places[:, None] * frequencies) * (2 / size) ** 0.5
    basis[:, 0] /= 2**0.5
    return basis


def natural_variances(size: int, deviation: float) -> Tensor:
    """Return the variance s_f^2 of each pair of frequencies, shape `(size, size)`, float64.

    Args:
        size: Height and width of the images in pixels.
        deviation: Standard deviation of a pixel.
    """
    cycles = torch.arange(size, dtype=torch.float64) / 2
    power = 1 / (cycles[:, None] ** 2 + cycles**2 + LOWEST_FREQUENCY**2)
    return power * (deviation**2 / power.mean())
