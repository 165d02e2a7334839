"""Baselines with a scalar energy on our encoder: IGEBM (contrastive, replay buffer) and MDSM (denoising score matching)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from denoising_ebm.config import Config
from denoising_ebm.networks.layers import NoiseEmbedding
from denoising_ebm.networks.unet import Encoder
from denoising_ebm.noise import append_dims
from denoising_ebm.training.objectives import Batch


class ScalarEnergy(nn.Module):
    """E(x) on the last features c of our encoder f_alpha, all their pixels, without the linear layer of codes.

    It has group norms, which published networks for energies have not.

    Args:
        config: Sizes.
        quadratic: (a.c)(b.c) + d.c^2, the last layer of Li et al. (2019); else a.c, as usual.
    """

    def __init__(self, config: Config, *, quadratic: bool) -> None:
        super().__init__()
        network = config.network
        self.embedding = NoiseEmbedding(network.embedding_dim)
        self.encoder = Encoder(network)
        size = self.encoder.to_code.in_features
        self.encoder.to_code = nn.Identity()  # type: ignore[assignment]
        self.first, self.quadratic = nn.Linear(size, 1), quadratic
        if quadratic:
            self.second, self.square = nn.Linear(size, 1), nn.Linear(size, 1)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Return energies, float32, shape (batch,)."""
        embedding = self.embedding(x.new_zeros(len(x)))  # of no noise level: the energy is one for all
        features = self.encoder(x.contiguous(memory_format=torch.channels_last), embedding)[0].float()
        with torch.autocast(x.device.type, enabled=False):
            if not self.quadratic:
                return self.first(features)[:, 0]
            return (self.first(features) * self.second(features) + self.square(features.square()))[:, 0]

    def gradient(self, x: Tensor, *, create_graph: bool = False) -> Tensor:
        """Return the gradient in x, shape of `x`."""
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self(x).sum(), x, create_graph=create_graph)
        return gradient


class Scalar(nn.Module):
    """Shared by both: the energy and the shape of images."""

    def __init__(self, config: Config, *, quadratic: bool) -> None:
        super().__init__()
        self.config = config
        self.energy = ScalarEnergy(config, quadratic=quadratic)
        self.shape = (config.network.channels, config.network.image_size, config.network.image_size)


class IGEBM(Scalar):
    """Du & Mordatch (2019): short chains from a replay buffer, clipped gradients, cold noise, energies kept small.

    Published settings for CIFAR-10: 60 steps of 10 for images in [0, 1] with noise of 0.005, 5 % of chains restarted,
    gradients clipped to 0.01, squared energies with weight 1, Adam with a rate of 3e-4 from the first step; converted here
    to [-1, 1]. Not as published: our encoder without spectral normalisation, batches of 32 (128) and a buffer of 2,000
    chains (50,000), for the few minutes it gets.
    """

    title = "IGEBM, replay buffer"
    steps, step_size, noise, restart, clip = 60, 40.0, 0.01, 0.05, 0.005

    def __init__(self, config: Config) -> None:
        training = replace(config.training, learning_rate=3e-4, warmup_images=0, betas=(0.0, 0.999))
        training = replace(training, clip_norm=0.1, batch_size=32)
        super().__init__(replace(config, training=training), quadratic=False)
        self.buffer, self.visited = torch.zeros(0, *self.shape), torch.zeros(0, dtype=torch.long)
        self.visits = self.drawn = 0

    def chain(self, x: Tensor, steps: int, generator: torch.Generator) -> Tensor:
        """Run `steps` cold, clipped Langevin steps."""
        for _ in range(steps):
            # Noise comes before the gradient, so that images end without it.
            x = x.detach() + self.noise * torch.randn(x.shape, generator=generator)
            gradient = self.energy.gradient(x).clamp(-self.clip, self.clip)
            x = (x - self.step_size * gradient).clamp(-1, 1)
        return x.detach()

    def starts(self, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return slots of the buffer and where their chains start."""
        slots = torch.randint(max(len(self.buffer), 1), (num,), generator=generator)
        fresh = 2 * torch.rand(num, *self.shape, generator=generator) - 1
        if len(self.buffer) < num:
            return slots, fresh
        again = torch.rand(num, generator=generator) < self.restart
        return slots, torch.where(again[:, None, None, None], fresh, self.buffer[slots])

    def loss(self, batch: Batch) -> Tensor:
        """Return E(data) - E(chain ends) with squared energies."""
        slots, x = self.starts(len(batch.x0), batch.generator)
        x = self.chain(x, self.steps, batch.generator)
        self.visits += 1
        if len(self.buffer) < 2000:
            self.buffer = torch.cat([self.buffer, x])
            self.visited = torch.cat([self.visited, torch.full((len(x),), self.visits)])
        else:
            self.buffer[slots], self.visited[slots] = x, self.visits
        data, chain = self.energy(batch.x0), self.energy(x)
        return data.mean() - chain.mean() + data.square().mean() + chain.square().mean()

    def take_chains(self, other: IGEBM) -> None:
        """Take over the chains of another, which are no weights to average."""
        self.buffer, self.visited, self.visits = other.buffer, other.visited, other.visits

    def draw(self, num: int, generator: torch.Generator) -> Tensor:
        """Go on with chains of the buffer, as published: those that training visited last first, none twice too soon."""
        order = self.visited.argsort(descending=True, stable=True)
        slots = order[(self.drawn + torch.arange(num)) % len(order)]
        self.drawn += num
        return self.chain(self.buffer[slots], self.steps, generator)


class MDSM(Scalar):
    """Li et al. (2019): |x0 - x + s0^2 grad E(x)|^2 over noise levels of one energy, smoothed by s0.

    Levels .05 to 1.2, evenly spaced, and s0 = .1 for images in [0, 1], twice that here. Sampled as published by annealed
    Langevin on E / T from normal noise, T = 100 for a fifth of the steps, then falling to 1 exponentially and to 0, with a
    last denoising step; with 300 steps instead of 2,700, each three times as long, which takes the same diffusion time. Not
    as published: our encoder with its group norms in place of an 18-layer ResNet without (without them it did no better in
    three minutes on CIFAR-10), and a learning rate for minutes (published: 5e-5 for 300,000 steps)
    from the first step.
    """

    title = "MDSM, 300 annealed steps"
    smoothing, steps, step_size = 0.2, 300, 0.12

    def __init__(self, config: Config) -> None:
        training = replace(config.training, learning_rate=1e-3, warmup_images=0, betas=(0.9, 0.95))
        super().__init__(replace(config, training=training), quadratic=True)

    def loss(self, batch: Batch) -> Tensor:
        """Return multiscale denoising score matching, weighted by 1 / sigma^2; the levels are drawn here, evenly."""
        sigma = 0.1 + 2.3 * torch.rand(len(batch.x0), generator=batch.generator)
        x = (batch.x0 + append_dims(sigma, batch.x0) * batch.noise).requires_grad_(True)
        denoised = x - self.smoothing**2 * self.energy.gradient(x, create_graph=True)
        return ((denoised - batch.x0) / append_dims(sigma, x)).square().mean()

    def draw(self, num: int, generator: torch.Generator) -> Tensor:
        """Run annealed Langevin from normal noise."""
        x = 2 * torch.randn(num, *self.shape, generator=generator)
        flat, last = self.steps * 500 // 2700, self.steps * 200 // 2700
        falling = torch.logspace(2, 0, self.steps - flat - last).tolist()
        for temperature in [100.0] * flat + falling + torch.linspace(1, 0, last).tolist():
            noise = (temperature * self.step_size**2) ** 0.5 * torch.randn(x.shape, generator=generator)
            x = x.detach() - 0.5 * self.step_size**2 * self.energy.gradient(x) + noise
        return x - self.smoothing**2 * self.energy.gradient(x)
