r"""Consistent annealed sampling: Langevin steps whose noise keeps each level's variance exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from denoising_ebm.energies import Energy, EnergyFunction, as_energy, draw_noise
from denoising_ebm.noise import append_dims
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
def consistent_annealed_sampling(
    energy: EnergyFunction | Energy,
    x: Tensor,
    sigmas: Tensor,
    *,
    step_size: float,
    temperature: float | Tensor = 1.0,
    generator: RandomSource | None = None,
    callback: Callback | None = None,
) -> Tensor:
    r"""Run consistent annealed sampling (Jolicoeur-Martineau et al., 2021, algorithm 2), one step at each noise level.

    $$x' = x - \eta\, l^2\, \nabla U(x, \sigma) + \sqrt{T (l'^2 - (1 - \eta)^2 l^2)}\, e$$

    with l and l' the noise scales of this level and the next. A step shrinks the noise in x by 1 - eta; what is injected
    brings it to exactly the next level, without the bias of a finite step. Where eta is too small to reach that level it
    is 1 - l' / l, which injects nothing. Cost: one gradient a level.

    Args:
        energy: `(x, sigma) -> (batch,)`.
        x: Start of the chains, shape (batch, ...).
        sigmas: Falling noise levels, shape (steps,) or (steps, batch). The last step stays at its level.
        step_size: eta, dimensionless, > 0.
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
    for i, sigma, scale, target in steps_of(energy, grid):
        value, gradient = energy.resample_noise(x, generator).gradient(x, sigma)
        eta = (1 - target / scale).clamp_min(step_size)
        variance = (target**2 - ((1 - eta) * scale) ** 2).clamp_min(0)
        noise = draw_noise(tuple(x.shape), generator, x)
        x = x - append_dims(eta * scale**2, x) * gradient + append_dims((temperatures[i] * variance).sqrt(), x) * noise
        if callback is not None:
            callback(ChainState(i + 1, len(grid), float(sigma.mean()), x, value))
    return x


CONSISTENT_ANNEALED = Method(
    "consistent-annealed",
    "consistent annealed sampling",
    consistent_annealed_sampling,
    gradients=lambda steps: steps,
    default_steps=100,
    default_step_size=lambda dim: 0.4,  # of chains in training (benchmarks/compare_objectives.py)
    source="Jolicoeur-Martineau et al. (2021), algorithm 2",
)
