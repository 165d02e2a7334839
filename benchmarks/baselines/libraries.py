"""Public libraries beside ours: ebmkit's own image recipe, and torchebm's Langevin sampler on our energy.

pip install ebmkit torchebm
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from denoising_ebm import DenoisingEBM, to_float
from denoising_ebm.config import Config
from denoising_ebm.energies import draw_noise
from denoising_ebm.noise import falling_sigmas


class EbmKit:
    """ebmkit: `ResNetEnergy` trained by persistent contrastive divergence with its documented short-run settings.

    Those of the docstring of its `LangevinDynamics` for images: step 10, noise 0.005, gradients clamped to 0.01, images
    within (-1, 1), 60 steps, chains from uniform noise, in float32. Its averaged weights have no warm-up, so in few minutes
    they would still be those of the start: the last weights are drawn from. Samples go on with the chains of its buffer that
    training has visited: its other slots hold the noise that they were filled with.
    """

    title = "ebmkit, ResNetEnergy by PCD"
    batch_size = 32

    def __init__(self, config: Config, seed: int) -> None:
        import ebm

        torch.manual_seed(seed)
        self.shape = (config.network.channels, config.network.image_size, config.network.image_size)
        self.energy = ebm.nets.ResNetEnergy(self.shape[0], (64, 128, 256), spectral_norm=True)
        self.sampler = ebm.LangevinDynamics(step_size=10.0, steps=60, noise_scale=0.005, grad_clip=0.01, clamp=(-1, 1))
        self.drawn, self.visited = 0, torch.zeros(2000, dtype=torch.bool)
        self.buffer = ebm.ReplayBuffer(2000, self.shape, init_fn=lambda shape: 2 * torch.rand(shape) - 1)
        loss = ebm.ContrastiveDivergence(self.sampler, self.buffer, energy_reg=1.0)
        self.trainer: Any = ebm.Trainer(self.energy, loss, lr=1e-4, device="cpu", grad_clip_norm=0.1)

    def fit(self, pixels: Tensor, minutes: float) -> int:
        """Train for `minutes` with its own trainer; return images seen."""
        data, started, seen = to_float(pixels), time.monotonic(), 0
        while time.monotonic() - started < 60 * minutes:
            self.trainer.fit(data, steps=1, batch_size=self.batch_size, verbose=False)
            self.visited[self.buffer._last_idx] = True
            seen += self.batch_size
        return seen

    def draw(self, num: int, generator: torch.Generator) -> Tensor:
        """Go on with chains of its buffer, one after the other, in float32 as they were trained."""
        chains = self.buffer.data[self.visited]
        slots = (self.drawn + torch.arange(num)) % len(chains)
        self.drawn += num
        with torch.autocast("cpu", enabled=False):
            result: Tensor = self.sampler.sample(self.energy, chains[slots]).detach()
        return result


class TorchEBMChains:
    """torchebm's `LangevinDynamics` driving our energy: one of its steps at each of our noise levels.

    The drift is the denoiser's, as in our own default, and its `noise_scale` is that which reaches the next level.
    """

    title = "our model, torchebm's Langevin sampler"

    def __init__(self, model: DenoisingEBM, steps: int = 40) -> None:
        self.model, self.steps = model, steps

    def draw(self, num: int, generator: torch.Generator) -> Tensor:
        """Anneal from noise of the largest level; steps are eta sigma^2 with eta of the reverse diffusion."""
        from torchebm.core import BaseModel
        from torchebm.samplers import LangevinDynamics

        model, noise = self.model, self.model.config.noise

        class AtLevel(BaseModel):  # type: ignore[misc]
            level = noise.sigma_max

            def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
                return model.energy(x, self.level)

            def gradient(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
                with torch.no_grad():
                    return (x - model.denoise(x, self.level)) / self.level**2

        energy = AtLevel()
        levels = falling_sigmas("karras", noise.sigma_max, noise.sigma_min, self.steps).tolist()
        x = (noise.sigma_max**2 + model.config.network.sigma_data**2) ** 0.5 * draw_noise(
            (num, *model.image_shape), generator, model.jacobian_norm
        )
        for now, after in zip(levels, [*levels[1:], levels[-1]], strict=True):
            energy.level = now
            eta = 1 - (after / now) ** 2
            if eta <= 0:
                break
            # Its noise has variance 2 step_size noise_scale^2.
            scale = ((after**2 - (1 - eta) ** 2 * now**2) / (2 * eta * now**2)) ** 0.5
            sampler = LangevinDynamics(energy, step_size=eta * now**2, noise_scale=scale, device="cpu")
            x = sampler.sample(x=x, n_steps=1, generator=generator)
        return model.denoise(x, noise.sigma_min)
