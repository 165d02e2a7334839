"""Two-stage sampling (section 4.2, eq. 15 and 16): first in the latent space, then in pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from denoising_ebm.config import SamplingConfig
from denoising_ebm.energies import Decode, Energy, Reconstruct, draw_noise
from denoising_ebm.noise import expand_sigma, falling_sigmas, geometric_sigmas
from denoising_ebm.samplers.langevin import Callback, annealed


@dataclass(frozen=True)
class TwoStageSample:
    """Both stages of a sample; all tensors in data units, first dimension = samples."""

    latents: Tensor  #: z^K, shape (n, latent_dim).
    semantic: Tensor  #: h(z^K), the semantic images.
    images: Tensor  #: x^T, after the final denoising step if that is on.


def texture_chain(
    energy: Energy,
    x: Tensor,
    sigmas: Tensor,
    config: SamplingConfig,
    *,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    r"""Run the pixel chain (eq. 16) over falling noise levels, with the step size, noise and temperatures of `config`.

    Args:
        energy: U^c, or another energy of images.
        x: Images with noise of the first level, shape (n, ...). Not modified.
        sigmas: Noise levels, shape (steps,).
        config: Of the levels it only counts `low_temperature_sigma`.
        generator: Source of the noise.
        callback: Called after every step.

    Returns:
        The last states, which carry the last level's noise.
    """
    # A step's noise is that of the level it ends at.
    ends = torch.cat([sigmas[1:], sigmas[-1:]])
    temperature = torch.full_like(ends, config.temperature)
    temperature[ends < config.low_temperature_sigma] *= config.low_temperature
    return annealed(
        energy,
        x,
        sigmas,
        step_size=config.texture_step_size,
        temperature=temperature,
        consistent=config.consistent,
        order=config.texture_order,
        generator=generator,
        callback=callback,
    )


@torch.no_grad()
def two_stage(
    semantic: Energy,
    decode: Decode,
    texture: Energy,
    denoise: Reconstruct,
    z: Tensor,
    config: SamplingConfig,
    *,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> TwoStageSample:
    r"""Run K Langevin steps on z, decode, and run T Langevin steps on the image.

    Args:
        semantic: U^s, an energy of codes.
        decode: h_gamma, `z -> images`.
        texture: U^c, an energy of images.
        denoise: D, `(x, sigma) -> like x`, for the final step.
        z: Start of the latent chains, draws of N(0, I), shape (n, latent_dim).
        config: Steps, step sizes and noise levels.
        generator: Source of the noise; the global one if None.
        callback: Called after every step of both chains, with `stage` "semantic" or "texture".
    """
    if config.semantic_steps:
        sigmas = geometric_sigmas(config.semantic_sigma_max, config.semantic_sigma_min, config.semantic_steps)
        z = annealed(
            semantic,
            z,
            sigmas,
            step_size=config.semantic_step_size,
            temperature=config.temperature,
            generator=generator,
            callback=callback,
            stage="semantic",
        )
    semantic_images = x = decode(z)
    if config.texture_steps:
        high, low = config.texture_sigma_max, config.texture_sigma_min
        sigmas = falling_sigmas(config.texture_levels, high, low, config.texture_steps)
        if config.noise_init:
            # The energy at sigma describes images with noise of that level; h(z) has none.
            x = x + float(sigmas[0]) * draw_noise(tuple(x.shape), generator, x)
        x = texture_chain(texture, x, sigmas, config, generator=generator, callback=callback)
        if config.final_denoise:
            x = denoise(x, expand_sigma(config.texture_sigma_min, x))
    return TwoStageSample(z, semantic_images, x)
