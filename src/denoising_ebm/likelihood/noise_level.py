r"""The noise level of an image by maximum likelihood: the sigma at which -log q_sigma(x) is smallest.

It needs energies that can be compared between levels, with their log Z. Noise of N(0, sigma^2 I) on d pixels is known to
about sigma / sqrt(2 d) where the image itself says nothing of it; the curvature at the smallest energy tells how well it is
in each image. Zilberstein et al. (2026) do so for noise that is not white.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from denoising_ebm.energies import EnergyFunction
from denoising_ebm.noise import geometric_sigmas

#: Distance of levels in log sigma at which a parabola is exact to a third of a percent, and not finer than log Z is known.
_FINEST = 0.1


@dataclass(frozen=True)
class NoiseLevel:
    """Estimated standard deviations of the noise in images, in data units, each of shape (batch,), float64."""

    sigma: Tensor  #: Estimates, within the levels that were looked at.
    standard_error: Tensor  #: Of `sigma`, by the energy's curvature; NaN at either end of the levels.

    @classmethod
    def joined(cls, batches: Sequence[Self], device: torch.device) -> Self:
        """Return the estimates of several batches, or of none, as one."""
        empty = torch.empty(0, dtype=torch.float64, device=device)
        errors = [batch.standard_error for batch in batches]
        return cls(torch.cat([empty, *(batch.sigma for batch in batches)]), torch.cat([empty, *errors]))


@torch.no_grad()
def estimate_noise(
    energy: EnergyFunction, x: Tensor, sigma_min: float, sigma_max: float, *, num_levels: int = 16
) -> NoiseLevel:
    """Find the level of the smallest energy of each image.

    Looks at a geometric grid, then twice at three levels, closer each time, around the vertex of a parabola in log sigma.
    Cost: num_levels + 6 energies an image.

    Args:
        energy: -log q_sigma(x) in nats, `(x, sigma) -> (batch,)`.
        x: Noisy images, shape (batch, ...).
        sigma_min: Smallest level, > 0.
        sigma_max: Largest level, > `sigma_min`.
        num_levels: Of the grid, >= 3.

    Raises:
        ValueError: If the levels are out of range, or an energy is not finite.
    """
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"need 0 < sigma_min < sigma_max, got {sigma_min:g} and {sigma_max:g}")
    if num_levels < 3:
        raise ValueError(f"num_levels must be >= 3, got {num_levels}")

    def energies(log_sigma: Tensor) -> Tensor:
        found = [energy(x, level.exp().to(x)).double() for level in log_sigma]
        values = torch.stack(found)
        if not bool(values.isfinite().all()):
            raise ValueError("the energies of noisy images must be finite numbers at every level")
        return values

    levels = geometric_sigmas(sigma_max, sigma_min, num_levels).to(x.device).double().log().flip(0)
    values = energies(levels[:, None].expand(-1, len(x)))
    spacing = (math.log(sigma_max) - math.log(sigma_min)) / (num_levels - 1)
    inner = values.argmin(0).clamp(1, num_levels - 2)
    center, values = levels[inner], values.gather(0, inner + torch.arange(-1, 2, device=x.device)[:, None])
    for _ in range(2):
        center = (center + _vertex(values, spacing)).clamp(levels[0], levels[-1])
        spacing = max(spacing / 3, min(spacing, _FINEST))
        # All three have to be levels that the energy knows.
        center = center.clamp(levels[0] + spacing, levels[-1] - spacing)
        values = energies(torch.stack([center - spacing, center, center + spacing]).clamp(levels[0], levels[-1]))
    log_sigma = (center + _vertex(values, spacing)).clamp(levels[0], levels[-1])
    curvature = (values[0] - 2 * values[1] + values[2]) / spacing**2
    inside = (log_sigma > levels[0]) & (log_sigma < levels[-1]) & (curvature > 0)
    sigma = log_sigma.exp()
    return NoiseLevel(sigma, torch.where(inside, sigma / curvature.clamp_min(1e-30).sqrt(), torch.nan))


def _vertex(values: Tensor, spacing: float) -> Tensor:
    """Return where a parabola through values at -spacing, 0 and spacing is smallest, at most `spacing` away.

    Args:
        values: Shape (3, batch).
        spacing: Distance of their places.
    """
    left, middle, right = values
    bend = left - 2 * middle + right
    slope = (right - left) / 2
    # Where the values bend down, or not at all, the smallest is at an end.
    exact = torch.where(bend > 0, -slope / bend.clamp_min(1e-300), -slope.sign())
    return spacing * exact.clamp(-1, 1)
