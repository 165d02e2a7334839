"""The probability-flow ODE, solved by Heun's method: EDM's deterministic sampler."""

from __future__ import annotations

import torch
from torch import Tensor

from denoising_ebm.energies import Energy, EnergyFunction, as_energy
from denoising_ebm.noise import append_dims
from denoising_ebm.samplers.base import Callback, ChainState, Method, expand_sigmas
from denoising_ebm.utils.seeds import RandomSource


@torch.no_grad()
def heun(
    energy: EnergyFunction | Energy,
    x: Tensor,
    sigmas: Tensor,
    *,
    generator: RandomSource | None = None,
    callback: Callback | None = None,
) -> Tensor:
    r"""Follow dx/dsigma = (x - D(x, sigma)) / sigma from the first to the last noise level.

    Heun's second-order method (Karras et al., 2022, algorithm 1, without churn). Cost: two gradients (or denoisers) between
    each two levels.

    Args:
        energy: `(x, sigma) -> (batch,)`; its denoiser D is taken.
        x: Data with noise of the first level, shape (batch, ...).
        sigmas: Falling noise levels > 0, shape (steps,) or (steps, batch).
        generator: Source of the energy's inner noise, if it has any; the method draws nothing itself.
        callback: Called with a `ChainState` after every step.

    Returns:
        The images at the last level, shape of `x`, detached.

    Raises:
        ValueError: If there are no levels, or one is not > 0.
    """
    if len(sigmas) < 1 or bool((sigmas <= 0).any()):
        raise ValueError("sigmas must be a list of one or more noise levels > 0")
    energy, grid, x = as_energy(energy), expand_sigmas(sigmas, x), x.detach().clone()
    for i in range(len(grid) - 1):
        now, after = grid[i], grid[i + 1]
        energy = energy.resample_noise(x, generator)
        value, denoised = energy.denoise(x, now)
        slope = (x - denoised) / append_dims(now, x)
        step = append_dims(after - now, x)
        ahead = x + step * slope
        slope_ahead = (ahead - energy.denoise(ahead, after)[1]) / append_dims(after, x)
        x = x + step * 0.5 * (slope + slope_ahead)
        if callback is not None:
            callback(ChainState(i + 1, len(grid) - 1, float(now.mean()), x, value))
    return x


HEUN = Method(
    "heun",
    "Heun's method",
    heun,
    gradients=lambda steps: 2 * (steps - 1),
    default_steps=20,
    default_schedule="karras",
    stochastic=False,
    source="Karras et al. (2022), algorithm 1",
)
