r"""Bits per dimension of images of 8 bits: what the density of noisy images says of them, and a bound for the image itself.

Derivations: docs/likelihood.md.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from denoising_ebm.energies import EnergyFunction, Reconstruct, draw_noise
from denoising_ebm.likelihood.gaussian import GaussianFit
from denoising_ebm.likelihood.immse import Estimate, Quadrature, expected_negative_log_density
from denoising_ebm.noise import expand_sigma
from denoising_ebm.utils.seeds import RandomSource

#: Steps between black (-1) and white (1).
NUM_STEPS = 255
#: Widths of the decoder's Gaussians in units of sigma, mixed with equal weights.
_WIDTHS = tuple(2 ** (k / 2 - 3) for k in range(8))


@torch.no_grad()
def energy_bits(
    energy: EnergyFunction, images: Tensor, sigma: float, *, draws: int = 1, generator: RandomSource | None = None
) -> Estimate:
    """Return E_n[-log2 q_sigma(x + sigma n)] per dimension, with a grey level for the unit.

    Args:
        energy: -log q in nats, `(x, sigma) -> (batch,)`.
        images: x of 8 bits, in [-1, 1], shape (batch, ...).
        sigma: Of the density and of the noise.
        draws: Draws of n; from two on there is a standard error.
        generator: Of the noise.
    """
    level = expand_sigma(sigma, images)
    values = [
        energy(images + sigma * draw_noise(tuple(images.shape), generator, images), level).double()
        for _ in range(draws)
    ]
    return _in_grey_levels(_mean(values), images)


def integral_bits(
    denoise: Reconstruct,
    images: Tensor,
    sigma: float,
    sigma_max: float,
    *,
    quadrature: Quadrature | None = None,
    anchor: GaussianFit | None = None,
    generator: RandomSource | None = None,
) -> Estimate:
    """Return the same as `energy_bits` by `expected_negative_log_density`, whose arguments these are."""
    how: dict[str, Any] = {"quadrature": quadrature, "anchor": anchor, "generator": generator}
    return _in_grey_levels(expected_negative_log_density(denoise, images, sigma, sigma_max, **how), images)


@torch.no_grad()
def bound_bits(
    denoise: Reconstruct,
    images: Tensor,
    sigma: float,
    sigma_max: float,
    *,
    quadrature: Quadrature | None = None,
    anchor: GaussianFit | None = None,
    generator: RandomSource | None = None,
    num_steps: int = NUM_STEPS,
) -> Estimate:
    r"""Return an upper bound of -log2 P(x) per dimension, of discrete images.

    $$-\log P(x) \le \mathrm{KL}(q(z \mid x) \,\|\, q_\sigma) + \mathrm{E}_n[-\log P(x \mid z)], \qquad
      z = x + \sigma n,$$

    with the KL divergence by the integral over noise levels and `decoding_cost` for the rest. P is that of the diffusion
    that a denoiser, right or wrong, defines from the Gaussian `anchor` at `sigma_max` down to z, and of the decoder
    (Kingma et al., 2021).

    Args:
        denoise: D, `(x, sigma) -> like x`.
        images: x, of the values -1 + 2k / num_steps, shape (batch, ...).
        sigma: Noise level of z.
        sigma_max: As for `expected_negative_log_density`.
        quadrature: As there; z is drawn `draws` times.
        anchor: As there.
        generator: As there.
        num_steps: Steps between -1 and 1.
    """
    quadrature = quadrature or Quadrature()
    how: dict[str, Any] = {"quadrature": quadrature, "anchor": anchor, "generator": generator}
    density = integral_bits(denoise, images, sigma, sigma_max, **how)
    return bound_of(density, denoise, images, sigma, draws=quadrature.draws, generator=generator, num_steps=num_steps)


@torch.no_grad()
def bound_of(
    density: Estimate,
    denoise: Reconstruct,
    images: Tensor,
    sigma: float,
    *,
    draws: int = 2,
    generator: RandomSource | None = None,
    num_steps: int = NUM_STEPS,
) -> Estimate:
    """Return `bound_bits` of images for which `integral_bits` is known.

    Args:
        density: What `integral_bits` returned.
        denoise: As for `bound_bits`.
        images: As there.
        sigma: As there.
        draws: Draws of z.
        generator: Of these.
        num_steps: As for `bound_bits`.
    """
    level, costs = expand_sigma(sigma, images), []
    for _ in range(draws):
        noisy = images + sigma * draw_noise(tuple(images.shape), generator, images)
        costs.append(decoding_cost(images, denoise(noisy, level), sigma, num_steps=num_steps))
    cost, bit = _mean(costs), images[0].numel() * math.log(2)
    # Without the entropy of z given x, in the unit of `density`.
    entropy = 0.5 * math.log2(2 * math.pi * math.e * sigma**2) + math.log2(NUM_STEPS / 2)
    error = (density.standard_error.square() + (cost.standard_error / bit).square()).sqrt()
    return Estimate(density.value - entropy + cost.value / bit, error)


def _mean(values: list[Tensor]) -> Estimate:
    drawn = torch.stack(values)
    error = drawn.std(0) / len(values) ** 0.5 if len(values) > 1 else torch.full_like(values[0], math.nan)
    return Estimate(drawn.mean(0), error)


def _in_grey_levels(nats: Estimate, images: Tensor) -> Estimate:
    """Return bits per dimension of -log densities of images in [-1, 1], with a grey level for the unit."""
    bit = images[0].numel() * math.log(2)
    return Estimate(nats.value / bit + math.log2(NUM_STEPS / 2), nats.standard_error / bit)


def decoding_cost(images: Tensor, denoised: Tensor, sigma: float, *, num_steps: int = NUM_STEPS) -> Tensor:
    r"""Return -log P(x | z) in nats of discrete images x given what was denoised of z = x + sigma n, shape (batch,).

    Pixels are independent given z. Pixel i has at value v the part of N(D_i, s^2) nearer to v than to any other grey level,
    and P(x | z) is the mean over eight widths s from sigma / 8 to 1.4 sigma. That is a distribution whatever D is, and no
    width need be chosen: the best of the eight is lower by at most log 8 = 2.1 nats an image.

    Args:
        images: x, of the values -1 + 2k / num_steps, shape (batch, ...).
        denoised: D(z, sigma), same shape.
        sigma: Noise level.
        num_steps: Steps between -1 and 1.
    """
    x, centre = images.double(), denoised.double()
    half = 1 / num_steps
    below, above = x - half - centre, x + half - centre
    # What lies beyond black and white belongs to them.
    below = torch.where(x <= -1 + half, -math.inf, below)
    above = torch.where(x >= 1 - half, math.inf, above)
    # Of an interval above the mean that of its mirror image, whose distribution function is not near 1.
    mirrored = below + above > 0
    low, high = torch.where(mirrored, -above, below), torch.where(mirrored, -below, above)
    logs = []
    for width in _WIDTHS:
        low_log, high_log = (torch.special.log_ndtr(end / (width * sigma)) for end in (low, high))
        logs.append((high_log + (-(low_log - high_log).exp()).log1p()).flatten(1).sum(1))
    return math.log(len(_WIDTHS)) - torch.logsumexp(torch.stack(logs), 0)
