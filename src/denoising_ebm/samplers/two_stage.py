"""Two-stage sampling (section 4.2, eq. 15 and 16): first in the latent space, then in pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from denoising_ebm.config import Drift, SamplingConfig
from denoising_ebm.energies import Decode, Energy, Reconstruct, draw_noise
from denoising_ebm.noise import expand_sigma, geometric_sigmas
from denoising_ebm.samplers.base import Callback, ChainState
from denoising_ebm.samplers.langevin import annealed_langevin
from denoising_ebm.samplers.methods import NFE_PER_GRADIENT, num_chain_steps, pixel_nfe, sample_pixels
from denoising_ebm.utils.seeds import RandomSource


@dataclass(frozen=True)
class TwoStageSample:
    """Both stages of a sample; all tensors in data units, first dimension = samples."""

    latents: Tensor  #: z^K, shape (n, latent_dim).
    semantic: Tensor  #: h(z^K), the semantic images.
    images: Tensor  #: x^T, after the final denoising step if that is on.


@torch.no_grad()
def two_stage(
    semantic: Energy,
    decode: Decode,
    texture: Energy,
    denoise: Reconstruct,
    z: Tensor,
    config: SamplingConfig,
    *,
    generator: RandomSource | None = None,
    callback: Callback | None = None,
) -> TwoStageSample:
    r"""Run K Langevin steps on z, decode, and run a sampler of T noise levels on the image.

    Cost: see `two_stage_nfe`.

    Args:
        semantic: U^s, an energy of codes.
        decode: h_gamma, `z -> images`.
        texture: U^c, an energy of images.
        denoise: D, `(x, sigma) -> like x`, for the final step.
        z: Start of the latent chains, draws of N(0, I), shape (n, latent_dim).
        config: Both stages.
        generator: Source of the noise; the global one if None.
        callback: Called after every step of both chains, with `stage` "semantic" or "texture".
    """
    chain, pixel = config.semantic, config.pixel
    if chain.steps:
        z = annealed_langevin(
            semantic,
            z,
            geometric_sigmas(chain.sigma_max, chain.sigma_min, chain.steps),
            step_size=chain.step_size,
            temperature=chain.temperature,
            generator=generator,
            callback=_named("semantic", callback),
        )
    semantic_images = x = decode(z)
    if pixel.steps:
        if config.noise_init:
            # The energy at sigma describes images with noise of that level; h(z) has none. One level is the last.
            first = pixel.sigma_max if pixel.steps > 1 else pixel.sigma_min
            x = x + first * draw_noise(tuple(x.shape), generator, x)
        x = sample_pixels(texture, x, pixel, generator=generator, callback=_named("texture", callback))
        if pixel.final_denoise:
            x = denoise(x, expand_sigma(pixel.sigma_min, x))
    return TwoStageSample(z, semantic_images, x)


def two_stage_nfe(config: SamplingConfig, *, denoiser: Drift = "denoiser") -> int:
    """Return network evaluations an image: three a latent step, whose gradient is exact, and those in pixels.

    Args:
        config: Both stages.
        denoiser: As for `pixel_nfe`.
    """
    return NFE_PER_GRADIENT["energy"] * config.semantic.steps + pixel_nfe(config.pixel, denoiser=denoiser)


def two_stage_steps(config: SamplingConfig) -> int:
    """Return how often a callback is called."""
    return config.semantic.steps + num_chain_steps(config.pixel)


def _named(stage: str, callback: Callback | None) -> Callable[[ChainState], None] | None:
    return None if callback is None else lambda state: callback(replace(state, stage=stage))
