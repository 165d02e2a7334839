"""Distributions whose energies, scores and denoisers are known exactly, for documentation and tests."""

from __future__ import annotations

import torch
from torch import Tensor

from denoising_ebm.noise import append_dims, expand_sigma


class Gaussian:
    r"""Data x ~ N(mean, tau^2 I), seen with noise: x + sigma e ~ N(mean, (tau^2 + sigma^2) I).

    Args:
        tau: Standard deviation of the data, > 0.
        mean: Mean of every coordinate.
    """

    def __init__(self, tau: float, mean: float = 0.0) -> None:
        if tau <= 0:
            raise ValueError(f"tau must be > 0, got {tau}")
        self.tau = tau
        self.mean = mean

    def energy(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Return |x - mean|^2 / 2 (tau^2 + sigma^2), shape (batch,)."""
        sigma = expand_sigma(sigma, x)
        return (x - self.mean).square().flatten(1).sum(1) / (2 * (self.tau**2 + sigma**2))

    def denoise(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Return E[x0 | x] = mean + a (x - mean) with a = tau^2 / (tau^2 + sigma^2), shape of `x`."""
        a = self.tau**2 / (self.tau**2 + append_dims(expand_sigma(sigma, x), x) ** 2)
        return self.mean + a * (x - self.mean)

    def texture_energy(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Return eq. 7 of the best denoiser, averaged over its noise: ((1-a)^2 |x - mean|^2 / sigma^2 + a^2 d) / 2."""
        sigma = expand_sigma(sigma, x)
        a = self.tau**2 / (self.tau**2 + sigma**2)
        squared = (x - self.mean).square().flatten(1).sum(1)
        return (1 - a) ** 2 * squared / (2 * sigma**2) + a**2 * x[0].numel() / 2


class GaussianMixture:
    """Equal mixture of isotropic Gaussians, seen with noise.

    Args:
        means: Centres, shape (components, dim).
        tau: Standard deviation of every component.
    """

    def __init__(self, means: Tensor, tau: float) -> None:
        if tau <= 0:
            raise ValueError(f"tau must be > 0, got {tau}")
        self.means = means
        self.tau = tau

    def _log_weights(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        variance = self.tau**2 + sigma**2
        squared = (x[:, None] - self.means.to(x)).square().sum(-1)
        return -squared / (2 * variance[:, None]), variance

    def energy(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Return -log p(x; sigma) up to a constant in x, for `x` of shape (batch, dim)."""
        sigma = expand_sigma(sigma, x)
        logits, variance = self._log_weights(x, sigma)
        return -torch.logsumexp(logits, dim=1) + 0.5 * x.shape[1] * variance.log()

    def denoise(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Return E[x0 | x], shape of `x`."""
        sigma = expand_sigma(sigma, x)
        logits, variance = self._log_weights(x, sigma)
        a = (self.tau**2 / variance)[:, None, None]
        posterior = self.means.to(x) + a * (x[:, None] - self.means.to(x))
        return (logits.softmax(1)[:, :, None] * posterior).sum(1)

    def sample(self, num: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw `num` points, shape (num, dim)."""
        index = torch.randint(len(self.means), (num,), generator=generator)
        return self.means[index] + self.tau * torch.randn(num, self.means.shape[1], generator=generator)
