"""What a trained model needs beside its gradients: the step length in z, energies of reference images, and log Z."""

from __future__ import annotations

import torch
from torch import Tensor

from denoising_ebm.energies import draw_noise
from denoising_ebm.likelihood.normalisation import Normalisation, normalise_levels
from denoising_ebm.model import QUANTILES, REFERENCE_SIGMAS, DenoisingEBM


@torch.no_grad()
def calibrate(model: DenoisingEBM, images: Tensor, *, seed: int = 0, batch_size: int = 256) -> None:
    """Fit what is not learned by gradients: the step length in z, and the reference energies for percentiles.

    The code statistics stay those that ran along in training: h_gamma and g_beta know the codes by them, and replacing
    them by those of a few thousand images raises the error of decoded codes by half.

    Args:
        model: The model, changed in place.
        images: Images in [-1, 1], shape (n, channels, height, width), best held out from training; without any the
            reference energies stay as they are.
        seed: Seed of the energies' inner noise.
        batch_size: Images per forward pass.
    """
    generator = torch.Generator().manual_seed(seed)
    z = draw_noise((256, model.config.network.latent_dim), generator, model.jacobian_norm)
    nudge = 0.1 * torch.nn.functional.normalize(draw_noise(tuple(z.shape), generator, z), dim=1)
    # In full precision: in bf16, rounding moves h as well.
    precision = model.precision
    model.set_precision("fp32")
    moved = (model.decode(z + nudge) - model.decode(z)).flatten(1).norm(dim=1) / 0.1
    model.set_precision(precision)
    model.jacobian_norm.copy_(moved.square().mean().sqrt().clamp_min(1e-6))
    if len(images) == 0:
        return

    # As many samples as scoring averages over by default: fewer would spread the reference energies wider.
    noise = model.scoring_noise(num_samples=4, seed=seed) if model.config.energy.inner_noise else None
    fractions = torch.linspace(0, 1, QUANTILES, device=model.device)
    for i, level in enumerate(REFERENCE_SIGMAS):
        values = torch.cat([model.energy(c.to(model.device), level, noise) for c in torch.split(images, batch_size)])
        model.reference[i] = torch.quantile(values, fractions)


@torch.no_grad()
def normalise(model: DenoisingEBM, images: Tensor, *, images_per_level: int = 64, seed: int = 0) -> Normalisation:
    """Fit log Z of a model's density network at its noise levels, and store it there.

    Args:
        model: With a density network, whose `log_z` is set.
        images: As for `calibrate`.
        images_per_level: As for `normalise_levels`.
        seed: Of the images drawn and their noise.

    Raises:
        ValueError: If the model has no density network, or there are no images.
    """
    if model.density is None:
        raise ValueError("this model has no density network (energy.density: true) to normalise")
    network, precision = model.density, model.precision
    network.log_z.fill_(float("nan"))  # so that the energy is that without
    # In full precision: the differences are small beside the energies.
    model.set_precision("fp32")
    found = normalise_levels(
        model.density_energy, images.to(model.device), network.levels, images_per_level=images_per_level, seed=seed
    )
    model.set_precision(precision)
    network.set_log_z(found.log_z)
    return found
