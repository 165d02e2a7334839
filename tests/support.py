"""What several test files share: a tiny configuration and weights without zeros."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from denoising_ebm.config import (
    Config,
    ContrastiveConfig,
    EnergyConfig,
    NetworkConfig,
    NoiseConfig,
    PixelSampler,
    SamplingConfig,
    SemanticChain,
    TrainingConfig,
    TrainingStage,
)
from denoising_ebm.datasets.images import to_float
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.training.once import train_once

TINY_NETWORK = NetworkConfig(
    image_size=16,
    channels=1,
    widths=(8, 16),
    blocks=1,
    attention=(8,),
    heads=2,
    latent_dim=4,
    decoder_widths=(8, 16),
    embedding_dim=16,
)


def tiny_config(*phases: TrainingStage, **training: object) -> Config:
    """A configuration that trains in milliseconds; fields of `training` replace its own."""
    phases = phases or (TrainingStage("denoising"),)
    by_gradient = any(stage.objective == "score" for stage in phases)
    density = any(stage.objective == "energy" for stage in phases)
    settings = TrainingConfig(
        batch_size=8,
        learning_rate=1e-3,
        warmup_images=0,
        max_images=80,
        log_every=2,
        sample_minutes=0.0,
        holdout=2,
        ema_decay=0.9,
    )
    return Config(
        network=replace(TINY_NETWORK, precondition="energy") if by_gradient else TINY_NETWORK,
        noise=NoiseConfig(sigma_min=0.05, sigma_max=1.0, num_sigmas=16, weighting="edm"),
        energy=EnergyConfig(not by_gradient, denoiser="gradient" if by_gradient else "output", density=density),
        sampling=SamplingConfig(semantic=SemanticChain(steps=2), pixel=PixelSampler(steps=2, sigma_min=0.05)),
        contrastive=ContrastiveConfig(reconstruction_steps=1, semantic_steps=2, texture_steps=2, buffer_size=12),
        training=replace(settings, **training),  # type: ignore[arg-type]
        stages=tuple(phases),
    )


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Draw all parameters, so that layers which start at zero take part too; scaled as 1 / sqrt(inputs)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return module


def random_pixels(num: int, seed: int = 0, size: int = 16, channels: int = 1) -> torch.Tensor:
    """Images with structure: smooth random waves, uint8."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.linspace(0, 3.14159, size)
    frequency = 2 * torch.rand(num, channels, 2, generator=generator)
    stage = 6.28 * torch.rand(num, channels, 1, 1, generator=generator)
    waves = frequency[..., :1, None] * grid[:, None] + frequency[..., 1:, None] * grid[None, :]
    return (127.5 * (1 + torch.sin(waves + stage))).round().clamp(0, 255).to(torch.uint8)


class Projections:
    """A feature extractor that costs nothing: random projections of pixels, by default more than images at tiny scale."""

    name = "random projections"

    def __init__(self, num_features: int = 80) -> None:
        self.num_features = num_features

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        flat = to_float(images).flatten(1)
        directions = torch.randn(flat.shape[1], self.num_features, generator=torch.Generator().manual_seed(1))
        return flat @ directions / flat.shape[1] ** 0.5


def train_shortly(pixels: torch.Tensor, config: Config, *arguments: Any, **options: Any) -> DenoisingEBM:
    """Train as `train_once` does, with a fraction of the images."""
    short = replace(config.training, max_images=128, warmup_images=32)
    return train_once(pixels, replace(config, training=short), *arguments, **options)
