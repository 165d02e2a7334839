r"""log Z of the density network at every noise level, by its derivative in sigma: the time score.

Probability is conserved: the integral of d/dsigma q_sigma is zero, so

$$\mathrm{E}_{x \sim q_\sigma}\left[ \frac{\partial}{\partial \sigma} (-\log q_\sigma(x)) \right] = 0,$$

and if U lacks a function of sigma alone, that is what this mean says of its derivative. It is integrated from the
largest level down, where the noise leaves a Gaussian with the mean and covariance of the data. Forward passes only. Dual
score matching (Guth et al., 2025) trains for this derivative at each single image; here the constants alone are fitted.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from denoising_ebm.energies import EnergyFunction
from denoising_ebm.likelihood.gaussian import GaussianFit
from denoising_ebm.noise import expand_sigma


@dataclass(frozen=True)
class Normalisation:
    """What `normalise_levels` found."""

    log_z: Tensor  #: What is missing at each level: -log q_sigma(x) = U(x, sigma) + log Z(sigma). In nats, shape (levels,).
    standard_error: Tensor  #: Of it, as if images were drawn independently at each level, in nats, shape (levels,).


@torch.no_grad()
def normalise_levels(
    energy: EnergyFunction,
    images: Tensor,
    levels: Tensor,
    *,
    images_per_level: int = 64,
    seed: int = 0,
    batch_size: int = 256,
) -> Normalisation:
    """Fit log Z of an energy at falling noise levels.

    Cost: 2 images_per_level (levels - 1) + images_per_level network evaluations.

    Args:
        energy: U, `(x, sigma) -> (batch,)`, known up to a number for each level.
        images: Images in [-1, 1], shape (n, ...); best some that it was not trained on, and many: they are gone through in
            random order, over and over, and what they have in common beyond chance all levels have in common.
        levels: Falling, shape (levels,). The first should be large beside the spread of the data, since the density there is
            taken for the Gaussian of their mean and covariance.
        images_per_level: Taken at each level.
        seed: Of the images drawn and their noise.
        batch_size: Images per forward pass.

    Raises:
        ValueError: If there are no images.
    """
    if len(images) == 0:
        raise ValueError("normalising needs at least one image")
    generator = torch.Generator().manual_seed(seed)
    rounds = -(-images_per_level * len(levels) // len(images))
    # Neighbouring levels take different images: what sets these apart is nearly the same at both, and averages out.
    order = torch.cat([torch.randperm(len(images), generator=generator) for _ in range(rounds)])
    places = iter(torch.split(order[: images_per_level * len(levels)], images_per_level))

    def noisy(sigma: Tensor) -> Tensor:
        chosen = images[next(places).to(images.device)]
        noise = torch.randn(chosen.shape, generator=generator, dtype=images.dtype).to(images.device)
        return chosen + float(sigma) * noise

    def energies(x: Tensor, sigma: Tensor) -> Tensor:
        parts = torch.split(x, batch_size)
        return torch.cat([energy(part, expand_sigma(float(sigma), part)).double() for part in parts])

    x = noisy(levels[0])
    differences = [gaussian_energy(x, images, levels[0]) - energies(x, levels[0])]
    for above, below in itertools.pairwise(levels):
        # Of a step, at the noise level in its middle: the error is of third order in its length.
        x = noisy((above * below).sqrt())
        differences.append(energies(x, above) - energies(x, below))
    steps = torch.stack(differences)
    log_z = steps.mean(1).cumsum(0)
    error = (steps.var(1) / images_per_level).cumsum(0).sqrt()
    return Normalisation(log_z, error)


def gaussian_energy(x: Tensor, images: Tensor, sigma: Tensor | float) -> Tensor:
    """Return -log N(x; m, C + sigma^2 I) with the mean m and covariance C of `images`, in float64, shape (batch,).

    Args:
        x: Shape (batch, ...).
        images: Shape (n, ...).
        sigma: Noise level, a number or shape (batch,), > 0.
    """
    return GaussianFit.of(images).energy(x, sigma)
