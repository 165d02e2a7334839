"""The Gaussian with the mean and covariance of data: what q_sigma is close to where the noise is large."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from denoising_ebm.noise import expand_sigma


@dataclass(frozen=True)
class GaussianFit:
    """N(m, C), in float64, by the directions in which C is not zero.

    Attributes:
        mean: m, shape (d,).
        variances: Eigenvalues of C that are not zero, shape (k,).
        directions: Their eigenvectors, shape (k, d).
    """

    mean: Tensor
    variances: Tensor
    directions: Tensor

    @classmethod
    def of(cls, images: Tensor) -> Self:
        """Return that of `images`, shape (n, ...), n >= 1."""
        flat = images.double().flatten(1)
        mean = flat.mean(0)
        # The directions that the images span.
        _, singular, directions = torch.linalg.svd((flat - mean) / max(1, len(flat) - 1) ** 0.5, full_matrices=False)
        return cls(mean, singular.square(), directions)

    def energy(self, x: Tensor, sigma: Tensor | float, *, jitter: float = 0.0) -> Tensor:
        """Return E_n[-log N(x + jitter n; m, C + sigma^2 I)] in nats, shape (batch,), float64.

        Args:
            x: Shape (batch, ...).
            sigma: Noise level, a number or shape (batch,), > 0.
            jitter: Standard deviation of the noise n ~ N(0, I) at x, over which the mean is exact; 0 for none.
        """
        variance = expand_sigma(sigma, x).double()[:, None] ** 2
        centred = x.double().flatten(1) - self.mean
        inside = (centred @ self.directions.T).square()
        total = self.variances + variance
        # Across the directions there is the noise alone.
        outside = centred.square().sum(1) - inside.sum(1)
        rest = centred.shape[1] - len(self.variances)
        quadratic = ((inside + jitter**2) / total).sum(1) + (outside + rest * jitter**2) / variance[:, 0]
        log_det = total.log().sum(1) + rest * variance[:, 0].log()
        return 0.5 * (quadratic + log_det + centred.shape[1] * math.log(2 * math.pi))
