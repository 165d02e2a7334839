"""Baselines that denoise, on our U-Net: a plain DAE, NCSN's score model, and EDM-style diffusion."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from denoising_ebm.config import Config, PixelSampler
from denoising_ebm.energies import TextureEnergy, draw_noise
from denoising_ebm.experiments.drawing import NCSN_NUM_SIGMAS, NCSN_SIGMAS, NCSN_STEP_SIZE
from denoising_ebm.networks.precondition import DenoisingAutoencoder
from denoising_ebm.noise import append_dims, expand_sigma, geometric_sigmas, karras_sigmas, loss_weights
from denoising_ebm.samplers import METHODS, ancestral, annealed_langevin, heun, sample_pixels
from denoising_ebm.training.objectives import Batch
from denoising_ebm.utils.seeds import RandomSource

NCSN_STEPS = 100  # at each level, as published
#: The default sampler of our models, which rivals are drawn from too.
FROM_NOISE = f"{METHODS['dpmpp-2m-sde'].title} from noise"


class Denoiser(nn.Module):
    """Shared by the three: the U-Net, its preconditioning, and the shape of images."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.dae = DenoisingAutoencoder(config.network).to(memory_format=torch.channels_last)
        self.shape = (config.network.channels, config.network.image_size, config.network.image_size)

    def denoise(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Return D(x, sigma)."""
        output: Tensor = self.dae(x, sigma)[0]
        return output

    def mean(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Return the estimate of E[x0 | x], which samplers follow."""
        return self.denoise(x, sigma)

    def energy(self) -> TextureEnergy:
        """Return the drift (x - mean) / sigma^2, the negative score, as an energy for samplers."""
        return TextureEnergy(self.mean, inner_noise=False, drift="denoiser")

    def from_noise(self, num: int, sigma_max: float, generator: RandomSource) -> Tensor:
        """Return the start of samplers: what images look like under noise of `sigma_max`."""
        spread = (sigma_max**2 + self.config.network.sigma_data**2) ** 0.5
        return spread * draw_noise((num, *self.shape), generator, torch.empty(0))

    def draw_as_ours(self, num: int, generator: RandomSource, sampler: PixelSampler | None = None) -> Tensor:
        """Draw as `DenoisingEBM.sample` does from noise: by the preset's sampler, on this method's noise levels."""
        noise = self.config.noise
        sampler = replace(sampler or self.config.sampling.pixel, sigma_max=noise.sigma_max, sigma_min=noise.sigma_min)
        x = self.from_noise(num, noise.sigma_max, generator)
        x = sample_pixels(self.energy(), x, sampler, generator=generator)
        return self.mean(x, sampler.sigma_min) if sampler.final_denoise else x


class EDM(Denoiser):
    """EDM-style diffusion (Karras et al., 2022): its preconditioning, noise draw and weights; Heun's method, 18 levels.

    Noise levels are those of the preset (0.01 to 10; published: 0.002 to 80).
    """

    title = "EDM-style diffusion, Heun 18"
    title_as_ours = f"EDM-style diffusion, {FROM_NOISE}"

    def loss(self, batch: Batch) -> Tensor:
        """Return the weighted denoising loss."""
        weights = loss_weights("edm", batch.sigma, self.config.network.sigma_data)
        error = self.denoise(batch.noisy, batch.sigma) - batch.x0
        return (weights * error.square().flatten(1).mean(1)).mean()

    def draw(self, num: int, generator: torch.Generator) -> Tensor:
        """Draw images from noise of the largest level."""
        noise = self.config.noise
        x = self.from_noise(num, noise.sigma_max, generator)
        return heun(self.energy(), x, karras_sigmas(noise.sigma_max, noise.sigma_min, 18))


class PlainDAE(Denoiser):
    """A plain denoising autoencoder: eq. 1 as printed, on the paper's noise range, without preconditioning."""

    title = "plain DAE, 100 ancestral steps from sigma = 1"

    def __init__(self, config: Config) -> None:
        noise = replace(config.noise, sigma_min=0.01, sigma_max=1.0, num_sigmas=128, draw="grid", weighting="uniform")
        super().__init__(replace(config, noise=noise, network=replace(config.network, precondition="none")))

    def loss(self, batch: Batch) -> Tensor:
        """Return eq. 1."""
        return (self.denoise(batch.noisy, batch.sigma) - batch.x0).square().mean()

    def draw(self, num: int, generator: torch.Generator) -> Tensor:
        """Run ancestral sampling from noise of level 1."""
        x = self.from_noise(num, 1.0, generator)
        return self.denoise(ancestral(self.energy(), x, geometric_sigmas(1.0, 0.01, 100), generator=generator), 0.01)


class NCSN(Denoiser):
    """NCSN (Song & Ermon, 2019): score = network / sigma, denoising score matching weighted by sigma^2, its own sampler."""

    title = "NCSN, its 1,000 steps"
    title_as_ours = f"NCSN, {FROM_NOISE}"

    def __init__(self, config: Config) -> None:
        high, low = NCSN_SIGMAS
        noise = replace(config.noise, sigma_min=low, sigma_max=high, num_sigmas=NCSN_NUM_SIGMAS, draw="grid")
        super().__init__(replace(config, noise=noise, network=replace(config.network, precondition="none")))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the score."""
        return self.denoise(x, sigma) / append_dims(sigma, x)

    def mean(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Return x + sigma^2 score."""
        level = expand_sigma(sigma, x)
        return x + append_dims(level, x) ** 2 * self(x, level)

    def loss(self, batch: Batch) -> Tensor:
        """Return sigma^2 |score + noise / sigma|^2 / 2, per dimension."""
        score = self(batch.noisy, batch.sigma)
        return 0.5 * (append_dims(batch.sigma, score) * score + batch.noise).square().mean()

    def draw(self, num: int, generator: torch.Generator) -> Tensor:
        """Run annealed Langevin from uniform noise; no denoising step, as published."""
        x = 2 * torch.rand(num, *self.shape, generator=generator) - 1
        sigmas = geometric_sigmas(*NCSN_SIGMAS, NCSN_NUM_SIGMAS).repeat_interleave(NCSN_STEPS)
        return annealed_langevin(self.energy(), x, sigmas, step_size=NCSN_STEP_SIZE, generator=generator)
