"""The published methods by name, and a `PixelSampler` config turned into a chain and a count of network evaluations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from denoising_ebm.config import Drift, PixelMethod, PixelSampler
from denoising_ebm.energies import Energy
from denoising_ebm.noise import falling_sigmas
from denoising_ebm.samplers.base import Callback, Method
from denoising_ebm.samplers.consistent import CONSISTENT_ANNEALED
from denoising_ebm.samplers.diffusion import ANCESTRAL, DPMPP_2M_SDE
from denoising_ebm.samplers.heun import HEUN
from denoising_ebm.samplers.langevin import ANNEALED_LANGEVIN
from denoising_ebm.samplers.mala import MALA
from denoising_ebm.utils.seeds import RandomSource

METHODS: dict[PixelMethod, Method] = {
    method.name: method for method in (DPMPP_2M_SDE, ANCESTRAL, CONSISTENT_ANNEALED, ANNEALED_LANGEVIN, HEUN, MALA)
}

#: Network evaluations of a gradient: a backward pass costs about two forward passes.
NFE_PER_GRADIENT: dict[Drift, int] = {"denoiser": 1, "energy": 3, "density": 3}


def sample_pixels(
    energy: Energy,
    x: Tensor,
    sampler: PixelSampler,
    *,
    generator: RandomSource | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Run the method of `sampler` over its noise levels, without the final denoising step.

    Args:
        energy: U^c, or another energy of images.
        x: Images with noise of the first level, shape (n, ...). Not modified.
        sampler: Method and settings.
        generator: Source of the noise.
        callback: Called after every step.

    Returns:
        The last states, which carry the last level's noise.
    """
    if not sampler.steps:
        return x
    method = METHODS[sampler.method]
    sigmas = falling_sigmas(sampler.schedule, sampler.sigma_max, sampler.sigma_min, sampler.steps)
    options: dict[str, Any] = {}
    if method.default_step_size is not None:
        options["step_size"] = sampler.step_size or default_step_size(sampler.method, x[0].numel())
    if method.stochastic:
        options["temperature"] = _temperatures(sampler, sigmas)
    return method.run(energy, x, sigmas, generator=generator, callback=callback, **options)


def default_step_size(method: PixelMethod, dim: int) -> float:
    """Return eta of a method whose settings name none, for images of `dim` dimensions.

    Raises:
        ValueError: If the steps of the method follow the noise levels.
    """
    found = METHODS[method].default_step_size
    if found is None:
        raise ValueError(f"{method} has no step size: its steps follow the noise levels")
    return found(dim)


def num_chain_steps(sampler: PixelSampler) -> int:
    """Return how often a callback is called: Heun's method has a step less than noise levels."""
    return max(0, sampler.steps - 1) if sampler.method == "heun" else sampler.steps


def pixel_nfe(sampler: PixelSampler, *, denoiser: Drift = "denoiser") -> int:
    """Return the network evaluations an image that `sampler` costs, its final denoising step counted.

    Args:
        sampler: Method and settings.
        denoiser: What a denoising step costs: `energy` for a model whose denoiser is the gradient of its energy.
    """
    if not sampler.steps:
        return 0
    gradients = METHODS[sampler.method].gradients(sampler.steps)
    drift = NFE_PER_GRADIENT["energy" if denoiser == "energy" else sampler.drift]
    return drift * gradients + (NFE_PER_GRADIENT[denoiser] if sampler.final_denoise else 0)


def _temperatures(sampler: PixelSampler, sigmas: Tensor) -> Tensor:
    """Return the temperature of each step: the noise that it injects is that of the level it ends at."""
    ends = torch.cat([sigmas[1:], sigmas[-1:]])
    temperatures = torch.full_like(ends, sampler.temperature)
    temperatures[ends < sampler.low_temperature_sigma] *= sampler.low_temperature
    return temperatures
