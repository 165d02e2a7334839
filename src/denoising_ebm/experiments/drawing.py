"""Samples as studies measure them: timed and finite; and NCSN's protocol on a model's own network."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from denoising_ebm.energies import TextureEnergy, draw_uniform
from denoising_ebm.model import DenoisingEBM, Sampler, Samples
from denoising_ebm.noise import geometric_sigmas
from denoising_ebm.samplers import annealed_langevin
from denoising_ebm.utils.seeds import ImageNoise

#: NCSN's schedule (Song & Ermon, 2019): ten levels from 1 to 0.01 for images in [0, 1], twice that here; as in the released
#: code x += a s + sqrt(2 a) e with a = 2e-5 sigma^2 / 0.01^2 for those images, so that eta = 0.2 in any units.
NCSN_NUM_SIGMAS, NCSN_SIGMAS, NCSN_STEP_SIZE = 10, (2.0, 0.02), 0.2


#: Samples, and the seconds that drawing them took.
Drawn = tuple[Samples, float]


def draw(
    model: DenoisingEBM,
    num: int,
    sampler: Sampler | None = None,
    *,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int = 128,
) -> Drawn:
    """Draw by `DenoisingEBM.sample`, with its arguments, and take the time.

    Raises:
        ValueError: If samples are not finite.
    """
    started = time.monotonic()
    samples = model.sample(num, sampler=sampler, steps=steps, seed=seed, batch_size=batch_size)
    finite(samples.images)
    return samples, time.monotonic() - started


def finite(images: Tensor) -> Tensor:
    """Return `images`; as pixels, samples of chains that diverged would be measured like others.

    Raises:
        ValueError: If some are not finite.
    """
    broken = int((~images.isfinite()).flatten(1).any(1).sum())
    if broken:
        raise ValueError(f"{broken:,} of {len(images):,} samples are not finite: the chains diverged")
    return images


@torch.no_grad()
def draw_ncsn(
    model: DenoisingEBM,
    num: int,
    *,
    steps: int = 100,
    sigmas: tuple[float, float] = NCSN_SIGMAS,
    num_sigmas: int = NCSN_NUM_SIGMAS,
    seed: int = 0,
    batch_size: int = 128,
) -> tuple[Drawn, Drawn]:
    """Draw by NCSN's protocol on the model's own network: annealed Langevin from uniform noise.

    The score is (D(x) - x) / sigma^2.

    Args:
        model: The model.
        num: Images.
        steps: At each noise level, 100 as published.
        sigmas: First and last noise level.
        num_sigmas: Noise levels.
        seed: Of all images, each of which depends on it and its index alone.
        batch_size: Images at once.

    Returns:
        The ends of the chains, as published; and these with one denoising step at the last level, which takes the noise of
        that level away (Jolicoeur-Martineau et al., 2020).

    Raises:
        ValueError: If the model was not trained at the protocol's noise levels, or samples are not finite.
    """
    trained = model.config.noise
    if trained.sigma_max < sigmas[0] or trained.sigma_min > sigmas[1]:
        raise ValueError(
            f"NCSN's protocol needs noise levels from {sigmas[1]:g} to {sigmas[0]:g}, the model was trained on "
            f"{trained.sigma_min:g} to {trained.sigma_max:g}"
        )
    levels = geometric_sigmas(*sigmas, num_sigmas).repeat_interleave(steps)
    energy = TextureEnergy(model.denoise, inner_noise=False, drift="denoiser")
    images, denoised, started = [], [], time.monotonic()
    for start in range(0, num, batch_size):
        noise = ImageNoise.of(seed, range(start, min(start + batch_size, num)))
        x = 2 * draw_uniform((len(noise), *model.image_shape), noise, model.jacobian_norm) - 1
        x = annealed_langevin(energy, x, levels, step_size=NCSN_STEP_SIZE, generator=noise)
        images.append(finite(x))
        denoised.append(model.denoise(x, sigmas[1]))
    seconds = time.monotonic() - started
    cost = 3 if model.config.energy.denoiser == "gradient" else 1
    published = Samples(torch.cat(images), None, None, cost * len(levels))
    return (published, seconds), (Samples(torch.cat(denoised), None, None, cost * (len(levels) + 1)), seconds)
