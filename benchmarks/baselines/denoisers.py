"""Baselines that denoise, on our U-Net: a plain DAE, NCSN's score model, and EDM-style diffusion."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from denoising_ebm.config import Config
from denoising_ebm.energies import Energy, TextureEnergy
from denoising_ebm.experiments.samplers import NCSN_LEVELS, NCSN_SIGMAS, NCSN_STEP_SIZE
from denoising_ebm.networks.precondition import DenoisingAutoencoder
from denoising_ebm.noise import append_dims, expand_sigma, falling_sigmas, geometric_sigmas, karras_sigmas, loss_weights
from denoising_ebm.samplers import annealed, heun, texture_chain
from denoising_ebm.training.objectives import Batch

NCSN_STEPS = 100  # at each level, as published


class ScoreDrift(Energy):
    """A score as the drift of our chains: no energy, only the gradient -score."""

    def __init__(self, score: nn.Module) -> None:
        super().__init__(lambda x, sigma: x.new_zeros(len(x)))
        self._score = score

    def gradient(self, x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return zeros and -score(x, sigma)."""
        return x.new_zeros(len(x)), -self._score(x, expand_sigma(sigma, x))


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
        """Return the estimate of E[x0 | x], which chains follow."""
        return self.denoise(x, sigma)

    def chains(self, num: int, generator: torch.Generator) -> Tensor:
        """Draw as `DenoisingEBM.sample` does from noise, with the preset's chains on this method's noise levels."""
        noise, sampling = self.config.noise, self.config.sampling
        high, low = noise.sigma_max, max(noise.sigma_min, sampling.texture_sigma_min)
        x = (high**2 + self.config.network.sigma_data**2) ** 0.5 * torch.randn(num, *self.shape, generator=generator)
        energy = TextureEnergy(self.mean, inner_noise=False, drift="denoiser")
        levels = falling_sigmas(sampling.texture_levels, high, low, sampling.texture_steps)
        x = texture_chain(energy, x, levels, sampling, generator=generator)
        return self.mean(x, low)


class EDM(Denoiser):
    """EDM-style diffusion (Karras et al., 2022): its preconditioning, noise draw and weights; Heun's method, 18 levels.

    Noise levels are those of the preset (0.01 to 10; published: 0.002 to 80).
    """

    title = "EDM-style diffusion, Heun 18"
    chains_title = "EDM-style diffusion, our chains from noise"

    def loss(self, batch: Batch) -> Tensor:
        """Return the weighted denoising loss."""
        weights = loss_weights("edm", batch.sigma, self.config.network.sigma_data)
        error = self.denoise(batch.noisy, batch.sigma) - batch.x0
        return (weights * error.square().flatten(1).mean(1)).mean()

    def draw(self, num: int, generator: torch.Generator) -> Tensor:
        """Draw images from noise of the largest level."""
        noise, data = self.config.noise, self.config.network.sigma_data
        x = (noise.sigma_max**2 + data**2) ** 0.5 * torch.randn(num, *self.shape, generator=generator)
        return heun(self.denoise, x, karras_sigmas(noise.sigma_max, noise.sigma_min, 18))


class PlainDAE(Denoiser):
    """A plain denoising autoencoder: eq. 1 as printed, on the paper's noise range, without preconditioning."""

    title = "plain DAE, 100 Langevin steps from sigma = 1"

    def __init__(self, config: Config) -> None:
        noise = replace(config.noise, sigma_min=0.01, sigma_max=1.0, levels=128, draw="grid", weighting="uniform")
        super().__init__(replace(config, noise=noise, network=replace(config.network, precondition="none")))

    def loss(self, batch: Batch) -> Tensor:
        """Return eq. 1."""
        return (self.denoise(batch.noisy, batch.sigma) - batch.x0).square().mean()

    def draw(self, num: int, generator: torch.Generator) -> Tensor:
        """Run the reverse diffusion from noise of level 1."""

        class Drift(Energy):
            def gradient(inner, x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor]:  # noqa: N805
                level = expand_sigma(sigma, x)
                return x.new_zeros(len(x)), (x - self.denoise(x, level)) / append_dims(level, x) ** 2

        x = (1 + self.config.network.sigma_data**2) ** 0.5 * torch.randn(num, *self.shape, generator=generator)
        drift = Drift(lambda x, sigma: x.new_zeros(len(x)))
        levels = geometric_sigmas(1.0, 0.01, 100)
        return self.denoise(annealed(drift, x, levels, step_size=0.0, consistent=True, generator=generator), 0.01)


class NCSN(Denoiser):
    """NCSN (Song & Ermon, 2019): score = network / sigma, denoising score matching weighted by sigma^2, its own sampler."""

    title = "NCSN, its 1,000 steps"
    chains_title = "NCSN, our chains from noise"

    def __init__(self, config: Config) -> None:
        high, low = NCSN_SIGMAS
        noise = replace(config.noise, sigma_min=low, sigma_max=high, levels=NCSN_LEVELS, draw="grid")
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
        levels = geometric_sigmas(*NCSN_SIGMAS, NCSN_LEVELS).repeat_interleave(NCSN_STEPS)
        return annealed(ScoreDrift(self), x, levels, step_size=NCSN_STEP_SIZE, generator=generator)
