r"""Solvers of the reverse diffusion from level to level: ancestral sampling, and SDE-DPM-Solver++(2M).

Both solve the reverse SDE of data with noise sigma, exactly so where the denoiser D is constant over a step: with the noise
scales l and l' of a step's levels and c = (l' / l)^2,

$$x' = c\, x + (1 - c)\, D + \sqrt{T}\, l' \sqrt{1 - c}\, e, \quad e \sim N(0, I).$$

Ancestral sampling takes D(x, sigma), SDE-DPM-Solver++(2M) carries on how D changed over the step before. At the last level,
which no other follows, both take the contraction of the step before once more and stay at that level's noise, so that the
chain has seen it before the final denoising step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from denoising_ebm.energies import Energy, EnergyFunction, as_energy, draw_noise
from denoising_ebm.noise import append_dims
from denoising_ebm.samplers.base import Callback, ChainState, Method, expand_sigmas, expand_temperature, steps_of
from denoising_ebm.utils.seeds import RandomSource


@torch.no_grad()
def ancestral(
    energy: EnergyFunction | Energy,
    x: Tensor,
    sigmas: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    generator: RandomSource | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Run ancestral sampling of the variance-exploding diffusion (Song et al., 2021, appendix F; first order).

    Cost: one gradient (or denoiser) a level.

    Args:
        energy: `(x, sigma) -> (batch,)`; its denoiser is taken.
        x: Data with noise of the first level, shape (batch, ...).
        sigmas: Falling noise levels, shape (steps,) or (steps, batch).
        temperature: Factor T >= 0 on the noise variance, a number or shape (steps,); `s_noise` squared in k-diffusion.
        generator: Source of the noise; the global one if None.
        callback: Called with a `ChainState` after every step.

    Returns:
        The last states, shape of `x`, detached. They carry the last level's noise.

    Raises:
        ValueError: If `temperature` is negative, or it or `sigmas` is of another shape.
    """
    temperatures, grid = expand_temperature(temperature, len(sigmas), x), expand_sigmas(sigmas, x)
    energy, x = as_energy(energy), x.detach().clone()
    contraction = x.new_zeros(len(x))  # a single level is left at its own noise around D
    for i, sigma, scale, target in steps_of(energy, grid):
        value, denoised = energy.resample_noise(x, generator).denoise(x, sigma)
        if i + 1 < len(grid):
            contraction = (target / scale) ** 2
        x = _reverse_step(x, denoised, contraction, scale, target, temperatures[i], generator)
        if callback is not None:
            callback(ChainState(i + 1, len(grid), float(sigma.mean()), x, value))
    return x


@torch.no_grad()
def dpmpp_2m_sde(
    energy: EnergyFunction | Energy,
    x: Tensor,
    sigmas: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    generator: RandomSource | None = None,
    callback: Callback | None = None,
) -> Tensor:
    r"""Run SDE-DPM-Solver++(2M) (Lu et al., 2022; midpoint form).

    With the step h = log(l / l') and the step before h_0, the denoised image D is replaced by

    $$D + \frac{h}{2 h_0} (D - D_0),$$

    D_0 that of the step before. The error of the chain falls with the square of the step, at the cost of ancestral
    sampling: one gradient (or denoiser) a level. Equal to `sample_dpmpp_2m_sde` of k-diffusion (midpoint, eta = 1) and to
    diffusers' `DPMSolverMultistepScheduler("sde-dpmsolver++")`.

    Args:
        energy: `(x, sigma) -> (batch,)`; its denoiser is taken.
        x: Data with noise of the first level, shape (batch, ...).
        sigmas: Falling noise levels, shape (steps,) or (steps, batch).
        temperature: Factor T >= 0 on the noise variance, a number or shape (steps,); `s_noise` squared in k-diffusion.
        generator: Source of the noise; the global one if None.
        callback: Called with a `ChainState` after every step.

    Returns:
        The last states, shape of `x`, detached. They carry the last level's noise.

    Raises:
        ValueError: If `temperature` is negative, or it or `sigmas` is of another shape.
    """
    temperatures, grid = expand_temperature(temperature, len(sigmas), x), expand_sigmas(sigmas, x)
    energy, x = as_energy(energy), x.detach().clone()
    contraction = x.new_zeros(len(x))
    before: tuple[Tensor, Tensor] | None = None
    for i, sigma, scale, target in steps_of(energy, grid):
        value, denoised = energy.resample_noise(x, generator).denoise(x, sigma)
        if i + 1 < len(grid):
            contraction = (target / scale) ** 2
        h = (scale / target).log()
        estimate = denoised if before is None else _extrapolate(denoised, h, *before)
        before = denoised, h
        x = _reverse_step(x, estimate, contraction, scale, target, temperatures[i], generator)
        if callback is not None:
            callback(ChainState(i + 1, len(grid), float(sigma.mean()), x, value))
    return x


def _reverse_step(
    x: Tensor,
    denoised: Tensor,
    contraction: Tensor,
    scale: Tensor,
    target: Tensor,
    temperature: Tensor,
    generator: RandomSource | None,
) -> Tensor:
    """Return c x + (1 - c) D and the noise that is missing at the level of noise scale `target`."""
    # l'^2 (1 - c) from level to level; at the last one, which it stays at, l^2 (1 - c^2).
    variance = (target**2 - (contraction * scale) ** 2).clamp_min(0)
    noise = draw_noise(tuple(x.shape), generator, x)
    keep = append_dims(contraction, x)
    return keep * x + (1 - keep) * denoised + append_dims((temperature * variance).sqrt(), x) * noise


def _extrapolate(denoised: Tensor, h: Tensor, denoised_before: Tensor, h_before: Tensor) -> Tensor:
    """Return D + h / 2 h_0 (D - D_0); D where the levels before were equal but for rounding: nothing to carry on."""
    ratio = torch.where(h_before > 1e-5, 0.5 * h / h_before.clamp_min(1e-5), 0.0)
    return denoised + append_dims(ratio, denoised) * (denoised - denoised_before)


ANCESTRAL = Method(
    "ancestral",
    "ancestral sampling",
    ancestral,
    gradients=lambda steps: steps,
    default_steps=40,
    default_schedule="karras",
    source="Song et al. (2021), appendix F",
)
DPMPP_2M_SDE = Method(
    "dpmpp-2m-sde",
    "SDE-DPM-Solver++(2M)",
    dpmpp_2m_sde,
    gradients=lambda steps: steps,
    default_steps=16,
    default_schedule="karras",
    source="Lu et al. (2022), SDE-DPM-Solver++(2M)",
)
