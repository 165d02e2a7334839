r"""Langevin chains on an energy: unadjusted (eq. 6), annealed over noise levels, and Metropolis-adjusted.

Step sizes are dimensionless. With the energy's length l (sigma in data space) and step_size eta, one step is

$$x' = x - \eta\, l^2\, \nabla U(x, \sigma) + \sqrt{2 \eta T}\, l\, e, \quad e \sim N(0, I)$$

so that eq. 6's step is eta l^2. Across the data an energy of level sigma has curvature 1 / sigma^2, for which eta = 1
is the largest stable order of magnitude; the paper's fixed step of 0.01 diverges at sigma = 0.01, where it is 100
sigma^2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from denoising_ebm.energies import Energy, EnergyFunction, as_energy, draw_noise
from denoising_ebm.noise import append_dims, expand_sigma


@dataclass(frozen=True)
class ChainState:
    """What a callback sees after each step; tensors are the chain's own, so clone what is kept."""

    stage: str  #: "semantic", "texture" or what the caller named the chain.
    step: int  #: Steps done, from 1 on.
    num_steps: int  #: Steps in all.
    sigma: float  #: Mean noise level of the step.
    x: Tensor  #: State after the step.
    energy: Tensor  #: Energies before the step, shape (batch,).
    acceptance: float | None = None  #: Share of accepted proposals (`mala` only).


Callback = Callable[[ChainState], None]


def _check(step_size: float, temperature: float | Tensor) -> None:
    if step_size <= 0:
        raise ValueError(f"step_size must be > 0, got {step_size}")
    if bool((torch.as_tensor(temperature) < 0).any()):
        raise ValueError(f"temperature must be >= 0, got {temperature}")


def _temperatures(temperature: float | Tensor, num_steps: int, x: Tensor) -> Tensor:
    values = torch.as_tensor(temperature, dtype=x.dtype, device=x.device)
    if values.shape not in ((), (num_steps,)):
        raise ValueError(
            f"temperature must be a number or have shape ({num_steps},), one for each step, got {tuple(values.shape)}"
        )
    return values.expand(num_steps)


def _grid(sigmas: Tensor, x: Tensor) -> Tensor:
    if sigmas.ndim not in (1, 2):
        raise ValueError(f"sigmas must have shape (steps,) or (steps, batch), got {tuple(sigmas.shape)}")
    return torch.stack([expand_sigma(s, x) for s in sigmas]) if len(sigmas) else sigmas.new_zeros(0, len(x))


@torch.no_grad()
def ula(
    energy: EnergyFunction | Energy,
    x: Tensor,
    sigma: Tensor | float,
    *,
    step_size: float,
    num_steps: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    stage: str = "texture",
) -> Tensor:
    r"""Run the unadjusted Langevin algorithm (eq. 6) at a fixed noise level.

    On an energy of curvature 1 / v its stationary variance is v / (1 - eta l^2 / 2v): a bias of order eta, which `mala`
    removes.

    Args:
        energy: `(x, sigma) -> (batch,)`, low = likely.
        x: Start of the chains, shape (batch, ...), in data units. Not modified.
        sigma: Noise level, a number or shape (batch,), in data units.
        step_size: eta > 0, dimensionless (see the module).
        num_steps: Number of steps, >= 0.
        temperature: Factor T >= 0 on the noise variance; 0 is gradient descent.
        generator: Source of the noise; the global one if None.
        callback: Called with a `ChainState` after every step.
        stage: Name of the chain in that state.

    Returns:
        The last states, shape of `x`, detached.

    Raises:
        ValueError: If `step_size` <= 0, `num_steps` < 0 or `temperature` < 0.
    """
    if num_steps < 0:
        raise ValueError(f"num_steps must be >= 0, got {num_steps}")
    sigmas = expand_sigma(sigma, x).expand(num_steps, len(x))
    options = {"step_size": step_size, "temperature": temperature, "stage": stage}
    return annealed(energy, x, sigmas, generator=generator, callback=callback, **options)  # type: ignore[arg-type]


@torch.no_grad()
def annealed(
    energy: EnergyFunction | Energy,
    x: Tensor,
    sigmas: Tensor,
    *,
    step_size: float,
    temperature: float | Tensor = 1.0,
    consistent: bool = False,
    order: int = 1,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    stage: str = "texture",
) -> Tensor:
    r"""Run one Langevin step at each noise level of a grid (eq. 15, 16 with falling sigma).

    Args:
        energy: `(x, sigma) -> (batch,)`.
        x: Start of the chains, shape (batch, ...). Not modified.
        sigmas: Noise level of every step, shape (steps,) or (steps, batch).
        step_size: eta, dimensionless, > 0; or 0 with `consistent`: eta = 1 - (l_{i+1} / l_i)^2, the step of the reverse
            diffusion from one level to the next (Song et al., 2021, ancestral sampling). A larger one moves further to
            the denoiser's mean than the fall of the noise warrants, which smooths; 1 - l_{i+1} / l_i, the smallest that
            is consistent, adds no noise.
        temperature: Factor >= 0 on the noise variance: a number, or one for each step, shape (steps,).
        consistent: Inject noise of variance l_{i+1}^2 - (1 - eta)^2 l_i^2 instead of 2 eta l_i^2. A step shrinks the
            noise in x by 1 - eta; this brings it to exactly the next level, without the bias of a finite step
            (Jolicoeur-Martineau et al., 2020, algorithm 2).
        order: 2 carries on, by half a step, how D(x) = x - l^2 grad U changed since the step before, in log l: the
            error of the reverse diffusion falls with the square of the step, at the same cost (Lu et al., 2022,
            SDE-DPM-Solver++(2M)). For steps of the reverse diffusion only (`step_size` 0).
        generator: Source of the noise; the global one if None.
        callback: Called with a `ChainState` after every step.
        stage: Name of the chain in that state.

    Returns:
        The last states, shape of `x`, detached. They carry the last level's noise.

    Raises:
        ValueError: If `step_size` or `temperature` is out of range, or not of these shapes.
    """
    _check(step_size if step_size or not consistent else 1.0, temperature)
    temperatures = _temperatures(temperature, len(sigmas), x)
    if order not in (1, 2) or (order == 2 and step_size):
        raise ValueError(f"order must be 1, or 2 with step_size 0, got {order} with step_size {step_size}")
    energy, grid = as_energy(energy), _grid(sigmas, x)
    eta = x.new_full((len(x),), step_size) if step_size else x.new_ones(len(x))
    denoised = rate = None
    for i, sigma in enumerate(grid):
        length, target = energy.length(sigma), energy.length(grid[min(i + 1, len(grid) - 1)])
        value, gradient = energy.resample_noise(x, generator).gradient(x, sigma)
        if order == 2:
            before, rate_before = denoised, rate
            denoised, rate = x - append_dims(length**2, x) * gradient, (length / target).log()
            if before is not None and rate_before is not None:
                # Where levels stay the same, but for rounding, there is nothing to carry on.
                ahead = torch.where(rate_before > 1e-5, 0.5 * rate / rate_before.clamp_min(1e-5), 0.0)
                gradient = gradient - append_dims(ahead / length**2, x) * (denoised - before)
        if not step_size and i + 1 < len(grid):
            # At the last level, which nothing follows, the step before is taken once more.
            eta = 1 - (target / length) ** 2
        if consistent:
            # A smaller step could not bring the noise down to the next level.
            eta = torch.maximum(eta, 1 - target / length)
        variance = (target**2 - (1 - eta) ** 2 * length**2).clamp_min(0) if consistent else 2 * eta * length**2
        noise = draw_noise(tuple(x.shape), generator, x)
        x = x - append_dims(eta * length**2, x) * gradient + append_dims((temperatures[i] * variance).sqrt(), x) * noise
        if callback is not None:
            callback(ChainState(stage, i + 1, len(grid), float(sigma.mean()), x, value))
    return x.detach().clone() if len(grid) == 0 else x


@torch.no_grad()
def mala(
    energy: EnergyFunction | Energy,
    x: Tensor,
    sigmas: Tensor,
    *,
    step_size: float,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    stage: str = "texture",
) -> tuple[Tensor, float]:
    r"""Run Metropolis-adjusted Langevin steps, one at each noise level of a grid.

    Each step proposes as `annealed` does and accepts with the probability that leaves exp(-U(x, sigma) / T) invariant
    (Roberts & Tweedie, 1996). The energy's inner noise is redrawn every step and held fixed within its test, in which
    the energy must be a function.

    Args:
        energy: `(x, sigma) -> (batch,)`; its gradient must be exact.
        x: Start of the chains, shape (batch, ...). Not modified.
        sigmas: Noise level of every step, shape (steps,) or (steps, batch).
        step_size: eta > 0, dimensionless.
        temperature: T > 0.
        generator: Source of all draws; the global one if None.
        callback: Called with a `ChainState`, with the acceptance rate, after every step.
        stage: Name of the chain in that state.

    Returns:
        The last states, shape of `x`, and the mean acceptance rate (NaN without steps).

    Raises:
        ValueError: If `step_size` <= 0 or `temperature` <= 0.
    """
    _check(step_size, temperature)
    if temperature == 0:
        raise ValueError("temperature must be > 0 for mala, got 0")
    energy, grid = as_energy(energy), _grid(sigmas, x)
    x = x.detach().clone()
    accepted = 0.0
    for i, sigma in enumerate(grid):
        step = append_dims(step_size * energy.length(sigma) ** 2, x)
        held = energy.resample_noise(x, generator)
        value, gradient = held.gradient(x, sigma)
        proposal = x - step * gradient + (2 * temperature * step).sqrt() * draw_noise(tuple(x.shape), generator, x)
        new_value, new_gradient = held.gradient(proposal, sigma)

        def log_density(to: Tensor, start: Tensor, slope: Tensor, step: Tensor = step) -> Tensor:
            return -((to - start + step * slope).square() / (4 * temperature * step)).flatten(1).sum(1)

        log_ratio = (value - new_value) / temperature
        log_ratio = log_ratio + log_density(x, proposal, new_gradient) - log_density(proposal, x, gradient)
        uniform_device = generator.device if generator is not None else x.device
        uniform = torch.rand(len(x), generator=generator, device=uniform_device, dtype=x.dtype).to(x.device)
        accept = uniform.log() < log_ratio
        x = torch.where(append_dims(accept, x), proposal, x)
        rate = float(accept.float().mean())
        accepted += rate
        if callback is not None:
            callback(ChainState(stage, i + 1, len(grid), float(sigma.mean()), x, value, rate))
    return x, accepted / len(grid) if len(grid) else float("nan")
