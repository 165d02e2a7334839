r"""Langevin dynamics on an energy: at one noise level (eq. 6), and annealed over falling ones (eq. 15, 16).

Step sizes are dimensionless. With the energy's noise scale l (sigma in data space) and step_size eta, one step is

$$x' = x - \eta\, l^2\, \nabla U(x, \sigma) + \sqrt{2 \eta T}\, l\, e, \quad e \sim N(0, I)$$

so that eq. 6's step is eta l^2. Across the data an energy of level sigma has curvature 1 / sigma^2, for which eta = 1
is the largest stable order of magnitude; the paper's fixed step of 0.01 diverges at sigma = 0.01, where it is 100
sigma^2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from denoising_ebm.energies import Energy, EnergyFunction, as_energy, draw_noise
from denoising_ebm.noise import append_dims, expand_sigma
from denoising_ebm.samplers.base import (
    Callback,
    ChainState,
    Method,
    check_step_size,
    expand_sigmas,
    expand_temperature,
    steps_of,
)
from denoising_ebm.utils.seeds import RandomSource


@torch.no_grad()
def ula(
    energy: EnergyFunction | Energy,
    x: Tensor,
    sigma: Tensor | float,
    *,
    step_size: float,
    num_steps: int,
    temperature: float = 1.0,
    generator: RandomSource | None = None,
    callback: Callback | None = None,
) -> Tensor:
    r"""Run the unadjusted Langevin algorithm (eq. 6; Roberts & Tweedie, 1996) at a fixed noise level.

    On an energy of curvature 1 / v its stationary variance is v / (1 - eta l^2 / 2v): a bias of order eta, which `mala`
    removes. Cost: `num_steps` gradients.

    Args:
        energy: `(x, sigma) -> (batch,)`, low = likely.
        x: Start of the chains, shape (batch, ...), in data units. Not modified.
        sigma: Noise level, a number or shape (batch,), in data units.
        step_size: eta > 0, dimensionless (see the module).
        num_steps: Number of steps, >= 0.
        temperature: Factor T >= 0 on the noise variance; 0 is gradient descent.
        generator: Source of the noise; the global one if None.
        callback: Called with a `ChainState` after every step.

    Returns:
        The last states, shape of `x`, detached.

    Raises:
        ValueError: If `step_size` <= 0, `num_steps` < 0 or `temperature` < 0.
    """
    if num_steps < 0:
        raise ValueError(f"num_steps must be >= 0, got {num_steps}")
    sigmas = expand_sigma(sigma, x).expand(num_steps, len(x))
    options = {"temperature": temperature, "generator": generator, "callback": callback}
    return annealed_langevin(energy, x, sigmas, step_size=step_size, **options)  # type: ignore[arg-type]


@torch.no_grad()
def annealed_langevin(
    energy: EnergyFunction | Energy,
    x: Tensor,
    sigmas: Tensor,
    *,
    step_size: float,
    temperature: float | Tensor = 1.0,
    generator: RandomSource | None = None,
    callback: Callback | None = None,
) -> Tensor:
    r"""Run one Langevin step at each noise level (eq. 15, 16; Song & Ermon, 2019, algorithm 1, which repeats each level).

    Chains lag behind levels that fall faster than the steps can follow. Cost: one gradient a level.

    Args:
        energy: `(x, sigma) -> (batch,)`.
        x: Start of the chains, shape (batch, ...).
        sigmas: Noise level of every step, shape (steps,) or (steps, batch).
        step_size: eta > 0, dimensionless (see the module).
        temperature: Factor T >= 0 on the noise variance: a number, or one for each step, shape (steps,).
        generator: Source of the noise; the global one if None.
        callback: Called with a `ChainState` after every step.

    Returns:
        The last states, shape of `x`, detached. They carry the last level's noise.

    Raises:
        ValueError: If `step_size` or `temperature` is out of range, or not of these shapes.
    """
    check_step_size(step_size)
    temperatures, grid = expand_temperature(temperature, len(sigmas), x), expand_sigmas(sigmas, x)
    energy, x = as_energy(energy), x.detach().clone()
    for i, sigma, scale, _ in steps_of(energy, grid):
        value, gradient = energy.resample_noise(x, generator).gradient(x, sigma)
        step = append_dims(step_size * scale**2, x)
        noise = draw_noise(tuple(x.shape), generator, x)
        x = x - step * gradient + (2 * temperatures[i] * step).sqrt() * noise
        if callback is not None:
            callback(ChainState(i + 1, len(grid), float(sigma.mean()), x, value))
    return x


ANNEALED_LANGEVIN = Method(
    "annealed-langevin",
    "annealed Langevin",
    annealed_langevin,
    gradients=lambda steps: steps,
    default_steps=100,
    default_step_size=lambda dim: 0.01,  # eta_2 of the paper (section 5)
    source="Song & Ermon (2019), algorithm 1; eq. 16",
)
