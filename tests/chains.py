"""What tests of samplers share: energies whose stationary distributions are known.

On U = |x|^2 / 2v one Langevin step is x' = (1 - h / v) x + sqrt(2 h T) e with h = step_size * sigma^2; its stationary
variance is T v / (1 - h / 2v). A variance measured on n independent numbers has the standard error v sqrt(2 / n).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from analytic import Gaussian, GaussianMixture

TAU, SIGMA = 0.5, 1.0
V = TAU**2 + SIGMA**2
STEP = 0.5  # h / v = 0.4: forty steps leave 0.6^40 = 1e-9 of the start
BIASED = V / (1 - STEP * SIGMA**2 / (2 * V))
DATA = Gaussian(TAU)
NUM = 40_000
ERROR = math.sqrt(2 / NUM)


def start(generator: torch.Generator, num: int = NUM) -> Tensor:
    return math.sqrt(V) * torch.randn(num, 1, generator=generator, dtype=torch.float64)


def point_mass(x: Tensor, sigma: Tensor) -> Tensor:
    return x.square().flatten(1).sum(1) / (2 * sigma**2)


def wide(x: Tensor, sigma: Tensor) -> Tensor:
    """The energy whose gradient is (x - D(x)) / sigma^2 for the denoiser D of N(0, TAU^2)."""
    return x.square().flatten(1).sum(1) / (2 * (TAU**2 + sigma**2))


def ring() -> GaussianMixture:
    angles = 2 * math.pi * torch.arange(8) / 8
    return GaussianMixture(2 * torch.stack([angles.cos(), angles.sin()], 1), 0.1)


def mmd(x: Tensor, y: Tensor) -> float:
    """Unbiased MMD^2 with the mean of three Gaussian kernels."""
    kernels = [torch.exp(-torch.cdist(a, b).square() / (2 * w**2)) for a, b in ((x, x), (y, y), (x, y)) for w in WIDTHS]
    n, m = len(x), len(y)
    within_x = sum(float(k.sum()) - n for k in kernels[:3]) / (n * (n - 1))
    within_y = sum(float(k.sum()) - m for k in kernels[3:6]) / (m * (m - 1))
    return (within_x + within_y - 2 * sum(float(k.mean()) for k in kernels[6:])) / 3


WIDTHS = (0.1, 0.4, 1.6)
