"""Samplers side by side: each draws uint8 images from a model and knows how many network evaluations one costs."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from denoising_ebm.datasets.images import to_uint8
from denoising_ebm.energies import TextureEnergy
from denoising_ebm.model import DenoisingEBM, Sampler
from denoising_ebm.noise import geometric_sigmas
from denoising_ebm.samplers import annealed_langevin

#: NCSN's schedule (Song & Ermon, 2019): ten levels from 1 to 0.01 for images in [0, 1], twice that here; as in the released
#: code x += a s + sqrt(2 a) e with a = 2e-5 sigma^2 / 0.01^2 for those images, so that eta = 0.2 in any units.
NCSN_LEVELS, NCSN_SIGMAS, NCSN_STEP_SIZE = 10, (2.0, 0.02), 0.2


@dataclass(frozen=True)
class Drawn:
    """A set of drawn images.

    Attributes:
        images: uint8, shape `(n, c, h, w)`.
        semantic: The semantic images, uint8, where there are any.
        nfe: Network evaluations an image; an exact gradient counts as three (forward, and twice that backward).
        seconds: That drawing took.
    """

    images: Tensor
    semantic: Tensor | None
    nfe: int
    seconds: float


def draw(
    model: DenoisingEBM,
    num: int,
    sampler: Sampler | None = None,
    *,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int = 128,
) -> Drawn:
    """Draw and take the time.

    Args:
        model: The model.
        num: Images.
        sampler: As for `DenoisingEBM.sample`.
        steps: As for `DenoisingEBM.sample`.
        seed: Of the first batch.
        batch_size: Images at once.

    Raises:
        ValueError: If samples are not finite.
    """
    started = time.monotonic()
    drawn = model.sample(num, sampler=sampler, steps=steps, seed=seed, batch_size=batch_size)
    semantic = None if drawn.semantic is None else to_uint8(drawn.semantic.cpu())
    images = to_uint8(finite(drawn.images.cpu()))
    return Drawn(images, semantic, drawn.nfe, time.monotonic() - started)


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
    model: DenoisingEBM, num: int, *, steps: int = 100, seed: int = 0, batch_size: int = 128
) -> tuple[Drawn, Drawn]:
    """Draw by NCSN's protocol on the model's own network: annealed Langevin from uniform noise, `steps` at each level.

    The score is (D(x) - x) / sigma^2.

    Returns:
        The ends of the chains, as published; and these with one denoising step at the last level, which takes the noise of
        that level away (Jolicoeur-Martineau et al., 2020).

    Raises:
        ValueError: If the model was not trained at the protocol's noise levels, or samples are not finite.
    """
    trained = model.config.noise
    if trained.sigma_max < NCSN_SIGMAS[0] or trained.sigma_min > NCSN_SIGMAS[1]:
        raise ValueError(
            f"NCSN's protocol needs noise levels from {NCSN_SIGMAS[1]:g} to {NCSN_SIGMAS[0]:g}, the model was trained on "
            f"{trained.sigma_min:g} to {trained.sigma_max:g}"
        )
    sigmas = geometric_sigmas(*NCSN_SIGMAS, NCSN_LEVELS).repeat_interleave(steps)
    images, denoised, started = [], [], time.monotonic()
    for i, start in enumerate(range(0, num, batch_size)):
        generator = torch.Generator().manual_seed(seed + i)
        shape = (min(batch_size, num - start), *model.image_shape)
        x = (2 * torch.rand(shape, generator=generator) - 1).to(model.device)
        drift = TextureEnergy(model.denoise, inner_noise=False, drift="denoiser")
        x = annealed_langevin(drift, x, sigmas, step_size=NCSN_STEP_SIZE, generator=generator)
        images.append(to_uint8(finite(x.cpu())))
        denoised.append(to_uint8(model.denoise(x, NCSN_SIGMAS[1]).cpu()))
    seconds = time.monotonic() - started
    cost = 3 if model.config.energy.denoiser == "gradient" else 1
    published = Drawn(torch.cat(images), None, cost * len(sigmas), seconds)
    return published, Drawn(torch.cat(denoised), None, cost * (len(sigmas) + 1), seconds)
