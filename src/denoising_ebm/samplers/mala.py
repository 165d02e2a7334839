"""The Metropolis-adjusted Langevin algorithm: Langevin steps without the bias of a finite step."""

from __future__ import annotations

import torch
from torch import Tensor

from denoising_ebm.energies import Energy, EnergyFunction, as_energy, draw_noise, draw_uniform
from denoising_ebm.noise import append_dims
from denoising_ebm.samplers.base import Callback, ChainState, Method, check_step_size, expand_sigmas, expand_temperature
from denoising_ebm.utils.seeds import RandomSource


@torch.no_grad()
def mala(
    energy: EnergyFunction | Energy,
    x: Tensor,
    sigmas: Tensor,
    *,
    step_size: float,
    temperature: float | Tensor = 1.0,
    generator: RandomSource | None = None,
    callback: Callback | None = None,
) -> Tensor:
    r"""Run Metropolis-adjusted Langevin steps, one at each noise level of a grid.

    Each step proposes as `annealed_langevin` does and accepts with the probability that leaves exp(-U(x, sigma) / T)
    invariant (Roberts & Tweedie, 1996). The energy's inner noise is redrawn every step and held fixed within its test, in
    which the energy must be a function. Cost: two gradients a step; one where the step before had the same level and the
    energy has no inner noise.

    The test compares sums over all pixels to within a nat or less, for which half precision is too coarse.

    Args:
        energy: `(x, sigma) -> (batch,)`; its gradient must be exact.
        x: Start of the chains, shape (batch, ...).
        sigmas: Noise level of every step, shape (steps,) or (steps, batch).
        step_size: eta > 0, dimensionless.
        temperature: T > 0, a number or shape (steps,).
        generator: Source of all draws; the global one if None.
        callback: Called with a `ChainState`, with the acceptance rate, after every step.

    Returns:
        The last states, shape of `x`, detached.

    Raises:
        ValueError: If `step_size` <= 0 or `temperature` <= 0, or they or `sigmas` are not of these shapes.
    """
    check_step_size(step_size)
    temperatures, grid = expand_temperature(temperature, len(sigmas), x), expand_sigmas(sigmas, x)
    if bool((temperatures == 0).any()):
        raise ValueError("temperature must be > 0 for mala, got 0")
    energy, x = as_energy(energy), x.detach().clone()
    # Energy and gradient at x, while they are those of the step to come.
    known: tuple[Tensor, Tensor] | None = None
    for i, sigma in enumerate(grid):
        heat = temperatures[i]
        step = append_dims(step_size * energy.noise_scale(sigma) ** 2, x)
        held = energy.resample_noise(x, generator)
        value, gradient = known or held.gradient(x, sigma)
        proposal = x - step * gradient + (2 * heat * step).sqrt() * draw_noise(tuple(x.shape), generator, x)
        new_value, new_gradient = held.gradient(proposal, sigma)
        log_ratio = (value - new_value) / heat
        log_ratio = log_ratio + _log_proposal(x, proposal, new_gradient, step, heat)
        log_ratio = log_ratio - _log_proposal(proposal, x, gradient, step, heat)
        accept = draw_uniform((len(x),), generator, x).log() < log_ratio
        x = torch.where(append_dims(accept, x), proposal, x)
        known = None
        if held is energy and i + 1 < len(grid) and torch.equal(grid[i + 1], sigma):
            kept = torch.where(append_dims(accept, x), new_gradient, gradient)
            known = torch.where(accept, new_value, value), kept
        if callback is not None:
            rate = float(accept.float().mean())
            callback(ChainState(i + 1, len(grid), float(sigma.mean()), x, value, rate))
    return x


def _log_proposal(to: Tensor, start: Tensor, gradient: Tensor, step: Tensor, temperature: Tensor) -> Tensor:
    """Return the log density, up to a constant, of proposing `to` from `start`, shape (batch,)."""
    return -((to - start + step * gradient).square() / (4 * temperature * step)).flatten(1).sum(1)


MALA = Method(
    "mala",
    "MALA",
    mala,
    gradients=lambda steps: 2 * steps,
    default_steps=200,
    # The best acceptance needs steps that shrink as dim^(-1/3) (Roberts & Rosenthal, 1998).
    default_step_size=lambda dim: 1.65**2 / 2 * dim ** (-1 / 3),
    needs_energy=True,
    source="Roberts & Tweedie (1996)",
)
