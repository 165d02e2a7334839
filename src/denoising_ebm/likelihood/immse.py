r"""log q_sigma(x) from a denoiser alone: the pointwise I-MMSE identity, an integral over noise levels.

Let Y have the density p, seen as Y + tau n at the signal-to-noise ratio gamma = 1 / tau^2, and let
mmse(y, gamma) = E_n |y - E[Y | y + tau n]|^2. Then (Guo, Shamai & Verdu, 2005; Kong, Brekelmans & Ver Steeg, 2023)

$$\mathrm{KL}(N(y, \tau^2 I) \,\|\, p_\tau) = \frac{1}{2} \int_0^{1/\tau^2} \mathrm{mmse}(y, \gamma) \, d\gamma$$

at every y, p_tau being the density of Y + tau n. Less the same of a Gaussian p_G = N(m, S I), whose sides are known,

$$-\log p(y) = -\log p_G(y)
  - \frac{1}{2} \int_0^\infty \left[ \mathrm{mmse}_G(y, \gamma) - \mathrm{mmse}(y, \gamma) \right] d\gamma.$$

Both estimates of y are y' + tau^2 score(y') (Tweedie) at y' = y + tau n. With the same n in both, the error that the noise
alone makes drops out, and in tau the integral is

$$\int_0^\infty \mathrm{E}_n \langle s_G - s, \, 2 n + \tau (s_G + s) \rangle \, d\tau,$$

bounded at tau = 0. For p = q_sigma0 the score at y' is (D(y', sigma) - y') / sigma^2, with sigma^2 = sigma0^2 + tau^2; the
integral ends where sigma is sigma_max, and q_sigma_max is taken for a Gaussian. Derivations: docs/likelihood.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from denoising_ebm.energies import Reconstruct, draw_noise, draw_uniform
from denoising_ebm.likelihood.gaussian import GaussianFit
from denoising_ebm.noise import append_dims
from denoising_ebm.utils.seeds import RandomSource


@dataclass(frozen=True)
class Estimate:
    """A figure of each image with its Monte Carlo error."""

    value: Tensor  #: Shape (batch,), float64.
    standard_error: Tensor  #: From the draws of noise and levels, same unit and shape; NaN for a single draw.

    @classmethod
    def joined(cls, batches: Sequence[Self], device: torch.device) -> Self:
        """Return the figures of several batches, or of none, as one."""
        empty = torch.empty(0, dtype=torch.float64, device=device)
        errors = [batch.standard_error for batch in batches]
        return cls(torch.cat([empty, *(batch.value for batch in batches)]), torch.cat([empty, *errors]))


@dataclass(frozen=True)
class Quadrature:
    """How the integral over noise levels is computed; network evaluations an image: `num_levels` times `draws`.

    Attributes:
        num_levels: Parts of equal probability into which the range of levels is cut.
        draws: Levels and noises drawn in each part; from two on there is a standard error.
        sigma_data: Standard deviation of the data: that of the Gaussian whose integral is known, and the level above which
            levels are drawn more rarely.
    """

    num_levels: int = 32
    draws: int = 2
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        for name in ("num_levels", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not self.sigma_data > 0:
            raise ValueError(f"sigma_data must be > 0, got {self.sigma_data}")


def negative_log_density(
    denoise: Reconstruct,
    x: Tensor,
    sigma: float,
    sigma_max: float,
    *,
    quadrature: Quadrature | None = None,
    anchor: GaussianFit | None = None,
    generator: RandomSource | None = None,
) -> Estimate:
    """Return -log q_sigma(x) in nats.

    Args:
        denoise: D, `(x, sigma) -> like x`, the mean of the clean image given the noisy one.
        x: Points at which the density is wanted, which are typical of it with noise of `sigma`; shape (batch, ...).
        sigma: Of the density, > 0.
        sigma_max: Largest level at which D is known, >= `sigma`.
        quadrature: How many levels and draws.
        anchor: Mean and covariance of the clean data, of which q_sigma_max is taken for a Gaussian; by default
            N(0, sigma_data^2 I). What the default costs falls with sigma_max (docs/likelihood.md).
        generator: Of levels and noise.

    Raises:
        ValueError: If not 0 < sigma <= sigma_max.
    """
    return _integrate(denoise, x, sigma, 0.0, sigma_max, quadrature or Quadrature(), anchor, generator)


def expected_negative_log_density(
    denoise: Reconstruct,
    images: Tensor,
    sigma: float,
    sigma_max: float,
    *,
    quadrature: Quadrature | None = None,
    anchor: GaussianFit | None = None,
    generator: RandomSource | None = None,
) -> Estimate:
    r"""Return E_n[-log q_sigma(x + sigma n)] of clean images x, in nats.

    By the identity with the clean data for Y,

    $$\frac{d}{2} \log(2 \pi e \sigma^2)
      + \frac{1}{2} \int_0^{1/\sigma^2} \mathrm{E}_n |x - D(x + \tau n, \tau)|^2 \, d\gamma.$$

    In log tau the second term is twice the integral of the energy of eq. 7, averaged over its inner noise.

    Args:
        denoise: As for `negative_log_density`.
        images: Clean, shape (batch, ...).
        sigma: Of the density and of the noise, > 0.
        sigma_max: As for `negative_log_density`.
        quadrature: As there.
        anchor: As there.
        generator: As there.

    Raises:
        ValueError: If not 0 < sigma <= sigma_max.
    """
    return _integrate(denoise, images, 0.0, sigma, sigma_max, quadrature or Quadrature(), anchor, generator)


@torch.no_grad()
def _integrate(
    denoise: Reconstruct,
    y: Tensor,
    own: float,
    jitter: float,
    sigma_max: float,
    quadrature: Quadrature,
    anchor: GaussianFit | None,
    generator: RandomSource | None,
) -> Estimate:
    """Return -log q_own(y), or with `jitter` in place of `own` E_n[-log q_jitter(y + jitter n)].

    D is asked at y + tau n for tau from `jitter` to where own^2 + tau^2 is sigma_max^2.
    """
    sigma = own + jitter  # one of which is 0
    if not 0 < sigma <= sigma_max:
        raise ValueError(f"sigma must be within 0 to sigma_max ({sigma_max:g}), got {sigma:g}")
    variance = quadrature.sigma_data**2 + own**2  # S
    last = max(math.sqrt(sigma_max**2 - own**2), jitter)
    # Levels are drawn with the density 1 / (tau + own) (tau + knee): level in log tau between the two, as the spread of the
    # integrand about is, falling with tau below the first, where the score no longer changes, and with 1 / tau above.
    knee = own + 2 * quadrature.sigma_data
    low, high = (math.log((tau + own) / (tau + knee)) for tau in (jitter, last))
    shape = (len(y), quadrature.num_levels)
    means = torch.zeros(len(y), dtype=torch.float64, device=y.device)
    squares = means.clone()
    uniform = [draw_uniform(shape, generator, y).double() for _ in range(quadrature.draws)]
    for part in range(quadrature.num_levels):
        values = []
        for place in uniform:
            ratio = (low + (part + place[:, part]) / quadrature.num_levels * (high - low)).exp()
            tau = (ratio * knee - own) / (1 - ratio)
            weight = (high - low) * (tau + own) * (tau + knee) / (knee - own)
            values.append(weight * _integrand(denoise, y, own, tau.to(y.dtype), variance, generator))
        drawn = torch.stack(values)
        means += drawn.mean(0) / quadrature.num_levels
        if quadrature.draws > 1:
            squares += drawn.var(0) / quadrature.draws / quadrature.num_levels**2
    error = squares.sqrt() if quadrature.draws > 1 else torch.full_like(means, math.nan)

    def known(tau: float) -> Tensor:
        """E_n[-log p_G] of y + tau n."""
        total, dim = variance + tau**2, y[0].numel()
        squared = y.double().flatten(1).square().sum(1) + dim * tau**2
        return 0.5 * (squared / total + dim * math.log(2 * math.pi * total))

    rest = torch.zeros_like(means) if anchor is None else known(last) - anchor.energy(y, sigma_max, jitter=last)
    return Estimate(known(jitter) - means - rest, error)


def _integrand(
    denoise: Reconstruct, y: Tensor, own: float, tau: Tensor, variance: float, generator: RandomSource | None
) -> Tensor:
    """Return <s_G - s, 2n + tau (s_G + s)> at one draw of n, shape (batch,), float64."""
    level = append_dims(tau, y)
    noise = draw_noise(tuple(y.shape), generator, y)
    noisy = y + level * noise
    sigma = (own**2 + tau.square()).sqrt()
    score = (denoise(noisy, sigma) - noisy) / append_dims(sigma, y).square()
    gaussian = -noisy / (variance + level.square())
    product = (gaussian - score) * (2 * noise + level * (gaussian + score))
    return product.flatten(1).double().sum(1)
