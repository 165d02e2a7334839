"""What a trained model needs beside its gradients: code statistics, the step length in z, and reference energies."""

from __future__ import annotations

import torch
from torch import Tensor

from denoising_ebm.energies import draw_noise
from denoising_ebm.model import QUANTILES, REFERENCE_SIGMAS, DenoisingEBM
from denoising_ebm.noise import geometric_sigmas, over


@torch.no_grad()
def calibrate(model: DenoisingEBM, images: Tensor, *, seed: int = 0, batch_size: int = 256) -> None:
    """Fit what is not learned by gradients: code statistics, step length in z, and reference energies.

    Args:
        model: The model, changed in place.
        images: Images in [-1, 1], shape (n, channels, height, width), n > latent_dim; best held out from training.
        seed: Seed of the noise drawn for the codes and of the energies' inner noise.
        batch_size: Images per forward pass.
    """
    generator = torch.Generator().manual_seed(seed)
    levels = geometric_sigmas(model.config.noise.sigma_max, model.config.noise.sigma_min, model.config.noise.levels)
    levels = levels[levels <= model.config.training.decoder_sigma_max]
    if len(levels) == 0:
        levels = torch.tensor([model.config.noise.sigma_min])
    codes = []
    for chunk in torch.split(images, batch_size):
        chunk = chunk.to(model.device)
        sigma = levels[torch.randint(len(levels), (len(chunk),), generator=generator)].to(model.device)
        noisy = chunk + over(sigma, chunk) * draw_noise(tuple(chunk.shape), generator, chunk)
        codes.append(model.raw_codes(noisy, sigma).float())
    model.dae.unet.whitening.calibrate(torch.cat(codes))

    z = draw_noise((256, model.config.network.latent_dim), generator, model.sensitivity)
    nudge = 0.1 * torch.nn.functional.normalize(draw_noise(tuple(z.shape), generator, z), dim=1)
    moved = (model.decode(z + nudge) - model.decode(z)).flatten(1).norm(dim=1) / 0.1
    model.sensitivity.copy_(moved.square().mean().sqrt().clamp_min(1e-6))

    noise = model.scoring_noise(seed=seed) if model.config.energy.inner_noise else None
    fractions = torch.linspace(0, 1, QUANTILES, device=model.device)
    for i, level in enumerate(REFERENCE_SIGMAS):
        values = torch.cat([model.energy(c.to(model.device), level, noise) for c in torch.split(images, batch_size)])
        model.reference[i] = torch.quantile(values, fractions)
